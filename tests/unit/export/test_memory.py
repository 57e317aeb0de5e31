"""The memory that an export takes: a few tensors, however large the step is."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from stored_models import save_model
from torch import nn

from spot_plugins.export.accelerate_folder import export_accelerate
from spot_plugins.export.distributed import export_distributed
from spot_plugins.export.hugging_face import export_hugging_face
from spot_plugins.export.lightning_file import export_lightning
from spot_plugins.export.safetensors import export_weights
from spot_plugins.export.torch_file import export_torch_weights
from spot_plugins.resume import weights
from spot_plugins.state import RngPart

NUM_TENSORS = 16
MB = 1e6
COUNT = dict.fromkeys(("ready", "started", "processed", "completed"), 1)
COUNTS = {"total": COUNT, "current": COUNT}
FIT_LOOP = {
    "epoch_progress": COUNTS,
    "epoch_loop.automatic_optimization.optim_progress": {"optimizer": {"step": COUNTS}},
    "epoch_loop.manual_optimization.optim_step_progress": COUNTS,
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A step with 128 MB of weights in tensors of 8 MB, and twice that of moments, spread over two ranks."""
    url = tmp_path_factory.mktemp("memory") / "run"
    model = nn.ModuleList([nn.Linear(1000, 2000, bias=False) for _ in range(NUM_TENSORS)])
    optimizer = torch.optim.AdamW(model.parameters())
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    counters = {"step": 1, "iterations": [], "schedules": {"found": {}}}
    others = {"accelerator": counters, "rng": RngPart().state_dict(), "loops": {"fit_loop": FIT_LOOP}}
    save_model(str(url), {"model-0": model}, [optimizer], world_size=2, is_spread=True, others=others)
    return url


def export_to_hugging_face(url, out):
    config = out.with_name("config")
    config.mkdir()
    (config / "config.json").write_text(json.dumps({"model_type": "any"}))
    export_hugging_face(url, out, config)


EXPORTS = [
    *(export_weights, export_torch_weights, export_to_hugging_face),
    *(export_distributed, export_lightning, export_accelerate),
]


@pytest.mark.parametrize("export", EXPORTS, ids=lambda export: export.__name__)
def test_a_few_tensors_are_in_memory(export, run, tmp_path, monkeypatch):
    """Two tensors may be read ahead here. Each format takes less memory than half of the weights alone have."""
    monkeypatch.setattr(weights, "READ_AHEAD_BYTES", 16 * MB)
    before = memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM counts from now on

    export(str(run), tmp_path / "out")

    assert memory("VmHWM") - before < 64 * MB


def memory(field):
    """Return a figure of this process in bytes, or the highest one of it so far."""
    return 1024 * int(re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1])
