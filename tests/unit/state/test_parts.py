from __future__ import annotations

import collections
import json
import random

import accelerate
import lightning.pytorch.core.optimizer
import numpy as np
import peft
import pytest
import safetensors.torch
import torch
from torch import nn

from spot_plugins.errors import UnsafeStateError
from spot_plugins.format.manifest import canonical_json
from spot_plugins.state import ModelPart, OptimizerPart, RngPart, decode, encode
from spot_plugins.state.trained import NamedPiece, state_of_piece


def through_bytes(state):
    """Return the state as a fresh process gets it: from real JSON and real safetensors bytes."""
    document, tensors = encode(state)
    stored = safetensors.torch.save({name: tensor.clone().contiguous() for name, tensor in tensors.items()})
    return decode(json.loads(canonical_json(document)), safetensors.torch.load(stored))


class Net(nn.Module):
    """Convolution, batch norm with buffers, tied weights, a frozen and an unused parameter."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3, padding=1).to(memory_format=torch.channels_last)
        self.norm = nn.BatchNorm2d(4)
        self.inner = nn.Linear(4, 4)
        self.tied = nn.Linear(4, 4)
        self.tied.weight = self.inner.weight
        self.frozen = nn.Linear(4, 4).requires_grad_(False)
        self.unused = nn.Parameter(torch.ones(3))

    def forward(self, images):
        hidden = self.norm(self.conv(images)).relu().mean(dim=(2, 3))
        return self.frozen(self.tied(self.inner(hidden).relu()))


def make_net(seed):
    torch.manual_seed(seed)
    return Net()


def train(module, optimizer, steps):
    """Take *steps*, a range; the data of each step depend on its number alone."""
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        images = torch.randn(4, 2, 4, 4, generator=generator)

        def closure(images=images):
            optimizer.zero_grad()
            loss = module(images).float().square().mean()
            loss.backward()
            return loss

        optimizer.step(closure)


def bits(value):
    """Something equal for two states exactly if types and bits are equal."""
    if isinstance(value, torch.Tensor):
        return (value.dtype, value.device, tuple(value.shape), value.detach().contiguous().view(-1).tolist())
    if isinstance(value, np.ndarray):
        return (value.dtype, value.tolist())
    if isinstance(value, dict):
        return (type(value), {key: bits(item) for key, item in value.items()})
    if isinstance(value, (list, tuple, collections.deque)):
        return (type(value), getattr(value, "maxlen", None), [bits(item) for item in value])
    return (type(value), value)


def parts_of(module, optimizer):
    return {"model": ModelPart(module), "optimizer": OptimizerPart(optimizer, module)}


def save(parts):
    return through_bytes({name: part.state_dict() for name, part in parts.items()})


def load(parts, state):
    for name, part in parts.items():
        part.load_state_dict(state[name])


def tensors_of(state):
    return list(encode(state)[1].values())


def everything(module, optimizer):
    return bits({"model": module.state_dict(), "optimizer": optimizer.state_dict()})


class MixedState(torch.optim.Optimizer):
    """Momentum in float32 whatever the parameter is, and the kinds of state that torch's loading spoils."""

    def __init__(self, params, lr=0.1):
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure):
        with torch.enable_grad():
            closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["momentum"] = torch.zeros_like(parameter, dtype=torch.float32)
                    state["kind"] = "heavy ball"
                    state["steps"] = torch.tensor(0)
                    state["norms"] = collections.deque(maxlen=2)
                    third = torch.tensor(1 / 3, dtype=torch.float64)
                    state["nested"] = collections.OrderedDict(pair=(third, [1, None]))
                assert state["kind"] == "heavy ball"
                state["momentum"].mul_(0.9).add_(parameter.grad.float(), alpha=1 / 3)
                state["steps"] += 1
                state["norms"].append(parameter.grad.double().norm())
                assert state["norms"].maxlen == 2
                parameter.sub_((state["momentum"] * group["lr"]).to(parameter.dtype))


def of_all(optimizer_class, **settings):
    return lambda net: optimizer_class([p for p in net.parameters() if p.requires_grad], **settings)


