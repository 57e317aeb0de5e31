"""Data sets and models that the trainings of all hosts share."""

from __future__ import annotations

import random
import time

import numpy as np
import torch
from torch import nn
from torch.utils.data import Dataset, IterableDataset


class Points(Dataset):
    """Points of three classes, ``(index, x, y)``. Noisy ones draw from all three random streams, as an augmentation."""

    def __init__(self, size, *, seed=0, is_noisy=False, on_draw=lambda num_drawn: None):
        generator = torch.Generator().manual_seed(seed)
        self.x = torch.randn(size, 6, generator=generator)
        self.y = torch.randint(0, 3, (size,), generator=generator)
        self.is_noisy = is_noisy
        self.on_draw = on_draw
        self.drawn = {"num": 0}  # no state of the data: nobody has to save it

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        self.drawn["num"] += 1
        self.on_draw(self.drawn["num"])
        if not self.is_noisy:
            return index, self.x[index], self.y[index]
        noise = random.random() + np.random.rand() + torch.rand(6)
        return index, self.x[index] + 0.1 * noise, self.y[index]


class Stuck(Points):
    """Points whose worker processes get stuck after some samples, and say so by the file *sign*."""

    def __init__(self, size, sign):
        super().__init__(size, is_noisy=True, on_draw=self._get_stuck)
        self.sign = sign

    def _get_stuck(self, num_drawn):
        if num_drawn == 26:
            self.sign.touch()
            time.sleep(60)


class Stream(IterableDataset):
    """*points* without a length, in their order; it remembers where it is, for loaders that ask."""

    def __init__(self, points):
        self.points = points
        self.next = 0

    def __iter__(self):
        while self.next < len(self.points):
            self.next += 1
            yield self.points[self.next - 1]
        self.next = 0

    def state_dict(self):
        return {"next": self.next}

    def load_state_dict(self, state):
        self.next = state["next"]


def classifier():
    """A model with everything that has state of its own: weights, running statistics, random numbers."""
    return nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 3))


def hexed(loss):
    """Return *loss* with all its bits."""
    return float(loss).hex()
