"""
The simulation of large jobs, compared with small jobs of which every rank runs, and with a real S3 server.
"""

from __future__ import annotations

import sys
import threading
from collections import Counter
from pathlib import Path

import pytest
import torch
from steps import URL, Holder, ThreadRank, save

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.fleet import measure
from benchmarks.replay import Service, replay
from benchmarks.simulated_job import KEEP_LAST, OWN, SEGMENT, SimulatedJob, Size
from benchmarks.simulated_store import Request
from spot_plugins.events import EventBus
from spot_plugins.format.commit import committed_steps, merge_manifests
from spot_plugins.format.keys import StepId
from spot_plugins.ranks import Job, MemoryBoard
from spot_plugins.resume.join import _claim
from spot_plugins.resume.newest import load_newest
from spot_plugins.resume.salvage import salvage
from spot_plugins.state.registry import Registry
from spot_plugins.store import ObstoreStore, probe, put_speed
from spot_plugins.testing import FaultProxy

SERVICE = Service(
    latency_s=0.1, bytes_per_s=9e7, writes_per_s=3500, reads_per_s=5500, usd_per_write=5e-6, usd_per_read=4e-7
)
SIZES = [
    Size(8, 8 * 64 * 4096, 4),
    Size(16, 16 * 64 * 4096, 4),
    Size(8, 64 * 4096, 2, True),
    Size(16, 64 * 4096, 2, True),
]


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_two_ranks_stand_for_all(size, monkeypatch):
    """
    The figures of two ranks, one of them counted as often as there are others, are those of a job that runs whole.
    """
    simulated = list(measure(SimulatedJob(size), SERVICE))
    run = list(measure(SimulatedJob(size, is_full=True), SERVICE))

    assert [name for name, _ in simulated] == [name for name, _ in run]
    for (name, one), (_, other) in zip(simulated, run, strict=True):
        assert one.num_requests == other.num_requests, name
        if one.seconds < 1:  # later, a byte more may move a request to the next second
            assert one.peak == other.peak, name
        assert one.num_bytes == pytest.approx(other.num_bytes, rel=0.01), name  # numbers of ranks have more digits
        assert one.seconds == pytest.approx(other.seconds, rel=0.01), name


class RealJob:
    """The same job, of which every rank runs, on a real server. Each method returns the number of its requests."""

    def __init__(self, size, store, proxy):
        self.size = size
        self.store = store
        self.proxy = proxy

    def counted(self, action):
        before = self.proxy.num_requests
        action()
        return self.proxy.num_requests - before

    def prove(self):
        return self.counted(lambda: [(probe(self.store), put_speed(self.store)) for _ in range(self.size.world_size)])

    def claim(self):
        return self.counted(lambda: _claim(self.store, self.size.world_size))

    def save(self, step):
        return self.counted(lambda: [self._save(step, rank) for rank in range(self.size.world_size)])

    def merge(self, step):
        return self.counted(lambda: merge_manifests(self.store, StepId(step, 1), self.size.world_size))

    def discover(self):
        return self.counted(lambda: committed_steps(self.store))

    def resume(self):
        board = MemoryBoard()
        loaded = []

        def load(rank):
            job = Job(ThreadRank(rank, self.size.world_size, board), board)
            salvage(self.store, None, job, 1, EventBus())
            loaded.append(load_newest(self.store, None, URL, job, EventBus()))

        def load_all():
            threads = [threading.Thread(target=load, args=(rank,)) for rank in range(self.size.world_size)]
            for each in threads:
                each.start()
            for each in threads:
                each.join()

        count = self.counted(load_all)
        assert [each.step_id.step for each in loaded] == [KEEP_LAST + 2] * self.size.world_size
        return count

    def _save(self, step, rank):
        rows = self.size.boxes(rank).shape
        weights = {f"weight-{number}": torch.zeros(rows) for number in range(self.size.num_tensors)}
        parts = Registry()
        parts.add("model", Holder({"both": weights}), ("both",))
        parts.add("own", Holder(OWN))
        save(step, self.store, rank=rank, world_size=self.size.world_size, parts=parts)


def num_simulated(groups):
    """The requests of *groups* without those of the event log, which no real rank of the test has."""
    total = Counter()
    for trace, num_ranks in groups:
        total.update({"all": num_ranks * sum(each.pool != SEGMENT for each in trace)})
    return total["all"]


@pytest.mark.parametrize("size", SIZES[2:], ids=str)
def test_a_server_gets_as_many_requests_as_the_simulation_counts(size, s3_server):
    """
    Real ranks save through the client of the product, three steps so that the fourth prunes one, and load it.
    """
    url = f"{s3_server.create_bucket(f'fleet-{size.world_size}')}/run"
    with FaultProxy(s3_server.endpoint_url) as proxy:
        store = ObstoreStore(url, s3_server.storage_options(endpoint_url=proxy.endpoint_url))
        real, simulated = RealJob(size, store, proxy), SimulatedJob(size)
        assert real.prove() == num_simulated(simulated.prove())
        assert real.claim() == num_simulated(simulated.claim())
        simulated.begin()
        for step in range(1, KEEP_LAST + 3):
            assert real.save(step) == num_simulated([*simulated.save(step), *simulated.prune()]), step
        assert real.merge(step) == num_simulated(simulated.merge(step))
        assert real.discover() == num_simulated(simulated.discover())
        assert real.resume() == num_simulated(simulated.resume())


def puts(num_ranks, num_bytes=0, num_puts=1):
    return [([Request("PUT", num_bytes, "spot-put")] * num_puts, num_ranks)]


def test_requests_of_a_pool_are_in_flight_together():
    """Eight at a time: the ninth begins after one of them has ended, with its latency and its bytes."""
    assert replay(puts(1, 9 * 10**6, 8), SERVICE).seconds == pytest.approx(0.2)
    assert replay(puts(1, 9 * 10**6, 9), SERVICE).seconds == pytest.approx(0.4)


def test_requests_above_the_limit_wait_for_the_next_second():
    """Of 8,000 puts at once, the last 1,000 are taken after two seconds."""
    replayed = replay(puts(8000), SERVICE)
    assert replayed.seconds == pytest.approx(2.1)
    assert replayed.peak == {"writes": 8000, "reads": 0}
    assert SERVICE.usd(replayed.num_requests) == pytest.approx(0.04)


def test_one_simulated_rank_may_stand_for_many(monkeypatch):
    """Requests, price and peak are the same, and the seconds to the length of one limit."""
    monkeypatch.setattr("benchmarks.replay.MAX_EVENTS", 500)
    assert replay(puts(8000), SERVICE) == replay(puts(8000), SERVICE)
    assert replay(puts(8000), SERVICE).seconds == pytest.approx(2.1)