def lbfgs(net):
    net.conv.to(memory_format=torch.contiguous_format)  # all that LBFGS can do
    return of_all(torch.optim.LBFGS, lr=0.1, max_iter=3, history_size=4)(net)


def in_two_groups(net):
    return torch.optim.AdamW(
        [
            {"params": [*net.conv.parameters(), *net.norm.parameters()], "lr": 0.01, "betas": (0.8, 0.9)},
            {"params": [*net.inner.parameters(), net.tied.bias, net.unused], "weight_decay": 0.1, "tag": "head"},
        ]
    )


OPTIMIZERS = {
    "adam": of_all(torch.optim.Adam, lr=0.01, amsgrad=True),
    "adamw foreach": of_all(torch.optim.AdamW, lr=0.01, foreach=True),
    "adamw fused": of_all(torch.optim.AdamW, lr=0.01, fused=True),
    "adamw with a tensor for lr": of_all(torch.optim.AdamW, lr=torch.tensor(0.01), foreach=False),
    "sgd": of_all(torch.optim.SGD, lr=0.1),
    "sgd momentum": of_all(torch.optim.SGD, lr=0.1, momentum=0.9, nesterov=True),
    "adafactor": of_all(torch.optim.Adafactor, lr=0.01),
    "rmsprop": of_all(torch.optim.RMSprop, lr=0.01, momentum=0.5, centered=True),
    "lbfgs": lbfgs,
    "two groups": in_two_groups,
    "mixed state": of_all(MixedState),
    "named": lambda net: torch.optim.AdamW([(n, p) for n, p in net.named_parameters() if p.requires_grad], lr=0.01),
}


@pytest.mark.parametrize(
    ("optimizer_name", "dtype"),
    [
        *((name, torch.float32) for name in OPTIMIZERS),
        *((name, torch.bfloat16) for name in ("adamw foreach", "lbfgs", "mixed state")),
    ],
)
def test_training_goes_on_bit_for_bit_in_a_fresh_process(optimizer_name, dtype):
    """
    Train, save, load into fresh objects, train on: weights and optimizer state equal those never interrupted.
    """

    def fresh(seed):
        net = make_net(seed).to(dtype)
        net.register_forward_pre_hook(lambda _, args: (args[0].to(dtype),))
        return net, OPTIMIZERS[optimizer_name](net)

    net, optimizer = fresh(seed=1)
    train(net, optimizer, range(3))
    saved = save(parts_of(net, optimizer))
    train(net, optimizer, range(3, 6))

    resumed_net, resumed_optimizer = fresh(seed=2)
    load(parts_of(resumed_net, resumed_optimizer), saved)
    train(resumed_net, resumed_optimizer, range(3, 6))

    assert everything(resumed_net, resumed_optimizer) == everything(net, optimizer)


def test_the_saved_names_are_those_of_the_module():
    """
    Parameters, buffers and optimizer state carry the module's names; nothing else is saved.
    """
    net = make_net(1)
    optimizer = in_two_groups(net)
    train(net, optimizer, range(1))

    model, state = ModelPart(net).state_dict(), OptimizerPart(optimizer, net).state_dict()

    assert {*model["parameters"]} == {name for name, _ in net.named_parameters(remove_duplicate=False)}
    assert {*model["buffers"]} == {"norm.running_mean", "norm.running_var", "norm.num_batches_tracked"}
    assert model["extra"] == {}
    assert [group["params"] for group in state["param_groups"]] == [
        ["conv.weight", "conv.bias", "norm.weight", "norm.bias"],
        ["inner.weight", "inner.bias", "tied.bias", "unused"],
    ]
    assert "unused" not in state["state"]  # no gradient ever, no state
    assert {*state["state"]["conv.weight"]} == {"step", "exp_avg", "exp_avg_sq"}


def test_tied_weights_are_stored_once():
    """
    A weight in two places of the model costs its bytes once, and the optimizer knows it by the first name.
    """
    net = make_net(1)
    optimizer = torch.optim.SGD([net.tied.weight], lr=0.1)

    document, tensors = encode(ModelPart(net).state_dict())

    assert document["parameters"]["tied.weight"] == {"$tensor": "parameters/inner.weight"}
    assert "parameters/tied.weight" not in tensors
    assert OptimizerPart(optimizer, net).state_dict()["param_groups"][0]["params"] == ["inner.weight"]


