"""
Direct looks at the memory of the random streams of Python, numpy and torch.

These libraries copy their state into objects when they are asked for it, which takes 10, 30 and 2 microseconds, and
several times as long right after a training step. A look at it in place takes a tenth of one. The place is a detail of
each library, so the bytes are compared once with the state that the library returns. If they are not the same, the slow
way is taken, see :mod:`.streams`.

The state of a Mersenne twister is 624 words and the index of the next one. All words change at once after every 624
words that are drawn. So the index and 15 of the words are enough to tell two states apart.

Checked against CPython 3.11, numpy 2 and torch 2.13. No other module of this package touches a private name of theirs.
"""

from __future__ import annotations

import _random
import ctypes
import random
import struct
import sys
from typing import Any, Final

import numpy as np
import torch

NUM_WORDS: Final = 624
NUM_SEEN: Final = 64
"""Bytes that are looked at: the index and 15 words next to it."""
_TORCH_WORDS: Final = slice(24, 24 + 8 * NUM_WORDS)  # in the state that torch returns, 8 bytes for each
_TORCH_BEFORE: Final = 4  # bytes of the index of the next word, before the words. Before it there is unset padding
_TORCH_HEAD: Final = 256  # bytes of the object among which the words begin
_NUM_BYTES: Final = 4 * (NUM_WORDS + 1)  # the words of the Mersenne twister and the index of the next one


def python_stream() -> tuple[_random.Random, memoryview] | None:
    """Return the stream of :mod:`random` and a view of its memory, or None if that is not where it is expected."""
    stream = getattr(random, "_inst", None)
    is_cpython = sys.implementation.name == "cpython"
    if not is_cpython or not isinstance(stream, _random.Random):
        return None
    offset = object.__basicsize__
    if _random.Random.__basicsize__ < offset + _NUM_BYTES:
        return None
    memory = _at(id(stream) + offset)
    *words, index = random.getstate()[1]
    return (stream, memory[:NUM_SEEN]) if memory == struct.pack(f"={NUM_WORDS + 1}I", index, *words) else None


def numpy_memory(generator: Any) -> memoryview | None:
    """Return a view of the memory of numpy's bit *generator*, or None if it is another kind than the legacy one."""
    if type(generator) is not np.random.MT19937:
        return None
    memory = _at(generator.ctypes.state_address)
    state: Any = generator.state["state"]
    expected = state["key"].astype("=u4").tobytes() + struct.pack("=i", int(state["pos"]))
    return memory[-NUM_SEEN:] if memory == expected else None


def torch_memory() -> memoryview | None:
    """Return a view of the memory of torch's stream on the CPU, or None if it is not where it is expected."""
    address = getattr(torch.default_generator, "_cdata", None)
    state = torch.default_generator.get_state()
    words = state[_TORCH_WORDS]
    if type(address) is not int or len(words) != 8 * NUM_WORDS:
        return None
    expected = words.view(torch.int64).numpy().astype("=u4").tobytes()
    head = _at(address, _TORCH_HEAD)
    for offset in range(0, len(head) - 8, 4):  # the object is far longer than its head
        if head[offset : offset + 8] == expected[:8] and _at(address + offset, len(expected)) == expected:
            return _at(address + offset - _TORCH_BEFORE, NUM_SEEN) if offset >= _TORCH_BEFORE else None
    return None


def _at(address: int, num_bytes: int = _NUM_BYTES) -> memoryview:
    # The memory is freed with its owner, which the callers keep alive.
    return memoryview((ctypes.c_ubyte * num_bytes).from_address(address)).cast("B")
