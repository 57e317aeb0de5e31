"""The questions of the registry to its parts, and the state that it makes of the answers."""

from __future__ import annotations

import gc

import pytest
import torch
from steps import Holder
from torch import nn

from spot_plugins.errors import UnsafeStateError
from spot_plugins.format.boxes import Box, ShardBoxes, whole
from spot_plugins.state import ModelPart, OptimizerPart, Shard, ShardedPart, register_model
from spot_plugins.state.live_tensor import Changes
from spot_plugins.state.model import LARGE_BYTES
from spot_plugins.state.registry import Registry


class Tensors(ShardedPart):
    """A part that overrides nothing."""

    def __init__(self, state):
        self.state = state

    def state_dict(self):
        return self.state

    def load_state_dict(self, state):
        self.state = state


def registry_of(**parts):
    registry = Registry()
    for name, part in parts.items():
        registry.add(name, part)
    return registry


def changes_in(registry):
    return {name: tensor.changes for name, tensor in registry.capture(1)[1].items()}


def weights_of(*sizes):
    return [nn.Parameter(torch.ones(size)) for size in sizes]


def test_the_defaults_suit_an_object_of_which_nothing_is_known():
    """
    Each rank stores all tensors itself, they may change at any time, they come back whole, to new ranks as well.
    """
    part = Tensors({"a": {"b": torch.ones(2)}, "c": torch.ones(3)})
    registry = registry_of(mine=part)

    _, live = registry.capture(4)
    want = registry.wanted()

    assert {name: (each.boxes, each.changes) for name, each in live.items()} == {
        "mine/a/b": (None, Changes.ANYTIME),
        "mine/c": (None, Changes.ANYTIME),
    }
    assert live["mine/c"].held == (Box((0,), (3,)),)
    assert want("mine/a/b", (2,)) is None
    assert part.for_new_rank(part.state, 3) is part.state


def test_a_sharded_part_names_what_the_ranks_share_and_a_plain_one_has_it_named():
    """
    Tensors below such a key are shared by all ranks; a key in another part, or a tensor that is the value of such a
    key itself, is not.
    """

    class Sharing(Tensors):
        replicated = ("both",)

    state = {"both": {"weight": torch.ones(2, 3)}, "own": {"both": torch.ones(1)}}
    registry = registry_of(sharded=Sharing(state | {"bare": torch.ones(1)}))
    registry.add(
        "plain", Holder({"all/of%it": {"weight": torch.ones(4)}, "bare": torch.ones(5)}), ("all/of%it", "bare")
    )
    registry.add("other", Holder({"both": {"weight": torch.ones(6)}}))

    _, live = registry.capture(2)

    assert {name: each.boxes for name, each in live.items() if each.boxes is not None} == {
        "sharded/both/weight": ShardBoxes((2, 3), (Box((0, 0), (2, 3)),), (0, 1)),
        "plain/all%2Fof%25it/weight": ShardBoxes((4,), (Box((0,), (4,)),), (0, 1)),
    }


def test_a_later_capture_has_nothing_of_the_one_before():
    """
    Names come, go and return, shapes and memory change, a part is added, the job grows: each capture says what is true.
    """
    both = {"weight": torch.ones(2, 3), "bias": torch.ones(3)}
    registry = Registry()
    registry.add("mine", Holder({"both": both}), ("both",))

    def captured(world_size):
        _, live = registry.capture(world_size)
        return {name: (each.tensor.data_ptr(), each.boxes) for name, each in live.items()}

    def expected(world_size):
        return {
            f"mine/both/{key}": (each.data_ptr(), ShardBoxes(tuple(each.shape), (whole(tuple(each.shape)),), ranks))
            for key, each in both.items()
            for ranks in [tuple(range(world_size))]
        }

    assert captured(1) == expected(1)
    assert captured(2) == expected(2)

    del both["weight"]
    both["bias"] = torch.ones(4, dtype=torch.float64)
    assert captured(1) == expected(1)

    both["weight"], own = torch.ones(5), torch.ones(6)
    registry.add("other", Holder({"both": {"weight": own}}))
    assert captured(1) == expected(1) | {"other/both/weight": (own.data_ptr(), None)}


