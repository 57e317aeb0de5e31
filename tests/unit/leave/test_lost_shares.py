"""The ranks that are left deal the shares of those that have ended. The store is in memory, and so is the board."""

from __future__ import annotations

import logging
import threading
import time
from types import SimpleNamespace

import pytest
from steps import ThreadRank

from spot_plugins.errors import StoreError
from spot_plugins.events import ShareFinished, ShareNotFinished
from spot_plugins.format.keys import StepId, prepared_manifest_key, rank_manifest_key
from spot_plugins.leave import lost_shares
from spot_plugins.leave.lost_shares import LostShares
from spot_plugins.program import Lines
from spot_plugins.push.other_shares import OtherShares
from spot_plugins.ranks import Job, MemoryBoard
from spot_plugins.resume.join import Membership
from spot_plugins.store import MemoryStore

STEP = StepId(7, 3)
HOUR_S = 3600.0


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(lost_shares, "LOOK_S", 0.01)


class Job5:
    """Five ranks, their board and their store. A rank that stores a share does so at once, unless the test says."""

    num_ranks = 5

    def __init__(self):
        self.store = MemoryStore()
        self.board = MemoryBoard()
        self.stored_by = []

    def put(self, *ranks):
        for rank in ranks:
            self.store.put(rank_manifest_key(STEP, rank, self.num_ranks), b"")

    def prepare(self, *ranks):
        for rank in ranks:
            self.store.put(prepared_manifest_key(STEP, rank, self.num_ranks), b"")

    def lose(self, *ranks):
        for rank in ranks:
            self.board.end(rank, "has ended", is_lost=True)

    def rank(self, rank, push=None):
        """Return the :class:`LostShares` of *rank*. *push* does what its pusher does with a share."""
        shares = OtherShares()

        def push_share(of_rank, deadline):
            shares.begin(STEP.step, of_rank, "process")
            self.stored_by.append((rank, of_rank))
            if push is not None:
                push(of_rank, shares)
                return
            self.put(of_rank)
            shares.on_event(ShareFinished(step=STEP.step, rank=of_rank, num_bytes=0, push_s=0.0))

        run = Membership(
            url="",
            store=self.store,
            patient=self.store,
            local_dir=None,
            local=None,
            scratch=None,
            disk=None,
            attempt=STEP.attempt,
        )
        return LostShares(
            Job(ThreadRank(rank, self.num_ranks, self.board), self.board),
            run,
            SimpleNamespace(ledger=SimpleNamespace(other_shares=shares)),
            SimpleNamespace(push_share=push_share),
            Lines(rank, lambda: logging.NOTSET),
        )


@pytest.fixture
def job():
    return Job5()


def within(seconds):
    until = time.monotonic() + seconds
    return lambda: until


