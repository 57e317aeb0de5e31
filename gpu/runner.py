"""The processes of the checks: started, watched, and killed at their limit with everything that they have started."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from dataclasses import replace
from pathlib import Path

import psutil

from .checks import CHECKS, Check
from .settings import Settings
from .table import Report, Row, Table

ROOT = Path(__file__).parents[1]
MARK = "SPOT_GPU_CHECK"  # variable of all processes of one check, also of those in sessions of their own
TICK_S = 0.1
MAX_LOG_BYTES = 200_000  # of one check


class Running:
    """One check that runs."""

    def __init__(self, check: Check, settings: Settings, limit_s: float) -> None:
        self.check = check
        self.limit_s = limit_s
        self.folder = Path(tempfile.mkdtemp(prefix=f"spot-gpu-{check.number}-", dir=settings.folder))
        self._mark = uuid.uuid4().hex
        self._rows = self.folder / "rows.jsonl"
        self._rows.touch()
        self._num_read = 0
        self._started = time.monotonic()
        paths = [str(ROOT / "src"), str(ROOT), os.environ.get("PYTHONPATH", "")]
        environment = {
            **os.environ,
            MARK: self._mark,
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
            "PYTHONUNBUFFERED": "1",
            **({} if settings.has_cuda else {"OMP_NUM_THREADS": "1"}),  # tiny states
            "PYTORCH_NVML_BASED_CUDA_CHECK": "1",  # a forked process cannot use CUDA if its parent has asked for it
        }
        own = replace(settings, folder=str(self.folder))
        with (self.folder / "log").open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "gpu", "--child", check.name, str(self._rows), own.encode()],
                cwd=ROOT,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def poll(self) -> tuple[list[Row], bool]:
        """Return the new rows, and whether the check has ended. At its limit it is killed."""
        exit_code = self._process.poll()
        is_late = exit_code is None and time.monotonic() - self._started > self.limit_s
        rows = self._read()
        if exit_code is None and not is_late:
            return rows, False
        _kill_marked(self._mark)
        self._process.wait()
        if is_late:
            rows.append(self._failed(f"not done within {self.limit_s:.0f} s, killed"))
        elif exit_code:
            rows.append(self._failed(f"exit code {exit_code}: {self._last_line()}"))
        return rows, True

    def close(self) -> str:
        """Kill what is left, remove the files, and return the log."""
        _kill_marked(self._mark)
        self._process.wait()
        log = (self.folder / "log").read_text(errors="replace")[-MAX_LOG_BYTES:]
        shutil.rmtree(self.folder, ignore_errors=True)
        seconds = time.monotonic() - self._started
        return f"\n===== {self.check.number} {self.check.name}, {seconds:.1f} s =====\n{log}"

    def _read(self) -> list[Row]:
        lines = self._rows.read_text().splitlines(keepends=True)[self._num_read :]
        whole = [line for line in lines if line.endswith("\n")]
        self._num_read += len(whole)
        return [Row(**json.loads(line)) for line in whole]

    def _failed(self, reason: str) -> Row:
        return Row(number=self.check.number, check=self.check.name, verdict=f"failed: {reason}"[:300])

    def _last_line(self) -> str:
        lines = (self.folder / "log").read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else ""


def run(settings: Settings, parts: set[int], out: str | None, max_s: float, table: Table) -> None:
    """Run the checks of *parts*, and add their rows to *table*. None of them runs longer than *max_s* in all."""
    end = time.monotonic() + max_s
    waiting = [check for check in CHECKS if check.number in parts]
    num_cores = len(os.sched_getaffinity(0))
    num_beside = max(1, min(5, num_cores // 2))
    if settings.scale == "tiny":  # no figure is judged, and a busy machine without a GPU may take its time
        waiting = [replace(check, is_alone=False, limit_s=max_s) for check in waiting]
        num_beside = num_cores
    running: list[Running] = []
    try:
        while waiting or running:
            while waiting and _may_start(waiting[0], running, num_beside):
                check = waiting.pop(0)
                left_s = end - time.monotonic()
                if left_s < 1.0:
                    reason = "not here: no time is left"
                    table.add([Row(number=check.number, check=check.name, verdict=reason)])
                    continue
                running.append(Running(check, settings, min(check.limit_s, left_s)))
            for each in list(running):
                rows, has_ended = each.poll()
                table.add(rows)
                if has_ended:
                    running.remove(each)
                    _log(each, out)
            time.sleep(TICK_S)
    finally:
        for each in running:
            _log(each, out)


def run_child(name: str, rows: str, settings: Settings) -> int:
    """Run one check in this process. Its rows go to the file *rows*."""
    check = next(check for check in CHECKS if check.name == name)
    report = Report(rows, check.number, settings)
    module, _, function = check.function.partition(":")
    try:
        getattr(importlib.import_module(f"gpu.checks.{module}"), function)(settings, report, **check.arguments)
    except Exception as error:  # noqa: BLE001 - it is the result of this check
        import traceback

        traceback.print_exc()
        report.fail(name, error)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # a broken device must not keep the process in its destructors


def _may_start(check: Check, running: list[Running], num_beside: int) -> bool:
    """Return whether *check* may start now: alone if it measures, beside a few others if it does not."""
    if check.is_alone or any(each.check.is_alone for each in running):
        return not running
    return len(running) < num_beside


def _log(each: Running, out: str | None) -> None:
    text = each.close()
    if out:
        with (Path(out) / "gpu.log").open("a") as log:
            log.write(text)


def _kill_marked(mark: str) -> None:
    """Kill all processes of the check with this *mark*, and wait for their end."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.environ().get(MARK) == mark:
                process.kill()
                found.append(process)
    psutil.wait_procs(found, timeout=10)
