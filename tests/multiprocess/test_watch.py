"""``spot watch`` as a real process, beside trainings that are interrupted and finish."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from types import SimpleNamespace

import pytest
from event_logs import BEGAN_AT, write_log
from hearing import DEADLINE_S, Heard, until, until_gone
from steps import Holder, state_of

from spot_plugins.config import SpotConfig
from spot_plugins.eventlog import recorder
from spot_plugins.eventlog.records import Ended, Heartbeat, Started, TrainerGone, TrainingBegan
from spot_plugins.events import Committed, Leaving, NoticeReceived, Resumed
from spot_plugins.monitor import following
from spot_plugins.monitor.attempts import SILENT_S
from spot_plugins.monitor.figures import Prices
from spot_plugins.monitor.following import Follower
from spot_plugins.session import SpotSession
from spot_plugins.store import LocalStore

SPOT = [sys.executable, "-m", "spot_plugins.cli", "watch"]


class Watching:
    """A `spot watch` whose lines are read as they come."""

    def __init__(self, *words):
        self.process = subprocess.Popen([*SPOT, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.lines, self.errors = [], []
        for stream, lines in ((self.process.stdout, self.lines), (self.process.stderr, self.errors)):
            threading.Thread(target=self._read, args=(stream, lines), daemon=True).start()

    def _read(self, stream, lines):
        with stream:
            for line in stream:
                lines.append(line)

    def see(self, test):
        """Wait for a line for which *test* is true, and return it."""
        return until(lambda: next((line for line in [*self.lines] if test(line)), None), f"a line: {self.lines}")

    def end(self, number=None):
        """Return the exit code, after the signal *number*."""
        if number is not None:
            self.process.send_signal(number)
        return self.process.wait(DEADLINE_S)


@pytest.fixture
def beats(monkeypatch):
    """Let each heartbeat be put at once."""
    monkeypatch.setattr(recorder, "BEAT_S", 0.05)
    monkeypatch.setattr(recorder, "HEARTBEAT_S", 0.05)


def life(url, steps, saves, look=lambda: None, *, finishes=False):
    """Train *steps* in this process, and save after those of *saves*. Call *look* before the end."""
    heard = Heard()
    with SpotSession(SpotConfig(url=url, every_steps=10**6), on_event=heard) as session:
        holder = Holder(state_of(0))
        session.register("part", holder, replicated=("both",))
        session.resume()
        for step in steps:
            holder.state = state_of(step)
            session.after_step(step)
            if step in saves:
                session.save(step)
                heard.wait(Committed, step=step)
        look()
        pid = session._opened.pusher.pid
        if finishes:
            session.finish(steps[-1])
    until_gone(pid)


def test_a_live_run_is_followed_to_its_end(tmp_path, beats):
    """Lines for people and documents for programs. Attempt 1 loses steps 4 and 5; both watches end with attempt 2."""
    url = str(tmp_path / "run")
    watches = []

    def first():
        prices = ["--spot-price", "3600", "--on-demand-price", "36000"]
        watches[:] = [Watching(url, "--every", "0.1", *prices), Watching(url, "--every", "0.1", "--json")]
        text, documents = watches
        assert ": step 5" in text.see(lambda line: "attempt 1: step 5" in line)
        shown = json.loads(documents.see(lambda line: json.loads(line)["step"] == 5))
        assert (shown["version"], shown["attempt"], shown["how"], shown["committed_step"]) == (1, 1, "running", 3)
        assert shown["money"] is None

    life(url, range(1, 6), {3}, first)
    life(url, range(4, 9), {6}, finishes=True)
    text, documents = watches
    assert [text.end(), documents.end()] == [0, 0], text.errors + documents.errors
    last = until(lambda: [line for line in text.lines if "attempt 2 finished" in line], "the last line")[-1]
    assert "step 8" in last
    assert "step 8 stored" in last
    assert "2 steps lost" in last
    assert " spent, " in last
    document = until(
        lambda: (found := json.loads(documents.lines[-1]))["how"] == "finished" and found, "the last document"
    )
    assert (document["step"], document["committed_step"], document["lost_steps"]) == (8, 8, 2)
    assert len(set(documents.lines)) == len(documents.lines), "each document is new"
    assert text.errors == documents.errors == []


def test_signals_end_it_at_once(tmp_path, beats):
    """With the codes that shells give, and no traceback."""
    url = str(tmp_path / "run")

    def look():
        for number in (signal.SIGINT, signal.SIGTERM):
            watch = Watching(url, "--every", "3600")
            watch.see(lambda line: "attempt 1" in line)
            assert watch.end(number) == 128 + number
            assert watch.errors == []

    life(url, [1], {1}, look)


def test_a_store_that_fails_for_a_while_is_asked_again(tmp_path):
    """A line says so, and the watch goes on."""
    url, store = tmp_path / "run", LocalStore(str(tmp_path / "run"))
    records = [(1.0, Started(process_s=1.0)), (2.0, TrainingBegan(step=None)), (3.0, Heartbeat(step=1))]
    write_log(store, 1, records, offset=time.time())
    watch = Watching(str(url), "--every", "0.1")
    watch.see(lambda line: "attempt 1: step 1" in line)
    events = url / "events"
    events.rename(url / "away")
    events.symlink_to(events)  # a loop, which no listing survives
    until(lambda: any("It is asked again in 0.1 s" in line for line in watch.errors), "the trouble is told")
    assert watch.errors[0].startswith("spot watch: ")
    events.unlink()
    (url / "away").rename(events)
    ended = Ended(step=2, is_finished=True, error=None)
    write_log(store, 1, [*records, (4.0, ended)], offset=time.time())
    assert watch.end() == 0


def test_a_terminal_shows_one_line_that_is_drawn_again(tmp_path):
    """Codes in the log do not reach the terminal."""
    url, store = str(tmp_path / "run"), LocalStore(str(tmp_path / "run"))
    records = [
        (1.0, Started(process_s=1.0)),
        (2.0, TrainingBegan(step=None)),
        (3.0, NoticeReceived(source="\x1b[31mevil", grace_s=1.0)),
        (3.5, Leaving(step=1, durable=True, left_s=1.0)),
        (4.0, Ended(step=1, is_finished=False, error=None)),
    ]
    write_log(store, 1, records[:2], offset=time.time())
    ours, theirs = pty.openpty()
    process = subprocess.Popen([*SPOT, url, "--every", "0.1"], stdout=theirs, stderr=theirs)
    os.close(theirs)
    seen = bytearray()

    def reads():
        with suppress(OSError):  # the end of a terminal is an error
            while chunk := os.read(ours, 4096):
                seen.extend(chunk)

    reader = threading.Thread(target=reads, daemon=True)
    reader.start()
    until(lambda: seen.count(b"\r\x1b[K") > 2, "the line is drawn again")
    assert b"\n" not in seen
    write_log(store, 1, records, offset=time.time())
    until(lambda: b"attempt 1 left after ?[31mevil" in seen, "the end is shown in a line of its own")
    assert seen.count(b"\n") == 1
    write_log(store, 2, [(1.0, Started(process_s=1.0)), (2.0, Ended(step=1, is_finished=True, error=None))], offset=5e8)
    assert process.wait(DEADLINE_S) == 0
    reader.join(DEADLINE_S)
    os.close(ours)
    assert b"\x1b[31m" not in seen


@pytest.mark.parametrize("jump_s", [0.0, 21600.0, -21600.0])
def test_the_rate_is_that_of_the_last_minutes(tmp_path, jump_s):
    """
    Counted by hand: 100 steps in 100 s, after 10 in 1,000 s. A resumed attempt has what it resumed from stored.

    It does not matter that the clock was set meanwhile.
    """
    store = LocalStore(str(tmp_path / "run"))
    write_log(store, 1, [(0.0, Started(process_s=0.0)), (1.0, TrainingBegan(step=None)), (2.0, TrainerGone())])
    write_log(
        store,
        2,
        [
            (0.0, Started(process_s=0.0)),
            (1.0, Resumed(step=5, from_attempt=1, from_world_size=1, num_bytes=1, from_local_bytes=0, load_s=0.5)),
            (1.0, TrainingBegan(step=5)),
            (1001.0, Heartbeat(step=15)),
            (1101.0, Heartbeat(step=115)),
        ],
        offset=1_700_000_500.0,
        jump=(1050.0, jump_s),
    )
    status = Follower(str(tmp_path / "run"), Prices()).look(1_700_001_700.0 + jump_s)
    assert (status.how, status.step, status.committed_step, status.committed_at) == ("running", 115, 5, None)
    assert status.steps_per_s == pytest.approx(1.0)
    assert status.step_at == pytest.approx(1_700_001_601.0 + jump_s)


@pytest.mark.parametrize("jump_s", [21600.0, -21600.0])
def test_silence_is_measured_while_the_run_is_watched(tmp_path, monkeypatch, jump_s):
    """A clock that is set meanwhile, here or where the training runs, ends no attempt and keeps none."""
    store = LocalStore(str(tmp_path / "run"))
    entries = [(1.0, Started(process_s=1.0)), (2.0, TrainingBegan(step=None)), (3.0, Heartbeat(step=1))]
    write_log(store, 1, entries)
    follower, watch = Follower(str(tmp_path / "run"), Prices()), SimpleNamespace(now=50.0)
    monkeypatch.setattr(following, "time", SimpleNamespace(monotonic=lambda: watch.now))
    assert follower.look(BEGAN_AT + 4.0).how == "running"
    watch.now += SILENT_S - 2
    assert follower.look(BEGAN_AT + SILENT_S + jump_s).how == "running"
    watch.now += 2
    assert follower.look(BEGAN_AT + SILENT_S + jump_s).how == "killed"
    write_log(store, 1, [*entries, (400.0, Heartbeat(step=2))])
    assert follower.look(BEGAN_AT + SILENT_S + jump_s).how == "running"
