"""The start of an attempt: rank 0 proves that the store works and claims the attempt's number, for all ranks."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from typing import cast

from .. import __version__
from ..clock import SystemClock
from ..config import SpotConfig
from ..errors import ConfigError, StoreError
from ..format.attempts import claim_attempt
from ..format.keys import RUN_KEY
from ..format.manifest import FORMAT, Json, canonical_json
from ..ranks import Job
from ..store import LocalStore, ObjectStore, check_writable, local_directory, open_local, open_store, patiently


@dataclass(frozen=True, slots=True)
class Membership:
    """The run that this process has joined, and the number of its attempt."""

    url: str
    """The run's URL."""
    store: ObjectStore
    local_dir: str | None
    """Directory for local copies, or None if there are none."""
    attempt: int
    """Number of this attempt, counted from 1."""

    @property
    def local(self) -> LocalStore | None:
        """The store of the local copies, or None."""
        return None if self.local_dir is None else open_local(self.local_dir)


def join_run(config: SpotConfig, job: Job) -> Membership:
    """
    Prove that the store can be used, and claim the next attempt. Every rank calls this; rank 0 does the work.

    Raises:
        ConfigError: The URL cannot work, or the store refuses writes. Every rank raises it.
        StoreError: The store does not answer. Every rank raises it.
    """
    url = config.url
    if url.startswith("memory:"):
        raise ConfigError(f"url={url!r} would be lost with this process. Give a directory, such as file:///data/run")
    store = open_store(url, config.storage_options)
    attempt, refusal = 0, None
    outage: list[Json] = []
    if job.rank == 0:
        try:
            patiently(lambda: check_writable(store))
            attempt = patiently(lambda: _claim(store, job.world_size))
        except ConfigError as error:
            refusal = str(error)
        except StoreError as error:
            outage += [error.operation, error.key, error.reason]
    found = job.exchange("joining", [attempt, refusal, outage])[0]
    attempt, refusal, lost = cast("tuple[int, str | None, list[str]]", found)
    if refusal is not None:
        raise ConfigError(refusal)
    if lost:
        raise StoreError(lost[0], lost[1], lost[2])
    return Membership(url, store, local_directory(url, config.local_dir), attempt)


def _claim(store: ObjectStore, world_size: int) -> int:
    now = SystemClock().utc().isoformat(timespec="seconds")
    run = {"format": FORMAT, "created_at": now, "software": f"spot_plugins {__version__}"}
    claim = {"host": platform.node(), "world_size": world_size, "started_at": now}
    try:
        store.put_if_absent(RUN_KEY, canonical_json(run))
    except StoreError as error:
        if error.retryable:
            raise
        store.put(RUN_KEY, canonical_json(run))  # claim_attempt logs what follows if the store has no conditional put
    return claim_attempt(store, canonical_json(claim))
