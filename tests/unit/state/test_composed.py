"""Tensors that are composed of others, as the low-bit states of optimizers are."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import return_and_correct_aliasing

from spot_plugins.format.manifest import ManifestError
from spot_plugins.state import OptimizerPart, decode, encode


class Halves(torch.Tensor):
    """Values that are kept as small numbers and a scale, by the protocol that torchao follows."""

    @staticmethod
    def __new__(cls, codes, scale, power):
        return torch.Tensor._make_wrapper_subclass(cls, codes.shape, device=codes.device)

    def __init__(self, codes, scale, power):
        self.codes, self.scale, self.power = codes, scale, power

    def __tensor_flatten__(self):
        return ["codes", "scale"], [self.power]

    @classmethod
    def __tensor_unflatten__(cls, parts, context, size=None, stride=None):
        return cls(*[parts[name] for name in ("codes", "scale")], *context)

    def plain(self):
        return self.codes.float() * self.scale * 2.0**self.power

    @classmethod
    def __torch_dispatch__(cls, function, types, args, kwargs=None):
        kwargs = kwargs or {}
        if function in (torch.ops.aten._to_copy.default, torch.ops.aten.detach.default):
            copied = cls(args[0].codes.clone(), args[0].scale.clone(), args[0].power)
            return return_and_correct_aliasing(function, args, kwargs, copied)
        if function is torch.ops.aten.copy_.default:
            codes = (args[1].plain() if isinstance(args[1], Halves) else args[1]) / args[0].scale / 2.0 ** args[0].power
            args[0].codes.copy_(codes.round())
            return args[0]
        plain = [arg.plain() if isinstance(arg, Halves) else arg for arg in args]
        return function(*plain, **kwargs)

    __repr__ = object.__repr__


class Small(torch.optim.Optimizer):
    """Momentum in a composed tensor."""

    def __init__(self, parameters):
        super().__init__(parameters, {"lr": 0.1})

    @torch.no_grad()
    def step(self, closure=None):
        for parameter in self.param_groups[0]["params"]:
            state = self.state[parameter]
            if not state:
                codes = torch.zeros(parameter.shape, dtype=torch.int8)
                state["momentum"] = Halves(codes, torch.tensor([0.01]), 1)
            momentum = state["momentum"].plain() * 0.9 + parameter.grad
            state["momentum"].copy_(momentum)
            parameter.sub_(state["momentum"].plain(), alpha=0.1)


def stepped(net, optimizer):
    net(torch.ones(1, 3)).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    return [parameter.tolist() for parameter in net.parameters()]


def through_json(state):
    document, tensors = encode(state)
    return json.loads(json.dumps(document)), {name: tensor.clone() for name, tensor in tensors.items()}


def test_the_state_of_an_optimizer_comes_back_with_its_class():
    """
    And the next step is the same.
    """
    net = nn.Linear(3, 2)
    optimizer = Small(net.parameters())
    stepped(net, optimizer)
    document, tensors = through_json(OptimizerPart(optimizer, net).state_dict())
    assert {"state/weight/momentum/codes", "state/weight/momentum/scale"} <= tensors.keys()
    assert tensors["state/weight/momentum/codes"].dtype is torch.int8

    other = nn.Linear(3, 2)
    other.load_state_dict(net.state_dict())
    again = Small(other.parameters())
    OptimizerPart(again, other).load_state_dict(decode(document, tensors))
    momentum = again.state[other.weight]["momentum"]
    assert type(momentum) is Halves
    assert momentum.power == 1
    assert stepped(other, again) == stepped(net, optimizer)


@pytest.mark.parametrize(
    ("module", "name"), [("os", "system"), (__name__, "Small"), ("nowhere", "Tensor"), ("torch", "Tensor")]
)
def test_a_checkpoint_cannot_name_anything_else(module, name):
    """
    Only a class of tensors that the program has imported itself.
    """
    document, tensors = through_json(Halves(torch.zeros(2, dtype=torch.int8), torch.ones(1), 1))
    document["$composed"][1][:2] = [module, name]
    with pytest.raises(ManifestError, match=r"is no class of tensors|malformed"):
        decode(document, tensors)
