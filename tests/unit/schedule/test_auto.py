"""``every_seconds="auto"``: the interval follows what saves cost and how often the run is interrupted."""

from __future__ import annotations

import math
import threading
from datetime import datetime, timedelta, timezone

import pytest
from hearing import DEADLINE_S, Heard, until_idle
from hypothesis import given
from hypothesis import strategies as st
from steps import Holder

from spot_plugins.config import SpotConfig
from spot_plugins.errors import StoreError
from spot_plugins.events import Committed, EventBus, IntervalChanged, SaveDeferred, Staged
from spot_plugins.format.attempts import MAX_CLAIM_BYTES, claim_attempt
from spot_plugins.format.manifest import canonical_json
from spot_plugins.schedule import AutoInterval, Pacer, Preemptions, daly_interval_s
from spot_plugins.schedule.auto import (
    CHANGE,
    FIRST_INTERVAL_S,
    LONGEST_S,
    NUM_RECENT,
    PRIOR_MEAN_S,
    SHORTEST_S,
    WARNED_MEAN_S,
)
from spot_plugins.schedule.pacer import LONGEST_ATTEMPT_S, NUM_ATTEMPTS, recent_preemptions
from spot_plugins.session import SpotSession
from spot_plugins.store import MemoryStore
from spot_plugins.testing import run_thread_ranks

HOUR = 3600.0
NOW = datetime(2030, 1, 2, tzinfo=timezone.utc)


class HandClock:
    """A clock that is set by hand."""

    now = 1000.0

    def monotonic(self):
        return self.now

    def utc(self):
        return NOW


def staged(stall_s, trigger="seconds"):
    return Staged(step=1, trigger=trigger, num_bytes=1, stall_s=stall_s)


def committed(push_s):
    return Committed(step=1, num_bytes=1, push_s=push_s)


def test_it_is_dalys_interval_once_a_save_was_measured():
    """
    Nothing changes before both the stall and the push of a save are known; then the event has all numbers.
    """
    auto = AutoInterval(Preemptions(), HandClock())

    assert auto.interval_s == FIRST_INTERVAL_S
    assert auto.observe(staged(2.0)) is None
    change = auto.observe(committed(20.0))

    assert change == IntervalChanged(
        interval_s=daly_interval_s(2.0, PRIOR_MEAN_S),
        before_s=FIRST_INTERVAL_S,
        stall_s=2.0,
        push_s=20.0,
        mean_between_preemptions_s=PRIOR_MEAN_S,
    )
    assert auto.interval_s == change.interval_s == pytest.approx(292, abs=1)


def test_the_push_comes_first_or_the_stall():
    """
    The two events of a save come on two threads, in any order.
    """
    auto = AutoInterval(Preemptions(), HandClock())

    assert auto.observe(committed(20.0)) is None
    assert auto.observe(staged(2.0)).interval_s == pytest.approx(292, abs=1)


@given(saves=st.lists(st.tuples(st.floats(0, 100), st.floats(0.001, 5000)), min_size=1, max_size=30))
def test_it_is_never_under_the_time_a_push_takes(saves):
    """
    Whatever saves cost: not shorter than any recent push, nor than the shortest interval worth a request.
    """
    auto = AutoInterval(Preemptions(), HandClock())
    for index, (stall_s, push_s) in enumerate(saves):
        auto.observe(staged(stall_s))
        auto.observe(committed(push_s))

        assert auto.interval_s >= SHORTEST_S
        assert auto.interval_s >= max(push for _, push in saves[max(0, index + 1 - NUM_RECENT) : index + 1])


def test_a_small_difference_changes_nothing():
    """
    Within a tenth there is no event and no change; beyond it there is.
    """
    auto = AutoInterval(Preemptions(), HandClock())
    auto.observe(staged(2.0))
    first = auto.observe(committed(5.0)).interval_s

    for _ in range(NUM_RECENT):
        assert auto.observe(staged(2.0 * (1 + CHANGE))) is None  # the interval grows with the root
    assert auto.interval_s == first
    changes = [change for _ in range(NUM_RECENT) if (change := auto.observe(staged(4.0)))]
    assert changes
    assert changes[-1].before_s < auto.interval_s


def pacing_of(rank=0, **settings):
    """A pacer, and the list of the changes that it emits."""
    changes = []
    config = SpotConfig(url="memory://x", **settings)
    return Pacer(config, rank, Preemptions(), HandClock(), EventBus(changes.append)), changes


