"""Answers of providers, kept for a few minutes in files that only this user can read. They contain no keys."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Final

from ..locations import cache_folder
from . import fields
from .base import Answer, Query
from .rows import VERSION, document_of, offer_of

MAX_AGE_S: Final = 600.0
"""Age in seconds from which an answer is asked for again."""

_MAX_BYTES: Final = 16 * 1024**2


def folder() -> Path:
    """Return the folder of the cache."""
    return cache_folder() / "prices"


def load(provider: str, query: Query) -> Answer | None:
    """Return the answer that is kept. None if there is none, or if it is too old or damaged."""
    try:
        with _path(provider, query).open("rb") as file:
            document = json.loads(file.read(_MAX_BYTES))
        if document["version"] != VERSION or not isinstance(document["notes"], list):
            return None
        age_s = (fields.now() - fields.moment(document, "stored_at")).total_seconds()
        if not 0 <= age_s <= MAX_AGE_S:
            return None
        return Answer([offer_of(row) for row in document["offers"]], [str(note) for note in document["notes"]])
    except (OSError, ValueError, LookupError, TypeError, RecursionError, RuntimeError):
        return None  # RuntimeError: there is no home directory


def store(provider: str, query: Query, answer: Answer) -> None:
    """Keep *answer*. Raises :exc:`OSError` or :exc:`RuntimeError` if that is not possible."""
    document = {
        "version": VERSION,
        "stored_at": fields.now().isoformat(),
        "offers": [document_of(offer) for offer in answer.offers],
        "notes": answer.notes,
    }
    path = _path(provider, query)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor, made = tempfile.mkstemp(dir=path.parent)  # with mode 0600
    try:
        with os.fdopen(descriptor, "w") as file:
            json.dump(document, file)
        os.replace(made, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(made)
        raise


def _path(provider: str, query: Query) -> Path:
    digest = hashlib.sha256(f"{query.gpu} {query.count}".encode()).hexdigest()[:16]
    return folder() / f"{provider}-{digest}.json"
