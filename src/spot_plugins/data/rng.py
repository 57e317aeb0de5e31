"""
Seeding, saving and borrowing the random streams of Python, numpy and torch on the CPU.

These are the legacy global streams, because datasets, transforms and samplers draw from them. The streams of devices
are left alone, because data is made on the CPU.
"""

from __future__ import annotations

import ctypes
import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import blake2b
from typing import Any, Final

import torch


def _import_numpy_random() -> Any:
    """Return the module, or None if numpy is missing. torch works without numpy, and so does this package."""
    try:
        import numpy.random
    except ImportError:
        return None
    return numpy.random


numpy_random: Final = _import_numpy_random()
NUM_WORDS: Final = 624
"""Words of a Mersenne twister."""

_MASK_64: Final = 2**64 - 1


def mixed(purpose: bytes, *numbers: int, size: int = 8) -> bytes:
    """
    Return *size* bytes that depend on *purpose*, on every one of *numbers* and on their order.

    It is BLAKE2b over the numbers as 64-bit little-endian words (two's complement for negative ones), personalized
    with *purpose* (at most 16 bytes). A sum, as ``DistributedSampler`` uses, would make seed 1 in epoch 0 equal to
    seed 0 in epoch 1.
    """
    words = b"".join((number & _MASK_64).to_bytes(8, "little") for number in numbers)
    return blake2b(words, digest_size=size, person=purpose).digest()


def mixed_seed(purpose: bytes, *numbers: int) -> int:
    """Return :func:`mixed` as a seed for a ``torch.Generator``, in 0..2**64-1."""
    return int.from_bytes(mixed(purpose, *numbers), "little")


def seed_streams(purpose: bytes, *numbers: int) -> None:
    """
    Seed all three streams from *purpose* and *numbers*, each with its own bits.

    All three are Mersenne twisters, so the same seed would give the same "random" numbers in each of them.
    """
    bits = mixed(purpose, *numbers, size=20)
    random.seed(int.from_bytes(bits[:8], "little"))
    # torch.manual_seed would also visit every kind of device, which is a hundred times slower.
    torch.default_generator.manual_seed(int.from_bytes(bits[8:16], "little"))
    if numpy_random is not None:
        # 32 bits, because numpy takes longer seeds only as lists, which is four times slower.
        numpy_random.seed(int.from_bytes(bits[16:], "little"))


@contextmanager
def borrowed_streams() -> Iterator[None]:
    """Let the body seed and use the three streams, and restore them after it."""
    of_python = random.getstate()
    of_torch = torch.default_generator.get_state()
    of_numpy = numpy_random.get_state() if numpy_random is not None else None
    try:
        yield
    finally:
        random.setstate(of_python)
        torch.default_generator.set_state(of_torch)
        if of_numpy is not None:
            numpy_random.set_state(of_numpy)


def streams_state(raw: tuple[Any, ...] | None = None) -> dict[str, Any]:
    """Return the state of the three streams, now or as *raw*, as nested dicts of tensors, numbers and None."""
    of_torch, (version, words, gauss), of_numpy = raw or raw_streams()
    state: dict[str, Any] = {
        "torch": of_torch,
        "python": {"version": version, "words": torch.tensor(words), "gauss": gauss},
    }
    if of_numpy is not None:
        name, key, pos, has_gauss, cached_gaussian = of_numpy
        state["numpy"] = {
            "name": str(name),
            "key": torch.from_numpy(key.astype("int64")),
            "pos": int(pos),
            "has_gauss": int(has_gauss),
            "cached_gaussian": float(cached_gaussian),
        }
    return state


def raw_streams() -> tuple[Any, ...]:
    """Return the state of the three streams as they give it, to compare it soon. It takes about 60 microseconds."""
    of_numpy = numpy_random.get_state() if numpy_random is not None else None
    return torch.default_generator.get_state(), random.getstate(), of_numpy


def are_at(raw: tuple[Any, ...]) -> bool:
    """Return True if nothing was drawn since :func:`raw_streams` returned *raw*. It takes less time than that."""
    of_torch, of_python, of_numpy = raw
    if not torch.equal(of_torch, torch.default_generator.get_state()) or of_python != random.getstate():
        return False
    return of_numpy is None or _is_numpy_at(of_numpy)


def _is_numpy_at(raw: tuple[Any, ...]) -> bool:
    """Return True if numpy's global stream is where it was when ``get_state()`` returned *raw*."""
    _, key, pos, has_gauss, _ = raw
    # get_state() copies word by word, which is slow. The memory of the generator lacks the second of two Gaussian
    # numbers that are drawn together, and there is none without a draw. If anything looks different, get_state()
    # decides.
    generator = numpy_random.get_bit_generator()
    if not has_gauss and type(generator) is numpy_random.MT19937:
        there = ctypes.string_at(generator.ctypes.state_address, 4 * NUM_WORDS + 4)
        if there == key.tobytes() + int(pos).to_bytes(4, sys.byteorder):
            return True
    now = numpy_random.get_state()
    return bool(raw[2:] == now[2:] and (key == now[1]).all())


def load_streams_state(state: dict[str, Any]) -> None:
    """
    Restore the three streams from *state*, which :func:`streams_state` returned here or in another process.

    Raises:
        ValueError: *state* is none that a stream can have.
    """
    torch.default_generator.set_state(state["torch"])
    python = state["python"]
    random.setstate((python["version"], tuple(python["words"].tolist()), python["gauss"]))
    if numpy_random is not None and "numpy" in state:
        saved = state["numpy"]
        if not 0 <= saved["pos"] <= NUM_WORDS:  # numpy would read foreign memory there
            raise ValueError(
                f"numpy's random state is damaged: position {saved['pos']} is not within {NUM_WORDS} words"
            )
        numpy_random.set_state(
            (
                saved["name"],
                saved["key"].numpy().astype("uint32"),
                saved["pos"],
                saved["has_gauss"],
                saved["cached_gaussian"],
            )
        )
