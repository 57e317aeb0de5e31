"""The start of an attempt: every rank's pusher process proves the store, then rank 0 claims the attempt's number."""

from __future__ import annotations

import logging
import platform
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from typing import Any, Final, TypeVar, cast

from .. import __version__
from ..clock import SystemClock
from ..config import SpotConfig
from ..errors import ConfigError, Preempted, StoreError
from ..events import EventBus
from ..format.attempts import claim_attempt
from ..format.commit import shares_of
from ..format.keys import RUN_KEY, StepId
from ..format.manifest import FORMAT, Json, canonical_json
from ..locations import is_local
from ..push import Pusher, PushSettings
from ..ranks import BoardClosedError, Job, texts_of_ranks
from ..store import (
    HangingDiskError,
    LimitedStore,
    LocalDisk,
    ObjectStore,
    Patience,
    PatientStore,
    RenewedStore,
    is_in_memory,
    open_local,
    open_store,
    scratch_directory,
    unusable,
)

logger = logging.getLogger(__name__)

JOIN_S: Final = 300.0
"""Longest wait in seconds for the other ranks, which wait for the store with a limit each."""

_NOTICE: Final = "notice"

_JOINING: Final = "joining"
_ATTEMPT: Final = "attempt"

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Membership:
    """The run that this process has joined, and the number of its attempt."""

    url: str
    """The run's URL."""
    store: ObjectStore
    patient: ObjectStore
    """The same store, which waits for passing trouble. For the resume."""
    local_dir: str | None
    """Directory for local copies, or None if there are none."""
    local: ObjectStore | None
    """The store of the local copies, or None."""
    scratch: str | None
    """Directory for other local files: :attr:`local_dir`, or one in the temporary directory."""
    disk: LocalDisk
    """The limit for all work on the two directories."""
    attempt: int
    """Number of this attempt, counted from 1."""
    takes_large_puts: bool = False
    """True if the store takes large objects in one request, straight from memory."""
    put_bytes_per_s: float | None = None
    """Speed of a put of this rank at the start. None if it is unknown."""

    def shares_of(self, step: int, world_size: int) -> tuple[set[int], set[int]]:
        """Return which ranks have stored their share of a *step* of this attempt, and which have prepared it."""
        return shares_of(self.store, StepId(step, self.attempt), world_size)


def join_run(
    config: SpotConfig, job: Job, bus: EventBus, patience: Patience, meanwhile: Callable[[], None] = lambda: None
) -> tuple[Membership, Pusher]:
    """
    Prove on every rank that the store can be used, and claim the next attempt. Every rank calls this.

    1. The pusher process of each rank proves the store. Passing trouble is waited for.
    2. The ranks exchange the refusals.
    3. Rank 0 claims the attempt.

    Args:
        config: The settings of the run.
        job: The ranks of the job.
        bus: Gets the events of the pusher.
        patience: Waits for passing trouble.
        meanwhile: Work that needs neither the store nor the other ranks. It is called while the pusher process starts.

    Returns:
        The run and the pusher, whose process runs.

    Raises:
        ConfigError: The URL cannot work, or the store refuses a rank. Every rank raises it.
        StoreError: The store does not answer a rank. Every rank raises it.
        Preempted: There was a notice meanwhile, on any rank.
    """
    if (url := config.url).startswith("memory:"):
        raise ConfigError(f"url={url!r} would be lost with this process. Give a directory, such as file:///data/run")
    refusal: Json = None
    with ExitStack() as stack:
        try:
            try:
                run = _open(config, job, patience)
                pusher = Pusher(_push_settings(config, run, job), bus)
                stack.callback(pusher.close)
                pusher.start()
                meanwhile()
                speed = _finally_refused(run, lambda: patience(lambda: pusher.prove(patience.wait)))
                run = replace(run, put_bytes_per_s=speed)
            except (ConfigError, StoreError) as error:
                refusal = _note(error)
            _raise_refusals(job.exchange(_JOINING, refusal, JOIN_S))
            attempt = 0
            if job.rank == 0:
                try:
                    attempt = _finally_refused(run, lambda: _claim(run.patient, job.world_size))
                except (ConfigError, StoreError) as error:
                    refusal = _note(error)
            given = job.exchange(_ATTEMPT, [attempt, refusal], JOIN_S)
            attempt, refusal = (0, _NOTICE) if _NOTICE in given else cast("Any", given[0])
            _raise_refusals([refusal])
        except Preempted:
            _tell_notice(job)
            raise
        stack.pop_all()
    pusher.begin(attempt)
    return replace(run, attempt=attempt), pusher


