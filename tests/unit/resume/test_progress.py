"""A restore that takes long says how far it is; one that does not, says nothing."""

from __future__ import annotations

import fcntl
import logging
import os
import pty
import struct
import subprocess
import sys
import termios

import pytest

from spot_plugins.resume import progress
from spot_plugins.resume.progress import RestoreProgress

ON_A_TERMINAL = """
import sys, time
from spot_plugins.resume import progress
progress.FIRST_S = float(sys.argv[1])
if sys.argv[3] == "without tqdm":
    sys.modules["tqdm"] = None
with progress.RestoreProgress(2_000_000_000, shown=sys.argv[2] == "shown") as bar:
    for _ in range(10):
        time.sleep(0.05)
        bar.add(200_000_000)
"""


def on_a_terminal(first_s, shown, tqdm="with tqdm"):
    """The lines that a restore writes to a terminal."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    command = [sys.executable, "-c", ON_A_TERMINAL, str(first_s), shown, tqdm]
    process = subprocess.Popen(command, stderr=theirs)
    os.close(theirs)
    written = b""
    try:
        while chunk := os.read(ours, 4096):
            written += chunk
    except OSError:  # how Linux says that nobody is at the other end any more
        pass
    os.close(ours)
    assert process.wait() == 0
    return written.decode()


def test_a_terminal_gets_a_bar():
    """
    With name, share and size, once it has taken a while; and it goes away.
    """
    bar = on_a_terminal(0, "shown")
    assert "restoring" in bar
    assert "%|" in bar
    assert "2.00G" in bar


@pytest.mark.parametrize(
    ("first_s", "shown", "tqdm"),
    [(60, "shown", "with tqdm"), (0, "not shown", "with tqdm"), (60, "shown", "without tqdm")],
    ids=["done soon", "another rank", "no tqdm"],
)
def test_a_terminal_gets_nothing(first_s, shown, tqdm):
    """
    What is done soon needs no bar, one rank's is enough, and tqdm need not be there.
    """
    assert on_a_terminal(first_s, shown, tqdm) == ""


def test_a_log_gets_a_line_now_and_then(monkeypatch, caplog):
    """
    The first after some seconds, then one every ten, however many pieces there are.
    """
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with (
        caplog.at_level(logging.INFO, "spot_plugins.resume.progress"),
        RestoreProgress(25_000_000_000, shown=True) as report,
    ):
        for _ in range(50):
            now[0] += 0.5
            report.add(500_000_000)
    assert caplog.messages == [
        "restoring: 2.0 of 25.0 GB, 2 s",
        "restoring: 12.0 of 25.0 GB, 12 s",
        "restoring: 22.0 of 25.0 GB, 22 s",
    ]


def test_one_rank_is_enough(monkeypatch, caplog):
    """
    Others say nothing at all.
    """
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with caplog.at_level(logging.INFO, "spot_plugins.resume.progress"), RestoreProgress(10, shown=False) as report:
        now[0] += 50
        report.add(5)
    assert caplog.messages == []