@pytest.mark.parametrize("is_on", [True, False])
def test_the_garbage_collector_pauses_while_a_state_is_captured(is_on):
    """
    Afterwards it is as it was, also if the state cannot be stored.
    """
    seen = []

    class Seeing(Tensors):
        def state_dict(self):
            seen.append(gc.isenabled())
            return super().state_dict()

    part = Seeing({"a": torch.ones(1)})
    registry = registry_of(mine=part)
    was_on = gc.isenabled()
    try:
        gc.enable() if is_on else gc.disable()
        registry.capture(1)
        assert gc.isenabled() == is_on
        part.state = {"a": object()}
        with pytest.raises(UnsafeStateError):
            registry.capture(1)
        assert gc.isenabled() == is_on
    finally:
        gc.enable() if was_on else gc.disable()
    assert seen == [False, False]


def test_a_part_says_when_a_tensor_at_a_path_changes():
    """
    It is asked with the keys that lead to the tensor, as they are written in its name, whatever the part is called.
    """
    asked = {}

    class Knowing(Tensors):
        def changes(self, path, tensor, known):
            asked[path] = tensor
            return Changes.NEVER if path[0] == "old" else super().changes(path, tensor, known)

    state = {"old": {"a/b": torch.ones(1), "c": [torch.ones(2)]}, "new": torch.ones(3)}
    registry = Registry()
    registry.add("100%", Knowing(state))

    assert changes_in(registry) == {
        "100%25/old/a%2Fb": Changes.NEVER,
        "100%25/old/c/0": Changes.NEVER,
        "100%25/new": Changes.ANYTIME,
    }
    assert {path: len(tensor) for path, tensor in asked.items()} == {
        ("old", "a%2Fb"): 1,
        ("old", "c", "0"): 2,
        ("new",): 3,
    }


def test_memory_that_one_part_knows_of_counts_in_all_parts():
    """
    Weights change in the step of the optimizer that trains them; frozen ones never, unless something trains them.
    """
    trained, frozen, both = weights_of(1, 2, 3)

    class Training(Tensors):
        def trained_memory(self):
            return {trained.data_ptr(), both.data_ptr()}

    class Freezing(Tensors):
        def frozen_memory(self):
            return {frozen.data_ptr(), both.data_ptr()}

    registry = registry_of(
        one=Holder({"trained": trained, "frozen": frozen, "both": both, "else": torch.ones(4)}),
        two=Training({}),
        three=Freezing({}),
    )

    assert changes_in(registry) == {
        "one/trained": Changes.IN_STEP,
        "one/frozen": Changes.NEVER,
        "one/both": Changes.IN_STEP,
        "one/else": Changes.ANYTIME,
    }


@pytest.mark.parametrize(("has_hooks", "changes"), [(True, Changes.IN_STEP), (False, Changes.ANYTIME)])
def test_a_model_and_its_optimizer_say_when_they_change(has_hooks, changes):
    """
    Weights and momentum change in a step, if it can be held back; frozen weights and other large extra tensors never;
    buffers, small extra tensors and tensors among the settings at any time.
    """

    class Sgd(torch.optim.SGD):
        def step(self, closure=None):
            return super().step(closure)

    class Extra(nn.Linear):
        def get_extra_state(self):
            trained = model[0].weight.detach()
            large = torch.zeros(LARGE_BYTES, dtype=torch.uint8)
            return {"large": large, "small": torch.zeros(1), "trained": trained.flatten()}

    size = LARGE_BYTES // 4
    model = nn.Sequential(
        nn.Linear(1, size, bias=False), nn.BatchNorm1d(size, affine=False), Extra(size, 1, bias=False)
    )
    model[2].requires_grad_(False)
    optimizer = Sgd(model[0].parameters(), lr=torch.tensor(0.1), momentum=0.9)
    model(torch.ones(2, 1)).sum().backward()
    optimizer.step()
    if not has_hooks:
        Sgd.step = Sgd.step.__wrapped__  # torch puts the hooks around it

    assert changes_in(registry_of(model=ModelPart(model), optimizer=OptimizerPart(optimizer, model))) == {
        "model/parameters/0.weight": changes,
        "model/parameters/2.weight": Changes.NEVER,
        "model/buffers/1.running_mean": Changes.ANYTIME,
        "model/buffers/1.running_var": Changes.ANYTIME,
        "model/buffers/1.num_batches_tracked": Changes.ANYTIME,
        "model/extra/2._extra_state/large": Changes.NEVER,
        "model/extra/2._extra_state/small": Changes.ANYTIME,
        "model/extra/2._extra_state/trained": changes if has_hooks else Changes.NEVER,
        "optimizer/state/0.weight/momentum_buffer": changes,
        "optimizer/param_groups/0/lr": Changes.ANYTIME,
    }


