"""Segments of the event log in a store: their limits, a store that refuses them, and a reader that trusts nothing."""

from __future__ import annotations

import json
import threading

import pytest
from hearing import DEADLINE_S, until

from spot_plugins.errors import StoreError
from spot_plugins.eventlog import reading, segments
from spot_plugins.eventlog.pusher_log import PusherLog
from spot_plugins.eventlog.reading import read_event_log
from spot_plugins.eventlog.records import Ended, Heartbeat, Record, body_of
from spot_plugins.events import Committed, PushFailing
from spot_plugins.format.keys import SegmentKey, parse_segment_key
from spot_plugins.store import MemoryStore


class Refusing(MemoryStore):
    """A store that refuses what is below ``events/`` while it is told to."""

    def __init__(self):
        super().__init__()
        self.refuses = True
        self.num_refused = 0

    def put(self, key, data):
        if self.refuses and key.startswith("events/"):
            self.num_refused += 1
            raise StoreError("put", key, "no permission", retryable=False)
        super().put(key, data)


@pytest.fixture
def log_to():
    """Make a log of one rank, and close it in the end."""
    logs = []

    def make(store, local=None, *, attempt=1, rank=0, failures=None, world_size=1):
        log = PusherLog(
            store,
            local,
            attempt=attempt,
            rank=rank,
            world_size=world_size,
            hide=lambda text: text.replace("hunter2", "***"),
            on_failure=[].append if failures is None else failures.append,
        )
        log.start()
        logs.append(log)
        return log

    yield make
    for log in logs:
        log.close()


def beat(step, at=1000.0):
    return body_of(Record(at + step, 10.0 + step, Heartbeat(step=step)))


def steps_in(store, attempt=1, rank=0):
    [log] = [each for each in read_event_log(store).ranks if (each.attempt, each.rank) == (attempt, rank)]
    return [record.entry.step for record in log.records]


def test_records_come_back_in_order(log_to):
    """Those of the trainer and of the pusher process, in the store and on the local disk."""
    store, local = MemoryStore(), MemoryStore()
    log = log_to(store, local, world_size=2)
    log.add([beat(1), beat(2)])
    log.on_event(PushFailing(step=2, num_tries=1, reason="hunter2 is refused"))
    log.on_event(Committed(step=2, num_bytes=10, push_s=0.5))
    log.close()

    assert [*store.keys("")] == [*local.keys("")] == ["events/000001-00000-000000.jsonl"]
    assert b"hunter2" not in store.get("events/000001-00000-000000.jsonl")
    [rank] = read_event_log(store).ranks
    assert (rank.attempt, rank.rank, rank.world_size) == (1, 0, 2)
    assert [type(record.entry).__name__ for record in rank.records] == [
        "Heartbeat",
        "Heartbeat",
        "PushFailing",
        "Committed",
    ]


def test_heartbeats_of_rank_0_are_put_at_once(log_to):
    """So the store knows how far a machine came that is gone. The other ranks are at the same step, and wait."""
    stores = [MemoryStore(), MemoryStore()]
    logs = [log_to(store, rank=rank) for rank, store in enumerate(stores)]
    for log in logs:
        log.add([beat(1)])
    until(lambda: [*stores[0].keys("")], "the heartbeat is put")
    assert steps_in(stores[0]) == [1]
    assert [*stores[1].keys("")] == []
    logs[1].on_event(Committed(step=1, num_bytes=1, push_s=0.1))
    until(lambda: [*stores[1].keys("")], "the commit is put")


@pytest.mark.parametrize("says_goodbye", [False, True])
def test_brief_heartbeats_are_kept_for_the_end(log_to, says_goodbye):
    """Only the newest one is recorded, once the trainer is gone without a word."""
    store = MemoryStore()
    log = log_to(store)
    log.add([beat(1)])
    log.add([beat(step) | {"is_brief": True} for step in (2, 3)])
    if says_goodbye:
        log.add([body_of(Record(1004.0, 14.0, Ended(step=3, is_finished=False, error=None)))])
    log.trainer_gone()
    log.close()
    [rank] = read_event_log(store).ranks
    kinds = [type(record.entry).__name__ for record in rank.records]
    assert sorted(kinds) == sorted(["Heartbeat", "Ended" if says_goodbye else "Heartbeat", "TrainerGone"])
    assert [each.entry.step for each in rank.records if isinstance(each.entry, Heartbeat | Ended)] == [1, 3]


def test_a_log_has_a_largest_size(log_to, monkeypatch):
    """Three segments of a few records each: the beginning stays, the end is there, and what is lost is counted."""
    monkeypatch.setattr(segments, "SEGMENT_BYTES", 500)
    monkeypatch.setattr(segments, "MAX_SEGMENTS", 3)
    store = MemoryStore()
    log = log_to(store)
    for step in range(100):
        log.add([beat(step)])
    log.close()

    keys = [*store.keys("")]
    assert keys == [SegmentKey(1, 0, number).key for number in range(3)]
    steps = steps_in(store)
    assert steps[:3] == [0, 1, 2]
    assert steps[-1] == 99
    assert read_event_log(store).num_dropped == 100 - len(steps) > 0
    assert all(len(store.get(key)) < 500 + 1024 for key in keys)


