"""The one error that says how much would be lost now."""

from __future__ import annotations

import logging

import pytest

from spot_plugins.events import Committed, LocalWriteFailed, PushFailing, SaveAbandoned, SaveDeferred, SharesCounted
from spot_plugins.leave.commit_age import CommitAge


class HandClock:
    """A clock that is set by hand."""

    now = 1000.0

    def monotonic(self):
        return self.now


TROUBLES = [
    PushFailing(step=7, num_tries=3, reason="503"),
    SaveAbandoned(step=7, reason="no memory"),
    SaveDeferred(step=7, num_deferred=1),
    LocalWriteFailed(step=7, reason="the disk is full"),
]


@pytest.mark.parametrize("trouble", TROUBLES, ids=lambda event: type(event).__name__)
def test_minutes_without_a_commit_are_one_error_every_five_minutes(trouble, caplog):
    """Trouble that passes within minutes is none, and a commit begins the count anew."""
    clock = HandClock()
    age = CommitAge(clock)
    said = []
    for minute in range(22):
        clock.now = 1000.0 + 60 * minute
        if minute == 4:
            age.on_event(Committed(step=6, num_bytes=1, push_s=1.0))
        age.on_event(trouble)
        said += [(minute, record.getMessage()) for record in caplog.records if record.levelno == logging.ERROR]
        caplog.clear()

    assert [minute for minute, _ in said] == [9, 14, 19]
    assert said[0][1].startswith("nothing has been stored for 5 minutes, since step 6; it would be lost")
    assert said[2][1].startswith("nothing has been stored for 15 minutes, since step 6")


def test_a_training_that_never_stored_anything_says_so(caplog):
    """There is no step to name."""
    clock = HandClock()
    age = CommitAge(clock)
    clock.now += 301
    age.on_event(TROUBLES[0])

    assert (
        "nothing has been stored for 5 minutes, since the start; it would be lost with this machine: 503" in caplog.text
    )


def test_a_training_between_two_saves_is_in_no_trouble(caplog):
    """Without a save that fails, hours may pass."""
    clock = HandClock()
    age = CommitAge(clock)
    age.on_event(Committed(step=6, num_bytes=1, push_s=1.0))
    clock.now += 7200

    assert not caplog.records


def test_own_commits_of_rank_0_do_not_hide_that_no_step_is_visible(caplog):
    """Rank 0 stores every step and another rank none: one error now and then, which names that rank."""
    clock = HandClock()
    age = CommitAge(clock, counts_shares=True)
    said = []
    for minute in range(22):
        clock.now = 1000.0 + 60 * minute
        visible = 4 if minute >= 4 else None
        age.on_event(Committed(step=minute, num_bytes=1, push_s=1.0))
        age.on_event(SharesCounted(step=minute, missing_ranks=(1, 3), visible_step=visible))
        said += [(minute, record.getMessage()) for record in caplog.records if record.levelno == logging.ERROR]
        caplog.clear()

    assert [minute for minute, _ in said] == [9, 14, 19]
    assert said[0][1] == (
        "nothing has been stored for 5 minutes, since step 4; it would be lost with this machine: "
        "ranks 1, 3 have not stored their share of step 9"
    )


def test_a_rank_that_is_always_one_step_late_is_no_trouble(caplog):
    """Each step becomes visible, if only after the next save."""
    clock = HandClock()
    age = CommitAge(clock, counts_shares=True)
    for step in range(1, 30):
        clock.now += 60
        age.on_event(SharesCounted(step=step, missing_ranks=(1,), visible_step=step - 1))

    assert not caplog.records


def test_a_deferred_save_is_told_as_one_that_waits(caplog):
    """The event has no reason of its own."""
    clock = HandClock()
    age = CommitAge(clock)
    clock.now += 301
    age.on_event(SaveDeferred(step=7, num_deferred=1))

    assert caplog.text.rstrip().endswith("an earlier save is still being pushed")
