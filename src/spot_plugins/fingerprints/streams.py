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
        self._torch = internals.torch_memory()
        self._python = internals.python_stream()
        self._numpy_generator: Any = np.random.get_bit_generator()  # type: ignore[attr-defined]
        self._numpy = internals.numpy_memory(self._numpy_generator)
        self._has_cuda = torch.version.cuda is not None or torch.version.hip is not None

    def look(self, step: int) -> tuple[int, int, int, int]:
        """Return the hashes of the streams of torch, Python, numpy and CUDA. 0 for one that was not looked at."""
        generator = np.random.get_bit_generator()  # type: ignore[attr-defined]
        if generator is not self._numpy_generator:  # np.random.set_bit_generator was called
            self._numpy_generator = generator
            self._numpy = internals.numpy_memory(generator)
        return (
            hash_32(self._torch if self._torch is not None else torch.default_generator.get_state().numpy().data),
            self._look_at_python(step),
            hash_32(self._numpy) if self._numpy is not None else self._look_at_numpy(step),
            _look_at_cuda() if self._has_cuda else 0,
        )

    def _look_at_python(self, step: int) -> int:
        if self._python is None:
            return 0 if step % SLOW_EVERY else hash_32(repr(random.getstate()).encode())
        stream, memory = self._python
        gauss = stream.gauss_next  # type: ignore[attr-defined]
        return hash_32(memory if gauss is None else memory.tobytes() + struct.pack("<d", gauss))

    def _look_at_numpy(self, step: int) -> int:
        return 0 if step % SLOW_EVERY else hash_32(repr(self._numpy_generator.state).encode())


def _look_at_cuda() -> int:
    if not torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return 0
    # A rank may get another device in another life. A device that nothing was drawn from is not the rank's own.
    current = torch.cuda.current_device()
    numbers = [
        (generator.initial_seed(), generator.get_offset())
        for device, generator in enumerate(torch.cuda.default_generators)
        if device == current or generator.get_offset()
    ]
    return hash_32(repr(numbers).encode())
