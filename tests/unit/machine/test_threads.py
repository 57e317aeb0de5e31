"""Machines without room for another thread: the start is refused with the remedy, and a training loses nothing."""

from __future__ import annotations

import itertools
import logging
import math
import threading
from contextlib import closing

import pytest
from hearing import DEADLINE_S, Heard, until, until_idle, until_pushers_end
from steps import Holder, numbers, state_of

from spot_plugins.config import SpotConfig
from spot_plugins.errors import ConfigError
from spot_plugins.events import Committed
from spot_plugins.launch import roster
from spot_plugins.launch.rendezvous import Rendezvous
from spot_plugins.leave.last_resort import LastResort
from spot_plugins.leave.lost_rank import LostRank
from spot_plugins.leave.phase import PhaseTracker
from spot_plugins.market.base import ProviderError
from spot_plugins.market.threads import in_parallel
from spot_plugins.notices import SignalNotices
from spot_plugins.program import Lines
from spot_plugins.push import process
from spot_plugins.ranks import RankLostError
from spot_plugins.resume.prefetch import Prefetch, prefetch
from spot_plugins.session import SpotSession
from spot_plugins.store import LocalDisk, LocalStore
from spot_plugins.testing import run_thread_ranks

REMEDY = r"\(can't start new thread\). Allow this machine or container more processes and threads"


@pytest.fixture
def full(monkeypatch):
    """Set of names: the machine has no room for a thread of such a name."""
    start, full = threading.Thread.start, set()

    def start_if_there_is_room(thread):
        if thread.name in full:
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", start_if_there_is_room)
    return full


def session_of(url, ranks=None, heard=None, **settings):
    config = SpotConfig(url=str(url), **{"every_steps": 1, **settings})
    session = SpotSession(config, ranks=ranks, on_event=[heard] if heard else [])
    session.register("part", Holder(state_of(1)), replicated=("both",))
    return session


@pytest.mark.parametrize("name", ["spot-pusher", "spot-copy", "spot-log", "spot-notices", "spot-signals"])
def test_a_session_that_lacks_a_thread_is_refused_and_leaves_no_pusher(name, full, tmp_path):
    """The same session opens once there is room."""
    full.add(name)
    settings = {"notice_file": str(tmp_path / "notice")}
    with (
        pytest.raises(ConfigError, match=f"no thread {name} {REMEDY}"),
        closing(session_of(tmp_path / "run", **settings)) as session,
    ):
        session.handle_signals()
    until_pushers_end()
    full.clear()
    with session_of(tmp_path / "run", **settings) as session:
        session.handle_signals()
        session.resume()
        session.finish(1)
    assert numbers(LocalStore(str(tmp_path / "run"))) == [1]


@pytest.mark.parametrize("name", ["spot-agreement", "spot-attentive"])
def test_ranks_that_lack_a_thread_are_refused(name, full, tmp_path):
    full.add(name)

    def body(ranks):
        with closing(session_of(tmp_path / "run", ranks)) as session:
            session.open()

    with pytest.raises(ConfigError, match=f"this machine cannot run the session: no thread {name} {REMEDY}"):
        run_thread_ranks(2, body)


def test_ranks_without_room_for_the_threads_of_their_messages_lose_nothing(full, tmp_path):
    """They send each message on the training thread, and meet at the end one after the other."""
    heard = [Heard(), Heard()]
    committed = []  # events, as both ranks see them at a step
    step_ends = threading.Barrier(2, action=lambda: committed.extend(heard[0].of(Committed)[len(committed) :]))

    def body(ranks):
        with session_of(tmp_path / "run", ranks, heard[ranks.rank], every_steps=2) as session:
            session.resume()
            full.update(["spot-message", "spot-end"])
            for step in itertools.count(1):
                step_ends.wait(DEADLINE_S)
                until_idle(session)
                session.after_step(step)
                if len(committed) > 2:
                    break
            session.finish(step)
        return step, [event.step for event in heard[ranks.rank].of(Committed)]

    first, second = run_thread_ranks(2, body)
    assert first == second
    step, steps = first
    assert numbers(LocalStore(str(tmp_path / "run")))[0] == steps[-1] == step


