"""Each step as a drill sees it beside its fingerprint: the place in the training data, and a sum of the weights."""

from __future__ import annotations

import json
from typing import Final, NamedTuple

_SUFFIX: Final = ".seen"


class Seen(NamedTuple):
    """The facts that were seen after one step."""

    place: tuple[int, ...]
    """Numbers that say how far training is in its data. Empty if that is unknown."""
    weights: int | None
    """Sum of the bits of all weights of this rank. None if no optimizer is known."""


class SeenFile:
    """Writes what is seen of one attempt and rank to a file beside *live*, the file of its fingerprints."""

    def __init__(self, live: str) -> None:
        self._path = live + _SUFFIX

    def write(self, step: int, seen: Seen) -> None:
        """Write what is *seen* after *step*."""
        with open(self._path, "a") as file:
            file.write(json.dumps([step, *seen]) + "\n")


def read_seen(live: str) -> dict[int, Seen]:
    """Return what was seen, by step. Nothing if there is no file. A line that is cut off is left out."""
    try:
        with open(live + _SUFFIX) as file:
            lines = [json.loads(line) for line in file if line.endswith("\n")]
    except FileNotFoundError:
        return {}
    return {step: Seen(tuple(place), weights) for step, place, weights in lines}


def trained_in_words(place: tuple[int, ...], *, control: tuple[int, ...], before: tuple[int, ...]) -> str:
    """
    Return what a step has trained, and what the same step of the control has trained.

    The numbers are batches of this rank, counted from 0 in each epoch. Under Lightning they are samples of all ranks
    where an elastic loader deals them out.

    Args:
        place: The place after the step.
        control: The place after the step of the control.
        before: The place before the step of the control. Empty before the first step.
    """
    mine, others, begins = _loaders(place), _loaders(control), _loaders(before)
    first = next((number for number, pair in enumerate(zip(mine, others, strict=False)) if pair[0] != pair[1]), None)
    if first is None:
        return ""
    epoch, progress = others[first]
    begin = begins[first] if first < len(begins) else (epoch, 0)
    size = progress - begin[1] if begin[0] == epoch else progress
    return f"it trained {_range(*mine[first], size)} instead of {_range(*others[first], size)}"


def _loaders(place: tuple[int, ...]) -> list[tuple[int, int]]:
    """Return epoch and progress of each loader. Each has three numbers, the last ones of *place*."""
    rest = place[len(place) % 3 :]
    return [(rest[start + 1], rest[start + 2]) for start in range(0, len(rest), 3)]


def _range(epoch: int, progress: int, size: int) -> str:
    first, last = max(progress - size, 0), max(progress - 1, 0)
    return f"{last} of epoch {epoch}" if first >= last else f"{first}..{last} of epoch {epoch}"
