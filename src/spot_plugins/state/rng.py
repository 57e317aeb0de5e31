"""The random streams of a process."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import torch

from .part import ShardedPart

NUM_WORDS: Final = 624
"""Words of a Mersenne twister."""


class RngPart(ShardedPart):
    """
    The global random number generators of this process: Python, numpy, torch, and each CUDA device's.

    The generators of CUDA are left out as long as nothing has used CUDA. A generator that another object owns is saved
    with that object.
    """

    def state_dict(self) -> dict[str, Any]:
        """Return the states. ``cuda`` is a tensor per visible device, and ``device`` the number of the rank's own."""
        state: dict[str, Any] = {
            "python": random.getstate(),
            "numpy": np.random.get_state(legacy=False),
            "torch": torch.get_rng_state(),
            "cuda": [],
        }
        if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            state |= {"cuda": torch.cuda.get_rng_state_all(), "device": torch.cuda.current_device()}
        return state

    def for_new_rank(self, state: Mapping[str, Any], rank: int) -> dict[str, Any]:
        """Return streams for a new *rank*. They depend on *state*, that of rank 0, and on the rank."""
        drawn = hashlib.blake2b(state["torch"].numpy().tobytes() + rank.to_bytes(8, "little"), digest_size=8)
        seed = int.from_bytes(drawn.digest(), "little")
        new: dict[str, Any] = {
            "python": random.Random(seed).getstate(),
            "numpy": np.random.RandomState(seed % 2**32).get_state(legacy=False),
            "torch": torch.Generator().manual_seed(seed).get_state(),
            "cuda": [],
        }
        if state["cuda"] and torch.cuda.device_count():
            device = torch.cuda.current_device()
            new |= {"cuda": [torch.Generator(f"cuda:{device}").manual_seed(seed).get_state()], "device": 0}
        return new

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """
        Restore all generators.

        The rank's own device is the current one. It gets the stream of the device that was the rank's own, whatever the
        numbers of the two are. The streams of the devices beside it go to those beside it. CUDA devices without a saved
        state, and states without a device, are left alone.

        Raises:
            ValueError: *state* is none that a generator can have.
        """
        _require_numpy_position(state["numpy"]["state"]["pos"])
        random.setstate(state["python"])
        np.random.set_state(state["numpy"])
        torch.set_rng_state(state["torch"])
        num_devices = torch.cuda.device_count()
        if not (state["cuda"] and num_devices):
            return
        current = torch.cuda.current_device()
        shift = current - state.get("device", current)
        for device, device_state in enumerate(state["cuda"], start=shift):
            if 0 <= device < num_devices:
                torch.cuda.set_rng_state(device_state, device)


def _require_numpy_position(position: int) -> None:
    """Raise :exc:`ValueError` unless numpy's twister can stand at *position*. It would read foreign memory there."""
    if not 0 <= position <= NUM_WORDS:
        raise ValueError(f"numpy's random state is damaged: position {position} of {NUM_WORDS} words")