@pytest.mark.parametrize(
    ("settings", "before_s", "after_s"),
    [
        ({"every_seconds": 600}, 600.0, daly_interval_s(2.0, WARNED_MEAN_S)),
        ({"every_seconds": 40}, 40.0, None),
        ({"every_steps": 100}, math.inf, daly_interval_s(2.0, WARNED_MEAN_S)),
        ({"every_seconds": "auto"}, FIRST_INTERVAL_S, None),
    ],
    ids=str,
)
def test_a_soft_notice_shortens_the_interval(settings, before_s, after_s):
    """
    Whatever was asked for: to what is best with a preemption to be expected soon, if that is shorter. Steps alone get a
    companion in time. Nothing is measured before the save that the notice asks for.
    """
    pacing, changes = pacing_of(**settings)
    pacing.on_event(staged(2.0))
    pacing.on_event(committed(1.0))
    assert not changes or settings == {"every_seconds": "auto"}
    changes.clear()
    pacing.trigger.hasten()
    pacing.on_event(staged(2.0, "soft"))
    changes.clear()
    pacing.on_event(committed(1.0))

    if settings == {"every_seconds": "auto"}:
        assert pacing.trigger.every_seconds == daly_interval_s(2.0, WARNED_MEAN_S)
    elif after_s is None:
        assert not changes
        assert pacing.trigger.every_seconds == before_s
    else:
        (change,) = changes
        assert (change.before_s, change.interval_s) == (before_s, after_s)
        assert pacing.trigger.every_seconds == after_s


def test_a_soft_notice_leaves_time_for_pushes_and_concerns_rank_0_alone():
    """
    Even then no save is due before the last one is stored; and the other ranks are never asked.
    """
    pacing, changes = pacing_of(every_seconds=600)
    pacing.trigger.hasten()
    pacing.on_event(staged(0.001, "soft"))
    pacing.on_event(committed(100.0))
    assert changes[-1].interval_s == 100.0

    other, changes = pacing_of(rank=1, every_seconds=600)
    other.trigger.hasten()
    other.on_event(staged(0.001, "soft"))
    other.on_event(committed(100.0))
    assert not changes


def test_old_saves_are_forgotten():
    """
    One slow push, as of the first save, rules the interval for some saves and not for ever.
    """
    auto = AutoInterval(Preemptions(), HandClock())
    auto.observe(staged(0.001))
    assert auto.observe(committed(2000.0)).interval_s == 2000.0

    for _ in range(NUM_RECENT):
        auto.observe(committed(1.0))

    assert auto.interval_s == SHORTEST_S


@pytest.mark.parametrize("trigger", ["pause", "notice", "end"])
def test_saves_that_do_not_stall_training_tell_nothing_of_it(trigger):
    """
    What is saved while training stands still anyway says nothing about the cost of a periodic save.
    """
    auto = AutoInterval(Preemptions(), HandClock())
    auto.observe(committed(1.0))

    assert auto.observe(staged(50.0, trigger)) is None
    assert auto.interval_s == FIRST_INTERVAL_S


def test_the_rate_moves_from_the_prior_to_what_is_seen():
    """
    A run that is interrupted often saves more often; a life that lasts long saves less often.
    """
    often = Preemptions(num_seen=9, within_s=9 * 600.0)
    clock = HandClock()

    assert Preemptions().mean_s(0.0) == PRIOR_MEAN_S
    assert often.mean_s(0.0) == pytest.approx((6 * HOUR + 1.5 * HOUR) / 10)
    assert Preemptions().mean_s(30 * HOUR) == 36 * HOUR

    auto = AutoInterval(Preemptions(), clock)
    auto.observe(staged(2.0))
    short = auto.observe(committed(1.0)).interval_s
    clock.now += 30 * HOUR
    assert auto.observe(committed(1.0)).interval_s == pytest.approx(math.sqrt(6) * short, rel=0.02)


def lives(store, *ages_h):
    for age_h in ages_h:
        began = (NOW - timedelta(hours=age_h)).isoformat()
        claim_attempt(store, canonical_json({"started_at": began}))


def test_earlier_lives_say_how_often_the_run_is_interrupted():
    """
    Of the last ten lives, by the objects that claimed them. A first life knows nothing, without any request.
    """
    store = MemoryStore()
    lives(store, 5, 3, 0)
    assert recent_preemptions(store, 3, HandClock()) == Preemptions(2, 5 * HOUR)

    lives(store, *[1.0] * (NUM_ATTEMPTS - 1), 0)
    assert recent_preemptions(store, 3 + NUM_ATTEMPTS, HandClock()) == Preemptions(NUM_ATTEMPTS, 0.0)
    assert recent_preemptions(None, 1, HandClock()) == Preemptions()


