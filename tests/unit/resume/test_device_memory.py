"""
The memory of a device during a save and a resume: at most a tenth more than the state.

The device of a resume is torch's ``meta`` device. Its tensors have a size and no values.
"""

from __future__ import annotations

import weakref

import pytest
import steps
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Shard
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from spot_plugins.events import EventBus
from spot_plugins.lightning.kept import KeptPart
from spot_plugins.ranks import Job, SingleRank
from spot_plugins.resume.join import Membership
from spot_plugins.resume.restore import restore
from spot_plugins.state import ModelPart, OptimizerPart, encoder
from spot_plugins.state.registry import Registry
from spot_plugins.store import LocalDisk
from spot_plugins.store.memory import MemoryStore

MOST = 1.1  # times the state
WIDTH, NUM_LAYERS = 64, 12


class Memory(TorchDispatchMode):
    """Counts the bytes of all tensors that are made on a device meanwhile and are still used."""

    def __init__(self, device):
        super().__init__()
        self.device = device
        self.now = self.peak = 0
        self._known = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if any(issubclass(kind, DTensor) for kind in types):
            return NotImplemented  # the operations on the tensors inside follow
        found = func(*args, **(kwargs or {}))
        for each in tree_leaves(found):
            if isinstance(each, torch.Tensor) and each.device.type == self.device:
                self._add(each.untyped_storage())
        return found

    def _add(self, storage):
        if storage._cdata not in self._known:
            self._known.add(storage._cdata)
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._remove, storage._cdata, storage.nbytes())

    def _remove(self, identity, num_bytes):
        self._known.remove(identity)
        self.now -= num_bytes


@pytest.fixture(autouse=True)
def one_rank():
    dist.init_process_group("fake", rank=0, world_size=1, store=dist.HashStore())
    yield
    dist.destroy_process_group()


@pytest.fixture
def on_meta(monkeypatch):
    """Let the meta device be the device of a training."""
    monkeypatch.setattr(encoder, "_check", lambda value, path: None)


class Training:
    """
    A model, an average of it, which is registered as it is, and an optimizer.

    Args:
        kind: How the parameters lie on the ranks.
        device: Where they are.
        dtype: Of the parameters. Moments are float32.
        wrap: Makes the parts that are registered.
    """

    def __init__(self, kind, device, dtype=torch.float32, wrap=lambda part: part):
        self.model, self.average = (self._module(kind, device, dtype) for _ in range(2))
        self.optimizer = torch.optim.AdamW(self.model.parameters())
        self.part = wrap(OptimizerPart(self.optimizer, self.model))
        self.parts = Registry()
        self.parts.add("model", wrap(ModelPart(self.model)))
        self.parts.add("optimizer", self.part)
        self.parts.add("average", self.average)

    def step(self):
        for parameter in self.model.parameters():
            parameter.grad = torch.ones_like(parameter)
        self.optimizer.step()
        self.optimizer.zero_grad()
        for state in self.moments():
            state.update(exp_avg=state["exp_avg"].float(), exp_avg_sq=state["exp_avg_sq"].float())

    def moments(self):
        return self.optimizer.state.values()

    def num_bytes(self):
        tensors = [*self.model.parameters(), *self.average.parameters()]
        return sum(each.nbytes for each in [*tensors, *(each for state in self.moments() for each in state.values())])

    def resume(self, store):
        membership = Membership(
            url=steps.URL,
            store=store,
            patient=store,
            local_dir=None,
            local=None,
            scratch=None,
            disk=LocalDisk(None, lambda seconds: None),
            attempt=2,
        )
        job = Job(SingleRank(), SingleRank().open_board())
        assert restore(self.parts, membership, job, EventBus(), is_mirror=False) == 1

    def _module(self, kind, device, dtype):
        with torch.device(device):
            module = nn.Sequential(*(nn.Linear(WIDTH, WIDTH, dtype=dtype) for _ in range(NUM_LAYERS)))
        if kind == "FSDP2":
            for layer in module:
                fully_shard(layer, mesh=DeviceMesh("cpu", [0]))
            fully_shard(module, mesh=DeviceMesh("cpu", [0]))
        elif kind == "DTensors":  # as of tensor parallelism
            # This torch has no such device. So it raises an error if what was read is copied to that of the mesh.
            mesh = DeviceMesh("cuda" if device == "meta" else "cpu", [0])
            for layer in module:
                for name, value in list(layer.named_parameters()):
                    spread = DTensor.from_local(value.detach(), mesh, [Shard(0)], run_check=False)
                    layer.register_parameter(name, nn.Parameter(spread))
        return module


def saved(kind, dtype=torch.float32):
    """Return a store with a step of a training, and the bytes of its state."""
    training, store = Training(kind, "cpu", dtype), MemoryStore()
    training.step()
    steps.save(1, store, parts=training.parts)
    return store, training.num_bytes()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["plain", "FSDP2", "DTensors"])
@pytest.mark.filterwarnings("ignore:for .* copying from a non-meta parameter")
def test_a_resume_places_each_tensor_once(kind, dtype, on_meta):
    """
    Also if there are moments already. Lightning's hooks may change the state after it. Then it is loaded once more.
    """
    store, num_bytes = saved(kind, dtype)

    for has_moments in (False, True):
        with Memory("meta") as memory:
            training = Training(kind, "meta", dtype, wrap=KeptPart)
            if has_moments:
                training.step()
                memory.peak = memory.now
            training.resume(store)
            assert {state["exp_avg"].device.type for state in training.moments()} == {"meta"}
            assert training.num_bytes() == num_bytes
            assert memory.peak <= MOST * num_bytes

            training.optimizer.param_groups[0]["lr"] = 1.0
            training.part.restore_again()
            assert training.optimizer.param_groups[0]["lr"] != 1.0
            assert memory.peak <= MOST * num_bytes


@pytest.mark.parametrize("kind", ["plain", "FSDP2"])
def test_a_save_makes_no_copy_on_the_device(kind):
    """The device is the CPU here, so all tensors that the training thread makes are counted. Shared memory is not."""
    with Memory("cpu") as memory:
        training = Training(kind, "cpu")
        training.step()
        memory.peak = before = memory.now
        steps.save(1, MemoryStore(), parts=training.parts)
    assert memory.peak - before <= (MOST - 1) * training.num_bytes()
