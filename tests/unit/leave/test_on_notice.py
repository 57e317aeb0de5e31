"""The ranks that leave when one has a notice. Ranks are threads, each with a session and a pusher process."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time

import pytest
from hearing import DEADLINE_S, Heard
from steps import Holder, numbers, state_of

from spot_plugins.config import SpotConfig
from spot_plugins.errors import Preempted
from spot_plugins.events import Committed, KeepFailed, Staged
from spot_plugins.session import SpotSession
from spot_plugins.store import LocalStore
from spot_plugins.testing import run_thread_ranks

WORLD_SIZE = 2
NOTIFIED = 1


@pytest.fixture
def url(tmp_path):
    return str(tmp_path / "run")


def train(url, body, **settings):
    """Run ``body(session, rank, heard, meet)`` on every rank; return what it returns, or the step it left with."""
    meeting = threading.Barrier(WORLD_SIZE)
    config = SpotConfig(url=url, **{"every_steps": 1_000_000, **settings})

    def run(ranks):
        heard = Heard()
        session = SpotSession(config, ranks=ranks, on_event=[heard])
        session.register("part", Holder(state_of(1)), replicated=("both",))
        try:
            session.resume()
            return body(session, ranks.rank, heard, lambda: meeting.wait(DEADLINE_S))
        except Preempted as preempted:
            return ("left with", preempted.step)
        finally:
            session.close()

    return run_thread_ranks(WORLD_SIZE, run)


def notify(session):
    """As the thread of a SIGTERM does, which only one rank of a process can have."""
    session._opened.listener._on_signal("SIGTERM", time.monotonic())


def hear_of_it(session):
    deadline = time.monotonic() + DEADLINE_S
    while session.notice is None:
        assert time.monotonic() < deadline
        time.sleep(0.001)


def step_with_notice(session, rank, meet):
    """Step 1 with a notice to one rank, of which all hear before its end."""
    if rank == NOTIFIED:
        notify(session)
    hear_of_it(session)
    meet()
    session.after_step(1)


def test_by_default_all_leave(url):
    """One notice ends the job: all ranks leave with the same step."""

    def body(session, rank, heard, meet):
        step_with_notice(session, rank, meet)
        return "stayed"

    assert train(url, body) == [("left with", 1)] * 2
    assert numbers(LocalStore(url)) == [1]


def test_those_without_a_notice_go_on(url, caplog):
    """
    The notified rank leaves with the step that all saved. The other one trains on to its end, and saves nothing
    that could never be committed: not on steps, not explicitly, not before a pause, not at the end. It says so once.
    """

    def body(session, rank, heard, meet):
        step_with_notice(session, rank, meet)
        for step in range(2, 6):
            session.after_step(step)
            session.save(step)
            with session.pause(step) as pause:
                pause.check()
        session.keep(5)
        session.finish(5)
        told = "the other ranks have left, and this rank saves nothing any more"
        assert [event.reason for event in heard.of(KeepFailed)] == [told]
        return [event.step for event in heard.of(Staged)]

    assert train(url, body, every_steps=1, on_notice="continue") == [[1], ("left with", 1)]
    assert numbers(LocalStore(url)) == [1]
    assert caplog.text.count("saves nothing from now on") == 1


def test_the_others_wait_until_the_step_is_stored(url):
    """A rank that stays continues only after the step is committed: its next collective may be its end."""

    def body(session, rank, heard, meet):
        step_with_notice(session, rank, meet)
        return bool(heard.of(Committed, step=1))

    assert train(url, body, on_notice="continue") == [True, ("left with", 1)]


def test_a_rank_that_stayed_leaves_when_its_own_notice_comes(url):
    """At its next boundary, with the step that is stored."""

    def body(session, rank, heard, meet):
        step_with_notice(session, rank, meet)
        session.after_step(2)
        notify(session)
        session.after_step(3)
        return "stayed"

    assert train(url, body, on_notice="continue") == [("left with", 1)] * 2
    assert numbers(LocalStore(url)) == [1]


def test_ranks_with_a_notice_each_all_leave(url):
    """With ``continue`` too."""

    def body(session, rank, heard, meet):
        notify(session)
        step_with_notice(session, rank, meet)
        return "stayed"

    assert train(url, body, on_notice="continue") == [("left with", 1)] * 2


def test_those_without_a_notice_go_on_from_a_pause(url):
    """
    A notice in validation: all save the step before it, one leaves, and the other comes out of its pause, however
    long it stands there.
    """

    def body(session, rank, heard, meet):
        session.after_step(1)
        with session.pause(1) as pause:
            meet()
            if rank == NOTIFIED:
                notify(session)
                heard.wait(Committed, step=1)
            else:
                session._opened.agreement._thread.join(DEADLINE_S)  # it has done what a thread in a stuck pause needs
            pause.check()
        session.after_step(2)
        return "stayed"

    assert train(url, body, on_notice="continue") == ["stayed", ("left with", 1)]
    assert numbers(LocalStore(url)) == [1]


STUCK = """
import sys, threading, time
from steps import Holder, state_of
from spot_plugins.config import SpotConfig
from spot_plugins.session import SpotSession
from spot_plugins.testing import run_thread_ranks

meeting = threading.Barrier(2)

def run(ranks):
    session = SpotSession(SpotConfig(url=sys.argv[1], every_steps=1_000_000), ranks=ranks)
    session.register("part", Holder(state_of(1)), replicated=("both",))
    session.resume()
    session.after_step(1)
    with session.pause(1):
        meeting.wait()
        if ranks.rank == 1:
            session._opened.listener._on_signal("SIGTERM", time.monotonic())
        threading.Event().wait()

run_thread_ranks(2, run)
"""


def test_a_process_whose_training_threads_never_leave_a_pause_ends(url):
    """They wait for a rank that is gone, for example. The step is stored, and the code is that of a notice."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", STUCK, url], env=environment, capture_output=True, text=True)

    assert done.returncode == 143, done.stderr
    assert "the training thread is stuck in the pause, so this process ends\n" in done.stderr
    assert numbers(LocalStore(url)) == [1]
