"""The progress of a long restore, on a terminal or in the log."""

from __future__ import annotations

import logging
import sys
import time
from contextlib import suppress
from types import TracebackType
from typing import Any, Final

logger = logging.getLogger(__name__)

FIRST_S: Final = 2.0  # a restore that ends before that is not reported
LOG_EVERY_S: Final = 10.0


class RestoreProgress:
    """
    Reports the bytes that were read. It is a context manager.

    On a terminal it shows a bar, if tqdm is installed. Both hosts install tqdm. Elsewhere it logs a line every 10 s.

    Args:
        total_bytes: Bytes of the whole restore.
        shown: Whether this rank reports.
    """

    def __init__(self, total_bytes: int, *, shown: bool) -> None:
        self._total_bytes = total_bytes
        self._num_bytes = 0
        self._started = time.monotonic()
        self._next_line_at = self._started + FIRST_S if shown else float("inf")
        self._bar = _bar(total_bytes) if shown and sys.stderr.isatty() else None

    def __enter__(self) -> RestoreProgress:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()

    def add(self, num_bytes: int) -> None:
        """Report that *num_bytes* more bytes were read."""
        self._num_bytes += num_bytes
        if self._bar is not None:
            self._bar.update(num_bytes)
            return
        now = time.monotonic()
        if now >= self._next_line_at:
            self._next_line_at = now + LOG_EVERY_S
            done, total = self._num_bytes / 1e9, self._total_bytes / 1e9
            logger.info("restoring: %.1f of %.1f GB, %.0f s", done, total, now - self._started)


def _bar(total_bytes: int) -> Any:
    with suppress(ImportError):
        from tqdm import tqdm

        return tqdm(desc="restoring", total=total_bytes, unit="B", unit_scale=True, delay=FIRST_S, leave=False)
    return None
