"""Files for torch.load that are written tensor by tensor: the same as those of torch.save."""

from __future__ import annotations

import resource
import zipfile
from collections import OrderedDict, defaultdict, deque
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from golden.training import plain
from stored_models import WAYS, save_model
from torch import nn

from spot_plugins.errors import ConfigError
from spot_plugins.export.stored_state import StoredState
from spot_plugins.export.torch_file import export_torch_weights
from spot_plugins.export.torch_stream import write_state
from spot_plugins.resume.weights import open_weights


def odd_state():
    """One tensor twice, tensors of odd types and shapes, and each container that a state may have."""
    twice = torch.arange(6.0).view(2, 3)
    return {
        "list": [twice, {"again": twice}, (torch.tensor(3, dtype=torch.uint8), torch.empty(0, 4))],
        "deque": deque([torch.ones(3, dtype=torch.bfloat16), 1], maxlen=5),
        "ordered": OrderedDict(z=torch.tensor([True, False]), a=torch.ones(2, dtype=torch.complex64)),
        "default": defaultdict(int, {5: torch.full((2, 2), 7, dtype=torch.int64)}),
        "text": "no tensor",
    }


def test_the_file_is_that_of_torch_save(tmp_path):
    """Of tensors that are read meanwhile, and of those that are there, because values are made from their data."""
    made = {"array": np.arange(4), "complex": torch.ones(3, dtype=torch.complex128), "plain": torch.zeros(5)}
    others = {"odd": odd_state(), "made": made}
    save_model(str(tmp_path / "run"), {"model": nn.Linear(2, 2)}, others=others)
    stored = StoredState(open_weights(str(tmp_path / "run")))

    with (tmp_path / "out").open("xb") as file:
        write_state(file, {name: stored.any_part(name) for name in others}, stored)

    with (tmp_path / "stock").open("xb") as file:
        torch.save(others, file)
    found, stock = (torch.load(tmp_path / name, weights_only=False) for name in ("out", "stock"))
    assert plain(found) == plain(stock)
    assert found["odd"]["list"][0] is found["odd"]["list"][1]["again"]
    assert members(tmp_path / "out") == members(tmp_path / "stock")


def members(path):
    """Return the names and sizes of what is in a file of torch, but for the pickle, which has names of containers."""
    with zipfile.ZipFile(path) as archive:
        return [(each.filename, each.file_size) for each in archive.infolist() if not each.filename.endswith(".pkl")]


@pytest.mark.parametrize(("world_size", "is_spread"), WAYS)
def test_the_weights_are_those_of_the_module(world_size, is_spread, tmp_path):
    """From any number of ranks. torch.load runs no code for them."""
    model = nn.Sequential(nn.Embedding(7, 3), nn.BatchNorm1d(3), nn.Linear(3, 2, dtype=torch.bfloat16))
    save_model(str(tmp_path / "run"), {"model": model}, world_size=world_size, is_spread=is_spread)

    export_torch_weights(str(tmp_path / "run"), tmp_path / "out.pt")

    found = torch.load(tmp_path / "out.pt", weights_only=True)
    assert plain(dict(sorted(found.items()))) == plain(dict(sorted(model.state_dict().items())))


@contextmanager
def largest_file(num_bytes):
    """Let the system refuse what would make a file larger."""
    _, most = before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, most))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("num_bytes", [4096, 600_000], ids=["within torch", "within a tensor"])
def test_a_file_that_cannot_be_written_is_an_error_in_words(num_bytes, tmp_path):
    """torch says no more of it than that a position is unexpected. Nothing is left."""
    model = nn.ModuleList([nn.Linear(1, 10, bias=False) for _ in range(300)] + [nn.Linear(1000, 200)])
    save_model(str(tmp_path / "run"), {"model": model})

    with largest_file(num_bytes), pytest.raises(ConfigError, match=r"out=.* cannot be written: File too large"):
        export_torch_weights(str(tmp_path / "run"), tmp_path / "out.pt")

    assert [path.name for path in tmp_path.iterdir()] == ["run"]
