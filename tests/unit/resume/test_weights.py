"""Weights of a committed step in a usual format, and the list of steps."""

from __future__ import annotations

import json
import os

import pytest
import torch
from hearing import Heard
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from spot_plugins import export_weights, load_weights
from spot_plugins.config import SpotConfig
from spot_plugins.errors import ConfigError, CorruptCheckpointError
from spot_plugins.events import Committed, Kept
from spot_plugins.format.manifest import RankManifest
from spot_plugins.resume.plausible import ITEM_BYTES
from spot_plugins.resume.stored import StoredStep, stored_steps
from spot_plugins.session import SpotSession
from spot_plugins.state.dtypes import DTYPES
from spot_plugins.store import LocalStore
from spot_plugins.testing import run_thread_ranks


class Net(nn.Module):
    """Tied, frozen and half weights, a scalar, an empty tensor, a buffer, and extra state of both kinds."""

    def __init__(self, seed):
        super().__init__()
        torch.manual_seed(seed)
        self.embedding = nn.Embedding(11, 6)
        self.head = nn.Linear(6, 11, bias=False)
        self.head.weight = self.embedding.weight
        self.frozen = nn.Linear(6, 6).requires_grad_(False)
        self.half = nn.Linear(6, 3, dtype=torch.bfloat16)
        self.scale = nn.Parameter(torch.randn(()))
        self.nothing = nn.Parameter(torch.empty(0, 4))
        self.register_buffer("count", torch.tensor([seed, 2, 3], dtype=torch.int64))
        self.register_buffer("mask", torch.tensor([True, False]))

    def get_extra_state(self):
        return {"version": 3}

    def set_extra_state(self, state):
        pass


def save(url, models, steps=(1,), ranks=None, kept=()):
    """Save the models at *steps*; with several, register them as Accelerate does."""
    from spot_plugins.state import ModelPart

    heard = Heard()
    session = SpotSession(SpotConfig(url=url, every_steps=1000, keep_last=9), ranks=ranks, on_event=heard)
    with session:
        for number, model in enumerate(models):
            session.register(f"model-{number}", ModelPart(model), replicated=ModelPart.replicated)
        session.resume()
        for step in steps:
            session.after_step(step)
            session.save(step)
            heard.wait(Committed, step=step)
            if step in kept:
                session.keep(step)
                heard.wait(Kept, step=step)
            with torch.no_grad():
                models[0].scale.add_(1)


def assert_is(found, model):
    """Fail unless *found* is the module's own state, without extra state that is no tensor, in all bits."""
    wanted = {name: value for name, value in model.state_dict().items() if isinstance(value, torch.Tensor)}
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape), name
        assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize("world", [1, 3])
def test_the_file_holds_the_state_of_the_module(world, tmp_path):
    """By name, type and bit, from one rank or several that shared the work; what is no tensor is named."""
    url = str(tmp_path / "run")
    nets = [Net(1) for _ in range(world)]  # threads draw from one random stream
    run_thread_ranks(world, lambda ranks: save(url, [nets[ranks.rank]], ranks=ranks))

    weights = export_weights(url, tmp_path / "out.safetensors")

    assert weights.left_out == ["_extra_state"]
    with safe_open(tmp_path / "out.safetensors", "pt") as file:
        assert file.metadata()["format"] == "pt"
        assert file.metadata()["step"] == "1"
        assert set(file.keys()) == {each.name for each in weights.tensors}
    assert_is({each.name: load_file(tmp_path / "out.safetensors")[each.name] for each in weights.tensors}, Net(1))
    assert_is(load_weights(url), Net(1))
    assert [path.name for path in tmp_path.iterdir() if path.name != "run"] == ["out.safetensors"]


def test_a_step_is_chosen_by_number_or_because_it_is_kept(tmp_path):
    """Without either, it is the newest one."""
    url = str(tmp_path / "run")
    save(url, [Net(1)], [1, 2], kept=[1])

    assert load_weights(url)["scale"] == Net(1).scale + 1
    assert load_weights(url, 1)["scale"] == Net(1).scale
    assert load_weights(url, kept=True)["scale"] == Net(1).scale
    with pytest.raises(ConfigError, match="step=3 is not among the committed steps, which are: 2, 1"):
        load_weights(url, 3)
    with pytest.raises(ConfigError, match="step=2 is not among the kept steps, which are: 1"):
        load_weights(url, 2, kept=True)


def test_of_several_kept_steps_one_is_named(tmp_path):
    """The newest of them need not be the best."""
    url = str(tmp_path / "run")
    save(url, [Net(1)], [1, 2], kept=[1, 2])

    with pytest.raises(ConfigError, match=r"several steps are kept: 2, 1. Give the number of one"):
        load_weights(url, kept=True)