def _open(config: SpotConfig, job: Job, patience: Patience) -> Membership:
    store = RenewedStore(lambda: open_store(config.url, config.storage_options))
    disk = LocalDisk(config.local_dir, patience.wait)
    scratch = config.local_dir or _scratch(config.url, disk)
    local_dir = scratch if config.local_dir or not is_local(config.url) else None
    if local_dir is not None and job.rank == 0:
        _warn_of_memory(local_dir, disk)
    return Membership(
        url=config.url,
        store=store,
        patient=PatientStore(store, patience),
        local_dir=local_dir,
        local=None if local_dir is None else LimitedStore(open_local(local_dir), disk),
        scratch=scratch,
        disk=disk,
        attempt=0,
        takes_large_puts=store.takes_large_puts,
    )


def _scratch(url: str, disk: LocalDisk) -> str | None:
    try:
        return disk.do(lambda: scratch_directory(url))
    except HangingDiskError:
        return None
    except ConfigError as error:
        if not is_local(url):
            raise
        logger.info("no fingerprints of steps are kept on the local disk: %s", error)
        return None


def _warn_of_memory(local_dir: str, disk: LocalDisk) -> None:
    with suppress(HangingDiskError):
        if disk.do(lambda: is_in_memory(local_dir)):
            logger.warning(
                "local_dir=%r is in memory (tmpfs), so the local copies of two steps take memory from the training. "
                "Set local_dir or SPOT_LOCAL_DIR to a directory on a disk",
                local_dir,
            )


def _push_settings(config: SpotConfig, run: Membership, job: Job) -> PushSettings:
    return PushSettings(
        url=run.url,
        storage_options=dict(config.storage_options),
        local_dir=run.local_dir,
        rank=job.rank,
        world_size=job.world_size,
        attempt=run.attempt,
        keep_last=config.keep_last,
        keep_every=config.keep_every,
    )


def _finally_refused(run: Membership, action: Callable[[], _T]) -> _T:
    """Call *action*, and raise a refusal that will not pass as a :exc:`ConfigError`."""
    try:
        return action()
    except StoreError as error:
        if error.retryable:
            raise
        raise unusable(run.store, error) from error


def _note(error: ConfigError | StoreError) -> Json:
    """Return *error* as a note for the other ranks: its text, or operation, key and reason."""
    return [str(error)] if isinstance(error, ConfigError) else [error.operation, error.key, error.reason]


def _tell_notice(job: Job) -> None:
    """Let the ranks that wait for this one leave, too. A note that this rank has written already stays as it is."""
    with suppress(BoardClosedError):
        for name in (_JOINING, _ATTEMPT):
            job.board.post(f"{name}/{job.rank}", _NOTICE)


def _raise_refusals(refusals: list[Any]) -> None:
    """Raise one error that tells the refusals of all ranks, each text once."""
    if _NOTICE in refusals:
        raise Preempted(None)
    told = [each for each in refusals if each is not None]
    text = texts_of_ranks([None if each is None else each[-1] for each in refusals])
    if any(len(each) == 1 for each in told):
        raise ConfigError(text)
    if told:
        raise StoreError(told[0][0], told[0][1], text)


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