def test_replicated_names_what_ranks_share():
    """
    Parameters and optimizer state are the same on all ranks; buffers, settings and generators may differ.
    """
    assert (ModelPart.replicated, OptimizerPart.replicated, RngPart.replicated) == (("parameters",), ("state",), ())


def test_state_dicts_refer_to_the_live_tensors():
    """
    Taking the state copies nothing: the tensors are those that training goes on to change.
    """
    net = make_net(1)
    optimizer = in_two_groups(net)
    train(net, optimizer, range(1))

    model, state = ModelPart(net).state_dict(), OptimizerPart(optimizer, net).state_dict()

    assert model["parameters"]["conv.weight"].data_ptr() == net.conv.weight.data_ptr()
    assert model["buffers"]["norm.running_mean"].data_ptr() == net.norm.running_mean.data_ptr()
    assert state["state"]["conv.weight"]["exp_avg"] is optimizer.state[net.conv.weight]["exp_avg"]


# Loading --------------------------------------------------------------------------------------------------


def test_loading_changes_values_but_not_the_tensors():
    """
    Optimizers and DDP hold references to the module's tensors; they stay the same objects and memory.
    """
    net, other = make_net(1), make_net(2)
    before = {name: (id(t), t.data_ptr()) for name, t in [*net.named_parameters(), *net.named_buffers()]}

    ModelPart(net).load_state_dict(save({"model": ModelPart(other)})["model"])

    after = {name: (id(t), t.data_ptr()) for name, t in [*net.named_parameters(), *net.named_buffers()]}
    assert after == before
    assert bits(net.state_dict()) == bits(other.state_dict())
    assert net.conv.weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("make_optimizer", [in_two_groups, of_all(MixedState)], ids=["adamw", "mixed"])
def test_an_optimizer_keeps_nothing_of_what_it_was_given(make_optimizer):
    """
    Loaded state may lie in memory that is reused; training on must neither read nor write it.
    """
    net = make_net(1)
    optimizer = make_optimizer(net)
    train(net, optimizer, range(1))
    part = OptimizerPart(optimizer, net)
    given = through_bytes(part.state_dict())
    before = bits(given)

    part.load_state_dict(given)
    train(net, optimizer, range(1, 3))

    assert bits(given) == before


@pytest.mark.parametrize("make_optimizer", [in_two_groups, of_all(MixedState)], ids=["adamw", "mixed"])
def test_an_optimizer_keeps_what_is_given_away_and_needs_no_change(make_optimizer):
    """
    After a resume the memory that was read is the state, without a second copy, and training goes on the same.
    """
    net, other = make_net(1), make_net(1)
    optimizer, other_optimizer = make_optimizer(net), make_optimizer(other)
    train(net, optimizer, range(1))
    saved = save({"model": ModelPart(net), "optimizer": OptimizerPart(optimizer, net)})
    given = {each.data_ptr() for each in tensors_of(saved["optimizer"]["state"]) if each.is_contiguous() and each.ndim}

    ModelPart(other).take_state_dict(saved["model"])
    OptimizerPart(other_optimizer, other).take_state_dict(saved["optimizer"])

    kept = {each.data_ptr() for each in tensors_of(OptimizerPart(other_optimizer, other).state_dict()["state"])}
    assert len(given & kept) > len(given) / 2
    assert other_optimizer.state[other.conv.weight].keys() == optimizer.state[net.conv.weight].keys()
    for one, another in ((net, optimizer), (other, other_optimizer)):
        train(one, another, range(1, 3))
    assert everything(other, other_optimizer) == everything(net, optimizer)