class DownStore:
    def get_into(self, key, start, targets):
        raise StoreError("get", key, "it is down")


HUGE = b'{"started_at": "2030-01-01T00:00:00+00:00"}'.ljust(MAX_CLAIM_BYTES + 1)
DAMAGED = [b"", b"{}", b"[]", b'{"started_at": 5}', b'{"started_at": "2030-01-01"}', HUGE, None]


@pytest.mark.parametrize("content", DAMAGED, ids=range(len(DAMAGED)))
def test_a_life_that_cannot_be_read_leaves_the_prior(content, caplog):
    """
    A missing or damaged object, and a store that is down, must not keep a training from starting.
    """
    store = MemoryStore()
    if content is not None:
        store.put("attempts/000001.json", content)

    assert recent_preemptions(store, 2, HandClock()) == Preemptions()
    assert recent_preemptions(DownStore(), 2, HandClock()) == Preemptions()
    assert "the preemptions of earlier attempts are not known, so the prior is used: " in caplog.text


def test_a_clock_that_was_ahead_makes_no_negative_time():
    """
    The machine that began the life before may have had another clock.
    """
    store = MemoryStore()
    lives(store, -2)

    assert recent_preemptions(store, 2, HandClock()) == Preemptions(1, 0.0)


def test_a_clock_that_was_years_off_makes_no_interval_of_hours():
    """
    A machine whose clock was not set yet began the life before.
    """
    store = MemoryStore()
    claim_attempt(store, canonical_json({"started_at": "1970-01-01T00:00:00+00:00"}))
    found = recent_preemptions(store, 2, HandClock())
    auto = AutoInterval(found, HandClock())
    auto.observe(staged(100.0))
    auto.observe(committed(1.0))

    assert found == Preemptions(1, LONGEST_ATTEMPT_S)
    assert auto.interval_s == LONGEST_S


def test_only_rank_0_is_paced():
    """
    Elsewhere the trigger is never asked, so no event of a change may come from there.
    """
    config = SpotConfig(url="memory://x", every_seconds="auto")
    changes = []
    other = Pacer(config, 1, Preemptions(), HandClock(), EventBus(changes.append))

    assert other.trigger.every_seconds is None
    other.on_event(committed(1.0))
    other.on_event(staged(9.0))
    assert not changes
    assert other.trigger.every_seconds is None


def test_a_session_saves_at_the_interval_that_it_found(tmp_path, monkeypatch):
    """
    Through the whole session: the first save comes after a minute, and the next ones as its cost suggests. It costs
    little, whatever the machine does meanwhile, compared with preemptions that are expected every minute.
    """
    monkeypatch.setattr("spot_plugins.schedule.auto.PRIOR_MEAN_S", 0.0)
    clock, heard = HandClock(), Heard()
    session = SpotSession(SpotConfig(url=str(tmp_path), every_seconds="auto"), clock=clock, on_event=[heard])
    session.register("part", Holder({"x": 1}))
    session.resume()

    def train(step, seconds):
        clock.now += seconds
        session.after_step(step)
        until_idle(session)

    train(1, FIRST_INTERVAL_S - 1)
    train(2, 2)
    change = heard.wait(IntervalChanged)
    train(3, change.interval_s - 1)
    train(4, 2)
    session.close()

    assert [event.step for event in heard.of(Staged)] == [2, 4]
    assert (change.before_s, change.interval_s) == (FIRST_INTERVAL_S, SHORTEST_S)
    assert heard.of(SaveDeferred) == []


def test_ranks_save_the_same_steps_at_the_interval_of_rank_0(tmp_path):
    """
    Rank 0 alone measures and decides; the others save what it proposes.
    """
    together, enough = threading.Barrier(2), threading.Event()

    def body(ranks):
        clock, heard = HandClock(), Heard()
        config = SpotConfig(url=str(tmp_path), every_seconds="auto")
        session = SpotSession(config, ranks=ranks, clock=clock, on_event=[heard])
        session.register("part", Holder({"x": 1}))
        session.resume()
        step = 0
        while not enough.is_set():
            step += 1
            clock.now += 1.0
            session.after_step(step)
            until_idle(session)
            together.wait(DEADLINE_S)
            if ranks.rank == 1 and len(heard.of(Staged)) >= 3:
                enough.set()
            together.wait(DEADLINE_S)
        session.close()
        changes = [event.interval_s for event in heard.of(IntervalChanged)]
        return [event.step for event in heard.of(Staged)], changes

    (saved, changes), (saved_too, changes_too) = run_thread_ranks(2, body)

    assert saved == saved_too
    assert (len(changes), changes_too) == (1, [])
