"""
Every benchmark runs, on a state so small that its figures mean nothing.
"""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.programs import PROGRAMS

ROOT = Path(__file__).parents[2]
OPTIONAL = {"torch_checkpointing", "nvidia-resiliency-ext"}  # not in the development environment
DCP = {"DCP save", "DCP async, thread", "DCP async, DefaultStager", "DCP async, process"}
HOSTS = {"Lightning ModelCheckpoint", "Accelerate save_state"}
RUNS = {
    "stall": (
        ["--gb", "0.002", "--saves", "2", "--steps", "2", "--max-s", "0"],
        {"spot_plugins", "torch.save", *DCP, *HOSTS, "Lightning AsyncCheckpointIO"},
    ),
    "stall on two ranks": (
        ["--gb", "0.002", "--ranks", "2", "--saves", "2", "--steps", "2", "--max-s", "0", "--ways", "spot_plugins"],
        {"spot_plugins"},
    ),
    "stall of many tensors": (
        ["--gb", "0.002", "--tensors", "480", "--saves", "2", "--steps", "2", "--max-s", "0", "--ways", "spot_plugins"],
        {"spot_plugins"},
    ),
    "overhead": (
        ["--steps", "10", "--saves", "2"],
        {
            *("session, tight loop", "fingerprints, tight loop", "guard, tight loop"),
            *("session", "Lightning SpotCheckpoint", "Accelerate SpotHook"),
        },
    ),
    "durable": (
        ["--gb", "0.002", "--saves", "1"],
        {"spot_plugins", "raw O_DIRECT write", "bare obstore", "bare s3fs", "spot_plugins, LoRA"},
    ),
    "restore": (
        ["--gb", "0.002", "--saves", "1"],
        {
            "spot_plugins",
            "raw read",
            "raw read, O_DIRECT",
            "bare obstore",
            "bare s3fs",
            "torch.save",
            "DCP save",
            *HOSTS,
        },
    ),
    "export": (["--gb", "0.002", "--saves", "1"], {"safetensors", "pt", "dcp", "lightning", "accelerate"}),
    "restart": (["--gb", "0.002", "--saves", "1"], {*PROGRAMS, "raw read"}),
    "agree": (
        ["--ranks", "2", "--steps", "40", "--notices", "1"],
        {"spot_plugins board, 2 ranks", "all-reduce, 2 ranks", "empty call, 2 ranks"},
    ),
    "scale": (["--ranks", "4"], {"memory, 4 ranks", "S3, 4 ranks"}),
    "fleet": (
        ["--ranks", "4", "--tb", "1e-6", "--tensors", "4"],
        {
            f"{subject}, 4 ranks"
            for subject in ("prove", "claim", "save", "prune", "merge", "begin", "discover", "prefetch", "resume")
        },
    ),
    "board": (["--ranks", "4", "--seconds", "0.5"], {"4 ranks"}),
    "position": (["--batches", "20"], {"skip, 0 workers", "skip, 2 workers", "fetch, 0 workers", "fetch, 2 workers"}),
    "interruptions": (
        ["--ranks", "1", "--cases", "step", "--steps", "40", "--step-ms", "1", "--evaluation", "20"],
        {"spot_plugins, 1 rank, SIGTERM in a step", "JIT checkpoint, 1 rank, SIGTERM in a step"},
    ),
}
FIGURES = {  # that spot_plugins has in each
    "stall": {
        "stall_s",
        "stall_us_per_tensor",
        "num_tensors",
        "lost_s",
        "lost_interval_s",
        "durable_s",
        "cpu_s_per_gb",
        "memory_ratio",
        "step_s",
    },
    "overhead": {"added_us", "interval_us"},
    "durable": {"local_s", "committed_s", "local_to_floor", "committed_to_floor"},
    "restore": {"warm_s", "s3_s", "session_s", "warm_to_floor", "s3_to_floor"},
    "export": {"gb", "copy_s", "export_s", "export_to_copy", "memory_mb"},
    "restart": {"total_s", "share_s", "join_s", "list_s", "read_s", "apply_s", "position_s", "step_s"},
    "agree": {"quiet_median_us", "notice_median_s"},
    "scale": {"commit", "discover", "prune"},
    "fleet": {"put", "seconds", "usd"},
    "board": {"share_of_core", "exchange_s"},
    "position": {"position_s", "first_batch_s", "cpu_s"},
    "interruptions": {"codes", "leaves_s", "lost", "after"},
}


LONG = {
    "stall on two ranks",
    "stall of many tensors",
    "overhead",
    "durable",
    "export",
    "restart",
    "agree",
    "fleet",
    "position",
    "interruptions",
}
"""Runs that are left to the soak."""


@pytest.mark.parametrize("run", [pytest.param(run, marks=pytest.mark.soak if run in LONG else ()) for run in RUNS])
def test_a_benchmark_has_a_finite_figure_for_every_way_that_can_run(run, tmp_path):
    """
    No way fails, and nothing that was measured is infinite, missing or not a number.
    """
    flags, expected = RUNS[run]
    verb = run.partition(" ")[0]
    command = [sys.executable, "-m", "benchmarks", verb, *flags, "--out", str(tmp_path)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=500, check=False)
    assert ended.returncode == 0, ended.stdout[-2000:] + ended.stderr[-3000:]

    document = json.loads(next(tmp_path.glob("*.json")).read_text())
    if verb == "stall" and "tensors" in document["settings"]:
        assert {row["num_tensors"] for row in document["rows"]} == {document["settings"]["tensors"]}
    assert next(tmp_path.glob("*.png")).read_bytes().startswith(b"\x89PNG")
    assert document["not_run"].keys() <= OPTIONAL | {"cold"}, document["not_run"]
    ways = {row["way"] for row in document["rows"]}
    assert ways - OPTIONAL == expected
    assert document["rows"][0].keys() >= FIGURES[verb]
    for row in document["rows"]:
        numbers = [value for name, value in row.items() if name not in ("way", "store", "codes", "after")]
        assert numbers
        assert all(isinstance(value, (int, float)) and math.isfinite(value) for value in numbers), row