def test_a_setting_that_is_a_tensor_goes_to_the_device_where_it_was():
    """
    A learning rate on a GPU is stored without its device, and is on the GPU again after loading.
    """
    net = make_net(1)
    part = OptimizerPart(torch.optim.SGD(net.inner.parameters(), lr=torch.tensor(0.1)), net)
    saved = through_bytes(part.state_dict())
    other_device = torch.tensor(0.2, device="meta")  # the one device beside the CPU that is everywhere
    optimizer = torch.optim.SGD(net.inner.parameters(), lr=0.1)
    optimizer.param_groups[0]["lr"] = other_device

    OptimizerPart(optimizer, net).load_state_dict(saved)

    assert optimizer.param_groups[0]["lr"].device == other_device.device


class OwnLoading(torch.optim.AdamW):
    """Overrides the method that loads, as many optimizers do, and makes copies, as moving to a GPU does."""

    def load_state_dict(self, state):
        super().load_state_dict(state)
        for tensors in self.state.values():
            tensors.update({key: tensor.clone() for key, tensor in tensors.items()})


@pytest.mark.parametrize("make_optimizer", [of_all(torch.optim.AdamW), of_all(OwnLoading)], ids=["plain", "own"])
def test_optimizer_state_has_the_memory_layout_of_its_parameter(make_optimizer):
    """
    A checkpoint has only values; state of a channels-last weight is channels-last again.
    """
    net = make_net(1)
    optimizer = make_optimizer(net)
    train(net, optimizer, range(1))
    part = OptimizerPart(optimizer, net)

    part.load_state_dict(through_bytes(part.state_dict()))

    assert optimizer.state[net.conv.weight]["exp_avg"].stride() == net.conv.weight.stride()


def test_what_an_optimizer_converts_while_it_loads_stays_converted():
    """
    Only what torch itself does to loaded state is undone, not what the optimizer's own hooks do.
    """
    net = make_net(1)
    optimizer = torch.optim.SGD(net.inner.parameters(), lr=0.1, momentum=0.9)
    train(net, optimizer, range(1))
    part = OptimizerPart(optimizer, net)

    def flatten(optimizer):
        for state in optimizer.state.values():
            state["momentum_buffer"] = state["momentum_buffer"].flatten()

    optimizer.register_load_state_dict_post_hook(flatten)
    part.load_state_dict(through_bytes(part.state_dict()))

    assert optimizer.state[net.inner.weight]["momentum_buffer"].shape == (16,)


def test_an_optimizer_that_has_not_stepped_stays_empty():
    """
    No state is invented by saving or loading, and old state does not survive a load.
    """
    net = make_net(1)
    optimizer = in_two_groups(net)
    empty = save({"optimizer": OptimizerPart(optimizer, net)})["optimizer"]
    assert empty["state"] == {}

    train(net, optimizer, range(1))
    OptimizerPart(optimizer, net).load_state_dict(empty)

    assert not optimizer.state


def test_the_order_of_parameters_does_not_matter():
    """
    State goes to the parameter of that name, wherever the new optimizer has it.
    """
    net = make_net(1)
    optimizer = torch.optim.AdamW([net.inner.weight, net.conv.bias, net.inner.bias])
    train(net, optimizer, range(2))
    saved = through_bytes(OptimizerPart(optimizer, net).state_dict())

    reordered = torch.optim.AdamW([net.inner.bias, net.inner.weight, net.conv.bias])
    part = OptimizerPart(reordered, net)
    part.load_state_dict(saved)

    assert bits(part.state_dict()["state"]) == bits(saved["state"])
    assert bits(reordered.state[net.conv.bias]) == bits(optimizer.state[net.conv.bias])


def test_a_parameter_outside_of_the_module_has_a_name_by_position():
    """
    A loss with a learned temperature, say, is saved although the module does not know it.
    """
    net = make_net(1)
    outside = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([{"params": [net.conv.bias]}, {"params": [net.unused, outside]}], momentum=0.9)
    outside.grad = torch.ones(2)
    optimizer.step()
    part = OptimizerPart(optimizer, net)

    saved = through_bytes(part.state_dict())
    optimizer.state.clear()
    part.load_state_dict(saved)

    assert [group["params"] for group in saved["param_groups"]] == [["conv.bias"], ["unused", "unnamed.1.1"]]
    assert bits(optimizer.state[outside]["momentum_buffer"]) == bits(torch.ones(2))


# Misfits --------------------------------------------------------------------------------------------------


