"""The local disk as the training process uses it: with a limit, because a sick disk may never answer."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Sequence
from typing import Final, TypeVar

from ..errors import StoreError
from .base import ObjectStore
from .retry import attentively
from .wrapped import Wrapped

logger = logging.getLogger(__name__)

HANG_S: Final = 60.0
"""Time without any finished read or write after which the training process gives the disk up."""

_T = TypeVar("_T")


class HangingDiskError(StoreError):
    """The local disk does not answer. A warning has said so."""


class LocalDisk:
    """
    The limit of the training process for the local disk. Every method is safe on any thread.

    A thread that hangs in the kernel cannot be ended, so each work gets a thread of its own. After the disk has
    finished nothing for :data:`HANG_S`, it is given up. Then all work fails at once, and the training continues with
    the store alone.

    Args:
        directory: The directory for local files. None: one in the temporary directory.
        wait: Waits for a number of seconds. It raises if there is a notice and training has not begun.
    """

    def __init__(self, directory: str | None, wait: Callable[[float], None] = lambda seconds: None) -> None:
        self._directory = directory or os.environ.get("TMPDIR") or "/tmp"
        self._wait = wait
        self._finished_at = 0.0
        self._is_given_up = False

    def do(self, work: Callable[[], _T]) -> _T:
        """
        Return the result of *work*, which must change nothing that matters if it ends later than the wait for it.

        Raises:
            HangingDiskError: The disk is given up.
        """
        began_at = time.monotonic()
        done = None
        if not self._is_given_up:
            # wait: HANG_S without any finished work; the disk is given up
            done = attentively(work, self._wait, lambda: self._hangs_since(began_at))
        if done is None:
            self._give_up()
            raise HangingDiskError("use", self._directory, "the local disk does not answer", retryable=False)
        self._finished_at = time.monotonic()
        # wait: at once; the work has ended
        return done.result()

    def _hangs_since(self, began_at: float) -> bool:
        return self._is_given_up or time.monotonic() > max(began_at, self._finished_at) + HANG_S

    def _give_up(self) -> None:
        if not self._is_given_up:
            self._is_given_up = True
            logger.warning(
                "the local disk has not answered for %.0f s at %s, so nothing is read from it, and training continues "
                "with the store alone. Repair the disk, or set local_dir or SPOT_LOCAL_DIR to a directory on another "
                "one",
                HANG_S,
                self._directory,
            )


class LimitedStore(Wrapped):
    """
    Store on a local disk that may hang.

    Args:
        store: The store.
        disk: The limit of its disk.
    """

    def __init__(self, store: ObjectStore, disk: LocalDisk) -> None:
        self._store = store
        self._disk = disk

    def __repr__(self) -> str:
        return repr(self._store)

    def get_into(self, key: str, start: int, targets: Sequence[memoryview]) -> int:
        """See :class:`.ObjectStore`. A read that ends after the disk was given up does not change *targets*."""
        own = [memoryview(bytearray(each.nbytes)) for each in targets]
        count = self._call(lambda store: store.get_into(key, start, own))
        for target, read in zip(targets, own, strict=True):
            target[:] = read
        return count

    def _call(self, operation: Callable[[ObjectStore], _T]) -> _T:
        return self._disk.do(lambda: operation(self._store))
