"""Ranks that stand still at their last save, in one process. Each has a copy of the state, and a push of its own."""

from __future__ import annotations

import time

import torch
from steps import Holder, InlinePusher, ThreadRank

from spot_plugins.events import EventBus
from spot_plugins.format.keys import StepId
from spot_plugins.push import PushSettings
from spot_plugins.ranks import MemoryBoard
from spot_plugins.save import Saver
from spot_plugins.state.registry import Registry

WORLD = 3
LOST = 2
STEP_ID = StepId(5, 1)


def state_of_rank(rank):
    generator = torch.Generator().manual_seed(7)
    return {
        "both": {
            "weight": torch.randn(90, 5, generator=generator),
            "bias": torch.randn(40, generator=generator).to(torch.bfloat16),
            "steps": torch.tensor(5),
        },
        "own": {"rng": torch.full((3,), 100 + rank), "running": torch.full((200,), float(rank))},
        "position": 17 + rank,
    }


class Rank:
    """One rank that stands still after the step, with the store that it puts to."""

    def __init__(self, rank, store, state=None, replicated=("both",), part=None, world_size=WORLD, max_bytes=None):
        self.rank = rank
        self.store = store
        parts = Registry()
        parts.add("part", part or Holder(state or state_of_rank(rank)), replicated if part is None else ())
        settings = PushSettings(
            url="memory://",
            storage_options={},
            local_dir=None,
            rank=rank,
            world_size=world_size,
            attempt=1,
            keep_last=2,
            keep_every=None,
        )
        self.pusher = InlinePusher(settings, store)
        self.saver = Saver(parts, ThreadRank(rank, world_size, MemoryBoard()), self.pusher, EventBus(), max_bytes)
        self.staged = None

    def save_last(self):
        """Stage and push the share of this rank as the last save of a departure does."""
        self.staged = self.saver.stage(5, "notice", time.monotonic() + 60, is_last=True)
        self.saver.push(self.staged)
        return self

    def store_share(self, rank=LOST):
        """Store the share of another rank. Return the event that tells the outcome."""
        self.saver.stage_share(self.staged, rank, time.monotonic() + 60)
        return self.pusher.told[-1]

    def close(self):
        self.saver.close()
