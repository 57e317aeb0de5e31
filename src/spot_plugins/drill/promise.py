"""A promise, and the ends of a life in words."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from .lives import Life

_ERROR: Final = re.compile(r"(?:[\w.]+\.)?\w*(?:Error|Exception|Warning): \S")
_RANK: Final = re.compile(r"^\[rank\d+\]: ")

_MAX_OUTPUT_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Promise:
    """A promise, and what became of it."""

    name: str
    is_kept: bool
    text: str
    """The sentence on what was seen."""


def told_exit(life: Life) -> str:
    """Return the end of the command in words."""
    if life.exit_code is None:
        return "it was killed"
    return (
        f"it ended with code {life.exit_code}" if life.exit_code >= 0 else f"it was killed by signal {-life.exit_code}"
    )


def last_error(life: Life) -> str:
    """Return the last error that a life has printed, or the end of its output, for the end of a sentence."""
    lines = output_lines(life)
    found = [line for line in lines if _ERROR.match(line)] or lines
    return f": {found[-1][:1000]}" if found else ", and printed nothing"


def output_lines(life: Life) -> list[str]:
    """Return the last lines that a life has printed, without empty ones."""
    with life.output.open("rb") as file:
        file.seek(max(0, life.output.stat().st_size - _MAX_OUTPUT_BYTES))
        text = file.read().decode(errors="replace")
    return [_RANK.sub("", line.rstrip()) for line in text.splitlines() if line.strip()]