def test_state_that_an_optimizer_has_yet_to_make_is_wanted_as_its_parameter_is_spread(one_rank_mesh):
    """
    Before the first step, momentum comes back in the shard of its parameter. Nothing else does: state of another
    shape, settings, parameters that are not spread, and names that belong to no part here come back whole.
    """
    from torch.distributed.tensor import DTensor, Replicate

    module = nn.Module()
    module.spread = nn.Parameter(DTensor.from_local(torch.ones(2), one_rank_mesh, [Replicate()]))
    module.plain = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.AdamW(module.parameters())

    want = registry_of(model=ModelPart(module), optimizer=OptimizerPart(optimizer, module)).wanted()

    template = want("optimizer/state/spread/exp_avg", (2,))
    assert template.boxes == ShardBoxes((2,), (Box((0,), (2,)),), (0,))
    assert isinstance(template.like(torch.zeros(2)), DTensor)
    assert want("model/parameters/spread", (2,)).boxes == template.boxes
    for name, shape in (
        ("optimizer/state/spread/step", ()),
        ("optimizer/state/plain/exp_avg", (2,)),
        ("optimizer/other/spread/exp_avg", (2,)),
        ("optimizer/state", (2,)),
        ("optimizer", (2,)),
        ("model/parameters/plain", (2,)),
        ("nobody/state/spread/exp_avg", (2,)),
        ("", (2,)),
    ):
        assert want(name, shape) is None, name


def test_a_shard_that_is_there_comes_back_as_it_lies():
    """
    The piece of a tensor in the state is the template of what is read in its place, if the shape is still the same.
    """
    boxes = ShardBoxes((4,), (Box((1,), (2,)),), (0,))
    registry = registry_of(mine=Holder({"both": {"w": Shard(torch.ones(2), boxes)}}))

    want = registry.wanted()

    assert want("mine/both/w", (4,)).boxes is boxes
    assert want("mine/both/w", (5,)) is None


def test_a_users_part_may_adapt_to_a_new_rank():
    """
    A plain object with the method is asked; one without it gets what rank 0 had.
    """

    class Adapting(Holder):
        def for_new_rank(self, state, rank):
            return {**state, "rank": rank}

    parts = dict(registry_of(adapting=Adapting({}), plain=Holder({})).items())

    assert parts["adapting"].for_new_rank({"x": 1}, 3) == {"x": 1, "rank": 3}
    assert parts["plain"].for_new_rank({"x": 1}, 3) == {"x": 1}


@pytest.mark.parametrize("name", ["", "a/b", "__metadata__", "taken"])
def test_a_name_that_no_part_can_have_is_refused(name):
    """
    Names are words that are not taken, and not one that safetensors keeps for itself.
    """
    registry = registry_of(taken=Holder({}))

    with pytest.raises(ValueError, match=r"no name for a part|registered already"):
        registry.add(name, Holder({}))


def test_a_model_is_registered_with_all_that_trains_it():
    """
    The names are those that hosts use, in the order in which a state is loaded; each part gets its state back.
    """

    def training(seed):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
        optimizers = [torch.optim.AdamW(layer.parameters(), lr=0.1 * seed) for layer in model]
        schedulers = [torch.optim.lr_scheduler.StepLR(each, 2) for each in optimizers]
        model(torch.ones(1, 2)).sum().backward()
        for each in (*optimizers, *schedulers):
            each.step()
        registry = Registry()
        register_model(registry.add, model, optimizers, schedulers)
        return registry

    one, other = training(1), training(2)
    for (name, part), (_, source) in zip(other.items(), one.items(), strict=True):
        assert str(part.state_dict()) != str(source.state_dict()), name
        part.load_state_dict(source.state_dict())

    assert [name for name, _ in one.items()] == ["model", "optimizer-0", "optimizer-1", "scheduler-0", "scheduler-1"]
    for (name, part), (_, source) in zip(other.items(), one.items(), strict=True):
        assert str(part.state_dict()) == str(source.state_dict()), name
    _, live = other.capture(2)
    assert all(live[f"model/parameters/{index}.weight"].boxes is not None for index in range(2))
    assert all(live[f"optimizer-{index}/state/{index}.weight/exp_avg"].boxes is not None for index in range(2))
