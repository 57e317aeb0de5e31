"""Output that several verbs share: tables, JSON, errors and progress."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import typer

from ..errors import ConfigError, IncompatibleCheckpointError, SpotError

JSON_VERSION: Final = 1
"""Version of the documents that ``--json`` prints. It grows if a field is removed or gets another meaning."""

REDRAW_S: Final = 0.2


@contextmanager
def errors_of(verb: str, passing: type[SpotError] | tuple[()] = ()) -> Iterator[None]:
    """
    End the process with a sentence and a code if the ``with`` block fails: 2 for a user's mistake, else 1.

    Errors of the class *passing* are raised.
    """
    try:
        yield
    except passing:
        raise
    except SpotError as error:
        typer.echo(f"spot {verb}: {plain(str(error))}", err=True)
        is_mistake = isinstance(error, ConfigError | IncompatibleCheckpointError)
        raise typer.Exit(2 if is_mistake else 1) from None


def print_json(document: dict[str, Any]) -> None:
    """Print *document* with its version."""
    typer.echo(json.dumps({"version": JSON_VERSION, **document}, indent=2))


def print_table(rows: Sequence[Sequence[str]], num_right: int) -> None:
    """Print *rows*, the first of which is the head. The first *num_right* columns are aligned to the right."""
    cells = [[plain(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for row in cells:
        aligned = [
            cell.rjust(width) if number < num_right else cell.ljust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        typer.echo("  ".join(aligned).rstrip())


def plain(text: str) -> str:
    """Return *text* without control characters, because names in a bucket may hold commands for a terminal."""
    return "".join(each if each.isprintable() else "?" for each in text)


def size(num_bytes: int) -> str:
    """Return *num_bytes* with its unit."""
    value, unit = float(num_bytes), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if value < 1000:
            break
        value, unit = value / 1000, larger
    return f"{num_bytes} B" if unit == "B" else f"{value:.1f} {unit}"


def age(seconds: float) -> str:
    """Return the age in one unit: seconds, minutes, hours or days."""
    for limit, unit_s, unit in ((120, 1, "s"), (7200, 60, "min"), (172800, 3600, "h")):
        if seconds < limit:
            return f"{max(0.0, seconds) // unit_s:.0f} {unit}"
    return f"{seconds // 86400:.0f} d"


class Progress:
    """
    One line on stderr that is drawn again and again, if stderr is a terminal. It is a context manager.

    Args:
        verb: First word of the line.
    """

    def __init__(self, verb: str) -> None:
        self._verb = verb
        self._is_shown = sys.stderr.isatty()
        self._drawn_at = 0.0

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._is_shown and self._drawn_at:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()

    def __call__(self, step: int, done: int, total: int) -> None:
        """Draw the line, at most every :data:`REDRAW_S` seconds."""
        now = time.monotonic()
        if self._is_shown and now - self._drawn_at >= REDRAW_S:
            self._drawn_at = now
            sys.stderr.write(f"\r\x1b[K{self._verb} step {step}: {size(done)} of {size(total)}")
            sys.stderr.flush()
