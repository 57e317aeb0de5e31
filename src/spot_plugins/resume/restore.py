"""The resume of one attempt: from the newest step that is intact to registered parts that have its state."""

from __future__ import annotations

import logging
import time

from ..events import EventBus, Resumed
from ..ranks import Job
from ..state.registry import Registry
from .join import Membership
from .newest import apply_state, check_alike, load_newest
from .prefetch import stop_prefetch
from .salvage import salvage

logger = logging.getLogger(__name__)


def restore(registry: Registry, run: Membership, job: Job, bus: EventBus, *, is_mirror: bool) -> int | None:
    """
    Give the parts of *registry* the state of the newest committed step that is intact. Every rank calls this.

    A newer step that lies on the local disks of all ranks, and never reached the store, is committed first.

    Args:
        registry: The parts of the training.
        run: The run and its stores.
        job: The ranks of the job.
        bus: Gets what happened.
        is_mirror: Whether the store is a folder that something else fills from a remote store meanwhile.

    Returns:
        The step after which training continues, or None on a first run.

    Raises:
        NothingToResumeError, IncompatibleCheckpointError, StoreError: See :func:`~.newest.load_newest`.
        UnsafeStateError: A part has state that could not be saved later.
        ConfigError: The ranks do not hold the same parameters.
    """
    wanted = registry.wanted()
    check_alike(job, registry.alike(job.world_size))
    stop_prefetch(run.local_dir)
    salvage(run.store, run.local, job, run.attempt, bus)
    started = time.monotonic()
    loaded = load_newest(run.store, run.local, run.url, job, bus, wanted, is_mirror=is_mirror)
    if loaded is None:
        return None
    apply_state(loaded, list(registry.items()), job.rank)
    event = Resumed(
        step=loaded.step_id.step,
        from_attempt=loaded.step_id.attempt,
        from_world_size=loaded.world_size,
        num_bytes=loaded.num_bytes,
        from_local_bytes=loaded.from_local_bytes,
        load_s=time.monotonic() - started,
    )
    logger.info("resumed from step %s, %.1f s, %s bytes", event.step, event.load_s, event.num_bytes)
    bus.emit(event)
    return event.step