def test_a_pusher_that_cannot_be_heard_is_not_left_behind_and_the_next_save_is_stored(full, tmp_path):
    """There is room for its process and none for the thread that receives its messages. The save is given up."""
    heard = Heard()
    with session_of(tmp_path / "run", heard=heard) as session:
        session.resume()
        pusher = session._opened.pusher
        full.add("spot-pusher")
        known = set(process._started)
        pusher._process.send({"what no pusher knows": 1})
        until(lambda: pusher.pid is None, "the end of the pusher is known")
        session.after_step(1)
        until(lambda: heard.of(Committed) or session._opened.pusher.is_abandoned(1), "the save is given up")
        assert not heard.of(Committed)
        until(lambda: all(each.poll() is not None for each in set(process._started) - known), "no process is left")
        full.clear()
        until_idle(session)
        session.after_step(2)
        heard.wait(Committed, step=2)


def test_a_rank_without_room_for_the_thread_of_the_roster_records_itself(full, tmp_path, monkeypatch):
    full.add("spot-roster")
    monkeypatch.setenv(roster.VARIABLE, str(tmp_path))
    roster.join()
    assert roster.ranks(tmp_path)


def test_a_rendezvous_that_cannot_be_asked_is_not_lost(full):
    """The launcher is not ended because its own machine is full."""
    full.add("spot-probe")
    asked = Rendezvous(("127.0.0.1", 1))
    asked._seen_at = -math.inf
    assert not asked.is_lost(has_ranks=False)


def test_a_prefetch_without_a_thread_is_left_out(full, tmp_path, caplog):
    """The resume reads what it needs itself."""
    full.add("spot-prefetch")
    assert prefetch("memory://run", local_dir=str(tmp_path)) is None
    assert "no prefetch: no thread spot-prefetch (can't start new thread)" in caplog.text


def test_a_prefetch_does_without_more_threads(full, tmp_path):
    """Its own thread downloads everything."""
    with session_of(tmp_path / "run") as session:
        session.resume()
        session.finish(1)
    full.add("spot-prefetch-get")
    store, copies = LocalStore(str(tmp_path / "run")), str(tmp_path / "copies")

    Prefetch(store, copies, LocalDisk(copies)).run()

    blobs = {key for key in store.keys("steps/") if key.endswith(".safetensors")}
    assert blobs
    assert blobs <= set(LocalStore(copies).keys("steps/"))


def test_a_provider_without_a_thread_has_an_error_and_the_others_answer(full):
    full.add("spot-prices-second")
    found = in_parallel({"first": (60.0, lambda until: 1), "second": (60.0, lambda until: 2)})
    assert found["first"] == 1
    assert isinstance(found["second"], ProviderError)


def test_the_guards_of_a_stuck_training_say_that_they_are_missing(full, caplog):
    """A notice, and the loss of a rank, are passed on all the same."""
    full.update(["spot-lost-rank", "spot-last-resort", "spot-line"])
    LostRank(None, PhaseTracker(), None, lambda: "nothing is stored").begin(RankLostError(2, "it ended"))
    LastResort(None, PhaseTracker(), lambda: None).begin()
    Lines(0, lambda: logging.INFO).answer("a line that nobody needs")
    assert caplog.text.count("nothing ends this process if its training thread is stuck: no thread spot-") == 2


def test_signals_that_cannot_be_read_are_left_alone(full):
    """The handlers of the program stay, and a later try takes them."""
    full.add("spot-signals")
    notices = SignalNotices(lambda *_: None)
    with pytest.raises(ConfigError, match=f"signals cannot be taken as notices: no thread spot-signals {REMEDY}"):
        notices.install()
    assert not notices.installed
    full.clear()
    notices.install()
    notices.uninstall()
