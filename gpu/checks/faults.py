"""Check 13: a device assert and a lack of memory after a staged step, and a notice to one of two ranks."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.servers import free_port

READY = "ready"


def run(settings, report):
    """Break a training after it has staged step 3, and begin the next life."""
    for name in ("assert", "memory"):
        folder = f"{settings.folder}/{name}"
        process = _start(settings, "broken", folder, name)
        fault_at = _wait_for(process, READY, 45)
        try:
            code = process.wait(timeout=20)
            ended = f"exit code {code} after {time.monotonic() - fault_at:.1f} s"
            in_time = time.monotonic() - fault_at < 10
        except subprocess.TimeoutExpired:
            ended, in_time = "no exit within 20 s", False
            process.kill()
        print(process.stdout.read())
        second = _start(settings, "resumed", folder, name)
        output, _ = second.communicate(timeout=45)
        print(output)
        step = _number("resumed", output)
        kind = "device assert" if name == "assert" else "out of memory"
        report.fact(f"{kind} after a staged step", ended, "exit within 10 s", in_time, needs_cuda=True)
        figure = f"step {step}"
        report.fact(f"{kind}: the next life resumes", figure, "step 3", step == 3, needs_cuda=True)


def two_ranks(settings, report):
    """Send SIGTERM to one of two ranks that share the device."""
    group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2"}
    processes = [
        _start(settings, "rank", f"{settings.folder}/ranks", "", {**group, "RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank in range(2)
    ]
    for process in processes:
        _wait_for(process, READY, 50)
    started = time.monotonic()
    processes[1].send_signal(signal.SIGTERM)
    outputs = [process.communicate(timeout=40)[0] for process in processes]
    seconds = time.monotonic() - started
    print(*outputs, sep="\n")
    codes = [process.returncode for process in processes]
    steps = [_number("left", output) for output in outputs]
    figure = f"exit codes {codes}, steps {steps}, {seconds:.1f} s"
    is_right = codes == [143, 143] and steps[0] == steps[1] is not None
    report.fact("two gloo ranks, SIGTERM to one", figure, "both 143, same step", is_right)


def _start(settings, verb, folder, fault, environment=None):
    Path(folder).mkdir(parents=True, exist_ok=True)
    return subprocess.Popen(
        [sys.executable, "-m", "gpu.lives", verb, settings.device, folder, fault],
        env={**os.environ, **(environment or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def _wait_for(process, word, within_s):
    """Wait for the line *word*, and return the time at which it came. The limit is that of the whole check too."""
    end = time.monotonic() + within_s
    for line in process.stdout:
        print(line, end="")
        if line.strip() == word:
            return time.monotonic()
        if time.monotonic() > end:
            break
    raise RuntimeError(f"a life ended, or printed no {word!r} within {within_s} s")


def _number(word, output):
    found = re.findall(rf"^{word} (\d+)$", output, re.MULTILINE)
    return int(found[-1]) if found else None
