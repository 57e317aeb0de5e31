"""spot doctor as a process: real launchers are rehearsed, and a store is really asked."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from commands import SPOT, spot
from hearing import DEADLINE_S, until

from spot_plugins.doctor import launch_test

BIN = Path(sys.executable).parent
TORCHRUN = [str(BIN / "torchrun"), "--nproc-per-node", "2"]
ACCELERATE = [str(BIN / "accelerate"), "launch"]


def launcher_findings(tmp_path, *launcher, grace_s=2):
    """Rehearse *launcher*. Return the verdicts, texts and remedies about it, and the exit code of spot doctor."""
    done = spot("doctor", str(tmp_path / "run"), "--json", "--grace-seconds", str(grace_s), "--", *launcher)
    document = json.loads(done.stdout)
    assert document["is_good"] == (done.returncode == 0)
    found = [each for each in document["findings"] if each["check"] == "launcher"]
    return [(each["verdict"], each["text"], each["remedy"]) for each in found], done.returncode


def assert_nothing_left(tmp_path):
    """No process of a rehearsal runs on. Each is told by its program, and by where its run would be."""
    until(lambda: not rehearsed(), "all processes of the rehearsal have ended")


def rehearsed():
    """The processes of this machine that run the program of a rehearsal."""
    found = []
    for folder in Path("/proc").iterdir():
        try:
            words = (folder / "cmdline").read_bytes() if folder.name.isdigit() else b""
        except OSError:
            continue
        if b"doctor/rank_program.py" in words:
            found.append(folder.name)
    return found


def test_a_page_with_a_line_for_each_check(tmp_path):
    done = spot("doctor", str(tmp_path / "run"), "--params", "1M")

    assert done.returncode == 0, done.stdout
    lines = [line for line in done.stdout.splitlines() if not line.startswith(" ")]
    checks = ["versions", "machine", "memory", "shared memory", "notices", "store", "run", "disk", "grace", "launcher"]
    assert [line[9:23].strip() for line in lines] == checks
    assert "no run is there yet" in done.stdout
    assert not [path for path in (tmp_path / "run").rglob("*") if path.is_file()], "the measurement removes what it put"


def test_a_store_that_refuses_is_bad(tmp_path):
    (tmp_path / "run").write_text("a file")

    done = spot("doctor", str(tmp_path / "run"))

    assert done.returncode == 1
    assert f"BAD      store          LocalStore('{tmp_path}/run') cannot be used: cannot put an object: " in done.stdout


def test_python_itself_keeps_the_promise(tmp_path):
    found, code = launcher_findings(tmp_path, sys.executable)

    assert code == 0
    assert [verdict for verdict, _, _ in found] == ["good"] * 3
    assert found[0][1].startswith("a SIGTERM to it reaches its process, within ")
    assert found[1][1] == "it leaves its processes the grace period of 2.0 s"
    assert found[2][1] == "it ends with code 143, as a preempted training does"
    assert_nothing_left(tmp_path)


def test_torchrun_that_kills_too_early_and_hides_the_code(tmp_path):
    """Both processes hear, but are killed after a second, and the scheduler would see a failure."""
    found, code = launcher_findings(tmp_path, *TORCHRUN, "--shutdown-timeout", "1", grace_s=20)

    assert code == 0
    assert [verdict for verdict, _, _ in found] == ["good", "warning", "warning"]
    assert found[0][1].startswith("a SIGTERM to it reaches all 2 processes, within ")
    assert "20 s are the grace period" in found[1][1]
    assert "--shutdown-timeout 20" in found[1][2]
    assert found[2][1] == "it ends with code 1, so a scheduler takes a preemption for a failure"
    assert "spot run -- " in found[2][2]
    assert_nothing_left(tmp_path)


def test_accelerate_launch_keeps_the_signal_to_itself(tmp_path):
    """And with spot run before it, it does not."""
    found, code = launcher_findings(tmp_path, *ACCELERATE)

    assert code == 1
    assert [(verdict, text) for verdict, text, _ in found] == [
        ("bad", "1 of 1 processes got no notice after a SIGTERM to the launcher")
    ]
    assert found[0][2].endswith("Start it with: spot run -- accelerate launch ...")
    found, code = launcher_findings(tmp_path, *SPOT, "run", "--", *ACCELERATE)
    assert code == 0
    assert [verdict for verdict, _, _ in found] == ["good"] * 3
    assert_nothing_left(tmp_path)


@pytest.mark.parametrize(
    ("launcher", "says"),
    [
        (["sh", "-c", "echo batch job 7; exit 0"], "before it ended with code 0. Its last line: batch job 7"),
        (["sh", "-c", "echo no host >&2; exit 3"], "before it ended with code 3. Its last line: no host"),
        (["true"], "before it ended with code 0. Its last line: nothing was printed"),
    ],
)
def test_a_launcher_that_starts_nothing(launcher, says, tmp_path):
    found, code = launcher_findings(tmp_path, *launcher)

    assert code == 1
    ((verdict, text, _),) = found
    assert verdict == "bad"
    assert text.endswith(says)


def test_a_wrapper_that_swallows_the_code(tmp_path):
    """A scheduler takes 0 for the end of the training, and does not start it again: the work would be lost."""
    wrapper = tmp_path / "wrapper.sh"
    wrapper.write_text(
        f"#!/bin/sh\ntrap 'kill -TERM $child' TERM\n{sys.executable} \"$@\" & child=$!\nwait; wait; exit 0"
    )
    wrapper.chmod(0o755)

    found, code = launcher_findings(tmp_path, str(wrapper))

    assert code == 1
    assert found[-1][:2] == ("bad", "it ends with code 0, so a scheduler takes the training for finished")


def test_an_unknown_launcher_is_refused(tmp_path):
    done = spot("doctor", str(tmp_path / "run"), "--", "no-such-launcher")

    assert done.returncode == 2
    assert done.stderr == (
        "spot doctor: the launcher 'no-such-launcher' cannot be executed: No such file or directory\n"
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_end_from_outside_leaves_no_process(number, tmp_path):
    words = [*SPOT, "doctor", str(tmp_path / "run"), "--grace-seconds", "300", "--", sys.executable]
    process = subprocess.Popen(
        words,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        preexec_fn=lambda: signal.signal(
            signal.SIGINT, signal.default_int_handler
        ),  # not ignored, as in jobs of a shell
    )
    until(rehearsed, "a rehearsal")
    os.kill(process.pid, number)

    assert process.wait(DEADLINE_S) != 0
    assert_nothing_left(tmp_path)


def test_an_end_while_the_launcher_starts_leaves_no_process(tmp_path, monkeypatch):
    """Ctrl-C comes after the launcher runs, and before the rehearsal knows its process id."""

    start, started = subprocess.Popen, []

    def interrupted(*args, **options):
        started.append(start(*args, **options))
        until(rehearsed, "the launcher runs")
        raise KeyboardInterrupt

    monkeypatch.setattr(subprocess, "Popen", interrupted)

    with pytest.raises(KeyboardInterrupt):
        list(launch_test.look_at_launcher([sys.executable], grace_s=300))

    started[0].wait(DEADLINE_S)
    assert_nothing_left(tmp_path)
