"""A file that appears, or a page that does: for any other provider, and to rehearse with."""

from __future__ import annotations

import json
import logging
import math
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from .base import Announcement, deadline_in
from .web import ask, check

logger = logging.getLogger(__name__)


def file_or_page(place: str, grace_s: float) -> FileSource | PageSource:
    """Return the source for *place*: a path, or a URL that begins with ``http://`` or ``https://``."""
    return PageSource(place, grace_s) if is_page(place) else FileSource(place, grace_s)


def is_page(place: str) -> bool:
    """Whether *place* is the URL of a page."""
    return place.startswith(("http://", "https://"))


class FileSource:
    """
    A file that is made, or written again. Its content may say ``{"grace_seconds": 30}``; it may be empty.

    A file that is there from the beginning is left over from an earlier life, and is no notice.

    Args:
        path: Where it will appear.
        grace_s: Seconds from then to the end of the machine, if the content does not say.
    """

    name = "file"
    every_s = 1.0
    awaited = None

    def __init__(self, path: str, grace_s: float) -> None:
        self._path = Path(path)
        self._grace_s = grace_s
        self._before = self._written_at()
        if self._before is not None:
            logger.warning("%s is there already: only when it is written again is it a notice", path)

    def poll(self) -> Announcement | None:
        """See :class:`~.base.NoticeSource`."""
        if self._written_at() in (self._before, None):
            return None
        content = b""
        with suppress(OSError):  # gone again, or not ours to read: it did appear
            content = self._path.read_bytes()
        return Announcement(self.name, deadline_in(_grace_s(content, self._grace_s)))

    def close(self) -> None:
        """See :class:`~.base.NoticeSource`."""

    def _written_at(self) -> int | None:
        try:
            return os.stat(self._path).st_mtime_ns
        except OSError:
            return None


class PageSource:
    """
    A URL that answers 404 (or 204) while all is clear, and 200 from then on: with nothing, or JSON as in a file.

    Anything else is the error of some server in between.

    Args:
        url: What to ask.
        grace_s: Seconds from the notice to the end of the machine, if the content does not say.
    """

    name = "page"
    every_s = 1.0
    awaited = None

    def __init__(self, url: str, grace_s: float) -> None:
        self._url = url
        self._grace_s = grace_s

    def poll(self) -> Announcement | None:
        """See :class:`~.base.NoticeSource`."""
        answer = ask(self._url)
        if answer.status in (204, 404):
            return None
        content = check(answer).body
        if content.strip() and not isinstance(answer.json(), dict):
            raise ValueError("neither empty nor a JSON object")
        return Announcement(self.name, deadline_in(_grace_s(content, self._grace_s)))

    def close(self) -> None:
        """See :class:`~.base.NoticeSource`."""


def _grace_s(content: bytes, otherwise: float) -> float:
    """Return the grace that *content* names, or *otherwise*."""
    document: Any = None
    with suppress(ValueError):
        document = json.loads(content)
    given = document.get("grace_seconds") if isinstance(document, dict) else None
    if isinstance(given, bool) or not isinstance(given, int | float) or not math.isfinite(given):
        return otherwise
    return float(given)
