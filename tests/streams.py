"""Data sets that are streams with a state, written in the ways in which users write them."""

from __future__ import annotations

import torch
from torch.utils.data import IterableDataset


class Stream(IterableDataset):
    """The same samples one after another, without a length, and with a state as the torchdata documentation has it."""

    def __init__(self, length):
        self.length = length
        self.next = 0

    def __iter__(self):
        while self.next < self.length:
            self.next += 1
            yield torch.tensor([float(self.next - 1)])
        self.next = 0

    def state_dict(self):
        return {"next": self.next}

    def load_state_dict(self, state):
        self.next = state["next"]


class Kept(IterableDataset):
    """A stream whose iterators all begin where its state was restored to, as those of Hugging Face do."""

    def __init__(self, length):
        self.length = length
        self.start = self.next = 0

    def __iter__(self):
        self.next = self.start
        while self.next < self.length:
            self.next += 1
            yield torch.tensor([float(self.next - 1)])

    def state_dict(self):
        return {"next": self.next}

    def load_state_dict(self, state):
        self.start = state["next"]


class Evolving(Stream):
    """A stream that has another order in every epoch and counts its epochs in its state."""

    epoch = 0

    def __iter__(self):
        while self.next < self.length:
            self.next += 1
            yield torch.tensor([float((self.next * 7 + self.epoch) % self.length)])
        self.next = 0
        self.epoch += 1

    def state_dict(self):
        return {"next": self.next, "epoch": self.epoch}

    def load_state_dict(self, state):
        self.next, self.epoch = state["next"], state["epoch"]


class Buffered(Stream):
    """A stream with a shuffle buffer that is not part of its state."""

    def __iter__(self):
        generator = torch.Generator().manual_seed(5)
        buffer = []
        for sample in super().__iter__():
            buffer.append(sample)
            if len(buffer) == 8:
                yield buffer.pop(int(torch.randint(8, (), generator=generator)))
        yield from buffer
