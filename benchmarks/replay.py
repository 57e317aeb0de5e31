"""The seconds of recorded requests of many ranks: a discrete simulation of a service with latencies and limits."""

from __future__ import annotations

import heapq
import itertools
import math
from collections import Counter
from dataclasses import dataclass

from spot_plugins.format.commit import NUM_GETS
from spot_plugins.format.retention import NUM_DELETES
from spot_plugins.push import frozen_watch
from spot_plugins.push.step_push import NUM_PUTS

WIDTHS = {
    **{"spot-put": NUM_PUTS, "spot-get": NUM_GETS, "spot-merge": NUM_GETS, "spot-prune": NUM_DELETES},
    "spot-look": frozen_watch.NUM_GETS,
}
"""Requests that the threads of each pool have in flight. Any other thread has one."""

MAX_EVENTS = 1_000_000
"""Requests of one replay. If there are more, one simulated rank stands for several that do the same."""

WRITES = ("PUT", "DELETE")


@dataclass(frozen=True)
class Service:
    """Limits and prices of a service."""

    latency_s: float
    """Time of a request without its bytes."""
    bytes_per_s: float
    """Speed of one connection."""
    writes_per_s: float
    """PUT and DELETE that the service takes in a second."""
    reads_per_s: float
    """GET and LIST that the service takes in a second."""
    usd_per_write: float
    """Price of a PUT or a LIST."""
    usd_per_read: float
    """Price of a GET."""

    def usd(self, num_requests):
        """Return the price of requests, given their number by kind. DELETE is free."""
        writes = num_requests["PUT"] + num_requests["LIST"]
        return writes * self.usd_per_write + num_requests["GET"] * self.usd_per_read


@dataclass(frozen=True)
class Replayed:
    """The result of a replay."""

    num_requests: Counter
    """Number of requests by kind."""
    num_bytes: int
    seconds: float
    """Time until the last request has ended. A request above the limit of its second waits for the next second."""
    peak: dict
    """The largest number of writes and of reads in one second, if the service took them all."""


class _Limit:
    """Takes a number of requests in each second. The clock only moves forward."""

    def __init__(self, per_s):
        self._per_s = per_s
        self._second = 0
        self._used = 0.0
        self.peak = 0.0

    def admit(self, now, weight):
        """Return the time at which *weight* requests that are sent at *now* are taken."""
        second = int(now)
        if second > self._second:
            self._second, self._used = second, 0.0
        while self._used and self._used + weight > self._per_s:
            # What a heavy request has used beyond its second is missing in the seconds after it.
            self._second, self._used = self._second + 1, max(0.0, self._used - self._per_s)
        self._used += weight
        self.peak = max(self.peak, self._used)
        return max(now, float(self._second))


def replay(groups, service):
    """
    Return the figures of *groups*: pairs of a trace and the number of ranks that send it, all from time 0 on.

    The requests of a pool are in flight together, as many as it has threads. All others follow one after the other.
    """
    limited = _run(groups, service, service.writes_per_s, service.reads_per_s)
    unlimited = _run(groups, service, math.inf, math.inf)
    num_requests, num_bytes = Counter(), 0
    for trace, num_ranks in groups:
        for request in trace:
            num_requests[request.kind] += num_ranks
            num_bytes += num_ranks * request.num_bytes
    peak = {"writes": unlimited[1], "reads": unlimited[2]}
    return Replayed(num_requests, num_bytes, limited[0], peak)


def _run(groups, service, writes_per_s, reads_per_s):
    writes, reads = _Limit(writes_per_s), _Limit(reads_per_s)
    total = sum(len(trace) * num_ranks for trace, num_ranks in groups)
    events, ranks = [], []
    for trace, num_ranks in groups:
        batches = _batches(trace)
        actors = max(1, min(num_ranks, math.ceil(num_ranks * MAX_EVENTS / total))) if total else 0
        ranks += [_Rank(batches, num_ranks / actors) for _ in range(actors)]
    order = itertools.count()  # of events at the same time
    for rank in ranks:
        for request in rank.begin():
            heapq.heappush(events, (0.0, next(order), rank, request))
    end = 0.0
    while events:
        now, _, rank, request = heapq.heappop(events)
        if request is not None:
            limit = writes if request.kind in WRITES else reads
            at = limit.admit(now, rank.weight)
            done = at + service.latency_s + request.num_bytes / service.bytes_per_s
            heapq.heappush(events, (done, next(order), rank, None))
            continue
        end = now
        for following in rank.end_one():
            heapq.heappush(events, (now, next(order), rank, following))
    return end, writes.peak, reads.peak


def _batches(trace):
    """Cut *trace* into the requests that one pool sends, or one thread after the other: pairs of width and requests."""
    batches = []
    for request in trace:
        if not batches or batches[-1][0] != request.pool:
            batches.append((request.pool, []))
        batches[-1][1].append(request)
    return [(WIDTHS.get(pool, 1), requests) for pool, requests in batches]


class _Rank:
    """The requests of one rank that are still to be sent."""

    def __init__(self, batches, weight):
        self._batches = batches
        self.weight = weight
        self._batch = self._sent = self._in_flight = 0

    def begin(self):
        """Return the first requests of the batch."""
        if self._batch == len(self._batches):
            return []
        width, requests = self._batches[self._batch]
        self._sent = self._in_flight = min(width, len(requests))
        return requests[: self._sent]

    def end_one(self):
        """Return the requests that are sent because one has ended."""
        self._in_flight -= 1
        _, requests = self._batches[self._batch]
        if self._sent < len(requests):
            self._sent += 1
            self._in_flight += 1
            return [requests[self._sent - 1]]
        if self._in_flight:
            return []
        self._batch += 1
        return self.begin()