def test_a_store_that_refuses_the_log_is_told_once_and_tried_again(log_to, monkeypatch):
    """Records wait up to a limit. The oldest are dropped and counted, and the newest are there in the end."""
    monkeypatch.setattr(segments, "MAX_WAITING", 10)
    monkeypatch.setattr(segments, "SEGMENT_BYTES", 500)
    store, failures = Refusing(), []
    log = log_to(store, failures=failures)
    for step in range(30):
        log.add([beat(step)])
        until(lambda: not log._writers[0]._is_due, "the put is tried")
    until(lambda: failures, "the failure is told")
    store.refuses = False
    log.add([beat(30)])
    log.close()

    assert len(failures) == 1
    assert "no permission" in failures[0]
    assert steps_in(store)[-1] == 30
    assert len(steps_in(store)) + read_event_log(store).num_dropped == 31
    assert read_event_log(store).num_dropped > 0


def test_a_store_that_was_away_for_a_moment_is_not_told(log_to):
    """Nothing is lost then."""
    store, failures = Refusing(), []
    log = log_to(store, failures=failures)
    for step in range(20):
        store.refuses = step % segments.NUM_FAILURES != 0
        num_refused = store.num_refused
        log.add([beat(step)])
        if store.refuses:
            until(lambda before=num_refused: store.num_refused > before, "the put is refused")
        else:
            until(lambda: [*store.keys("")], "the first put has ended")
            until(lambda step=step: steps_in(store)[-1] == step, "the put has ended")
    log.close()
    assert failures == []
    assert store.num_refused > 10


def test_a_store_that_hangs_holds_nobody(log_to, monkeypatch):
    """Neither the caller nor the local disk. The end waits for a limit."""
    monkeypatch.setattr("spot_plugins.eventlog.pusher_log.CLOSE_S", 0.2)
    hangs = threading.Event()

    class Hanging(MemoryStore):
        def put(self, key, data):
            hangs.wait(DEADLINE_S)

    local = MemoryStore()
    log = log_to(Hanging(), local)
    log.add([beat(1)])
    until(lambda: [*local.keys("")], "the local disk has it")
    log.close()
    hangs.set()
    assert steps_in(local) == [1]


def test_another_pusher_process_continues(log_to):
    """It overwrites no segment of the process before."""
    store = MemoryStore()
    for step in (1, 2):
        log = log_to(store)
        log.add([beat(step)])
        log.close()
    assert [*store.keys("")] == [SegmentKey(1, 0, number).key for number in range(2)]
    assert steps_in(store) == [1, 2]


def test_the_local_disk_keeps_the_newest_attempts(log_to):
    """And each rank tidies for itself alone."""
    local = MemoryStore()
    for attempt in range(1, 8):
        for rank in range(2):
            log = log_to(MemoryStore(), local, attempt=attempt, rank=rank)
            log.add([beat(1)])
            log.close()
    kept = {parse_segment_key(key).attempt for key in local.keys("events/")}
    assert kept == set(range(8 - segments.KEPT_ATTEMPTS, 8))


def segment(*lines, **changes):
    """Bytes of a segment of attempt 1 and rank 0."""
    facts = {"format": 1, "attempt": 1, "rank": 0, "num_dropped": 0, "world_size": 1, "host": "h", **changes}
    return b"\n".join([json.dumps(facts).encode(), *lines])


BEAT = json.dumps(beat(5)).encode()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x00" * 1000,
        b"[]\n" + BEAT,
        segment(BEAT, format=2),
        segment(BEAT, attempt=2),
        segment(BEAT, rank=1),
        segment(BEAT, world_size=-1),
        segment(BEAT, world_size=10**9),
        segment(BEAT, num_dropped="many"),
        segment(BEAT, host=None),
        segment(BEAT) + b"\n" * (2 * reading.MAX_READ_BYTES),
    ],
    ids=range(11),
)
def test_a_damaged_segment_is_counted_and_skipped(data):
    """The segments beside it are read."""
    store = MemoryStore()
    store.put(SegmentKey(1, 0, 0).key, data)
    store.put(SegmentKey(1, 0, 1).key, segment(BEAT))
    log = read_event_log(store)
    assert steps_in(store) == [5]
    assert log.num_damaged == 1


def test_damaged_lines_are_counted_and_skipped():
    """Those of kinds from a later version too, with a number of their own."""
    store = MemoryStore()
    unknown = BEAT.replace(b"Heartbeat", b"Whatever")
    store.put(SegmentKey(1, 0, 0).key, segment(b"{", BEAT, unknown, b"[" * 5000, b"\xff", BEAT[:-3]))
    log = read_event_log(store)
    assert steps_in(store) == [5]
    assert (log.num_damaged, log.num_unknown) == (4, 1)


def test_foreign_objects_are_counted_and_not_read():
    """Only the keys of the format are read."""
    store = MemoryStore()
    for key in ("events/../x", "events/1-0-0.jsonl", "events/000001-00000-000000.jsonl.gz", "events/a"):
        store._objects[key] = segment(BEAT)
    log = read_event_log(store)
    assert log.ranks == []
    assert log.num_damaged == 4


def test_too_many_segments_are_not_read(monkeypatch):
    """Rank 0 and the newest attempts come first."""
    monkeypatch.setattr(reading, "MAX_SEGMENTS_READ", 2)
    store = MemoryStore()
    for attempt in (1, 2):
        for rank in (0, 1):
            store.put(SegmentKey(attempt, rank, 0).key, segment(BEAT, attempt=attempt, rank=rank))
    log = read_event_log(store)
    assert [(each.attempt, each.rank) for each in log.ranks] == [(1, 0), (2, 0)]
    assert log.num_unread == 2