def test_each_share_is_dealt_to_one_rank(job):
    """Three ranks are left for two shares. None of them waits for another one to begin."""
    job.put(0, 2, 4)
    job.prepare(1, 3)
    job.lose(1, 3)
    begun = threading.Barrier(2)

    def push(of_rank, shares):
        begun.wait(60)
        job.put(of_rank)
        shares.on_event(ShareFinished(step=STEP.step, rank=of_rank, num_bytes=0, push_s=0.0))

    outcomes = {}
    left = {rank: job.rank(rank, push) for rank in (0, 2, 4)}
    threads = [
        threading.Thread(target=lambda rank=rank: outcomes.update({rank: left[rank].finish(7, within(HOUR_S))}))
        for rank in left
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert outcomes == {0: {}, 2: {}, 4: {}}
    assert sorted(job.stored_by) == [(0, 3), (2, 1)]
    assert [rank for rank in left if left[rank].is_first] == [0]


def test_one_rank_that_is_left_stores_all_shares_one_after_the_other(job):
    job.put(4)
    job.prepare(0, 1, 2, 3)
    job.lose(1, 2, 3)
    job.board.close()  # with rank 0
    last = job.rank(4)
    assert last.finish(7, within(HOUR_S)) == {}
    assert job.stored_by == [(4, 0), (4, 1), (4, 2), (4, 3)]
    assert last.is_first


def test_a_slow_rank_is_waited_for(job):
    """It has not ended. Nobody stores its share for it."""
    job.put(0, 2, 3)
    job.prepare(1, 4)
    job.lose(4)

    def push(of_rank, shares):
        job.put(of_rank, 1)
        shares.on_event(ShareFinished(step=STEP.step, rank=of_rank, num_bytes=0, push_s=0.0))

    assert job.rank(2, push).finish(7, within(HOUR_S)) == {}
    assert job.stored_by == [(2, 4)]


def test_a_share_is_dealt_to_another_rank_after_a_while(job, monkeypatch):
    """The board does not know that rank 2, to which it was dealt, has ended as well."""
    monkeypatch.setattr(lost_shares, "TURN_S", 0.05)
    job.put(0, 2, 3, 4)
    job.prepare(1)
    job.lose(1)
    assert job.rank(0).finish(7, within(HOUR_S)) == {}
    assert job.stored_by == [(0, 1)]


def test_a_rank_that_has_ended_gets_no_share(job):
    """Its own share is stored, so it is left out by the board alone."""
    job.put(0, 2, 3, 4)
    job.prepare(1)
    job.lose(1, 2)
    assert job.rank(3).finish(7, within(HOUR_S)) == {}
    assert job.stored_by == [(3, 1)]


def test_the_reasons_are_told_when_the_time_is_over(job):
    job.put(0)
    job.prepare(4)
    job.lose(1, 4)

    def hang(of_rank, shares):
        pass

    assert job.rank(0, hang).finish(7, within(0.3)) == {
        1: "its prepared manifest is not stored, so its own state is unknown",
        2: "its prepared manifest is not stored, so its own state is unknown",
        3: "its prepared manifest is not stored, so its own state is unknown",
        4: "the time was over before",
    }
    assert job.stored_by == [(0, 4)]


class Failing(MemoryStore):
    num_left = 3

    def keys(self, prefix):
        if self.num_left:
            self.num_left -= 1
            raise StoreError("list", prefix, "it does not answer")
        return super().keys(prefix)


def test_a_store_that_does_not_answer_is_asked_again(job):
    job.store = Failing()
    job.put(0, 2, 3, 4)
    job.prepare(1)
    job.lose(1)
    assert job.rank(2).finish(7, within(HOUR_S)) == {}
    assert job.store.num_left == 0


class Hanging(MemoryStore):
    def keys(self, prefix):
        threading.Event().wait()


def test_a_store_that_hangs_holds_nobody_up(job):
    job.store = Hanging()
    job.lose(1)
    assert job.rank(0).finish(7, within(0.2)) == dict.fromkeys(range(1, 5), "the time was over before")


def last_of_all(job):
    """Only rank 0 is left, and the share of rank 1 is missing."""
    job.put(0, 2, 3, 4)
    job.prepare(1)
    job.lose(1, 2, 3, 4)


@pytest.mark.parametrize("error", [StoreError("put", "", "there is no room"), MemoryError(), OSError(12, "no memory")])
def test_a_rank_without_memory_leaves_at_once(error, job, caplog):
    """Nobody else is left. A warning gives the reason."""
    last_of_all(job)

    def refuse(of_rank, shares):
        raise error

    reasons = job.rank(0, refuse).finish(7, within(HOUR_S))
    assert reasons == {1: str(error) or "MemoryError"}
    assert f"this rank cannot store the share of rank 1 of step 7: {reasons[1]}" in caplog.text


def test_a_share_that_differs_is_not_tried_again(job, caplog):
    last_of_all(job)

    def differ(of_rank, shares):
        shares.on_event(ShareNotFinished(step=STEP.step, rank=of_rank, reason="it differs"))

    assert job.rank(0, differ).finish(7, within(HOUR_S)) == {1: "it differs"}
    assert job.stored_by == [(0, 1)]
    assert "rank 1 has ended before its share of step 7 was stored, so this rank stores it" in caplog.text


class Late(MemoryStore):
    """Another rank stores the share of rank 1 after some looks."""

    num_left = 5

    def keys(self, prefix):
        self.num_left -= 1
        if self.num_left == 0:
            self.put(rank_manifest_key(STEP, 1, Job5.num_ranks), b"")
        return super().keys(prefix)


def test_a_rank_that_cannot_store_a_share_waits_for_those_that_may(job):
    job.store = Late()
    job.put(0, 2, 3, 4)
    job.prepare(1)
    job.lose(1)

    def differ(of_rank, shares):
        shares.on_event(ShareNotFinished(step=STEP.step, rank=of_rank, reason="it differs"))

    assert job.rank(2, differ).finish(7, within(HOUR_S)) == {}
    assert job.stored_by == [(2, 1)]


@pytest.mark.parametrize("num_deaths", [1, 2])
def test_a_share_is_given_to_one_more_pusher_process(num_deaths, job):
    """A share that has ended two of them may be the cause."""
    last_of_all(job)
    deaths = []

    def die(of_rank, shares):
        if len(deaths) < num_deaths:
            deaths.append(of_rank)
            shares.lose("process")
            return
        job.put(of_rank)
        shares.on_event(ShareFinished(step=STEP.step, rank=of_rank, num_bytes=0, push_s=0.0))

    expected = {} if num_deaths == 1 else {1: "the pusher process has ended twice"}
    assert job.rank(0, die).finish(7, within(HOUR_S)) == expected


def test_events_of_other_shares_are_no_outcome(job):
    shares = OtherShares()
    shares.begin(7, 1, "process")
    shares.on_event(ShareFinished(step=7, rank=2, num_bytes=0, push_s=0.0))
    shares.on_event(ShareFinished(step=6, rank=1, num_bytes=0, push_s=0.0))
    shares.lose("another process")
    assert shares.wait(time.monotonic()) is None
    shares.on_event(told := ShareFinished(step=7, rank=1, num_bytes=0, push_s=0.0))
    shares.lose("process")
    assert shares.wait(time.monotonic()) is told
