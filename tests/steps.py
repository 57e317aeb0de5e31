"""Steps saved and loaded as trainings do it, by any number of ranks in one process and through any store."""

from __future__ import annotations

import mmap
import threading
from contextlib import closing
from dataclasses import dataclass, field, replace

import torch

from spot_plugins.events import EventBus
from spot_plugins.format.commit import committed_steps
from spot_plugins.format.keys import rank_manifest_key
from spot_plugins.format.manifest import RankManifest
from spot_plugins.push import PushSettings
from spot_plugins.push.ledger import Ledger
from spot_plugins.push.local_write import Disk
from spot_plugins.push.share_push import SharePush
from spot_plugins.push.step_push import StepPush, Ways
from spot_plugins.ranks import Board, Job, MemoryBoard, SingleRank
from spot_plugins.resume.newest import load_newest
from spot_plugins.save import Saver
from spot_plugins.state.registry import Registry

URL = "memory://steps"


class Holder:
    """A part that holds a state. ``num_loads`` says how often it was given one."""

    def __init__(self, state):
        self.state = state
        self.num_loads = 0

    def state_dict(self):
        return self.state

    def load_state_dict(self, state):
        self.state = state
        self.num_loads += 1


@dataclass
class ThreadRank:
    """One of several ranks that are threads of this process."""

    rank: int
    world_size: int
    board: Board

    def open_board(self):
        return self.board


@dataclass
class InlinePusher:
    """Pushes on the calling thread, through stores of any kind."""

    settings: PushSettings
    store: object
    local: object = None
    again: bool = False
    told: list = field(default_factory=list)
    ledger: Ledger = field(default_factory=Ledger)

    def submit(self, job, buffers):
        job = replace(job, again=self.again)
        memory = {number: memoryview(mmap.mmap(each.fd, each.num_bytes)) for number, each in buffers.items()}
        images = [memory[blob.buffer][blob.offset : blob.offset + blob.num_bytes] for blob in job.blobs]
        ways = Ways(store=self.store, disk=None if self.local is None else Disk(self.local))
        StepPush(job, self.settings, images, ways=ways, bus=EventBus(self.told.append)).run()

    def finish_share(self, job, number, buffer):
        """Push what another rank stores. Only what the store takes is of interest."""
        memory = memoryview(mmap.mmap(buffer.fd, buffer.num_bytes))
        images = [memory[blob.offset : blob.offset + blob.num_bytes] for blob in job.blobs]
        settings = replace(self.settings, rank=job.of_rank)
        SharePush(job, settings, images, ways=Ways(store=self.store), bus=EventBus(self.told.append)).run()

    def announce(self, step, buffers):
        pass

    def forget_buffer(self, buffer):
        return True  # a write to the local disk may still read it


def state_of(step, rank=0):
    """A small state that is another one on every rank and at every step; ``both`` is shared by the ranks."""
    generator = torch.Generator().manual_seed(step)
    return {
        "both": {"weight": torch.randn(6, 5, generator=generator), "bias": torch.randn(7, generator=generator)},
        "own": {"rng": torch.full((3,), 100 * step + rank, dtype=torch.int64), "flag": torch.tensor(True)},
        "step": step,
        "name": f"rank {rank}",
    }


def save(
    step,
    store,
    *,
    rank=0,
    world_size=1,
    local=None,
    attempt=1,
    keep_last=2,
    keep_every=None,
    state=None,
    again=False,
    parts=None,
):
    """
    Save *step* as one rank does, through all that a real save goes through but the socket. Return the events.

    Without *parts* there is one, which holds *state*.
    """
    settings = PushSettings(
        url=URL,
        storage_options={},
        local_dir=None,
        rank=rank,
        world_size=world_size,
        attempt=attempt,
        keep_last=keep_last,
        keep_every=keep_every,
    )
    if parts is None:
        parts = Registry()
        parts.add("part", Holder(state_of(step, rank) if state is None else state), ("both",))
    pusher = InlinePusher(settings, store, local, again)
    with closing(Saver(parts, ThreadRank(rank, world_size, MemoryBoard()), pusher, EventBus())) as saver:
        saver.save(step, "explicit", deadline=0.0)
    return pusher.told


def load(store, *, local=None, told=None):
    """Load the newest step on a job of one rank. *told* is a list that events are added to."""
    ranks = SingleRank()
    return load_newest(
        store, local, URL, Job(ranks, ranks.open_board()), EventBus(*([] if told is None else [told.append]))
    )


def load_on_all(store, world_size, local=None):
    """Load the newest step on all ranks at once. Return what each got: a step, None or an error."""
    board = MemoryBoard()
    results = [None] * world_size

    def body(rank):
        try:
            ranks = ThreadRank(rank, world_size, board)
            results[rank] = load_newest(store, local, URL, Job(ranks, board), EventBus())
        except Exception as error:  # noqa: BLE001 - whatever a rank raises is its result
            results[rank] = error

    threads = [threading.Thread(target=body, args=(rank,)) for rank in range(world_size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def numbers(store):
    """The committed steps, newest first."""
    return [committed.step_id.step for committed in committed_steps(store)]


def assert_whole(store):
    """Fail unless every committed step has all blobs that its manifests name."""
    present = set(store.keys("steps/"))
    for step_id, world_size in ((committed.step_id, committed.world_size) for committed in committed_steps(store)):
        for rank in range(world_size):
            manifest = RankManifest.decode(store.get(rank_manifest_key(step_id, rank, world_size)))
            missing = {blob.key for blob in manifest.blobs} - present
            assert not missing, f"{step_id} is committed without {missing}"


def assert_same(one, other, path=""):
    """Fail unless both states are of the same types and bits."""
    assert type(one) is type(other), path
    if isinstance(one, dict):
        assert list(one) == list(other), path
        for key in one:
            assert_same(one[key], other[key], f"{path}/{key}")
    elif isinstance(one, torch.Tensor):
        assert one.dtype == other.dtype, path
        assert torch.equal(one, other), path
    else:
        assert one == other, path
