"""The step from which a resume will continue, before anything of it is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

from ..errors import ConfigError, CorruptCheckpointError, IncompatibleCheckpointError, StoreError
from ..events import EventBus
from ..format.commit import CommittedStep, committed_steps
from ..format.keys import StepId
from ..format.manifest import Json
from ..ranks import Job
from ..store import ObjectStore, patiently
from .heal import heal
from .join import Membership
from .manifests import manifest_of
from .prefetch import stop_prefetch
from .salvage import salvage


@dataclass(frozen=True, kw_only=True, slots=True)
class Peeked:
    """A committed step, and one plain value of its state."""

    step: int
    value: Json
    """The value that was asked for, or None if the state has none there."""


def peek(membership: Membership, job: Job, bus: EventBus, path: Sequence[str]) -> Peeked | None:
    """
    Find the newest committed step whose first manifest is intact. Every rank calls this and gets the same.

    As in a resume, a newer step that lies on the local disks of all ranks is committed first. The tensors of the step
    are not read, so a resume continues from an earlier step if they are damaged.

    Args:
        membership: The run and its stores.
        job: The ranks of the job.
        bus: Gets the events of the commit.
        path: Keys that lead to a plain value in the state of rank 0, beginning with the name of the part.

    Raises:
        ConfigError: *path* leads to a value that is not plain.
        IncompatibleCheckpointError: The newest step was written by newer software.
        StoreError: The store does not answer.
    """
    stop_prefetch(membership.local_dir, job.wait)
    store = membership.patient
    salvage(store, membership.local, job, membership.attempt, bus)
    found, damaged = _newest_on_all(store, job, path, "peek")
    if damaged is not None and heal(store, membership.local, job, membership.attempt, damaged, "peek/heal"):
        found, _ = _newest_on_all(store, job, path, "peek/again")
    if found is None:
        return None
    step, value, is_plain = found
    if not is_plain:
        raise ConfigError(f"path={'/'.join(path)} leads to more than one plain value, which only resume() can load")
    return Peeked(step=step, value=value)


def _newest_on_all(
    store: ObjectStore, job: Job, path: Sequence[str], name: str
) -> tuple[list[Any] | None, CommittedStep | None]:
    """Return what rank 0 finds, and the newest step that it has passed over, on every rank."""
    found: list[Any] | None = None
    damaged: CommittedStep | None = None
    problem: list[Any] | None = None
    if job.rank == 0:
        try:
            found, damaged = _newest(store, path)
        except IncompatibleCheckpointError as error:
            problem = ["incompatible", error.step, error.reason]
        except StoreError as error:
            problem = ["store", error.operation, error.key, error.reason]
    passed = None if damaged is None else [*damaged.step_id, damaged.world_size]
    found, shared, passed = cast("list[Any]", job.exchange(name, cast("Any", [found, problem, passed]))[0])
    match shared:
        case ["incompatible", step, reason]:
            raise IncompatibleCheckpointError(step, reason)
        case ["store", operation, key, reason]:
            raise StoreError(operation, key, reason)
    return found, None if passed is None else CommittedStep(StepId(*passed[:2]), passed[2])


def _newest(store: ObjectStore, path: Sequence[str]) -> tuple[list[Any] | None, CommittedStep | None]:
    damaged: CommittedStep | None = None
    for committed in patiently(lambda: committed_steps(store)):
        try:
            manifest = manifest_of(store, committed, 0)
        except CorruptCheckpointError:
            damaged = damaged or committed
            continue  # a resume rejects it too, unless a local copy repairs it
        value: Any = manifest.state if path else None
        for name in path:
            value = value.get(name) if isinstance(value, dict) else None
        is_plain = not isinstance(value, dict | list)
        return [committed.step_id.step, value if is_plain else None, is_plain], damaged
    return None, damaged
