"""The lines of spot show about a step, and about the difference between two."""

from __future__ import annotations

import math

import pytest
import torch
from steps import save, state_of

from spot_plugins.cli import show as command
from spot_plugins.errors import ConfigError, CorruptCheckpointError
from spot_plugins.format.keys import StepId, blob_key
from spot_plugins.state.dtypes import TORCH_DTYPES
from spot_plugins.store import LocalStore
from spot_plugins.upkeep.compare import _decoder, compare
from spot_plugins.upkeep.tensors import TensorId, step_tensors


@pytest.fixture
def store(tmp_path):
    return LocalStore(str(tmp_path))


def test_a_step_has_the_tensors_of_all_ranks(store, tmp_path):
    """A shared tensor is there once, and a rank's own one for each rank."""
    for rank in (0, 1):
        save(1, store, rank=rank, world_size=2)

    tensors = step_tensors(str(tmp_path), 1).tensors

    assert [str(name) for name in tensors] == [
        "part/both/bias",
        "part/both/weight",
        "part/own/flag of rank 0",
        "part/own/flag of rank 1",
        "part/own/rng of rank 0",
        "part/own/rng of rank 1",
    ]
    weight = tensors[TensorId("part/both/weight", None)]
    assert (weight.dtype, weight.shape, weight.num_bytes) == ("F32", (6, 5), 120)
    with pytest.raises(ConfigError, match="step=9 is not among the committed steps, which are: 1"):
        step_tensors(str(tmp_path), 9)


def test_a_difference_has_tensors_and_values(store, tmp_path):
    """Added, removed, of another dtype or shape, of other bytes; and plain values with their paths."""
    before, after = state_of(1), state_of(1)
    after["both"]["weight"][2, 3] += 0.5
    after["both"]["bias"] = after["both"]["bias"].to(torch.bfloat16)
    after["own"]["rng"] = torch.zeros(4, dtype=torch.int64)
    after["new"] = torch.ones(2)
    del after["own"]["flag"]
    after["step"] = 2
    after["list"] = [1, {"deep": "x"}]
    save(1, store, state=before)
    save(2, store, state=after)

    found = compare(str(tmp_path), 1, 2)

    told = {each.name.name: (each.before, each.after, each.num_items, each.max_abs) for each in found.tensors}
    assert told == {
        "part/both/bias": ("F32[7]", "BF16[7]", None, None),
        "part/both/weight": ("F32[6, 5]", "F32[6, 5]", 1, pytest.approx(0.5)),
        "part/new": (None, "F32[2]", None, None),
        "part/own/flag": ("BOOL[]", None, None, None),
        "part/own/rng": ("I64[3]", "I64[4]", None, None),
    }
    assert found.num_tensors_alike == 0
    values = {each.path: (each.before, each.after) for each in found.values if "$order" not in each.path}
    assert values == {"part/step": (1, 2), "part/list/0": (None, 1), "part/list/1/deep": (None, "x")}


def test_equal_steps_are_the_same_though_ranks_hold_other_pieces(store, tmp_path, capsys):
    """Tensors of one rank, and those that two ranks share, are compared by bytes. Values of ranks are told once."""
    state = state_of(1)
    save(1, store, state=state)
    for rank in (0, 1):
        save(2, store, rank=rank, world_size=2, state={**state, "step": 5})

    found = compare(str(tmp_path), 1, 2)
    command.show(str(tmp_path), diff=(1, 2))

    printed = capsys.readouterr().out
    assert "4 tensors are the same\n" in printed
    assert "saved by 1 ranks -> 2 ranks\n" in printed
    assert found.num_tensors_alike == 4
    assert [str(each.name) for each in found.tensors] == ["part/own/flag of rank 1", "part/own/rng of rank 1"]
    assert [(each.path, each.rank) for each in found.values] == [("part/step", 0)]
    assert found.world_sizes == (1, 2)


@pytest.mark.parametrize("dtype", [name for name, each in TORCH_DTYPES.items() if each.is_floating_point])
def test_the_largest_difference_is_that_of_torch(dtype, store, tmp_path):
    """For each type of floating-point numbers, all values of one byte included."""
    torch_dtype = TORCH_DTYPES[dtype]
    bits = torch.arange(256, dtype=torch.uint8)
    one = bits.view(torch_dtype) if torch_dtype.itemsize == 1 else torch.randn(256).to(torch_dtype)
    numbers = _decoder(dtype)(one.view(torch.uint8).numpy().view(f"u{torch_dtype.itemsize}"))
    assert torch.equal(torch.from_numpy(numbers).nan_to_num(777.0), one.double().nan_to_num(777.0))

    other = torch.ones(256).to(torch_dtype)
    one = torch.zeros(256).to(torch_dtype)
    save(1, store, state={"t": one})
    save(2, store, state={"t": other})
    (found,) = compare(str(tmp_path), 1, 2).tensors
    assert (found.num_items, found.max_abs) == (256, 1.0)


def test_not_a_number_is_not_lost(store, tmp_path):
    """A NaN that appears is the largest difference. One that both steps have is none."""
    save(1, store, state={"t": torch.tensor([1.0, math.nan]), "u": torch.tensor([math.nan, 1.0])})
    save(2, store, state={"t": torch.tensor([math.nan, math.nan]), "u": torch.tensor([math.nan, 3.0])})

    found = {each.name.name: each for each in compare(str(tmp_path), 1, 2).tensors}

    assert math.isnan(found["part/t"].max_abs)
    assert (found["part/u"].num_items, found["part/u"].max_abs) == (1, 2.0)


def test_a_value_that_differs_on_all_ranks_is_told_once(store, tmp_path):
    """A value that only one rank has is told with the rank."""
    for step in (1, 2):
        for rank in (0, 1):
            save(step, store, rank=rank, world_size=2, state={"step": step, "own": step * rank})

    found = compare(str(tmp_path), 1, 2)

    assert [(each.path, each.rank, each.before, each.after) for each in found.values] == [
        ("part/step", 0, 1, 2),
        ("part/own", 1, 1, 2),
    ]


def test_a_text_has_some_of_the_values(store, tmp_path, capsys):
    """And says how many there are more. Long ones are cut."""
    save(1, store, state={"values": list(range(50)), "text": "a"})
    save(2, store, state={"values": list(range(1, 51)), "text": "b" * 100})

    command.show(str(tmp_path), diff=(1, 2))

    printed = capsys.readouterr().out
    assert f'value part/text: "a" -> "{"b" * 56}...\n' in printed
    assert printed.endswith("and 11 more values, which --json has\n")


def test_a_damaged_step_is_not_compared(store, tmp_path):
    """What was compared has the hash of its manifest."""
    save(1, store)
    save(2, store)
    path = tmp_path / blob_key(StepId(2, 1), 0, 0)
    data = bytearray(path.read_bytes())
    data[-10] ^= 1  # of a tensor that differs; what is alike by its hash is not read
    path.write_bytes(data)

    with pytest.raises(CorruptCheckpointError, match="its hash differs"):
        compare(str(tmp_path), 1, 2)


def test_a_large_tensor_is_compared_in_blocks(store, tmp_path):
    """The largest difference may lie in any block."""
    one = torch.zeros(3 * 1024**2)
    other = one.clone()
    other[[0, 1024**2, -1]] = torch.tensor([1.0, -4.0, 2.0])
    save(1, store, state={"t": one})
    save(2, store, state={"t": other})

    (found,) = compare(str(tmp_path), 1, 2).tensors

    assert (found.num_items, found.max_abs) == (3, 4.0)
