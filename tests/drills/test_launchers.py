"""A SIGTERM through a real launcher, with data-loader workers: all ranks save one step and all processes end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest

PROGRAM = str(Path(__file__).with_name("launched.py"))
SETTINGS = {"workers": 2, "samples": 83, "every_steps": 1000}

LAUNCHERS = {
    "python": (1, [sys.executable]),
    "torchrun": (2, [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]),
    "Lightning's own": (2, [sys.executable]),
}


def start(command, folder, settings, mark):
    environment = {**os.environ, "SPOT_DRILL": mark, "OMP_NUM_THREADS": "1"}
    arguments = [*command, PROGRAM, str(folder), json.dumps(settings)]
    with (folder / "output.txt").open("ab") as output:
        return subprocess.Popen(arguments, env=environment, stdout=output, stderr=output, start_new_session=True)


def events(folder, rank, name):
    path = folder / f"events-{rank}.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [event for event in map(json.loads, lines) if event["event"] == name]


def wait_until(condition, what, process=None, timeout_s=60):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert process is None or process.poll() is None, f"it ended with {process.poll()} before {what}"
        assert time.monotonic() < deadline, f"no {what} within {timeout_s} s"
        time.sleep(0.02)


def marked_processes(mark):
    """Return the processes that inherited *mark*: trainers, workers, pushers, whoever their parent is by now."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                if f"SPOT_DRILL={mark}".encode() in (folder / "environ").read_bytes():
                    found.append((int(folder.name), (folder / "cmdline").read_bytes()))
            except OSError:
                continue
    return found


@pytest.mark.parametrize(("ranks", "command"), LAUNCHERS.values(), ids=LAUNCHERS)
def test_a_sigterm_to_the_launcher_saves_one_step_and_leaves_nothing_behind(ranks, command, tmp_path):
    """
    The launcher signals its processes, workers included. All ranks commit the same step well within the grace, no
    process stays, no line behind fit() runs, and the same command goes on and ends well.
    """
    settings = {**SETTINGS, "ranks": ranks}
    mark = uuid.uuid4().hex
    process = start(command, tmp_path, {**settings, "await": ["batch", 7]}, mark)
    try:
        everyone_waits = lambda: all(events(tmp_path, rank, "Awaiting") for rank in range(ranks))  # noqa: E731
        wait_until(everyone_waits, "training", process)
        if ranks == 2 and "torch.distributed.run" in command:
            process.terminate()  # torchrun passes it on, to the process group of each rank
        else:
            os.killpg(process.pid, signal.SIGTERM)  # as a shell or a container runtime does
            os.killpg(process.pid, signal.SIGTERM)
        code = process.wait(timeout=40)
        wait_until(lambda: not marked_processes(mark), f"end of {marked_processes(mark)}", timeout_s=30)
    finally:
        for pid, _ in marked_processes(mark):
            os.kill(pid, signal.SIGKILL)

    assert code != 0
    if command == [sys.executable] and ranks == 1:
        assert code == 143
    left = [events(tmp_path, rank, "Leaving") for rank in range(ranks)]
    assert [[event["durable"] for event in rank] for rank in left] == [[True]] * ranks
    assert len({event["step"] for rank in left for event in rank}) == 1
    assert min(event["left_s"] for rank in left for event in rank) > 10
    assert not (tmp_path / "after-fit").exists()

    code = start(command, tmp_path, settings, mark).wait(timeout=90)

    assert code == 0, (tmp_path / "output.txt").read_text()[-3000:]
    resumed = [events(tmp_path, rank, "Resumed") for rank in range(ranks)]
    assert [[event["step"] for event in rank] for rank in resumed] == [[left[0][0]["step"]]] * ranks