def renamed(named):
    named["other.weight"] = named.pop("conv.weight")


def retyped(named):
    named["conv.weight"] = named["conv.weight"].double()


def reshaped(named):
    named["conv.bias"] = named["conv.bias"][:2]


def untensored(named):
    named["conv.bias"] = [0.0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (renamed, r"the saved model does not fit: missing \['conv.weight'\], unexpected \['other.weight'\]"),
        (retyped, r"conv.weight is float32\[4, 2, 3, 3\], saved as float64\[4, 2, 3, 3\]"),
        (reshaped, r"conv.bias is float32\[4\], saved as float32\[2\]"),
        (untensored, r"conv.bias is float32\[4\], saved as list"),
    ],
)
def test_a_model_that_does_not_fit_is_refused_before_anything_changes(change, message):
    """
    Missing, unexpected and other tensors are all named, and the module is as it was.
    """
    saved = save({"model": ModelPart(make_net(1))})["model"]
    change(saved["parameters"])
    net = make_net(2)
    before = bits(net.state_dict())

    with pytest.raises(ValueError, match=message):
        ModelPart(net).load_state_dict(saved)

    assert bits(net.state_dict()) == before


def test_an_optimizer_that_does_not_fit_is_refused_before_anything_changes():
    """
    Another number of groups, or other parameters in one, are named, and the optimizer is as it was.
    """
    net = make_net(1)
    optimizer = in_two_groups(net)
    train(net, optimizer, range(1))
    saved = save({"optimizer": OptimizerPart(optimizer, net)})["optimizer"]
    other = torch.optim.AdamW([{"params": [net.conv.weight]}, {"params": [net.unused, net.frozen.bias]}])

    with pytest.raises(ValueError, match=r"group 0 of the optimizer does not fit: missing \[\], unexpected \['conv.b"):
        OptimizerPart(other, net).load_state_dict(saved)
    with pytest.raises(ValueError, match="has 1 parameter groups, saved were 2"):
        OptimizerPart(of_all(torch.optim.AdamW)(net), net).load_state_dict(saved)
    assert not other.state


# Modules with a will of their own -------------------------------------------------------------------------


