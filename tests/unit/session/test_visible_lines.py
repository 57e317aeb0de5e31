"""The lines of whole trainings on stderr, with nothing set up: start, notice, way out, resume, end."""

from __future__ import annotations

import logging
import re
import signal
import subprocess
import sys

import pytest
import told
from accelerate.state import AcceleratorState, GradientState, PartialState

from spot_plugins.program.lines import StderrHandler


def ours(text):
    """Return the lines about this package, with one figure for all seconds of loading, and one for all left."""
    lines = [line for line in text.splitlines() if line.startswith(("spot_plugins", "still"))]
    return [re.sub(r"\d+ s left", "30 s left", re.sub(r"\d+\.\d s", "0.2 s", line)) for line in lines]


@pytest.fixture
def run(capsys):
    """A function that runs the program in this process. Returns its exit code and its lines."""
    root = logging.getLogger()
    before = root.handlers[:]
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)}

    def run(host, url, stop):
        for shared in (AcceleratorState, PartialState, GradientState):
            shared._reset_state()
        root.handlers[:] = [each for each in root.handlers if isinstance(each, StderrHandler)]  # those of pytest
        code = 0
        try:
            for number, handler in handlers.items():  # a process that has left ignores all of them
                signal.signal(number, handler)
            signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have pytest ignore it
            told.main(host, url, stop)
        except SystemExit as left:
            code = left.code
        except KeyboardInterrupt:
            code = "interrupted"
        return code, ours(capsys.readouterr().err)

    yield run
    root.handlers[:] = before
    for number, handler in handlers.items():
        signal.signal(number, handler)


def test_a_process_of_its_own_shows_them_too(tmp_path):
    """Nothing that pytest has set up is needed for the lines."""
    url = str(tmp_path / "run")
    command = [sys.executable, told.__file__, "bare", url, "2"]

    done = subprocess.run(command, capture_output=True, text=True, check=False)

    assert done.returncode == 143, done.stderr
    assert ours(done.stderr)[0] == f"spot_plugins: no checkpoint at {url}, starting at step 0 (attempt 1)"
    assert ours(done.stderr)[-1] == "spot_plugins: step 2 is stored; leaving with code 143"


@pytest.mark.parametrize("host", ["bare", "lightning", "accelerate"])
def test_a_training_shows_its_start_its_end_and_the_answer_to_a_signal(host, run, tmp_path):
    """Each line comes once. A signal is answered while the step is still running."""
    url = str(tmp_path / "run")
    epoch = "" if host == "bare" else "epoch 0, "
    notices = "spot_plugins: runs on an unknown provider. Notices come from SIGTERM."

    code, lines = run(host, url, 2)

    assert code == 143, lines
    assert [line for line in lines if not line.startswith(notices)] == [
        f"spot_plugins: no checkpoint at {url}, starting at step 0 (attempt 1)",
        "spot_plugins: SIGTERM: waiting for the end of the step, 30 s left",
        "still in the step",
        "spot_plugins: step 2 is stored; leaving with code 143",
    ]
    assert sum(line.startswith(notices) for line in lines) == 1

    code, lines = run(host, url, 0)

    assert code == 0, lines
    assert lines[0] == f"spot_plugins: resumed from step 2 of {url}, 0.2 s ({epoch}attempt 2)"
    assert len(lines) == 2

    code, lines = run(host, url, 0)

    assert code == 0, lines
    assert lines[0].startswith(f"spot_plugins: resumed from step 4 of {url}, 0.2 s (")
    assert lines[-1] == "spot_plugins: this training is finished at step 4; use another URL to train again"
    if host == "lightning":
        assert "spot_plugins: nothing is left to train: max_epochs=1 is reached" in lines


@pytest.mark.parametrize("host", ["bare", "lightning", "accelerate"])
def test_no_signal_cuts_short_the_leaving(host, run, tmp_path, monkeypatch):
    """
    A Ctrl-C and further signals, with the notice and at every event on the way out, change nothing: the step is stored,
    and the code is 143.
    """
    monkeypatch.setattr(told, "sent", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
    monkeypatch.setattr(told, "sent_later", [signal.SIGINT, signal.SIGHUP, signal.SIGTERM])

    code, lines = run(host, str(tmp_path / "run"), 2)

    assert code == 143, lines
    assert any(line.startswith("spot_plugins: SIGTERM: waiting for the end of the step") for line in lines)
    assert "spot_plugins: step 2 is stored; leaving with code 143" in lines


@pytest.mark.parametrize("host", ["bare", "lightning", "accelerate"])
def test_ctrl_c_in_training_interrupts_it_and_a_line_says_what_is_stored(host, run, tmp_path, monkeypatch):
    """The host ends as it does without this package. The next attempt begins after the newest step that is stored."""
    monkeypatch.setattr(told, "sent", [signal.SIGINT])
    url = str(tmp_path / "run")
    interrupted = 1 if host == "lightning" else "interrupted"
    advice = "To save the last step too, end the training with SIGTERM"

    code, lines = run(host, url, 2)

    assert code == interrupted
    assert lines[-1] == f"spot_plugins: interrupted: nothing is stored yet. {advice}"

    monkeypatch.setattr(told, "sent", [signal.SIGTERM])
    assert run(host, url, 2)[0] == 143
    monkeypatch.setattr(told, "sent", [signal.SIGINT])
    code, lines = run(host, url, 4)

    assert code == interrupted
    assert lines[-1] == f"spot_plugins: interrupted: step 2 is the newest one stored. {advice}"


@pytest.mark.parametrize(
    ("host", "silence"),
    [
        ("accelerate", lambda monkeypatch: monkeypatch.setenv("ACCELERATE_LOG_LEVEL", "warning")),
        ("lightning", lambda monkeypatch: logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)),
        ("bare", lambda monkeypatch: logging.getLogger("spot_plugins").setLevel("WARNING")),
    ],
)
def test_the_usual_means_of_the_host_silence_the_lines(host, silence, run, tmp_path, monkeypatch):
    """A user who has silenced the host has silenced the lines of this package about a training in order."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "spot_plugins")]
    levels = [each.level for each in loggers]
    silence(monkeypatch)
    try:
        assert run(host, str(tmp_path / "run"), 0) == (0, [])
    finally:
        for each, level in zip(loggers, levels, strict=True):
            each.setLevel(level)
