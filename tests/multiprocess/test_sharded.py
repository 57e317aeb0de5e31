"""State that is spread over real ranks in every way that torch has: saved by some, loaded by others, bit for bit."""

from __future__ import annotations

import pytest
import torch
from launching import exit_codes, launch
from ports import free_port
from safetensors.torch import load_file
from sharded_ranks import assert_equal, flattened
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from spot_plugins import export_weights
from spot_plugins.export.distributed import export_distributed
from spot_plugins.export.torch_file import export_torch_weights

pytestmark = pytest.mark.sampled

SIMPLE = ("ddp", "fsdp1", "fsdp1-flat", "fsdp2")
SAVERS = [(wrapper, world) for world in (1, 2, 3, 4) for wrapper in SIMPLE] + [
    ("hsdp1", 4),
    ("hsdp2", 4),
    ("no-shard", 2),
    ("tp", 2),
    ("fsdp2+tp", 4),
]


def run_ranks(folder, world, what, *arguments):
    """Run a function of sharded_ranks.py on *world* real processes, all of which must end well."""
    port = free_port()
    outputs = [folder / f"{what}-{rank}.txt" for rank in range(world)]
    ranks = [
        launch("sharded_ranks", (what, rank, world, port, *arguments), environment={}, output=outputs[rank])
        for rank in range(world)
    ]
    codes = exit_codes(ranks, timeout=390)
    assert codes == [0] * world, "\n".join(output.read_text()[-3000:] for output in outputs)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A checkpoint of every way to spread the state, and what torch says is in it."""
    made = {}

    def save(wrapper, world):
        if (wrapper, world) not in made:
            folder = tmp_path_factory.mktemp("saved")
            url, gathered = str(folder / "run"), str(folder / "gathered.pt")
            run_ranks(folder, world, "save", wrapper, url, gathered)
            made[wrapper, world] = (url, gathered, world)
        return made[wrapper, world]

    return save


@pytest.mark.timeout(900)
@pytest.mark.parametrize(("wrapper", "world"), SAVERS, ids=[f"{wrapper} on {world}" for wrapper, world in SAVERS])
def test_what_any_ranks_saved_is_what_other_ranks_load(wrapper, world, saved, tmp_path):
    """
    Saved by every kind of job on 1 to 4 ranks, loaded by every other kind on every other number: weights, buffers and
    the state of both optimizers are, gathered by torch itself, those that were saved, in all bits and types.
    """
    run_ranks(tmp_path, world, "load", wrapper, [saved(*saver) for saver in SAVERS])


@pytest.mark.parametrize(("wrapper", "world"), [(w, n) for w, n in SAVERS if n in (2, 4)], ids=str)
def test_training_goes_on_as_if_it_had_not_stopped(wrapper, world, saved, tmp_path):
    """
    On the same ranks, three steps, a new process and two steps more are five steps, bit for bit.
    """
    run_ranks(tmp_path, world, "go_on", wrapper, *saved(wrapper, world)[:2], str(tmp_path / "unbroken"))


@pytest.mark.parametrize(("wrapper", "world"), SAVERS, ids=[f"{wrapper} on {world}" for wrapper, world in SAVERS])
def test_what_is_exported_is_what_torch_gathers(wrapper, world, saved, tmp_path):
    """
    One process writes the whole weights of any job to usual files: the names, types and bits that torch gathers. Torch
    itself reads them, and the state of both optimizers, from a directory of torch.distributed.checkpoint.
    """
    url, gathered, _ = saved(wrapper, world)

    export_weights(url, tmp_path / "weights.safetensors")
    export_torch_weights(url, tmp_path / "weights.pt")

    model = torch.load(gathered)["model"]
    for found in (load_file(tmp_path / "weights.safetensors"), torch.load(tmp_path / "weights.pt")):
        assert found.keys() == model.keys()
        for name, tensor in model.items():
            assert found[name].dtype == tensor.dtype, name
            assert torch.equal(found[name], tensor), name

    export_distributed(url, tmp_path / "directory")
    dcp_to_torch_save(tmp_path / "directory", tmp_path / "directory.pt")
    read = torch.load(tmp_path / "directory.pt")
    optimizers = {name: value for name, value in flattened(read["optim"]) if "param_groups" not in name}
    assert_equal({"model": read["model"], "optimizers": optimizers}, torch.load(gathered), wrapper)


@pytest.mark.parametrize(("wrapper", "world"), [(w, n) for w, n in SAVERS if n < 3], ids=str)
def test_what_is_exported_moves_in_on_any_ranks(wrapper, world, saved, tmp_path):
    """A run begins with an export of one rank or of two, under DDP or FSDP2: weights and optimizers, bit for bit."""
    exported = []
    for saver in [("ddp", 1), ("fsdp2", 1), ("ddp", 2), ("fsdp2", 2)]:
        url, gathered, _ = saved(*saver)
        (folder := tmp_path / "-".join(map(str, saver))).mkdir()
        export_distributed(url, folder / "old-directory")
        exported.append((str(folder), gathered))

    run_ranks(tmp_path, world, "move_in", wrapper, str(tmp_path / "run"), exported)