class Counting(nn.Module):
    """Has extra state, a buffer that is not persistent, and state-dict hooks that rename its weight."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2))
        self.register_buffer("scratch", torch.zeros(2), persistent=False)
        self.calls = {"seen": 0}
        self.register_state_dict_post_hook(self._rename)
        self.register_load_state_dict_pre_hook(self._rename_back)

    def get_extra_state(self):
        return self.calls

    def set_extra_state(self, state):
        self.calls = state

    @staticmethod
    def _rename(module, state, prefix, local_metadata):
        state[prefix + "w"] = state.pop(prefix + "weight")

    @staticmethod
    def _rename_back(module, state, prefix, *args):
        state[prefix + "weight"] = state.pop(prefix + "w")


def test_hooks_and_extra_state_of_modules_are_respected():
    """
    What is saved is what the module itself calls its state, and it gets it back its own way.
    """
    source = nn.Sequential(Counting(), nn.Linear(2, 2))
    source[0].calls = {"seen": 7, 1: (2,)}
    source[0].weight.data.fill_(3)
    target = nn.Sequential(Counting(), nn.Linear(2, 2))

    saved = save({"model": ModelPart(source)})["model"]
    ModelPart(target).load_state_dict(saved)

    assert {*saved["parameters"]} == {"1.weight", "1.bias"}
    assert {*saved["extra"]} == {"0.w", "0._extra_state"}
    assert target[0].calls == {"seen": 7, 1: (2,)}
    assert target[0].calls is not saved["extra"]["0._extra_state"]
    assert bits(target[0].weight) == bits(source[0].weight)


class OnlyHead(nn.Module):
    """Keeps its frozen backbone out of its state on purpose, as Lightning modules with strict_loading=False do."""

    def __init__(self):
        super().__init__()
        self.backbone, self.head = nn.Linear(2, 2), nn.Linear(2, 2)

    def state_dict(self, *args, **kwargs):
        state = super().state_dict(*args, **kwargs)
        return {name: value for name, value in state.items() if not name.startswith("backbone")}


def test_a_module_may_leave_parameters_out_of_its_state():
    """
    What the module leaves out when it saves is not missed when it loads.
    """
    source, target = OnlyHead(), OnlyHead()
    backbone = bits(target.backbone.weight)

    ModelPart(target).load_state_dict(save({"model": ModelPart(source)})["model"])

    assert bits(target.head.weight) == bits(source.head.weight)
    assert bits(target.backbone.weight) == backbone


def test_versions_of_modules_are_kept():
    """
    A module sees the version it saved with; without one it would convert its state as if it were ancient.
    """
    versions = []

    class Versioned(nn.Linear):
        _version = 3

        def _load_from_state_dict(self, state, prefix, local_metadata, *args):
            versions.append(local_metadata.get("version"))
            super()._load_from_state_dict(state, prefix, local_metadata, *args)

    part = ModelPart(Versioned(2, 2))
    part.load_state_dict(part.state_dict())

    assert versions == [3]


# Wrappers -------------------------------------------------------------------------------------------------


def compiled(net):
    return torch.compile(net)


def with_compiled_block(net):
    net.inner = torch.compile(net.inner)
    return net


def in_ddp(net):
    return nn.parallel.DistributedDataParallel(net)


def in_ddp_and_compiled(net):
    return torch.compile(nn.parallel.DistributedDataParallel(net))


@pytest.fixture
def _one_rank():
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("_one_rank")
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated")  # torch.compile's own imports
@pytest.mark.parametrize("wrap", [compiled, with_compiled_block, in_ddp, in_ddp_and_compiled])
def test_a_wrapped_module_is_saved_as_the_plain_one(wrap):
    """
    DDP and torch.compile do not show in the names, so a checkpoint fits with and without them.
    """
    net, other = make_net(1), wrap(make_net(2))
    plain = save(parts_of(net, of_all(torch.optim.AdamW)(net)))

    optimizer = of_all(torch.optim.AdamW)(other)
    load(parts_of(other, optimizer), plain)

    assert bits(save(parts_of(other, optimizer))) == bits(plain)


def test_an_averaged_model_is_not_taken_for_a_wrapper():
    """
    A module that merely has a ``module`` is saved with what it adds.
    """
    averaged = torch.optim.swa_utils.AveragedModel(nn.Linear(2, 2))

    state = ModelPart(averaged).state_dict()

    assert {*state["parameters"]} == {"module.weight", "module.bias"}
    assert {*state["buffers"]} == {"n_averaged"}


def in_accelerate(optimizer):
    return accelerate.Accelerator(cpu=True).prepare_optimizer(optimizer)


def in_lightning(optimizer):
    return lightning.pytorch.core.optimizer.LightningOptimizer(optimizer)


@pytest.fixture
def _no_accelerate_state():
    yield
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.usefixtures("_no_accelerate_state")
@pytest.mark.parametrize("wrap", [in_accelerate, in_lightning])
def test_a_hosts_wrapper_of_an_optimizer_is_looked_through(wrap):
    """
    State goes to and comes from the optimizer that steps, not from the wrapper around it.
    """
    net = make_net(1)
    optimizer = in_two_groups(net)
    train(net, optimizer, range(1))
    plain = OptimizerPart(optimizer, net)
    saved = through_bytes(plain.state_dict())

    wrapped = OptimizerPart(wrap(optimizer), net)
    assert bits(wrapped.state_dict()) == bits(saved)
    optimizer.state.clear()
    wrapped.load_state_dict(saved)

    assert bits(plain.state_dict()) == bits(saved)


class Lookahead(torch.optim.Optimizer):
    """An optimizer around another, with state of its own and a third key in its state dict."""

    def __init__(self, optimizer):
        self.optimizer = optimizer
        super().__init__(optimizer.param_groups, {})
        self.slow = [torch.tensor(0.5)]

    def state_dict(self):
        return {**self.optimizer.state_dict(), "slow": self.slow}

    def load_state_dict(self, state):
        self.slow = state["slow"]
        self.optimizer.load_state_dict({key: state[key] for key in ("state", "param_groups")})


def test_an_optimizer_around_another_saves_what_it_adds():
    """
    A wrapper with state of its own is no host's wrapper: its overrides of both methods count.
    """
    net = make_net(1)
    optimizer = Lookahead(in_two_groups(net))
    train(net, optimizer.optimizer, range(1))
    part = OptimizerPart(optimizer, net)
    saved = through_bytes(part.state_dict())

    optimizer.slow = []
    optimizer.optimizer.state.clear()
    part.load_state_dict(saved)

    assert bits(part.state_dict()) == bits(saved)
    assert not optimizer.state  # nothing is put where the wrapper has nothing
    optimizer.slow[0] += 1
    assert saved["slow"][0] == 0.5  # and nothing that was given is kept


def test_a_lora_model_resumes_bit_for_bit():
    """
    peft's adapters and the frozen weights below them are saved and restored under peft's own names.
    """

    def fresh(seed):
        net = peft.get_peft_model(make_net(seed), peft.LoraConfig(r=2, target_modules=["inner"]))
        return net, torch.optim.AdamW([p for p in net.parameters() if p.requires_grad], lr=0.01)

    net, optimizer = fresh(1)
    train(net, optimizer, range(2))
    saved = save(parts_of(net, optimizer))
    train(net, optimizer, range(2, 4))
    resumed, resumed_optimizer = fresh(2)
    load(parts_of(resumed, resumed_optimizer), saved)
    train(resumed, resumed_optimizer, range(2, 4))

    assert "base_model.model.inner.lora_A.default.weight" in saved["optimizer"]["state"]
    assert everything(resumed, resumed_optimizer) == everything(net, optimizer)


# Random numbers -------------------------------------------------------------------------------------------


def draw():
    np_numbers = [*np.random.rand(2).tolist(), np.random.randn()]  # randn keeps a second number back
    return [random.random(), random.gauss(0, 1), np_numbers, torch.rand(2).tolist(), torch.randn(3).tolist()]


def test_random_numbers_go_on_where_they_were():
    """
    Python, numpy and torch draw after a load what they would have drawn, down to numbers kept back.
    """
    random.seed(1)
    np.random.seed(2)
    torch.manual_seed(3)
    draw()
    part = RngPart()
    saved = through_bytes(part.state_dict())
    expected = [draw(), draw()]

    random.seed(7)
    np.random.seed(8)
    torch.manual_seed(9)
    part.load_state_dict(saved)

    assert [draw(), draw()] == expected


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about a machine without CUDA")
def test_random_state_of_absent_devices_is_left_alone():
    """
    A checkpoint from a machine with eight devices loads on one without any.
    """
    part = RngPart()
    saved = part.state_dict()
    assert saved["cuda"] == []
    waiting = len(torch.cuda._queued_calls)  # what torch would do, and fail at, once CUDA is used

    part.load_state_dict({**saved, "cuda": [torch.zeros(16, dtype=torch.uint8)] * 8})

    assert bits(part.state_dict()) == bits(saved)
    assert len(torch.cuda._queued_calls) == waiting


def test_a_new_rank_gets_streams_of_its_own():
    """
    They are the same every time and on no two ranks; and they are streams, which can be restored and drawn from.
    """
    part = RngPart()
    state = part.state_dict()

    draws = []
    for rank in (4, 5, 4):
        part.load_state_dict(part.for_new_rank(state, rank))
        draws.append((random.random(), np.random.rand(), torch.rand(1).item()))
    part.load_state_dict(state)

    assert draws[0] == draws[2]
    assert not set(draws[0]) & set(draws[1])
    assert len(set(draws[0])) == 3


def test_the_state_of_an_optimizer_in_another_shape_cannot_be_saved(one_rank_mesh):
    """
    Its pieces on the ranks are not those of the parameter.
    """
    from torch.distributed.tensor import DTensor, Replicate

    parameter = torch.ones(2)
    other = DTensor.from_local(torch.ones(3), one_rank_mesh, [Replicate()])
    with pytest.raises(UnsafeStateError, match="weight/average' is a DTensor of another shape than its parameter"):
        state_of_piece({"average": other}, parameter, NamedPiece("weight"))
