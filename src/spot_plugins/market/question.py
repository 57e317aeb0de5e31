"""One question about prices, as often as it is asked, and the way to print its answer."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from . import candidates, catalogue, rows, table
from .ask import ask
from .base import Offer, Query
from .fields import now
from .useful import Figures


@dataclass(slots=True)
class Question:
    """The GPUs that are looked for, and the answer of the last time."""

    query: Query
    file: str | None
    """File whose rows are the answer. None to ask the providers."""
    figures: Figures | None
    below: float | None
    """Price per GPU and hour."""
    echo: Callable[[str], object]
    """Called with what was asked for."""
    tell: Callable[[str], object]
    """Called with a line about something that is missing."""
    offers: list[Offer] = field(default_factory=list)
    best: Offer | None = None
    """The offer with the lowest price per GPU and hour."""
    has_answer: bool = True
    """False if no provider answers, so that it is not known what there is."""

    @property
    def is_below(self) -> bool:
        """True if an offer costs less than :attr:`below`."""
        return self.best is not None and self.below is not None and self.best.per_gpu_hour < self.below

    def ask(self, *, fresh: bool, as_json: bool, one_line: bool = False, tool: str | None = None) -> None:
        """
        Ask, and print the answer: a table, a document, a line, or a part of the file of a *tool* of :data:`.TOOLS`.

        Raises:
            RowsError: The file cannot be used.
            CandidatesError: The tool could rent none of the offers.
        """
        offers, notes = self._answer(fresh)
        self.offers = offers
        self.best = min(offers, key=lambda offer: offer.per_gpu_hour, default=None)
        for name, texts in notes.items():
            for text in texts:
                self.tell(f"{name}: {text}")
        offers = table.in_order(offers, self.figures)
        if as_json:
            document = table.document(offers, self.figures, notes, now())
            self.echo(json.dumps(document, indent=None if one_line else 2))
        elif self.best is not None and tool is not None:
            wanted = [each for each in offers if self.below is None or each.per_gpu_hour < self.below]
            if not wanted:
                self.tell(f"no offer costs less than ${self.below:g} per GPU and hour")
            for line in candidates.TOOLS[tool](wanted, now(), self.tell) if wanted else ():
                self.echo(line)
        elif self.best is None:
            self.tell(f"no offer of {self.query.count or 'any number of'} {self.query.gpu}")
        elif one_line:
            self.echo(f"{now():%Y-%m-%d %H:%M:%S} UTC  {table.line_of(self.best)}")
        else:
            for line in table.lines_of(offers, self.figures, now()):
                self.echo(line)

    def message(self) -> dict[str, Any]:
        """Return the document that tells of the best offer."""
        best = [self.best] if self.best else []
        return {**table.document(best, self.figures, {}, now()), "below": self.below}

    def _answer(self, fresh: bool) -> tuple[list[Offer], dict[str, list[str]]]:
        if self.file is not None:
            return rows.read_file(self.file, self.query), {}
        results = sorted(ask(self.query, fresh=fresh).items())
        self.has_answer = any(not isinstance(result, str) for _, result in results)
        notes = {name: [result] if isinstance(result, str) else result.notes for name, result in results}
        found = {name: result.offers for name, result in results if not isinstance(result, str)}
        listed = found.pop(catalogue.PROVIDER.name, [])
        offers = [offer for each in found.values() for offer in each]
        return offers + catalogue.without_known(listed, offers), notes
