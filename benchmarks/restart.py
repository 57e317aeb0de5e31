"""
From the kill of a training to its first new optimizer step, by phase, on one process.

Every way trains the same model on the same data, saves once, and is killed with SIGKILL. Then a new process resumes. It
notes the end of each phase by the clock that both processes share. *Kill* is until the killed process has ended,
*begins* until the first line of the new one, *imports* is torch, *library* what the way imports beside it, *model* the
model and its optimizer, *join* the objects of the way, *apply* the way of the state into the training, *settles* what
follows until the call returns, and *position* the place in the data. The figures are medians of all lives. The ways
take turns, so that a change of the load meets all of them.

*Share* is what a way adds beside the bytes: library, join, list, apply, settles and position. *Its CPU* is that of the
training process in these phases, which depends less on what else the machine does. *Hash* is the processor
time of the verification, which runs beside the read. The files are in the page cache. On S3, nothing is on the local
disk. *No checkpoint* is the same program without a restore, and *raw read* reads as many bytes into new memory.
"""

from __future__ import annotations

import json
import mmap
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from . import floors
from .programs import PROGRAMS, settings_of
from .report import Column, Report
from .servers import S3Server
from .state import num_threads

ROOT = Path(__file__).parent.parent
BUCKET = "restart"
LIFE_S = 600.0  # longest wait for one life
TICK_S = 0.01
RAW = "raw read"
SHARE = ("library", "join", "list", "apply", "begin", "position")
TITLES = {
    "kill": "kill",
    "interpreter": "begins",
    "imports": "imports",
    "library": "library",
    "group": "group",
    "model": "model",
    "join": "join",
    "list": "list",
    "read": "read",
    "apply": "apply",
    "begin": "settles",
    "position": "position",
    "batch": "batch",
    "step": "step",
}
COLUMNS = [
    Column("total_s", "total s", ".2f", ratio=True),
    Column("share_s", "share s", ".2f", ratio=True),
    Column("share_cpu_s", "its CPU s", ".2f", ratio=True),
    *(Column(f"{phase}_s", title, ".2f") for phase, title in TITLES.items()),
    Column("hash_cpu_s", "hash", ".2f"),
]


def add_arguments(parser):
    parser.add_argument("--gb", type=float, default=1.0, help="size of the state in GB")
    parser.add_argument("--saves", type=int, default=3, help="restarts of each way")
    parser.add_argument("--folder", help="where to save; the system's temporary folder by default")
    text = "ways to compare, by name; all by default: " + ", ".join(f"'{name}'" for name in PROGRAMS)
    parser.add_argument("--ways", nargs="+", choices=PROGRAMS, default=list(PROGRAMS), metavar="WAY", help=text)


def run(arguments):
    report = Report("restart", {"gb": arguments.gb, "saves": arguments.saves}, COLUMNS)
    lives = {name: [] for name in arguments.ways}
    raw = []
    with tempfile.TemporaryDirectory(prefix="spot-bench-", dir=arguments.folder) as root, S3Server() as server:
        server.create_bucket(BUCKET)
        trainings = Trainings(Path(root), arguments.gb, server.storage_options())
        try:
            for number in range(arguments.saves + 1):
                for name in arguments.ways:
                    if name not in report.not_run:
                        try:
                            lives[name].append(trainings.live(name, number))
                        except RuntimeError as error:
                            report.fail(name, error)
                raw.append(_read_raw(Path(root, "raw"), int(arguments.gb * 1e9)))
        finally:
            trainings.kill()
    for name in arguments.ways:
        if name not in report.not_run:
            report.rows.append({"way": name, **_figures(lives[name][1:])})
    report.rows.append({"way": RAW, "read_s": statistics.median(raw[1:])})
    return report


class Trainings:
    """The trainings of all ways. One process runs at a time, and it is killed when the next one is wanted."""

    def __init__(self, root, gb, options):
        self._root = root
        self._gb = gb
        self._options = options
        self._process = None
        self._fingerprints = {}

    def live(self, name, number):
        """Kill the training that runs, and begin life *number* of the way called *name*. Return phases and CPU."""
        folder = self._root / str(list(PROGRAMS).index(name))
        folder.mkdir(exist_ok=True)
        for path in folder.rglob("*"):
            if path.is_file():
                path.read_bytes()  # into the page cache
        settings = settings_of(name, number, folder, BUCKET, self._options) | {"gb": self._gb}
        marks = folder / "marks.json"
        marks.unlink(missing_ok=True)
        killed = time.monotonic()
        self.kill()
        ended = time.monotonic()
        with (folder / "output").open("wb") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.life", json.dumps(settings)],
                cwd=ROOT,
                env=self._environment(),
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        self._await(name, marks, ended)
        document = json.loads(marks.read_text())
        saved = self._fingerprints.setdefault(name, document["fingerprint"])
        if PROGRAMS[name].restores and document["fingerprint"] != saved:
            raise RuntimeError(f"{name}: the restored state is not the one that was saved")
        shutil.rmtree(folder / f"local-{number}", ignore_errors=True)
        phases = {"kill": ended - killed, "interpreter": document["began"] - ended, **document["phases"]}
        print(f"{name}: {', '.join(f'{phase} {value:.2f}' for phase, value in phases.items())}", flush=True)
        cpu = sum(document["cpu"].get(phase, 0.0) for phase in SHARE)
        return phases, {"share_cpu": cpu, "hash_cpu": document["hash_cpu_s"]}

    def kill(self):
        """Kill the process that runs, and wait until it has ended."""
        if self._process is not None:
            self._process.kill()
            self._process.stdin.close()
            self._process.wait()
            self._process = None

    def _await(self, name, marks, started):
        while not marks.exists():
            if self._process.poll() is not None or time.monotonic() > started + LIFE_S:
                text = (marks.parent / "output").read_text(errors="replace")
                raise RuntimeError(f"{name}: no step within {LIFE_S:.0f} s, or an error\n{text}")
            time.sleep(TICK_S)

    def _environment(self):
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        return environment | {
            "OMP_NUM_THREADS": str(num_threads(1)),
            "AWS_ACCESS_KEY_ID": self._options["key"],
            "AWS_SECRET_ACCESS_KEY": self._options["secret"],
            "AWS_ENDPOINT_URL": self._options["endpoint_url"],
            "AWS_DEFAULT_REGION": "us-east-1",
            "HF_HUB_OFFLINE": "1",
        }


def _figures(lives):
    """Return the medians of the phases and of the processor time, with the total and the share."""
    row = {"total_s": statistics.median(sum(phases.values()) for phases, _ in lives)}
    row["share_s"] = statistics.median(sum(phases.get(name, 0.0) for name in SHARE) for phases, _ in lives)
    for figures in zip(*lives, strict=True):
        names = dict.fromkeys(name for each in figures for name in each)
        row |= {f"{name}_s": statistics.median(each.get(name, 0.0) for each in figures) for name in names}
    return row


def _read_raw(path, num_bytes):
    """Return the seconds to read *num_bytes* of a file in the page cache into new memory."""
    if not path.exists():
        path.write_bytes(floors.memory_of(num_bytes))
    with mmap.mmap(-1, path.stat().st_size) as memory, memoryview(memory) as view:
        started = time.monotonic()
        floors.raw_read(path, view)
        return time.monotonic() - started
