"""
The cost of a checkpoint of many ranks beside its bytes, to commit, list, find and prune it.

Two steps of that many ranks, with one blob and one manifest per rank, are in memory and in a real S3 server on this
machine. In each figure one rank works alone, as it does on its own machine.

- *commit*: one rank commits its manifest.
- *list*: the committed steps are listed.
- *discover*: a rank that needs no other rank's shards does a whole `load_newest`.
- *merge*: the pusher of rank 0 merges all manifests into one object.
- *all manifests*: a rank that needs the shards of other ranks reads all manifests, from the merged object.
- *prune*: one step is removed.

The figures are medians in seconds.
"""

from __future__ import annotations

import statistics
import time
from concurrent.futures import ThreadPoolExecutor

from spot_plugins.events import EventBus
from spot_plugins.format.commit import CommittedStep, commit, committed_steps, merge_manifests
from spot_plugins.format.keys import StepId, attempt_key, blob_key
from spot_plugins.format.manifest import RankManifest
from spot_plugins.format.retention import prune
from spot_plugins.ranks import Gathered, Job, MemoryBoard
from spot_plugins.resume.manifests import manifests_of
from spot_plugins.resume.newest import load_newest
from spot_plugins.state import encode
from spot_plugins.store import MemoryStore, open_store

from .report import Column, Report
from .servers import S3Server

STEPS = (1, 2)
ROUNDS = 3
NUM_CLIENTS = 16  # parallel requests to fill the store
FIGURES = ("commit", "list", "discover", "merge", "all manifests", "prune")
STATE = {"text": "x" * 2000}  # the size of one rank's random streams, schedulers and position


class AlikeRanks:
    """Rank 0 of a job in which all other ranks write the same notes."""

    rank = 0

    def __init__(self, world_size):
        self.world_size = world_size
        self.board = MemoryBoard()

    def post(self, name, value):
        self.board.post(name, value)

    def gather(self, name, num_ranks, timeout_s=None):
        return Gathered(dict.fromkeys(range(num_ranks), self.board.read(f"{name}/0", timeout_s)), None)


def manifest_of(step, rank, world_size):
    encoded, _ = encode({"part": STATE})
    return RankManifest(step_id=StepId(step, 1), rank=rank, world_size=world_size, blobs=(), tensors=(), state=encoded)


def save_rank(store, step, rank, world_size):
    """Save one rank's blob and manifest, and return the seconds of the commit."""
    store.put(blob_key(StepId(step, 1), rank, 0), b"blob")
    manifest = manifest_of(step, rank, world_size)
    started = time.perf_counter()
    commit(manifest, store)
    return time.perf_counter() - started


def timed(action):
    started = time.perf_counter()
    result = action()
    return time.perf_counter() - started, result


def median_of(action):
    return statistics.median(timed(action)[0] for _ in range(ROUNDS))


def measure(store, world_size):
    store.put(attempt_key(1), b"{}")
    with ThreadPoolExecutor(NUM_CLIENTS) as pool:
        for step in STEPS:
            list(pool.map(lambda rank, step=step: save_rank(store, step, rank, world_size), range(world_size)))
    assert [step.world_size for step in committed_steps(store)] == [world_size] * len(STEPS)

    def discover():
        ranks = AlikeRanks(world_size)
        loaded = load_newest(store, None, "", Job(ranks, ranks), EventBus(print))
        assert loaded.step_id == StepId(STEPS[-1], 1)

    step_id = StepId(STEPS[-1], 1)

    def read_all():
        assert len(manifests_of(store, CommittedStep(step_id, world_size))) == world_size

    row = {
        "commit": statistics.median(
            save_rank(store, STEPS[-1], rank, world_size) for rank in range(min(20, world_size))
        ),
        "list": median_of(lambda: committed_steps(store)),
        "discover": median_of(discover),
        "merge": median_of(lambda: merge_manifests(store, step_id, world_size)),
        "all manifests": median_of(read_all),
    }
    row["prune"], removed = timed(lambda: prune(store, 1, keep_last=1, keep_every=None))
    assert removed == [StepId(STEPS[0], 1)]
    return row


def add_arguments(parser):
    parser.add_argument("--ranks", type=int, nargs="+", default=[64, 1024], help="numbers of ranks")


def run(arguments):
    report = Report("scale", {"ranks": arguments.ranks}, [Column(name, f"{name} s", ".4f") for name in FIGURES])
    with S3Server() as server:
        for world_size in arguments.ranks:
            s3 = open_store(f"{server.create_bucket(f'ranks-{world_size}')}/run", server.storage_options())
            for name, store in (("memory", MemoryStore()), ("S3", s3)):
                row = {"way": f"{name}, {world_size} ranks", "store": name, "ranks": world_size}
                report.rows.append(row | measure(store, world_size))
                print(f"{world_size} ranks, {name}: done", flush=True)
    return report
