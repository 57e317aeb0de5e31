"""
A job of many ranks over a :class:`.SimulatedStore`: what each rank asks of the store, by the code that real ranks run.

Two ranks run: rank 0, and the last one, which stands for all others because they send the same requests. The objects of
the others are added by name and size, so that listings are as long as in a job of that size. If the state is
replicated, all ranks push, because each one stores other pieces.
"""

from __future__ import annotations

import json
import mmap
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, partial

import torch
import xxhash

from spot_plugins.config import SpotConfig
from spot_plugins.eventlog.pusher_log import PusherLog
from spot_plugins.eventlog.records import Record, TrainingBegan, body_of
from spot_plugins.events import Committed, EventBus
from spot_plugins.format.boxes import Box, ShardBoxes, whole
from spot_plugins.format.commit import NUM_GETS, committed_steps, merge_manifests
from spot_plugins.format.keys import StepId, blob_key, parse_rank_manifest_key, rank_manifest_key
from spot_plugins.format.manifest import ManifestError, canonical_json
from spot_plugins.push.frozen_watch import FrozenWatch
from spot_plugins.push.messages import BlobImage, PushJob, PushSettings
from spot_plugins.push.step_push import StepPush, Ways
from spot_plugins.ranks import Gathered, Job
from spot_plugins.resume.join import _claim
from spot_plugins.resume.newest import load_newest
from spot_plugins.resume.salvage import salvage
from spot_plugins.save.layout import plan_layout
from spot_plugins.state import Shard, encode
from spot_plugins.state.live_tensor import LiveTensor
from spot_plugins.store import probe, put_speed

from .simulated_store import SimulatedStore

COLUMNS = 1024
"""Columns of each tensor."""

KEEP_LAST = SpotConfig(url="file:///run", every_steps=1).keep_last
SEGMENT = "spot-segment"
"""The thread that puts the event log."""

LOG_S = 300.0
"""Longest wait for a put of the event log, which a thread of its own makes."""

OWN = {"text": "x" * 2000}
"""The random streams, schedulers and positions of a rank, as large as those of a training."""


