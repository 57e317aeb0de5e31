"""State on a device is staged from there, and comes back to it. The CPU case is the twin of the CUDA one."""

from __future__ import annotations

import pytest
import torch
from hearing import Heard
from torch import nn

from spot_plugins.config import SpotConfig
from spot_plugins.events import Committed
from spot_plugins.session import SpotSession
from spot_plugins.state import ModelPart, OptimizerPart, RngPart

DEVICES = [
    "cpu",
    pytest.param("cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]),
]


def training(device, seed):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Dropout(0.5), nn.Linear(16, 1)).to(device)
    return model, torch.optim.AdamW(model.parameters())


def step(model, optimizer, device):
    optimizer.zero_grad()
    loss = model(torch.randn(4, 8, device=device)).square().mean()
    loss.backward()
    optimizer.step()
    return loss.item()


def session(folder, model, optimizer, on_event=()):
    spot = SpotSession(SpotConfig(url=str(folder), every_steps=1000), on_event=on_event)
    spot.register("model", ModelPart(model), replicated=("parameters",))
    spot.register("optimizer", OptimizerPart(optimizer, model), replicated=("state",))
    spot.register("rng", RngPart())
    return spot


@pytest.mark.parametrize("device", DEVICES)
def test_training_goes_on_bit_for_bit_on_its_device(device, tmp_path):
    """Weights, moments, buffers and the device's random stream are those of the saved step, on the same device."""
    model, optimizer = training(device, seed=0)
    spot = session(tmp_path, model, optimizer)
    spot.resume()
    for _ in range(3):
        step(model, optimizer, device)
    spot.save(3)
    expected = [step(model, optimizer, device) for _ in range(3)]  # the staged copy must not see these
    spot.finish(3)

    model, optimizer = training(device, seed=1)
    spot = session(tmp_path, model, optimizer)

    assert spot.resume() == 3
    assert [step(model, optimizer, device) for _ in range(3)] == expected
    assert {p.device.type for p in model.parameters()} == {device}
    spot.close()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_save_waits_for_no_device(tmp_path):
    """
    It returns while the device still computes what came before, and the next optimizer step is queued while it copies;
    what is saved is the state behind the kernels that came before. Its CPU twin is in test_overlap.
    """
    model, optimizer = training("cuda", seed=0)
    heard = Heard()
    spot = session(tmp_path, model, optimizer, heard)
    spot.resume()
    step(model, optimizer, "cuda")
    spot.save(1)  # makes the buffer
    heard.wait(Committed, step=1)
    step(model, optimizer, "cuda")
    torch.cuda.synchronize()

    torch.cuda._sleep(2_000_000_000)  # about a second
    step_behind = torch.cuda.Event()
    optimizer.zero_grad()
    loss = model(torch.randn(4, 8, device="cuda")).square().mean()
    loss.backward()
    optimizer.step()
    expected = [parameter.detach().clone() for parameter in model.parameters()]
    step_behind.record()
    spot.save(2)
    optimizer.step()
    assert not step_behind.query()
    heard.wait(Committed, step=2)
    spot.close()

    other, other_optimizer = training("cuda", seed=1)
    again = session(tmp_path, other, other_optimizer)
    assert again.resume() == 2
    again.close()
    for one, two in zip(expected, other.parameters(), strict=True):
        assert torch.equal(one, two)
