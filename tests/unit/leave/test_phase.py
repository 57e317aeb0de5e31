"""The phases of a session: each call in each phase is allowed, or refused with a remedy, as the table says."""

from __future__ import annotations

import re
import threading
from contextlib import closing

import pytest
from hearing import DEADLINE_S
from steps import Holder, state_of

from spot_plugins.config import SpotConfig
from spot_plugins.errors import UnsafeStateError
from spot_plugins.leave.phase import CALLS, MOVES, Phase, PhaseTracker
from spot_plugins.session import SpotSession


@pytest.fixture
def session(tmp_path):
    with closing(SpotSession(SpotConfig(url=str(tmp_path / "run"), every_steps=10**6))) as session:
        session.register("part", Holder(state_of(0)))
        yield session


def bring_to(phase, session):
    """Bring *session* to *phase* by calls that a program makes. The two phases of other threads are set."""
    if phase is Phase.NEW:
        return
    session.open()
    if phase is Phase.JOINED:
        return
    session.resume()
    match phase:
        case Phase.PAUSED:
            session.pause(1).__enter__()
        case Phase.LEAVING:
            session._phase.move(Phase.LEAVING)
        case Phase.LEFT_BEHIND:
            session._phase.move(Phase.LEAVING)
            session._phase.move(Phase.LEFT_BEHIND)
        case Phase.CLOSED:
            session.close()


def make(call, session):
    match call:
        case "open" | "resume" | "handle_signals":
            getattr(session, call)()
        case "register":
            session.register("another", Holder({}))
        case "pause":
            with session.pause(1):
                pass
        case _:
            getattr(session, call)(1)


@pytest.mark.parametrize("phase", Phase)
@pytest.mark.parametrize("call", CALLS)
def test_a_call_is_allowed_or_refused_as_the_table_says(session, call, phase):
    """
    Whatever is not allowed raises before anything happens, names the call and the phase, and leaves the phase as it is.
    """
    bring_to(phase, session)
    assert session._phase.now is phase
    if phase in CALLS[call]:
        make(call, session)
    else:
        with pytest.raises(RuntimeError, match=rf"^{call}\(\) while the session is {re.escape(phase.value)}: \w+"):
            make(call, session)
        assert session._phase.now is phase


@pytest.mark.parametrize("phase", Phase)
def test_a_session_can_be_closed_in_every_phase(session, phase):
    """
    close() works everywhere, twice, and nothing follows it.
    """
    bring_to(phase, session)
    session.close()
    session.close()
    assert session._phase.now is Phase.CLOSED
    assert not MOVES[Phase.CLOSED]


@pytest.mark.parametrize("old", Phase)
@pytest.mark.parametrize("new", Phase)
def test_a_move_that_is_not_in_the_table_is_a_bug(old, new):
    """
    Each phase is reached from the phases of the table only. To enter the phase that holds is no move.
    """
    tracker = PhaseTracker()
    tracker._now = old
    if new is old or new in MOVES[old]:
        tracker.move(new)
        assert tracker.now is new
    else:
        with pytest.raises(AssertionError):
            tracker.move(new)


def test_every_phase_is_reached_and_left():
    """
    The table has each phase, and each but the first one follows another.
    """
    assert MOVES.keys() == set(Phase)
    assert set().union(*MOVES.values()) == set(Phase) - {Phase.NEW}


def test_a_constructor_touches_nothing(tmp_path):
    """
    Building a session neither asks the store nor starts a thread or a process: a URL that cannot work is no error yet.
    """
    folder = tmp_path / "run"
    session = SpotSession(SpotConfig(url=str(folder), every_steps=1))
    assert not folder.exists()
    assert session._phase.now is Phase.NEW
    session.close()


def test_what_was_opened_is_closed_if_the_rest_fails(tmp_path, monkeypatch):
    """
    An error in open() leaves no board, thread or process, and the session is closed.
    """
    file = tmp_path / "file"
    file.write_text("in the way")
    session = SpotSession(SpotConfig(url=str(file / "run"), every_steps=1))
    closed = []
    monkeypatch.setattr(session._stack, "close", lambda: closed.append(True))
    with pytest.raises(Exception, match="file"):
        session.open()
    assert closed
    assert session._phase.now is Phase.CLOSED


def test_a_pause_that_cannot_be_entered_is_over(session):
    """
    State that cannot be saved is an error at the head of the block. The program may catch it, repair it and train on.
    """
    session.open()
    broken = Holder({"fine": 1})
    session.register("broken", broken)
    session.resume()
    broken.state = {"unsafe": object()}
    with pytest.raises(UnsafeStateError):
        session.pause(1).__enter__()
    assert session._phase.now is Phase.TRAINING
    broken.state = {"fine": 2}
    with session.pause(1) as pause:
        pause.check()
    session.finish(1)


def test_a_pause_that_ends_sees_a_departure_that_leaves_this_rank_behind(session):
    """
    The end of a pause waits for a departure on a thread of the agreement. It does not train on as if nothing had been.
    """
    session.resume()
    pause = session.pause(1)
    pause.__enter__()
    ends = threading.Thread(target=pause.__exit__, args=(None, None, None))
    with session._opened.way_out._departure.held_off():
        ends.start()
        ends.join(0.2)  # without the wait it is over long before
        session._phase.leave_behind()
    ends.join(DEADLINE_S)
    assert not ends.is_alive()
    assert session._phase.now is Phase.LEFT_BEHIND
