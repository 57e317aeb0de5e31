"""One of three ranks that bring the buckets of DDP into a saved order. Run by test_elastic.py."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from spot_plugins.state import ModelPart

NUM_RANKS = 3
ORDER = [7, 6, 5, 4, 2, 3, 1, 0]  # in which the gradients become ready


def main(what, rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=NUM_RANKS)
    {"same": _compare, "misfit": _misfit}[what](rank)


def _compare(rank):
    """
    The gradients of the first step after a resume are those of the third step of a process, in every bit. Without the
    order of the buckets they are not.
    """
    first, part = _model(bucket_cap_mb=0.001)
    assert "buckets" not in part.state_dict()
    _gradients(first, rank, 0)
    state = part.state_dict()
    expected = [_gradients(first, rank, step) for step in (1, 2)][-1]
    assert part.state_dict()["buckets"] == state["buckets"]
    passed, part = _model(bucket_cap_mb=0.001)
    _gradients(passed, rank, 0)
    _gradients(passed, rank, 1)
    assert part.state_dict()["buckets"] == state["buckets"]
    assert state["buckets"] == ORDER

    resumed, part = _model(bucket_cap_mb=0.001)
    hook = resumed.register_forward_pre_hook(_fail)
    part.load_state_dict(state)
    part.load_state_dict(state)
    hook.remove()
    assert resumed.module[1].num_batches_tracked == 3
    assert all(each.grad is None for each in resumed.parameters())
    assert part.state_dict()["buckets"] == state["buckets"]
    _assert_equal(_gradients(resumed, rank, 2), expected)

    plain, part = _model(bucket_cap_mb=0.001)
    part.load_state_dict({name: value for name, value in state.items() if name != "buckets"})
    assert any(not torch.equal(*pair) for pair in zip(_gradients(plain, rank, 2), expected, strict=True))


def _misfit(rank):
    """An order that does not fit, and a model whose hooks must not see zeros, are left alone."""
    for order, change in (
        ([0, 1], lambda model: None),
        (ORDER, lambda model: model.register_comm_hook(None, _hook)),
        (ORDER, lambda model: model.module[0].weight.register_hook(_fail)),
    ):
        model, part = _model()
        change(model)
        part.load_state_dict({**part.state_dict(), "buckets": order})
        assert "buckets" not in part.state_dict()
    for settings in ({"find_unused_parameters": True}, {"static_graph": True}):
        model, part = _model(**settings)
        part.load_state_dict({**part.state_dict(), "buckets": ORDER})
        _gradients(model, rank, 0)


def _model(**settings):
    torch.manual_seed(1)
    norm = nn.BatchNorm1d(40)  # it has buffers, which DDP broadcasts in each forward
    net = nn.Sequential(nn.Linear(6, 40), norm, nn.Tanh(), nn.Linear(40, 40), nn.Tanh(), nn.Linear(40, 3))
    model = DistributedDataParallel(net, **settings)
    return model, ModelPart(model)


def _gradients(model, rank, step):
    generator = torch.Generator().manual_seed(10 * step + rank)
    model.zero_grad()
    model(torch.randn(8, 6, generator=generator)).square().sum().backward()
    return [each.grad.clone() for each in model.parameters()]


def _assert_equal(ones, others):
    assert all(torch.equal(*pair) for pair in zip(ones, others, strict=True))


def _hook(state, bucket):
    raise AssertionError("no backward here")


def _fail(*arguments):
    raise AssertionError("no backward here")
