"""The end of a process whose training thread stands still after a rank is lost, and of no other one."""

from __future__ import annotations

import math
import threading
from contextlib import closing

import pytest
from hearing import until
from steps import Holder, state_of

from spot_plugins.config import SpotConfig
from spot_plugins.leave import lost_rank
from spot_plugins.leave.lost_rank import LostRank
from spot_plugins.leave.phase import Phase, PhaseTracker
from spot_plugins.ranks import RankLostError
from spot_plugins.session import SpotSession

LOSS = RankLostError(2, "cannot be reached any more (Connection timed out)")


class Training(PhaseTracker):
    """A training thread, as its phases show it, and the end of its process."""

    def __init__(self, *phases, still_s=0.0):
        super().__init__()
        self.stands_s = still_s
        self.num_looks = 0
        self.notice = None
        self.codes = []
        for phase in phases:
            self.move(phase)
        LostRank(self, self, self, lambda: "step 7 is the newest one stored").begin(LOSS)

    @property
    def still_s(self):
        self.num_looks += 1
        return self.stands_s

    def end_process(self, code):
        self.codes.append(code)


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    monkeypatch.setattr(lost_rank, "OWN_ERROR_S", 0.01)


def until_ended():
    until(lambda: "spot-lost-rank" not in [thread.name for thread in threading.enumerate()], "nobody looks any more")


IN_COLLECTIVES = [
    (Phase.JOINED,),
    (Phase.JOINED, Phase.TRAINING),
    (Phase.JOINED, Phase.TRAINING, Phase.PAUSED),
]


@pytest.mark.parametrize("phases", IN_COLLECTIVES, ids=lambda phases: phases[-1].value)
@pytest.mark.parametrize(("notice", "code"), [(None, 1), ("a notice", 143)])
def test_a_process_whose_training_thread_stands_still_ends(phases, notice, code, caplog):
    """With 143 only after a notice, because otherwise nothing of this machine is preempted."""
    training = Training(*phases)
    training.notice = notice
    training.stands_s = 42.0
    until_ended()

    assert training.codes == [code]
    assert f"{LOSS}, and this rank has made no progress for 42 s, so this process ends with {code}" in caplog.text
    assert "Let the launcher start the ranks again: step 7 is the newest one stored" in caplog.text


def test_the_training_thread_has_a_moment_for_an_error_of_its_own(monkeypatch):
    """However long it has stood still: the collective may just have failed, and its error says more."""
    monkeypatch.setattr(lost_rank, "OWN_ERROR_S", 600.0)
    training = Training(Phase.JOINED, Phase.TRAINING, still_s=42.0)
    training.move(Phase.CLOSED)
    until_ended()

    assert training.codes == []


ELSEWHERE = [
    (Phase.JOINED, Phase.TRAINING, Phase.LEAVING),
    (Phase.JOINED, Phase.TRAINING, Phase.LEAVING, Phase.LEFT_BEHIND),
    (Phase.CLOSED,),
]


@pytest.mark.parametrize("phases", ELSEWHERE, ids=lambda phases: phases[-1].value)
def test_a_process_that_leaves_or_is_alone_does_not_end(phases):
    training = Training(*phases)
    until_ended()

    assert training.codes == []


def test_a_training_that_goes_on_is_left_alone_until_it_is_closed():
    training = Training(Phase.JOINED, Phase.TRAINING)
    until(lambda: training.num_looks == 3 or training.codes, "somebody looks again and again")
    training.move(Phase.CLOSED)
    until_ended()

    assert training.codes == []


@pytest.mark.parametrize("call", ["after_step", "check in a pause", "end of a pause", "finish"])
def test_each_call_of_the_session_shows_that_the_training_thread_runs(call, tmp_path):
    with closing(SpotSession(SpotConfig(url=str(tmp_path / "run"), every_steps=10**6))) as session:
        session.register("part", Holder(state_of(0)))
        session.resume()
        if "pause" in call:
            with session.pause(1) as pause:
                session._phase._marked_at = -math.inf
                if call == "check in a pause":
                    pause.check()
                    assert session._phase.still_s < math.inf
        else:
            session._phase._marked_at = -math.inf
            getattr(session, call)(1)

        assert session._phase.still_s < math.inf


def test_a_training_that_waits_for_its_last_step_runs(tmp_path):
    with closing(SpotSession(SpotConfig(url=str(tmp_path / "run"), every_steps=10**6))) as session:
        session.resume()
        session._phase._marked_at = -math.inf
        marks = []

        def done():
            marks.append(session._phase.still_s)
            return len(marks) > 1

        session._opened.way_out.wait(done, 0, math.inf)

    assert marks[0] == math.inf > marks[1]
