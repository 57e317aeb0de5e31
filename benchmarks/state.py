"""A training with a state of a chosen size, and real steps that change all of it."""

from __future__ import annotations

import os
import time
from contextlib import nullcontext

import torch
from torch import nn

WIDTH = 768
TOKENS = 64  # a step with 85 M parameters takes about 0.3 s on two cores
BYTES_PER_PARAMETER = 12  # the weight and two moments of Adam, float32
TENSORS_PER_BLOCK = 24  # six parameters, each with two moments and a counter of steps
ADAPTER_ROWS = 32


class Block(nn.Module):
    """A residual block of a transformer without attention, which is cheap enough for two cores."""

    def __init__(self, width):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)

    def forward(self, x):
        return x + self.down(nn.functional.gelu(self.up(self.norm(x))))


class Adapted(nn.Module):
    """A frozen block and a small trained one beside it, as with LoRA."""

    def __init__(self, block, width):
        super().__init__()
        self.block = block.requires_grad_(False)
        self.adapter = nn.Sequential(nn.Linear(width, ADAPTER_ROWS), nn.Linear(ADAPTER_ROWS, width))

    def forward(self, x):
        return self.block(x) + self.adapter(x)


class Training:
    """
    A model and its AdamW optimizer, with a state of about *num_gb* GB (10^9 bytes) in about *num_tensors* tensors.

    By default there are as many tensors as blocks of a common width have.

    On several ranks the model is wrapped in DDP, unless *wrap* is False, because some hosts wrap it themselves. With
    *is_new*, no step has been trained, so that the optimizer has no state yet.
    """

    def __init__(self, num_gb, device="cpu", *, world_size=1, frozen=False, wrap=True, num_tensors=None, is_new=False):
        torch.manual_seed(0)
        num_parameters = num_gb * 1e9 / BYTES_PER_PARAMETER
        width = WIDTH
        while 2 * 8 * width * width > num_parameters and width > 32:
            width //= 2
        num_blocks = max(1, round(num_parameters / (8 * width * width)))
        if num_tensors is not None:
            num_blocks = max(1, round(num_tensors / TENSORS_PER_BLOCK))
            width = max(1, round((num_parameters / (8 * num_blocks)) ** 0.5))
        blocks = [Block(width) for _ in range(num_blocks)]
        if frozen:
            blocks = [Adapted(block, width) for block in blocks]
        self.device = torch.device(device)
        self.model = nn.Sequential(*blocks).to(self.device)
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=True)
        self.module = nn.parallel.DistributedDataParallel(self.model) if wrap and world_size > 1 else self.model
        self.batch = torch.randn(TOKENS, width, device=self.device)
        self.num_steps = 0
        if not is_new:
            self.step()  # the optimizer has its state after one step

    def step(self, guard=nullcontext, batch=None):
        """Train one step, with its update within *guard*, and wait for the device. Return the seconds."""
        started = time.perf_counter()
        self.optimizer.zero_grad()
        self.module(self.batch if batch is None else batch).square().mean().backward()
        with guard():
            self.optimizer.step()
        self.synchronize()
        self.num_steps += 1
        return time.perf_counter() - started

    def synchronize(self):
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def state(self):
        return {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load(self, state):
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])

    def tensors(self, *, trained_only=False):
        """Return the tensors that a checkpoint has to hold."""
        weights = [tensor for tensor in self.model.parameters() if tensor.requires_grad or not trained_only]
        moments = [value for state in self.optimizer.state.values() for value in state.values()]
        return [tensor.detach() for tensor in [*weights, *moments] if torch.is_tensor(tensor)]

    def fingerprint(self):
        """Return a number that differs for another state."""
        return sum(float(tensor.double().sum()) for tensor in self.tensors())

    def num_bytes(self, *, trained_only=False):
        return sum(tensor.nbytes for tensor in self.tensors(trained_only=trained_only))


def num_threads(world_size):
    """Return the number of threads for each of *world_size* ranks on this machine."""
    return max(1, len(os.sched_getaffinity(0)) // world_size)
