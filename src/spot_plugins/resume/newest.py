"""The newest committed step that all ranks can read intact, and its way into the parts of the training."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, cast

from .. import events
from ..errors import (
    GONE,
    ConfigError,
    CorruptCheckpointError,
    IncompatibleCheckpointError,
    NothingToResumeError,
    SpotError,
    StoreError,
)
from ..events import EventBus
from ..format.commit import CommittedStep, committed_steps
from ..format.keys import StepId
from ..ranks import Job
from ..state import ShardedPart
from ..store import ObjectStore, patiently
from .reader import LoadedStep, StepReader, Wanted

logger = logging.getLogger(__name__)


def check_alike(job: Job, held: str) -> None:
    """
    Compare *held*, a hash of the parameters that all ranks must have in common. Every rank calls this.

    Raises:
        ConfigError: The hashes differ. Every rank raises it, before a step is saved that cannot be restored.
    """
    found = job.exchange("resume/alike", held)
    if different := [rank for rank, other in enumerate(found) if other != found[0]]:
        raise ConfigError(
            f"ranks {different} hold other parameters than rank 0, so they cannot share the work of storing them. "
            f"Build the same model on every rank; pipeline parallelism is not supported"
        )


def load_newest(
    store: ObjectStore,
    local: ObjectStore | None,
    url: str,
    job: Job,
    bus: EventBus,
    want: Wanted = lambda name, shape: None,
    *,
    is_mirror: bool = False,
    heal: Callable[[CommittedStep, str], bool] = lambda committed, name: False,
) -> LoadedStep | None:
    """
    Read the newest committed step that is intact on all ranks. Every rank calls this and gets the same step.

    1. Rank 0 lists the committed steps.
    2. Every rank reads its share of the newest step and verifies it.
    3. If anything is damaged on any rank, the step is repaired from local copies and read once more.
    4. If it is still damaged, all ranks take the step before it.

    The step may have been saved by another number of ranks. Of tensors that the ranks share, each rank reads the shard
    that *want* returns. Of state that each rank has for itself, a rank that did not exist then gets that of rank 0.

    On a mirror, a step with missing objects has not been copied completely yet. It is not data loss.

    Args:
        store: The store of the run.
        local: The local copies, or None.
        url: URL of the run, for messages.
        job: The ranks of the job.
        bus: Gets an event for each step that is rejected or repaired.
        want: The shard that this rank reads of a shared tensor.
        is_mirror: Whether *store* is a folder to which another program copies the objects in any order.
        heal: Repairs a step on all ranks, given a name for the call. Returns whether anything was put. See
            :func:`~.heal.heal`.

    Returns:
        The step. None if no step was ever committed, or if no step has been copied completely to a mirror.

    Raises:
        NothingToResumeError: Steps were committed, but all of them are damaged. Training from scratch would hide the
            loss, so a person has to decide.
        IncompatibleCheckpointError: The newest step was written by newer software.
        StoreError: The store does not answer.
    """
    found, problem = _result_of(lambda: _list_steps(store)) if job.rank == 0 else ([], None)
    _raise_shared(job.exchange("resume/found", problem))
    steps = cast("list[list[int]]", job.exchange("resume/steps", cast("Any", found))[0])
    rejected: list[str] = []
    is_late = is_mirror
    for number, (step, attempt, world_size) in enumerate(steps):
        committed = CommittedStep(StepId(step, attempt), world_size)
        reader = StepReader(store, local, committed, job.ranks, want)
        loaded, damages = _read_on_all(reader, job, f"resume/read/{number}")
        if damages and heal(committed, f"resume/heal/{number}"):
            damage = damages[0]
            loaded, damages = _read_on_all(reader, job, f"resume/read/{number}/again")
            if not damages:
                logger.warning("%s %s. It was stored again from a local copy", damage.key, damage.reason)
                bus.emit(events.StoreDamaged(key=damage.key, reason=damage.reason, is_repaired=True))
        if not damages:
            return cast("LoadedStep", loaded)
        is_late &= all(each.reason == GONE for each in damages)
        rejected.append(str(damages[0]))
        bus.emit(events.CheckpointRejected(step=step, attempt=attempt, reason=rejected[-1]))
    if rejected and is_late:
        logger.error(
            "none of %s steps has been copied completely, so training begins anew: %s", len(rejected), rejected[0]
        )
    elif rejected:
        raise NothingToResumeError(
            url,
            f"all {len(rejected)} committed steps are damaged ({rejected[0]}). Restore older object versions, or start "
            f"anew at another URL",
        )
    return None


def _read_on_all(reader: StepReader, job: Job, name: str) -> tuple[LoadedStep | None, list[CorruptCheckpointError]]:
    """Read the share of each rank. Return that of this rank, and the damage that was found on any rank."""
    loaded, problem = _result_of(reader.read)
    problems = cast("list[Any]", job.exchange(name, problem))
    _raise_shared([each for each in problems if each is not None and each["kind"] != "damaged"])
    return loaded, [CorruptCheckpointError(*each["fields"]) for each in problems if each is not None]


def _list_steps(store: ObjectStore) -> list[list[int]]:
    committed = patiently(lambda: committed_steps(store))
    return [[*step.step_id, step.world_size] for step in committed]


def _result_of(action: Callable[[], Any]) -> tuple[Any, dict[str, Any] | None]:
    """Return the result of *action*, or its error in a form that can be sent to other ranks."""
    try:
        return action(), None
    except CorruptCheckpointError as error:
        return None, {"kind": "damaged", "fields": [error.step, error.key, error.reason]}
    except IncompatibleCheckpointError as error:
        return None, {"kind": "incompatible", "step": error.step, "text": error.reason}
    except StoreError as error:
        return None, {"kind": "store", "operation": error.operation, "key": error.key, "text": error.reason}


def _raise_shared(problems: list[Any]) -> None:
    """Raise the first error of any rank that is not damage, on every rank."""
    for problem in problems:
        if problem is None:
            continue
        if problem["kind"] == "incompatible":
            raise IncompatibleCheckpointError(problem["step"], problem["text"])
        if problem["kind"] == "store":
            raise StoreError(problem["operation"], problem["key"], problem["text"])


def apply_state(loaded: LoadedStep, parts: list[tuple[str, ShardedPart]], rank: int) -> None:
    """
    Load the state of *loaded* into the parts of *rank*.

    A rank that did not exist when the step was saved gets the state of rank 0, after a change by
    :meth:`.ShardedPart.for_new_rank`.

    Raises:
        IncompatibleCheckpointError: The checkpoint has other parts than this job, or the state of a part does not fit.
    """
    step = loaded.step_id.step
    present = set(loaded.state)
    parts = [(name, part) for name, part in parts if name in present or not part.is_optional]
    expected = {name for name, _ in parts}
    if expected != present:
        raise IncompatibleCheckpointError(
            step,
            f"this job has no {sorted(present - expected)} and the checkpoint has no {sorted(expected - present)}. "
            f"Register the same parts as when it was saved, or start anew at another URL",
        )
    for name, part in parts:
        if name not in expected:
            continue
        state = loaded.state[name]
        try:
            if rank >= loaded.world_size:
                state = part.for_new_rank(state, rank)
            part.take_state_dict(state)
        except SpotError:
            raise
        except (ValueError, KeyError, TypeError, RuntimeError, AttributeError) as error:
            raise IncompatibleCheckpointError(
                step,
                f"its {name!r} does not fit: {error}. Use the model and settings it was saved with, or start "
                f"anew at another URL",
            ) from error