@dataclass(frozen=True)
class Size:
    """The size of a job."""

    world_size: int
    num_bytes: int
    """Bytes of the state, which the ranks share."""
    num_tensors: int
    is_replicated: bool = False
    """True if each rank holds all of the state, as under DDP. False if each holds a part of each tensor."""

    def boxes(self, rank):
        """Return the boxes that *rank* holds of each tensor."""
        rows = self.num_bytes // (4 * COLUMNS * self.num_tensors)
        if self.is_replicated:
            shape = (max(1, rows), COLUMNS)
            return ShardBoxes(shape, (whole(shape),), _everybody(self.world_size))
        rows = max(1, rows // self.world_size)
        return ShardBoxes((rows * self.world_size, COLUMNS), (Box((rank * rows, 0), (rows, COLUMNS)),), (rank,))


class SimulatedJob:
    """
    One run in a simulated store.

    Each method returns groups, as :func:`.replay.replay` takes them: pairs of the requests of a rank, and the number of
    ranks that send these.

    Args:
        size: The size of the job.
        is_full: Whether all ranks run, instead of two.
    """

    def __init__(self, size, *, is_full=False):
        self.size = size
        self.store = SimulatedStore()
        self.attempt = 0
        self._is_full = is_full
        self._logs = {}
        self._memory = memoryview(b"")
        self._pruning = []
        self._made = {}
        self._making = threading.Lock()

    def prove(self):
        """Let every rank prove the store."""
        return self._by_all(lambda rank: (probe(self.store), put_speed(self.store)))

    def claim(self):
        """Claim an attempt on rank 0."""
        with self.store.recording() as trace:
            self.attempt = _claim(self.store, self.size.world_size)
        return [(trace, 1)]

    def begin(self):
        """Begin the threads of every pusher process that use the store."""
        groups = [*self._by_all(self._watch), *self._by_all(self._log_start)]
        self._add_alike("events/")
        return groups

    def save(self, step):
        """Push *step* on every rank, until it is committed."""
        push = partial(self._push, step)
        if self.size.is_replicated:
            groups = [group for rank in range(self.size.world_size) for group in self._traced(push, rank, 1)]
        else:
            groups = self._by_all(push)
            self._add_alike(StepId(step, self.attempt).prefix)
        first, num_ranks = groups[0]
        end = 2 + max(number for number, each in enumerate(first) if each.kind == "PUT")  # it looks for a newer attempt
        self._pruning = first[end:]
        groups[0] = (first[:end], num_ranks)
        return groups + self._by_all(lambda rank: self._log(rank, Committed(step=step, num_bytes=1, push_s=1.0)))

    def prune(self):
        """Return what rank 0 has asked for to prune the oldest step, after its commit in the last save."""
        return [(self._pruning, 1)]

    def repeat(self, step, new_step):
        """Add the objects of *new_step*, as if it had been saved as *step* was. Nothing of them can be read."""
        old, new = (StepId(each, self.attempt).prefix for each in (step, new_step))
        self.store.add({key.replace(old, new): num_bytes for key, num_bytes in self.store.sizes(old).items()})

    def merge(self, step):
        """Merge the manifests of *step* on rank 0, after all ranks have committed."""
        with self.store.recording() as trace, suppress(ManifestError):  # the copy would be too large
            assert merge_manifests(self.store, StepId(step, self.attempt), self.size.world_size)
        return [(trace, 1)]

    def discover(self):
        """List the committed steps, as rank 0 does in a resume, and each rank in a prefetch."""
        with self.store.recording() as trace:
            self.newest = committed_steps(self.store)[0]
        return [(trace, 1)]

    def resume(self):
        """Load the newest step on every rank."""
        return self._by_all(partial(self._load, {}))

    def _by_all(self, action):
        """Let *action* be done by each rank, given its number."""
        world_size = self.size.world_size
        if self._is_full:
            return [group for rank in range(world_size) for group in self._traced(action, rank, 1)]
        groups = self._traced(action, 0, 1)
        return groups + self._traced(action, world_size - 1, world_size - 1) if world_size > 1 else groups

    def _traced(self, action, rank, num_ranks):
        with self.store.recording() as trace:
            action(rank)
        # The log is put beside all else.
        parts = [[each for each in trace if (each.pool == SEGMENT) == is_log] for is_log in (False, True)]
        return [(part, num_ranks) for part in parts if part]

    def _settings(self, rank):
        return PushSettings(
            url="memory://simulated",
            storage_options={},
            local_dir=None,
            rank=rank,
            world_size=self.size.world_size,
            attempt=self.attempt,
            keep_last=KEEP_LAST,
            keep_every=None,
        )

    def _watch(self, rank):
        watch = FrozenWatch(self.store, None, self._settings(rank), EventBus())
        watch.find()
        watch.look()

    def _log_start(self, rank):
        self._logs[rank] = PusherLog(
            self.store,
            None,
            attempt=self.attempt,
            rank=rank,
            world_size=self.size.world_size,
            hide=lambda text: text,
            on_failure=print,
        )
        self._logs[rank].start()
        self._log(rank, TrainingBegan(step=None))

    def _log(self, rank, entry):
        """Record *entry*, with which the log is put, and wait for the put."""
        trace = self.store.trace
        num_puts = sum(each == "PUT" for each in map(_log_kind, trace))
        deadline = time.monotonic() + LOG_S
        self._logs[rank].add([body_of(Record(0.0, 0.0, entry))])
        while sum(each == "PUT" for each in map(_log_kind, trace)) == num_puts:
            if time.monotonic() > deadline:
                raise TimeoutError(f"the event log of rank {rank} was not put within {LOG_S:.0f} s")
            time.sleep(0.0005)

    def _push(self, step, rank):
        document, live = self._state(rank)
        layout = plan_layout(live, rank, grows=True)  # as with obstore
        images = [BlobImage(buffer=0, offset=offset, num_bytes=size) for offset, size in layout.blobs]
        job = PushJob(step=step, blobs=tuple(images), tensors=layout.slices, state=document)
        memory = self._zeros(layout.num_bytes)
        views = [memory[each.offset : each.offset + each.num_bytes] for each in images]
        told = []
        StepPush(job, self._settings(rank), views, ways=Ways(store=self.store), bus=EventBus(told.append)).run()
        assert any(isinstance(event, Committed) for event in told), told

    def _load(self, notes, rank):
        ranks = _OneRank(rank, self.size.world_size, notes)
        shards = _shards(self.size, rank)

        def want(name, shape):
            return None if self.size.is_replicated else shards[name.rpartition("/")[2]]

        job = Job(ranks, ranks)
        salvage(self.store, None, job, self.attempt, EventBus())
        loaded = load_newest(self.store, None, "", job, EventBus(print), want)
        assert loaded.step_id == self.newest.step_id

    def _state(self, rank):
        """Return the document and the live tensors of *rank*."""
        shards = _shards(self.size, rank)
        document, tensors = encode({"model": shards, "own": OWN})
        return document, {name: LiveTensor(shard.local, shard.boxes) for name, shard in tensors.items()}

    def _zeros(self, num_bytes):
        """Return memory that is zero and takes no room, because nobody writes to it."""
        if len(self._memory) < num_bytes:
            mapped = mmap.mmap(-1, num_bytes, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            mapped.madvise(mmap.MADV_HUGEPAGE)  # fewer page faults
            self._memory = memoryview(mapped)
        return self._memory

    def _add_alike(self, prefix):
        """Add the objects of the ranks that did not run, which are those of the last rank under other names."""
        last = self.size.world_size - 1
        if self._is_full:
            return
        own = {key: size for key, size in self.store.sizes(prefix).items() if _of_rank(key, last, 0) != key}
        others = range(1, last)
        self.store.add({_of_rank(key, last, rank): size for key, size in own.items() for rank in others})
        for key in own:
            if (name := parse_rank_manifest_key(key)) is not None:
                manifest = json.loads(self.store.peek(key))
                del manifest["xxh3_128"]
                for rank in others:
                    other = rank_manifest_key(name.step_id, rank, name.world_size)
                    self.store.absent[other] = partial(self._alike, manifest, rank)

    def _alike(self, manifest, rank):
        """Return the bytes of *manifest* as *rank* would have put it: with its own positions, and names of blobs."""
        step_id, other = StepId(manifest["step"], manifest["attempt"]), manifest["rank"]
        if (known := self._made.get((step_id, rank))) is not None:  # a reader asks for the beginning, then for all
            return known
        moved = self.size.boxes(rank).held[0].offsets[0] - self.size.boxes(other).held[0].offsets[0]
        blobs = [{**blob, "key": blob_key(step_id, rank, index)} for index, blob in enumerate(manifest["blobs"])]
        tensors = [
            {**each, "offsets": [each["offsets"][0] + moved, each["offsets"][1]]} for each in manifest["tensors"]
        ]
        document = {**manifest, "rank": rank, "blobs": blobs, "tensors": tensors}
        document["xxh3_128"] = xxhash.xxh3_128_hexdigest(canonical_json(document))
        made = canonical_json(document)
        with self._making:  # no more than are read at a time, because 16,384 take too much memory
            self._made = dict([*self._made.items()][1 - 2 * NUM_GETS :]) | {(step_id, rank): made}
        return made


class _OneRank:
    """A rank of a job in which all others write the same notes, but for rank 0, whose notes are kept in *notes*."""

    def __init__(self, rank, world_size, notes):
        self.rank = rank
        self.world_size = world_size
        self._notes = notes

    def post(self, name, value):
        self._notes[name] = value

    def gather(self, name, num_ranks, timeout_s=None):
        own, first = self._notes[f"{name}/{self.rank}"], self._notes[f"{name}/0"]
        return Gathered({rank: own if rank else first for rank in range(num_ranks)}, None)


def _log_kind(request):
    return request.kind if request.pool == SEGMENT else None


@cache
def _everybody(world_size):
    return tuple(range(world_size))


def _shards(size, rank):
    """Return the pieces that *rank* holds, by name. They have no memory of their own."""
    boxes = size.boxes(rank)
    local = torch.zeros(1).expand(boxes.held[0].lengths)
    return {f"model.layers.{number:04d}.weight": Shard(local, boxes) for number in range(size.num_tensors)}


def _of_rank(key, rank, other):
    """Return *key*, if it has the number *rank*, with the number *other*."""
    new = key
    for text in (f"/r{rank:05d}-", f"/rank-{rank:05d}-", f"-{rank:05d}-"):
        new = new.replace(text, text.replace(f"{rank:05d}", f"{other:05d}"))
    return new
