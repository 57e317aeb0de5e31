"""The resume of one attempt, as the sequence of its steps."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from ..errors import IncompatibleCheckpointError
from ..events import EventBus, Resumed
from ..ranks import Job
from ..state.registry import Registry
from .heal import heal
from .join import Membership
from .newest import apply_state, check_alike, load_newest
from .prefetch import stop_prefetch
from .salvage import salvage


def restore(
    registry: Registry,
    membership: Membership,
    job: Job,
    bus: EventBus,
    *,
    is_mirror: bool,
    check: Callable[[Mapping[str, Any]], str | None] = lambda state: None,
) -> int | None:
    """
    Load the newest committed step that is intact into the parts of *registry*. Every rank calls this.

    If the local disks of all ranks hold a newer step that never reached the store, that step is committed first.

    Args:
        registry: The parts of the training.
        membership: The run and its stores.
        job: The ranks of the job.
        bus: Gets the events of the resume.
        is_mirror: Whether the store is a folder to which another program copies a remote store meanwhile.
        check: Called with the state by name of the part, before any part is changed. Returns the reason why this
            program cannot use it, or None.

    Returns:
        The step after which training continues, or None on a first run.

    Raises:
        NothingToResumeError, IncompatibleCheckpointError, StoreError: See :func:`~.newest.load_newest`.
        UnsafeStateError: A part has state that could not be saved later.
        ConfigError: The ranks do not hold the same parameters.
    """
    wanted = registry.wanted()
    check_alike(job, registry.alike(job.world_size))
    stop_prefetch(membership.local_dir, job.wait)
    salvage(membership.patient, membership.local, job, membership.attempt, bus)
    started = time.monotonic()
    run = membership
    loaded = load_newest(
        run.patient,
        run.local,
        run.url,
        job,
        bus,
        wanted,
        is_mirror=is_mirror,
        heal=partial(heal, run.patient, run.local, job, run.attempt),
    )
    if loaded is None:
        return None
    for refusal in job.exchange("resume/check", check(loaded.state)):
        if refusal is not None:
            raise IncompatibleCheckpointError(loaded.step_id.step, str(refusal))
    del wanted  # it holds the present state of an optimizer, which is replaced
    apply_state(loaded, list(registry.items()), job.rank)
    event = Resumed(
        step=loaded.step_id.step,
        from_attempt=loaded.step_id.attempt,
        from_world_size=loaded.world_size,
        num_bytes=loaded.num_bytes,
        from_local_bytes=loaded.from_local_bytes,
        load_s=time.monotonic() - started,
    )
    bus.emit(event)
    return event.step
