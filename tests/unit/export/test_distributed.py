"""Directories of torch.distributed.checkpoint: dcp.load gives a training the state of the stored one."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.distributed.checkpoint as dcp
from stored_models import WAYS, damage, save_model
from torch import nn
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

from spot_plugins.errors import ConfigError, CorruptCheckpointError
from spot_plugins.export import distributed
from spot_plugins.export.distributed import export_distributed

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")


class Net(nn.Module):
    """Tied, frozen and half weights, a buffer, a scalar, and extra state that is no tensor."""

    def __init__(self, seed):
        super().__init__()
        torch.manual_seed(seed)
        self.embedding = nn.Embedding(5, 3)
        self.head = nn.Linear(3, 5, bias=False)
        self.head.weight = self.embedding.weight
        self.frozen = nn.Linear(3, 3).requires_grad_(False)
        self.mixed = nn.Linear(3, 3, dtype=torch.bfloat16)
        self.narrow = nn.Linear(5, 1)
        self.scale = nn.Parameter(torch.randn(()))
        self.register_buffer("count", torch.tensor(seed))
        self.version = seed

    def forward(self, x):
        hidden = self.mixed(self.frozen(self.embedding(x)).bfloat16()).float()
        return self.narrow(self.head(hidden * self.scale))

    def get_extra_state(self):
        return {"version": self.version}

    def set_extra_state(self, state):
        self.version = state["version"]


class Training:
    """A model with two optimizers and a scheduler, which has trained some steps."""

    def __init__(self, seed, num_steps=0):
        self.model = Net(seed)
        half = [*self.model.mixed.parameters()]
        others = [self.model.embedding.weight, self.model.scale, *self.model.narrow.parameters()]
        self.optimizers = [torch.optim.AdamW(others, lr=0.1), torch.optim.SGD(half, lr=0.1, momentum=0.9)]
        self.train(num_steps)

    def train(self, num_steps):
        for number in range(num_steps):
            self.model(torch.tensor([number % 5, 1])).square().sum().backward()
            for optimizer in self.optimizers:
                optimizer.step()
                optimizer.zero_grad()

    def load(self, folder):
        model, optimizers = get_state_dict(self.model, self.optimizers)
        state = {"model": model, "optim": optimizers}
        dcp.load(state, checkpoint_id=folder)
        set_state_dict(self.model, self.optimizers, model_state_dict=state["model"], optim_state_dict=state["optim"])


def assert_equal(one, other):
    assert one.keys() == other.keys()
    for name, value in other.items():
        if isinstance(value, torch.Tensor):
            assert (one[name].dtype, one[name].shape) == (value.dtype, value.shape), name
            assert torch.equal(one[name], value), name
        else:
            assert one[name] == value, name


@pytest.mark.parametrize(("world_size", "is_spread"), WAYS)
def test_a_training_continues_from_the_directory(world_size, is_spread, tmp_path):
    """Weights and optimizers are those of the stored training, bit for bit, and after two more steps they still are."""
    trained = Training(1, num_steps=3)
    save_model(
        tmp_path / "run", {"model": trained.model}, trained.optimizers, world_size=world_size, is_spread=is_spread
    )

    result = export_distributed(str(tmp_path / "run"), tmp_path / "out")

    found = Training(2)
    found.load(tmp_path / "out")
    for _ in range(2):
        assert_equal(found.model.state_dict(), trained.model.state_dict())
        for one, other in zip(found.optimizers, trained.optimizers, strict=True):
            assert one.param_groups[0]["lr"] == other.param_groups[0]["lr"]
            for index, state in other.state_dict()["state"].items():
                assert_equal(one.state_dict()["state"][index], state)
        for each in (found, trained):
            each.train(1)
    assert result.num_tensors == 10 + 12 + 2  # of the model, of AdamW, of SGD
    assert result.notes == ()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "run"]


def test_one_of_several_models_has_no_optimizer(tmp_path):
    """Nothing says which optimizer trains it. A module of a model has none, either. The result tells."""
    trained = Training(1, num_steps=1)
    save_model(tmp_path / "run", {"model-0": trained.model, "model-1": Net(3)}, trained.optimizers)

    results = [
        export_distributed(str(tmp_path / "run"), tmp_path / "whole", part="model-1"),
        export_distributed(str(tmp_path / "run"), tmp_path / "half", part="model-1", module="mixed"),
    ]

    for each in results:
        assert each.notes == ("the optimizers train more than these weights, so their state is left out",)
    state = {"model": dict(Net(2).state_dict())}
    dcp.load(state, checkpoint_id=tmp_path / "whole")
    assert_equal(state["model"], Net(3).state_dict())
    half = {"model": dict(Net(2).mixed.state_dict())}
    dcp.load(half, checkpoint_id=tmp_path / "half")
    assert_equal(half["model"], Net(3).mixed.state_dict())
    assert len(dcp.FileSystemReader(tmp_path / "half").read_metadata().state_dict_metadata) == 2


def test_nothing_is_left_if_it_fails(tmp_path):
    """A damaged blob, a folder that exists, a state of an optimizer with complex128: no folder, and one clear error."""
    trained = Training(1, num_steps=1)
    save_model(tmp_path / "run", {"model": trained.model}, trained.optimizers)
    state = {"state": {"scale": {"mean": torch.ones(2, dtype=torch.complex128)}}, "param_groups": []}
    save_model(tmp_path / "complex", {"model": trained.model}, others={"optimizer-0": state})
    save_model(tmp_path / "forged", {"model": trained.model}, others={"optimizer-0": {"state": 3, "param_groups": 4}})
    damage(tmp_path / "run")

    with pytest.raises(CorruptCheckpointError, match="has changed since it was written: its hash differs"):
        export_distributed(str(tmp_path / "run"), tmp_path / "out")
    with pytest.raises(ConfigError, match=r"exists already: give the path of a new file or folder"):
        export_distributed(str(tmp_path / "run"), tmp_path / "run")
    with pytest.raises(ConfigError, match=r"optimizer-0 has values that the output cannot hold: \$complex128"):
        export_distributed(str(tmp_path / "complex"), tmp_path / "out")
    with pytest.raises(CorruptCheckpointError, match="holds unreadable state: TypeError"):
        export_distributed(str(tmp_path / "forged"), tmp_path / "out")

    assert sorted(path.name for path in tmp_path.iterdir()) == ["complex", "forged", "run"]


def test_a_torch_that_writes_in_another_order_is_refused(tmp_path, monkeypatch):
    """The tensors are read ahead in the order of the plan, so each would get the bytes of another one."""

    class Backwards(FileSystemWriter):
        def write_data(self, plan, planner):
            return super().write_data(replace(plan, items=plan.items[::-1]), planner)

    trained = Training(1, num_steps=1)
    save_model(tmp_path / "run", {"model": trained.model}, trained.optimizers)
    monkeypatch.setattr(distributed, "FileSystemWriter", Backwards)

    with pytest.raises(ConfigError, match="this torch writes tensors in another order than it has planned"):
        export_distributed(str(tmp_path / "run"), tmp_path / "out")

    assert not (tmp_path / "out").exists()
