"""
Direct looks at the memory of Python's and numpy's random streams.

Both libraries copy their state into objects when they are asked for it, which takes 10 and 30 microseconds. A look at
the 2500 bytes in place takes a tenth of one. The place is a detail of CPython and of numpy, so the bytes are compared
once with the state that the library returns. If they are not the same, the slow way is taken, see :mod:`.streams`.

Checked against CPython 3.10 to 3.13 and numpy 2. No other module of this package touches a private name of theirs.
"""

from __future__ import annotations

import _random
import ctypes
import random
import struct
import sys
from typing import Final

import numpy as np

NUM_WORDS: Final = 624
_NUM_BYTES: Final = 4 * (NUM_WORDS + 1)  # the words of the Mersenne twister and the index of the next one


def python_memory() -> memoryview | None:
    """Return the memory of the stream of :mod:`random`, or None if it is not where it is expected."""
    stream = getattr(random, "_inst", None)
    is_cpython = sys.implementation.name == "cpython"
    if not is_cpython or not isinstance(stream, _random.Random):
        return None
    offset = object.__basicsize__
    if _random.Random.__basicsize__ < offset + _NUM_BYTES:
        return None
    memory = _at(id(stream) + offset)
    *words, index = random.getstate()[1]
    return memory if memory == struct.pack(f"={NUM_WORDS + 1}I", index, *words) else None


def python_gauss() -> float | None:
    """Return the second number of a pair that ``random.gauss`` has drawn and not returned yet."""
    return getattr(getattr(random, "_inst", None), "gauss_next", None)


def numpy_memory(generator: object) -> memoryview | None:
    """Return the memory of numpy's bit *generator*, or None if it is another kind than the legacy one."""
    if type(generator) is not np.random.MT19937:
        return None
    memory = _at(generator.ctypes.state_address)
    state = generator.state["state"]
    expected = state["key"].astype("=u4").tobytes() + struct.pack("=i", int(state["pos"]))
    return memory if memory == expected else None


def _at(address: int) -> memoryview:
    # The memory is freed with its owner, which the callers keep alive.
    return memoryview((ctypes.c_ubyte * _NUM_BYTES).from_address(address)).cast("B")
