"""The compiled code of one rank: loaded before the first step, and kept once there is something new."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Final

import torch
import xxhash

from ..errors import ConfigError
from ..events import Committed, Event, NoticeReceived
from ..format.keys import CompiledKey, parse_compiled_key
from ..machine.threads import start_thread
from ..store import ObjectStore, get_at_most, patiently
from . import internals
from .archive import Compiled
from .surroundings import surroundings

logger = logging.getLogger(__name__)

MAX_BYTES: Final = 256 * 1024**2
"""Most bytes of an archive. A larger one is neither kept nor loaded, because it is in memory as a whole."""

MOST: Final = 4
"""Most archives of a rank, each for other software or hardware."""

LOOK_S: Final = 30.0
"""Seconds from one look for new code to the next. A commit is followed by a look at once."""

LOAD_S: Final = 60.0
"""Longest wait in seconds, before training begins, for an archive from the store."""

_POLL_S: Final = 0.05
"""Seconds between two looks whether the archive is there."""


class CompileCache:
    """
    Loads what an earlier attempt has compiled on this rank, and keeps what this one compiles.

    Ranks do not share archives, because the graphs of a GPU name its index. The thread ``spot-compiled`` does all work
    with the store. Nobody waits for it after training has begun. A failure is logged once, and ends it.

    Raises:
        ConfigError: This torch cannot save what it has compiled.
    """

    def __init__(self) -> None:
        if not internals.is_possible():
            raise ConfigError(
                f"compile_cache=True needs torch 2.7 or newer, and torch {torch.__version__} is installed. Install a "
                f"newer one, or leave compile_cache out"
            )
        self._wake = threading.Event()
        self._is_got = threading.Event()
        self._is_over = False
        self._got: bytes | None = None
        self._known: frozenset[str] = frozenset()

    def open(self, store: ObjectStore, rank: int, attempt: int) -> None:
        """Begin to get the newest archive of *rank* that fits this machine. The attempt is joined."""
        work = threading.Thread(target=self._run, args=(store, rank, attempt), name="spot-compiled", daemon=True)
        start_thread(work)

    def load(self, wait: Callable[[float], None]) -> None:
        """
        Load the archive, if there is one. On the training thread, before the first step.

        Args:
            wait: Waits for a number of seconds. It raises if there is a notice.
        """
        deadline = time.monotonic() + LOAD_S
        while not self._is_got.is_set():
            if time.monotonic() > deadline:
                _warn_unloaded(f"the store has not sent it within {LOAD_S:.0f} s")
                return
            # wait: LOAD_S in all; it is compiled again
            wait(_POLL_S)
        if self._got is None:
            return
        try:
            self._known = internals.load(Compiled.decode(self._got))
            logger.info("loaded %s graphs and libraries that an earlier attempt has compiled", len(self._known))
        except Exception as error:  # noqa: BLE001 - torch unpickles it, which may raise anything
            _warn_unloaded(error)
        self._got = None

    def on_event(self, event: Event) -> None:
        """Look for new code after a commit. After a notice keep nothing, because the last step needs the store."""
        match event:
            case Committed():
                self._wake.set()
            case NoticeReceived(kind="hard"):
                self._is_over = True

    def close(self) -> None:
        """End the thread. An archive that it is putting is complete or absent, and nobody waits for it."""
        self._is_over = True
        self._wake.set()

    def _run(self, store: ObjectStore, rank: int, attempt: int) -> None:
        key = CompiledKey(rank, attempt, surroundings(), "")
        try:
            self._got = _get_newest(store, key)
        except Exception as error:  # noqa: BLE001 - training needs none of it
            _warn_unloaded(error)
        finally:
            self._is_got.set()
        try:
            while not self._is_over:
                # wait: LOOK_S; it looks for new code
                self._wake.wait(LOOK_S)
                self._wake.clear()
                self._keep_new(store, key)
        except Exception as error:  # noqa: BLE001 - training needs none of it
            logger.warning("what is compiled is not kept for the next attempt: %s", error)

    def _keep_new(self, store: ObjectStore, key: CompiledKey) -> None:
        taken = None if self._is_over else internals.take_new()
        if taken is None or taken[1] <= self._known:
            return
        compiled, names = taken
        data = compiled.encode()
        if len(data) > MAX_BYTES:
            raise ValueError(f"it has {len(data)} bytes, more than {MAX_BYTES}")
        key = key._replace(xxh3_128=xxhash.xxh3_128_hexdigest(data))
        patiently(lambda: store.put(key.key, data))
        self._known = names
        logger.info("kept %s compiled graphs and libraries, %s bytes", len(names), len(data))
        others = [each for each in _stored(store, key) if each.attempt <= key.attempt and each != key]
        elsewhere = [each for each in others if each.surroundings != key.surroundings]
        for each in {*others}.difference(elsewhere[: MOST - 1]):
            store.delete(each.key)


def _stored(store: ObjectStore, key: CompiledKey) -> list[CompiledKey]:
    """Return the keys of all archives of the rank, newest first."""
    keys = patiently(lambda: list(store.keys(key.prefix)))
    return sorted(filter(None, map(parse_compiled_key, keys)), reverse=True)


def _get_newest(store: ObjectStore, key: CompiledKey) -> bytes | None:
    newest = next((each for each in _stored(store, key) if each.surroundings == key.surroundings), None)
    if newest is None:
        logger.info("no earlier attempt has kept compiled code for this software and hardware")
        return None
    data = patiently(lambda: get_at_most(store, newest.key, MAX_BYTES))
    if xxhash.xxh3_128_hexdigest(data) != newest.xxh3_128:
        raise ValueError(f"{newest.key} has changed since it was written: its hash differs")
    return data


def _warn_unloaded(reason: object) -> None:
    logger.warning("no compiled code of an earlier attempt is loaded, so it is compiled again: %s", reason)
