"""The ledger of steps and buffers: what becomes of each when a pusher process says something, or dies."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass

import pytest
from hearing import DEADLINE_S

from spot_plugins.events import Committed, PushFailing, SaveAbandoned, Superseded
from spot_plugins.push import FrozenUse, PushJob
from spot_plugins.push.ledger import MAX_TRIES, Ledger, Lost
from spot_plugins.push.lifecycle import StepState
from spot_plugins.push.messages import StoredFrozen


@dataclass
class Memory:
    """A shared buffer that nobody maps."""

    fd: int = 0
    num_bytes: int = 1


def job_of(step, **fields):
    return PushJob(step=step, blobs=(), tensors=(), state=None, **fields)


def committed(step):
    return Committed(step=step, num_bytes=0, push_s=0.0, put_bytes_per_s=None)


def accepted(ledger, *steps, **fields):
    """Accept *steps*, each in the buffer of its number."""
    for step in steps:
        ledger.accept(job_of(step, **fields), {step: Memory()})


def handed_over(ledger, *steps, to="A"):
    accepted(ledger, *steps)
    for step in steps:
        assert ledger.hand_over(step, to) is not None


def state(ledger, step):
    return ledger.wait_ended(step, 0.0)


LIVES = {
    "nothing": ([], None, True, False),
    "announced": (["announce"], StepState.STAGING, False, True),
    "announced, abandoned": (["announce", "abandon"], StepState.ABANDONED, True, False),
    "accepted at once": (["accept"], StepState.PUSHING, False, True),
    "announced, accepted": (["announce", "accept"], StepState.PUSHING, False, True),
    "accepted, abandoned": (["accept", "abandon"], StepState.ABANDONED, True, False),
    "handed over": (["accept", "hand_over"], StepState.PUSHING, False, True),
    "committed": (["accept", "hand_over", "committed"], StepState.COMMITTED, True, True),
    "given up": (["accept", "hand_over", "given up"], StepState.ABANDONED, True, True),
    "released": (["accept", "hand_over", "committed", "release"], StepState.COMMITTED, True, False),
    "again": (["accept", "hand_over", "given up", "release", "announce"], StepState.STAGING, False, True),
    "again at once": (["accept", "hand_over", "given up", "release", "accept"], StepState.PUSHING, False, True),
}

ACTIONS = {
    "announce": lambda ledger: ledger.announce(1, [1]),
    "accept": lambda ledger: accepted(ledger, 1),
    "abandon": lambda ledger: ledger.abandon(1),
    "hand_over": lambda ledger: ledger.hand_over(1, "A"),
    "committed": lambda ledger: ledger.on_event(committed(1)),
    "given up": lambda ledger: ledger.on_event(SaveAbandoned(step=1, reason="")),
    "release": lambda ledger: ledger.release([1]),
}


@pytest.mark.parametrize("life", LIVES)
def test_a_step_and_its_buffer(life):
    """
    Each way of a step, with its last state, whether it has ended, and whether its buffer is needed.
    """
    actions, last, has_ended, holds = LIVES[life]
    ledger = Ledger()
    for action in actions:
        ACTIONS[action](ledger)

    assert state(ledger, 1) is last
    assert ledger.has_ended(1) is has_ended
    assert ledger.holds(1) is holds
    assert ledger.is_busy is holds
    assert ledger.num_held == holds


@pytest.mark.parametrize("second", ["committed", "given up", "abandon"])
@pytest.mark.parametrize("first", ["committed", "given up"])
def test_a_step_ends_once(first, second):
    """
    A second end is a bug of the pusher, and is not believed.
    """
    ledger = Ledger()
    handed_over(ledger, 1)
    ACTIONS[first](ledger)
    with pytest.raises(AssertionError):
        ACTIONS[second](ledger)


def test_the_newest_step_of_a_lost_process_is_handed_over_again():
    """
    Older ones are abandoned, and their buffers are released after that is told. The next process is told that the step
    may be committed; it loses it for good.
    """
    ledger = Ledger()
    handed_over(ledger, 1, 2)

    assert ledger.lose("A") == Lost(2, (1,), frozenset({1}))
    assert (state(ledger, 1), state(ledger, 2)) == (StepState.ABANDONED, StepState.PUSHING)
    assert ledger.holds(1)
    assert ledger.holds(2)
    assert ledger.hand_over(2, "B").job.again
    assert ledger.lose("B") == Lost(None, (2,), frozenset({1, 2}) - {1})
    assert state(ledger, 2) is StepState.ABANDONED


def test_a_step_that_is_saved_anew_has_all_its_tries_again_and_may_be_committed_already():
    """
    Whoever saves an abandoned step again has the pusher look first whether it is committed.
    """
    ledger = Ledger()
    handed_over(ledger, 1)
    for holder in range(1, MAX_TRIES):
        assert ledger.lose("A" if holder == 1 else holder).again == 1
        assert ledger.hand_over(1, holder + 1).job.again
    ledger.release(ledger.lose(MAX_TRIES).buffers)
    assert state(ledger, 1) is StepState.ABANDONED

    accepted(ledger, 1)
    assert ledger.hand_over(1, "Z").job.again
    assert ledger.lose("Z").again == 1


@pytest.mark.parametrize("why_not", ["forgotten", "superseded", "ended"])
def test_what_is_not_handed_over_again(why_not):
    """
    A step whose memory is gone, one of an attempt that a newer one has replaced, and one that has ended. Its buffer
    is released in each case.
    """
    ledger = Ledger()
    handed_over(ledger, 1)
    if why_not == "forgotten":
        ledger.forget(1)
    elif why_not == "superseded":
        ledger.on_event(Superseded(attempt=1, newest=2))
        assert ledger.is_superseded
    else:
        ledger.on_event(committed(1))

    assert ledger.lose("A") == Lost(None, () if why_not == "ended" else (1,), frozenset({1}))


def test_memory_that_goes_after_the_loss_is_not_handed_over():
    """
    Between the decision and the submission the session may close its buffers: another file may have their descriptor.
    """
    ledger = Ledger()
    handed_over(ledger, 1)
    assert ledger.lose("A").again == 1
    ledger.forget(1)
    assert ledger.hand_over(1, "B") is None


def test_a_loss_leaves_the_steps_of_others_alone():
    """
    A step that is being copied, one that waits to be handed over, and one that another process has.
    """
    ledger = Ledger()
    handed_over(ledger, 1, to="A")
    handed_over(ledger, 2, to="B")
    accepted(ledger, 3)
    ledger.announce(4, [4])

    assert ledger.lose("A") == Lost(1, (), frozenset())
    assert [state(ledger, step) for step in (2, 3, 4)] == [StepState.PUSHING, StepState.PUSHING, StepState.STAGING]
    assert all(map(ledger.holds, (1, 2, 3, 4)))


def test_a_late_release_does_not_free_the_buffer_of_a_step_that_is_saved_anew():
    """
    The process gives up the step, and says later that it reads its buffer no more; meanwhile it is in another one.
    """
    ledger = Ledger()
    handed_over(ledger, 1)
    ledger.on_event(SaveAbandoned(step=1, reason=""))
    ledger.announce(1, [2])
    ledger.release([1])

    assert not ledger.holds(1)
    assert ledger.holds(2)


def test_a_push_that_only_fails_is_not_busy_until_something_is_released_or_lost():
    """
    Then a periodic save may begin, and takes the place of the one that fails.
    """
    for recover in (lambda ledger: ledger.release([1]), lambda ledger: ledger.lose("A")):
        ledger = Ledger()
        handed_over(ledger, 1, 2)
        ledger.on_event(PushFailing(step=1, num_tries=1, reason=""))
        assert not ledger.is_busy
        recover(ledger)
        assert ledger.is_busy


def test_a_step_refers_only_to_frozen_blobs_that_are_stored():
    """
    Its process gets their description, also one that did not store them. Of another set it knows nothing.
    """
    ledger = Ledger()
    accepted(ledger, 1, frozen_use=FrozenUse.REFERS, frozen_set=7)
    assert not ledger.knows_frozen(7)
    assert ledger.hand_over(1, "A") is None

    stored = StoredFrozen(7, ())
    ledger.store_frozen(stored)
    assert ledger.knows_frozen(7)
    assert ledger.hand_over(1, "A").frozen is stored
    ledger.lose("A")
    assert ledger.hand_over(1, "B").frozen is stored
    accepted(ledger, 2, frozen_use=FrozenUse.BRINGS, frozen_set=8)
    assert ledger.hand_over(2, "B").frozen is None
    ledger.store_frozen(StoredFrozen(8, ()))
    accepted(ledger, 3, frozen_use=FrozenUse.REFERS, frozen_set=7)
    assert ledger.hand_over(3, "B") is None


WAKING = {
    "committed": (lambda ledger: ledger.on_event(committed(1)), StepState.COMMITTED),
    "given up": (lambda ledger: ledger.on_event(SaveAbandoned(step=1, reason="")), StepState.ABANDONED),
    "abandoned": (lambda ledger: ledger.abandon(1), StepState.ABANDONED),
    "lost": (lambda ledger: (ledger.forget(1), ledger.lose("A")), StepState.ABANDONED),
}


@pytest.mark.parametrize("event", WAKING)
def test_a_wait_for_the_end_of_a_step_ends_with_it(event):
    """
    However it ends, and at once; a step that is handed over again is still waited for.
    """
    ledger = Ledger()
    handed_over(ledger, 1)
    found = []
    waiting = threading.Thread(target=lambda: found.append(ledger.wait_ended(1, time.monotonic() + DEADLINE_S)))
    waiting.start()
    assert ledger.lose("nobody") == Lost(None, (), frozenset())
    assert waiting.is_alive()

    wake, last = WAKING[event]
    wake(ledger)
    waiting.join(DEADLINE_S)
    assert found == [last]


def test_a_wait_for_room_ends_with_a_release():
    """
    Of any of the buffers; a buffer that nobody holds is free at once.
    """
    ledger = Ledger()
    handed_over(ledger, 1, 2)
    assert ledger.wait_released({1, 2, 3}, 0.0)
    assert not ledger.wait_released({1, 2}, 0.0)
    found = []
    waiting = threading.Thread(target=lambda: found.append(ledger.wait_released({1, 2}, time.monotonic() + DEADLINE_S)))
    waiting.start()
    ledger.release([2])
    waiting.join(DEADLINE_S)
    assert found == [True]
