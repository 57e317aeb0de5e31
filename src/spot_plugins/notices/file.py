"""Notices by a file or a web page that appears, for any other provider and for rehearsals."""

from __future__ import annotations

import json
import logging
import math
import os
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from .base import Announcement, deadline_in
from .web import ask, check

logger = logging.getLogger(__name__)

MAX_SHOWN: Final = 80  # bytes of a page in a warning


def file_or_page(path_or_url: str, grace_s: float) -> FileSource | PageSource:
    """Return the source for a path, or for a URL that begins with ``http://`` or ``https://``."""
    return PageSource(path_or_url, grace_s) if is_page(path_or_url) else FileSource(path_or_url, grace_s)


def is_page(path_or_url: str) -> bool:
    """Return True if *path_or_url* is the URL of a page."""
    return path_or_url.startswith(("http://", "https://"))


class FileSource:
    """
    The source of a notice by a file that is created or written again.

    The file may be empty. It may also hold ``{"grace_seconds": 30}``. A file that exists at the start is left over from
    an earlier attempt, and is not a notice.

    Args:
        path: Path of the file.
        grace_s: Seconds from the notice to the end of the machine, unless the content names them.
    """

    name = "file"
    every_s = 1.0
    awaited = None

    def __init__(self, path: str, grace_s: float) -> None:
        self._path = Path(path)
        self._grace_s = grace_s
        self._before = self._written_at()
        if self._before is not None:
            logger.warning("%s is there already. It counts as a notice only after it is written again", path)

    def poll(self) -> Announcement | None:
        """See :class:`~.base.NoticeSource`."""
        if self._written_at() in (self._before, None):
            return None
        content = b""
        with suppress(OSError):  # the file is gone again or not readable, but it did appear
            content = self._path.read_bytes()
        named_s = _named_grace_s(content)
        return Announcement(self.name, deadline_in(self._grace_s if named_s is None else named_s))

    def close(self) -> None:
        """See :class:`~.base.NoticeSource`."""

    def _written_at(self) -> int | None:
        try:
            return os.stat(self._path).st_mtime_ns
        except OSError:
            return None


class PageSource:
    """
    The source of a notice by a web page that appears.

    The URL answers 404 or 204 while there is no notice. A notice is the status 200 with ``{"grace_seconds": 30}``, or
    with an empty page, if its ``Content-Length`` shows that it is meant to be empty. Any other page is no notice,
    because it may come from a captive portal or a proxy. A warning shows its beginning, once.

    Args:
        url: URL of the page.
        grace_s: Seconds from the notice to the end of the machine, unless the content names them.
    """

    name = "page"
    every_s = 1.0
    awaited = None

    def __init__(self, url: str, grace_s: float) -> None:
        self._url = url
        self._grace_s = grace_s
        self._has_warned = False

    def poll(self) -> Announcement | None:
        """See :class:`~.base.NoticeSource`."""
        answer = ask(self._url)
        if answer.status in (204, 404):
            return None
        content = check(answer).body
        is_empty = not content.strip() and answer.length == str(len(content))
        grace_s = self._grace_s if is_empty else _named_grace_s(content)
        if grace_s is not None:
            return Announcement(self.name, deadline_in(grace_s))
        if not self._has_warned:
            self._has_warned = True
            logger.warning(
                'the page of notice_file answers %r, which is no notice. A notice is {"grace_seconds": 30}, or an '
                "empty page with a Content-Length",
                content[:MAX_SHOWN],
            )
        return None

    def close(self) -> None:
        """See :class:`~.base.NoticeSource`."""


def _named_grace_s(content: bytes) -> float | None:
    """Return the grace period in seconds that *content* names, or None."""
    with suppress(ValueError, RecursionError, OverflowError):
        document: Any = json.loads(content)
        given = document.get("grace_seconds") if isinstance(document, dict) else None
        if isinstance(given, int | float) and not isinstance(given, bool) and math.isfinite(given):
            return float(given)
    return None
