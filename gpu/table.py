"""The rows of all checks, as text, Markdown and JSON."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

HEAD = ("#", "check", "figure", "expectation", "verdict")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One result of one check."""

    number: int
    check: str
    figure: str = ""
    expectation: str = ""
    verdict: str = "ok"
    """``ok``, ``below`` (a figure misses its expectation), ``failed: ...`` or ``not here: ...``."""
    values: dict[str, Any] = field(default_factory=dict)
    """The figures as numbers, for the JSON file."""

    def cells(self) -> tuple[str, ...]:
        """Return the text of the columns."""
        texts = (str(self.number), self.check, self.figure, self.expectation, self.verdict)
        return tuple(text.replace("|", "/").replace("\n", " ") for text in texts)


class Report:
    """Writes the rows of one check to a file, line by line, so that the rows before a crash are kept."""

    def __init__(self, path: str, number: int, settings) -> None:
        self._path = Path(path)
        self._number = number
        self._settings = settings

    def fact(self, check, figure, expectation="", holds=True, *, needs_cuda=False, **values):
        """Report something that is right or wrong on any machine. With *needs_cuda* it proves nothing on a CPU."""
        verdict = "ok" if holds else "failed"
        if needs_cuda and not self._settings.has_cuda:
            verdict = f"not here: needs a GPU (on the CPU: {verdict})"
        self._write(check, figure, expectation, verdict, values)

    def figure(self, check, figure, expectation="", meets=True, *, needs_cuda=False, **values):
        """Report a figure. Its expectation is for the full size on a GPU, so it is judged there only."""
        is_judged = self._settings.scale == "full" and self._settings.has_cuda
        verdict = "not here: needs a GPU" if needs_cuda and not self._settings.has_cuda else "ok"
        self._write(check, figure, expectation, "below" if is_judged and not meets else verdict, values)

    def skip(self, check, why, figure=""):
        """Report that *check* cannot run on this machine."""
        self._write(check, figure, "", f"not here: {why}", {})

    def fail(self, check, error):
        """Report that *check* ended with *error*."""
        text = (str(error).strip().splitlines() or [""])[0]
        self._write(check, "", "", f"failed: {type(error).__name__}: {text}"[:300], {})

    def _write(self, check, figure, expectation, verdict, values):
        row = Row(
            number=self._number,
            check=check,
            figure=figure,
            expectation=expectation,
            verdict=verdict,
            values=values,
        )
        with self._path.open("a") as file:
            file.write(json.dumps(asdict(row)) + "\n")


class Table:
    """All rows so far. They are printed when they are added, and written to *out* if that is a folder."""

    def __init__(self, out: str | None, about: dict[str, Any]) -> None:
        self._out = Path(out) if out else None
        self._about = about
        self.rows: list[Row] = []

    def add(self, rows: list[Row]) -> None:
        """Print *rows*, and write the files again."""
        for row in rows:
            self.rows.append(row)
            number, *cells = row.cells()
            print(f"{number:>2} {' | '.join(cells)}", flush=True)
        if rows:
            self.write()

    def markdown(self) -> str:
        """Return the table in Markdown, sorted by the number of the check."""
        lines = [HEAD, ("---",) * len(HEAD), *(row.cells() for row in sorted(self.rows, key=lambda row: row.number))]
        return "".join(f"| {' | '.join(line)} |\n" for line in lines)

    def write(self) -> None:
        """Write ``gpu.md`` and ``gpu.json``. A reader never finds half a file."""
        if self._out is None:
            return
        self._out.mkdir(parents=True, exist_ok=True)
        document = {**self._about, "rows": [asdict(row) for row in self.rows]}
        for name, text in (("gpu.md", self.markdown()), ("gpu.json", json.dumps(document, indent=1) + "\n")):
            unfinished = self._out / f".{name}"
            unfinished.write_text(text)
            os.replace(unfinished, self._out / name)
