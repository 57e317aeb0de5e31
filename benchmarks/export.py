"""
The export of a step by ``spot export``, beside a plain copy of as many bytes.

The step has weights and two moments of Adam. *copy* reads as many bytes of the run as the output has, and writes them
to a new file, with a sync at the end. *export* begins with the start of the program, which imports torch for all but
safetensors. Both take turns, and begin with the run outside the page cache. *memory* is the highest resident memory of
the process. Figures are medians.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from spot_plugins.config import SpotConfig
from spot_plugins.session import SpotSession
from spot_plugins.state import ModelPart, OptimizerPart, RngPart

from .floors import PIECE_BYTES
from .report import Column, Report
from .state import Training

FORMATS = ("safetensors", "pt", "dcp", "lightning", "accelerate")
COLUMNS = [
    Column("gb", "output GB", ".2f"),
    Column("copy_s", "copy s", ".1f"),
    Column("export_s", "export s", ".1f"),
    Column("export_to_copy", "export x copy", ".2f"),
    Column("memory_mb", "memory MB", ".0f"),
]

COUNT = dict.fromkeys(("ready", "started", "processed", "completed"), 1)
COUNTS = {"total": COUNT, "current": COUNT}
LOOPS = {
    "fit_loop": {
        "epoch_progress": COUNTS,
        "epoch_loop.automatic_optimization.optim_progress": {"optimizer": {"step": COUNTS}},
        "epoch_loop.manual_optimization.optim_step_progress": COUNTS,
    }
}
EXPORT = """
import re, sys
from pathlib import Path
from spot_plugins.cli import main
try:
    main()
finally:  # a process that is started has the ru_maxrss of its parent
    print(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1], file=sys.stderr)
"""


class Plain:
    """A part whose state never changes."""

    def __init__(self, state):
        self.state = state

    def state_dict(self):
        return self.state

    def load_state_dict(self, state):
        self.state = state


def add_arguments(parser):
    parser.add_argument("--gb", type=float, default=4.0, help="size of the state in GB")
    parser.add_argument("--saves", type=int, default=3, help="rounds")
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=FORMATS)
    parser.add_argument("--folder", help="where to save; the system's temporary folder by default")


def run(arguments):
    report = Report("export", {"gb": arguments.gb, "saves": arguments.saves}, COLUMNS)
    folder = Path(tempfile.mkdtemp(prefix="spot-bench-", dir=arguments.folder))
    try:
        save(folder / "run", arguments.gb)
        for name in arguments.formats:
            rounds = [measure(name, folder) for _ in range(arguments.saves)]
            row = {key: statistics.median(each[key] for each in rounds) for key in rounds[0]}
            report.rows.append({"way": name, **row})
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return report


def save(url, gb):
    """Save a step with all that the formats need of their hosts."""
    training = Training(gb)
    with SpotSession(SpotConfig(url=str(url), every_steps=1000, local_dir=None)) as session:
        session.register("model-0", ModelPart(training.model), replicated=ModelPart.replicated)
        optimizer = OptimizerPart(training.optimizer, training.model)
        session.register("optimizer-0", optimizer, replicated=OptimizerPart.replicated)
        session.register("rng", RngPart())
        session.register("loops", Plain(LOOPS))
        session.register("accelerator", Plain({"step": 1, "iterations": [], "schedules": {"found": {}}}))
        session.resume()
        session.finish(1)


def measure(name, folder):
    run, out = folder / "run", folder / "out"
    evict(run)
    started = time.perf_counter()
    memory_mb = export(run, out, name)
    export_s = time.perf_counter() - started
    num_bytes = sum(path.stat().st_size for path in (out.rglob("*") if out.is_dir() else [out]))
    shutil.rmtree(out) if out.is_dir() else out.unlink()
    evict(run)
    started = time.perf_counter()
    copy(sorted(run.rglob("*.safetensors")), out, num_bytes)
    copy_s = time.perf_counter() - started
    out.unlink()
    figures = {"copy_s": copy_s, "export_s": export_s, "export_to_copy": export_s / copy_s}
    return {"gb": num_bytes / 1e9, **figures, "memory_mb": memory_mb}


def export(url, out, name):
    """Run ``spot export``. Return the highest resident memory of the process in MB."""
    words = [sys.executable, "-c", EXPORT, "export", str(url), str(out), "--format", name]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    return int(done.stderr.split()[-1]) / 1000


def copy(paths, out, num_bytes):
    """Copy the first *num_bytes* of the files *paths* to the new file *out*."""
    piece = memoryview(bytearray(PIECE_BYTES))
    with out.open("xb", buffering=0) as target:
        for path in paths:
            with path.open("rb", buffering=0) as source:
                while count := min(source.readinto(piece), num_bytes):
                    target.write(piece[:count])
                    num_bytes -= count
        os.fsync(target.fileno())


def evict(folder):
    """Take the files in *folder* out of the page cache."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())  # what is not yet on disk would stay
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
