"""
The requests, seconds and dollars of saves and resumes of thousands of ranks, by simulation.

The code of the product asks a store that holds names and sizes and no bytes. Its requests are then replayed for all
ranks on a virtual clock, against a service with a latency, a speed per connection, and a limit of requests per second.

- *prove*: at the start of an attempt every rank proves the store.
- *claim*: rank 0 claims the number of the attempt.
- *save*: every rank pushes its share and commits it.
- *prune*: rank 0 removes the oldest step, because the store has as many as it keeps.
- *merge*: rank 0 copies the manifests of all ranks to one object, unless they are too large together.
- *begin*: every pusher process of a second attempt looks for frozen blobs, and begins its event log.
- *discover*: the newest committed step is found.
- *prefetch*: every rank finds it by itself, before the ranks know of each other.
- *resume*: rank 0 finds the newest step, and every rank loads its share.

*Peak* is the largest number of requests in one second, if the service took them all. S3 takes 3,500 PUT and DELETE and
5,500 GET per second and prefix. A request beyond that waits here for the next second.
"""

from __future__ import annotations

import time

from .replay import Service, replay
from .report import Column, Report
from .simulated_job import KEEP_LAST, SimulatedJob, Size
from .simulated_store import keep_memory_fresh

COLUMNS = [
    Column("ranks", "ranks", "d"),
    Column("put", "PUT", "d"),
    Column("get", "GET", "d"),
    Column("list", "LIST", "d"),
    Column("delete", "DELETE", "d"),
    Column("gb", "GB", ",.0f"),
    Column("seconds", "s", ".1f"),
    Column("usd", "USD", ".4f"),
    Column("peak_writes", "peak writes/s", ".0f"),
    Column("peak_reads", "peak reads/s", ".0f"),
]


def measure(job, service):
    """Yield the name of each subject and its figures."""
    yield "prove", replay(job.prove(), service)
    yield "claim", replay(job.claim(), service)
    job.begin()
    job.save(1)
    for step in range(2, KEEP_LAST + 2):
        job.repeat(1, step)
    yield "save", replay(job.save(KEEP_LAST + 2), service)
    yield "prune", replay(job.prune(), service)
    yield "merge", replay(job.merge(KEEP_LAST + 2), service)
    job.claim()
    yield "begin", replay(job.begin(), service)
    found = job.discover()
    yield "discover", replay(found, service)
    yield "prefetch", replay([(trace, job.size.world_size) for trace, _ in found], service)
    yield "resume", replay(job.resume(), service)


def row_of(name, size, replayed, service):
    num = replayed.num_requests
    return {
        "way": f"{name}, {size.world_size} ranks",
        "ranks": size.world_size,
        **{kind.lower(): num[kind] for kind in ("PUT", "GET", "LIST", "DELETE")},
        "gb": replayed.num_bytes / 1e9,
        "seconds": replayed.seconds,
        "usd": service.usd(num),
        "peak_writes": replayed.peak["writes"],
        "peak_reads": replayed.peak["reads"],
    }


def add_arguments(parser):
    parser.add_argument("--ranks", type=int, nargs="+", default=[512, 1024], help="numbers of ranks")
    parser.add_argument("--tb", type=float, default=6.5, help="TB of the state that the ranks share")
    parser.add_argument("--tensors", type=int, default=3411, help="tensors in it; those of a model of 405 B by default")
    parser.add_argument("--replicated", action="store_true", help="each rank holds all of the state, as under DDP")
    parser.add_argument("--latency-s", type=float, default=0.1, help="seconds of a request without its bytes")
    parser.add_argument("--mb-per-s", type=float, default=90.0, help="speed of one connection")
    parser.add_argument("--writes-per-s", type=float, default=3500.0, help="PUT and DELETE that a prefix takes")
    parser.add_argument("--reads-per-s", type=float, default=5500.0, help="GET and LIST that a prefix takes")
    parser.add_argument("--usd-per-1000-writes", type=float, default=0.005, help="price of 1000 PUT or LIST")
    parser.add_argument("--usd-per-1000-reads", type=float, default=0.0004, help="price of 1000 GET")


def run(arguments):
    service = Service(
        latency_s=arguments.latency_s,
        bytes_per_s=arguments.mb_per_s * 1e6,
        writes_per_s=arguments.writes_per_s,
        reads_per_s=arguments.reads_per_s,
        usd_per_write=arguments.usd_per_1000_writes / 1000,
        usd_per_read=arguments.usd_per_1000_reads / 1000,
    )
    settings = {name: value for name, value in vars(arguments).items() if name not in ("verb", "out")}
    keep_memory_fresh()
    report = Report("fleet", settings, COLUMNS)
    for world_size in arguments.ranks:
        size = Size(world_size, int(arguments.tb * 1e12), arguments.tensors, arguments.replicated)
        started = time.monotonic()
        for name, replayed in measure(SimulatedJob(size), service):
            report.rows.append(row_of(name, size, replayed, service))
            print(f"{world_size} ranks, {name}: done after {time.monotonic() - started:.0f} s", flush=True)
    return report
