"""Hashes of the random streams of this process, without a wait for a device."""

from __future__ import annotations

import random
import struct
from typing import Any, Final

import numpy as np
import torch

from . import internals
from .record import hash_32

SLOW_EVERY: Final = 16
"""Steps between two looks at a stream that only the slow way reaches. A difference in a stream stays there."""


class Streams:
    """
    Looks at the random streams of torch on the CPU, Python, numpy and all CUDA devices.

    A look draws nothing, copies nothing to or from a device and waits for none. A CUDA stream is known by its seed and
    its offset, which torch keeps in host memory.
    """

    def __init__(self) -> None:
        self._python = internals.python_memory()
        self._numpy_generator: Any = np.random.get_bit_generator()  # type: ignore[attr-defined]
        self._numpy = internals.numpy_memory(self._numpy_generator)

    def look(self, step: int) -> tuple[int, int, int, int]:
        """Return the hashes of the streams of torch, Python, numpy and CUDA. 0 for one that was not looked at."""
        of_torch = hash_32(torch.default_generator.get_state().numpy().data)
        return of_torch, self._look_at_python(step), self._look_at_numpy(step), _look_at_cuda()

    def _look_at_python(self, step: int) -> int:
        gauss = internals.python_gauss()
        of_words = 0
        if self._python is not None:
            of_words = hash_32(self._python)
        elif step % SLOW_EVERY == 0:
            of_words = hash_32(repr(random.getstate()[1]).encode())
        if gauss is None or not of_words:
            return of_words
        return hash_32(struct.pack("<Id", of_words, gauss))

    def _look_at_numpy(self, step: int) -> int:
        generator = np.random.get_bit_generator()  # type: ignore[attr-defined]
        if generator is not self._numpy_generator:  # np.random.set_bit_generator was called
            self._numpy_generator = generator
            self._numpy = internals.numpy_memory(generator)
        if self._numpy is not None:
            return hash_32(self._numpy)
        if step % SLOW_EVERY:
            return 0
        return hash_32(repr(generator.state).encode())


def _look_at_cuda() -> int:
    if not torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return 0
    numbers: list[int] = []
    for generator in torch.cuda.default_generators:
        numbers += generator.initial_seed(), generator.get_offset()
    return hash_32(repr(numbers).encode())