def test_of_several_models_one_is_named(tmp_path):
    """A file that mixes generator and discriminator would fit neither."""
    url = str(tmp_path / "run")
    save(url, [Net(1), Net(2)])

    assert_is(load_weights(url, part="model-1"), Net(2))
    with pytest.raises(ConfigError, match="this run has these models: model-0, model-1"):
        load_weights(url)
    with pytest.raises(ConfigError, match="part='net' is not among the models"):
        load_weights(url, part="net")


def test_damage_is_found_and_nothing_is_left(tmp_path):
    """A flipped bit in a blob: the error names the object, and there is no file, whole or half."""
    url = str(tmp_path / "run")
    save(url, [Net(1)])
    blob = next((tmp_path / "run/steps").glob("*/r*.safetensors"))
    data = bytearray(blob.read_bytes())
    data[-1] ^= 1
    blob.write_bytes(data)

    with pytest.raises(CorruptCheckpointError, match="has changed since it was written: its hash differs"):
        export_weights(url, tmp_path / "out.safetensors")

    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def changed(manifest, **fields):
    """Return *manifest* with other fields in its first shared tensor, with a hash that fits."""
    from dataclasses import replace

    index = next(i for i, each in enumerate(manifest.tensors) if each.shared and each.lengths)
    tensors = [*manifest.tensors]
    tensors[index] = replace(tensors[index], **fields)
    return replace(manifest, tensors=tuple(tensors))


@pytest.mark.parametrize(
    "fields",
    [
        {"start": -8},
        {"stop": 10**12},
        {"lengths": (1, 1)},
        {"shape": (10**9, 10**9)},
        {"blob": 99},
        {"dtype": "PICKLE"},
    ],
    ids=str,
)
def test_a_forged_manifest_is_refused(fields, tmp_path):
    """A stranger who can write to the bucket cannot make a reader take memory or bytes that are not there."""
    url = str(tmp_path / "run")
    save(url, [Net(1)])
    path = next((tmp_path / "run/steps").glob("*/rank-*.json"))
    path.write_bytes(changed(RankManifest.decode(path.read_bytes()), **fields).encode())

    with pytest.raises(CorruptCheckpointError, match="makes no sense"):
        load_weights(url)


def test_a_file_is_never_replaced(tmp_path):
    """The path may be that of another run's weights."""
    url = str(tmp_path / "run")
    save(url, [Net(1)])
    (tmp_path / "out").write_text("mine")

    with pytest.raises(ConfigError, match="exists already"):
        export_weights(url, tmp_path / "out")
    with pytest.raises(ConfigError, match="cannot be written: No such file or directory"):
        export_weights(url, tmp_path / "no" / "out")

    assert (tmp_path / "out").read_text() == "mine"


def test_the_list_says_what_there_is(tmp_path):
    """Newest first, with sizes, and who keeps what. A damaged step is in the list, too."""
    url = str(tmp_path / "run")
    save(url, [Net(1)], [1, 2], kept=[1])
    store = LocalStore(url)
    started = json.loads(store.get("attempts/000001.json"))["started_at"]
    num_bytes = os.path.getsize(next((tmp_path / "run/steps").glob("*2-*/r*.safetensors")))
    num_bytes += sum(os.path.getsize(path) for path in (tmp_path / "run/frozen").glob("*"))

    entry = {"attempt": 1, "world_size": 1, "num_bytes": num_bytes, "started_at": started}
    wanted = [StoredStep(step=2, kept_by=(), **entry), StoredStep(step=1, kept_by=("program",), **entry)]
    assert stored_steps(url) == wanted

    next((tmp_path / "run/steps").glob("*2-*/rank-*.json")).write_bytes(b"{}")
    assert [each.num_bytes for each in stored_steps(url)] == [None, num_bytes]


def test_a_url_without_a_run_is_refused(tmp_path):
    """Nothing is made there."""
    with pytest.raises(ConfigError, match="no committed step"):
        stored_steps(str(tmp_path / "run"))
    assert list(tmp_path.iterdir()) == []


def test_the_sizes_of_elements_are_those_of_torch():
    """The reader without torch has a table of its own."""
    assert {name: dtype.itemsize for dtype, name in DTYPES.items()} == ITEM_BYTES


class Complex(nn.Module):
    """Has numbers that a file of safetensors cannot hold."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(2, dtype=torch.complex128))


def test_a_type_that_the_file_cannot_hold_is_refused(tmp_path):
    """Nothing is written."""
    url = str(tmp_path / "run")
    save(url, [Complex()])

    with pytest.raises(ConfigError, match="scale has a type that no safetensors file can hold"):
        export_weights(url, tmp_path / "out")
    assert not (tmp_path / "out").exists()
