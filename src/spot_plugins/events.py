"""
Events of a training, as frozen values, and the bus that passes them to subscribers.

Durations end in ``_s`` (seconds), sizes in ``_bytes``. Users subscribe with ``on_event``.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class AttemptStarted:
    """An attempt of the run has begun and claimed its number."""

    attempt: int
    """Number of the attempt, counted from 1."""
    world_size: int
    """Number of ranks."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Resumed:
    """The state of *step* was restored. Training continues after it."""

    step: int
    from_attempt: int
    """Attempt that saved the step."""
    from_world_size: int
    """Number of ranks that saved the step."""
    num_bytes: int
    """Bytes that this rank read."""
    from_local_bytes: int
    """Bytes among them that came from the local disk."""
    load_s: float
    """Seconds from the first request to the store to the last restored object."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckpointRejected:
    """A committed step cannot be used. An older one is tried next."""

    step: int
    attempt: int
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class StoreDamaged:
    """An object of a committed step was missing or damaged in the store. A warning in the log says the same."""

    key: str
    reason: str
    is_repaired: bool
    """True if it was stored again from a copy on this machine. If False, and if this training has the weights in it,
    the next save stores it again."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Salvaged:
    """A step that an earlier attempt left on local disks only is committed now. Training resumes from it."""

    step: int
    attempt: int
    """Attempt that saved the step."""
    num_bytes: int
    """Bytes of blobs that this rank stored."""
    push_s: float
    """Seconds from the first read of the local copies until all ranks were done."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StepDiffers:
    """A step that an earlier attempt had trained before it ended was trained again, and was made of something else."""

    step: int
    attempt: int
    """The earlier attempt."""
    what: tuple[str, ...]
    """Kinds that differ for the first time: ``data`` (position in the data), ``rates`` (learning rates, momentums,
    weight decays), ``accumulation`` (batches in the step), and the random streams ``torch``, ``python``, ``numpy`` and
    ``cuda``."""


@dataclass(frozen=True, kw_only=True, slots=True)
class NoticeSourcesFound:
    """The session has found its provider, and the notice sources to poll."""

    providers: tuple[str, ...]
    """Providers that were recognized, for example ``aws`` and ``kubernetes``."""
    sources: tuple[str, ...]
    """Notice sources that are polled, beside signals."""
    grace_s: float
    """Seconds to plan for between a notice and the end. 0: there may be no notice, so only periodic saves count."""
    limited_by: str
    """Limit of ``grace_s``: a provider, ``grace_seconds`` or the launcher."""


@dataclass(frozen=True, kw_only=True, slots=True)
class NoticeReceived:
    """A notice has arrived that the machine will be taken."""

    source: str
    """Signal or notice source, for example ``SIGTERM``."""
    grace_s: float | None
    """Seconds from the notice to the deadline. None for a soft notice, which has no deadline."""
    kind: str = "hard"
    """``hard``: the machine will be taken, so the ranks leave. ``soft``: this is likelier than usual, so they save."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Staged:
    """The state of *step* is in host memory. Training continues."""

    step: int
    trigger: str
    """Reason of the save: ``steps``, ``seconds``, ``soft``, ``notice``, ``explicit``, ``end`` or ``pause``."""
    num_bytes: int
    """Bytes that this rank staged."""
    stall_s: float
    """Seconds that the training thread stood still for the save."""
    copy_s: float = 0.0
    """Seconds from the begin of the save until everything was copied. Most of the copy runs beside training."""
    num_skipped_bytes: int = 0
    """Bytes of untrained weights that this rank neither stages nor stores, because an earlier step has stored them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SaveDeferred:
    """A periodic save was due, but an earlier save is still being pushed. It is tried again after the next step."""

    step: int
    num_deferred: int
    """Number of deferred saves since the session began, this one included."""


@dataclass(frozen=True, kw_only=True, slots=True)
class IntervalChanged:
    """``every_seconds="auto"`` or a soft notice has changed the interval between saves. Rank 0 emits this event."""

    interval_s: float
    """Seconds from one save to the next."""
    before_s: float
    """Seconds before the change. Infinity if saves were due by steps only."""
    stall_s: float
    """Mean seconds that training stood still for a recent save."""
    push_s: float
    """Seconds of the longest recent push. The interval is never shorter."""
    mean_between_preemptions_s: float
    """Expected seconds between preemptions, from those seen and a prior."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WrittenLocally:
    """All blobs of this rank are on the local disk."""

    step: int
    num_bytes: int
    """Bytes that were written."""
    write_s: float
    """Seconds that the write took."""
    write_bytes_per_s: float | None = None
    """Recent speed of this rank's writes to the local disk. None if it is unknown."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LocalWriteFailed:
    """The local disk took no copy, or is too slow. The push to the store does not wait for it."""

    step: int
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class PushFailing:
    """The store refuses the push or does not answer. The pusher keeps trying the newest staged step."""

    step: int
    num_tries: int
    """Number of failed tries of this step so far."""
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Committed:
    """This rank has stored its share of *step*. The step is visible after all ranks have stored theirs."""

    step: int
    num_bytes: int
    """Bytes that this rank stored."""
    push_s: float
    """Seconds from the end of staging to the put of this rank's manifest."""
    put_bytes_per_s: float | None = None
    """Recent speed of this rank's puts to the store, all parallel puts together. None if it is unknown."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SharesCounted:
    """Rank 0 has looked whether all ranks have stored their share of *step*, after its own. With several ranks only."""

    step: int
    missing_ranks: tuple[int, ...]
    """Ranks that had not stored theirs before the next save. Empty if the step is visible."""
    visible_step: int | None
    """The newest step of this attempt that all ranks have stored, or None."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ShareFinished:
    """This rank has stored the share of another rank of the last *step*, because that rank has ended."""

    step: int
    rank: int
    """The rank that has ended."""
    num_bytes: int
    """Bytes that this rank stored. 0 if that rank had stored its share meanwhile."""
    push_s: float
    """Seconds from the end of staging to the put of the manifest of that rank."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ShareNotFinished:
    """This rank could not store the share of another rank of the last *step*. Nothing of it was committed."""

    step: int
    rank: int
    """The rank that has ended."""
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class SaveAbandoned:
    """*step* will never be committed, because a newer step took its place or the store failed."""

    step: int
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Superseded:
    """A newer attempt runs, so this one writes no further manifest."""

    attempt: int
    """Number of this attempt."""
    newest: int
    """Number of the newest attempt."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Pruned:
    """An old checkpoint was removed from the store."""

    step: int
    attempt: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Kept:
    """A checkpoint is marked in the store, so that it is not pruned until it is released. Rank 0 emits this event."""

    step: int
    attempt: int
    """The attempt that saved the checkpoint."""
    owner: str
    """``program``, or the host that keeps it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class KeepFailed:
    """A step that should be kept is not in the store, or cannot be marked. A warning in the log says the same."""

    step: int
    owner: str
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Released:
    """The mark of a kept step was removed. The step is pruned like any other. Rank 0 emits this event."""

    step: int
    owner: str


@dataclass(frozen=True, kw_only=True, slots=True)
class LastSecondsPlanned:
    """The plan for the time until the deadline, with its numbers. It is emitted again if the plan changes."""

    step: int
    """The step after which the plan was made."""
    choice: str
    """``train_on``, ``save``, ``save_locally``, ``finish_push`` or ``nothing_fits``. See docs/notices.md."""
    is_promised: bool
    """True if the plan fits by the measured speeds, with a margin. False if no save was measured yet."""
    needs_s: float | None
    """Seconds until the last save is stored, by the speeds below. None if nothing fits."""
    left_s: float
    """Seconds until the last save must be stored. The time for leaving is already subtracted."""
    num_steps: int
    """Number of steps that fit before the last save. 1 if the time of a step is unknown."""
    save_first: bool
    """True if this step is saved too, in case the machine is taken early."""
    step_s: float | None
    """Seconds of one step."""
    num_bytes: int | None
    """Bytes of one save, on the rank with the largest. None before the first step."""
    stage_bytes_per_s: float | None
    """Recent speed of the copy to host memory, on the slowest rank. Before the first save an estimate."""
    disk_bytes_per_s: float | None
    """Recent speed of the local disk, on the slowest rank. None if it was not measured."""
    store_bytes_per_s: float | None
    """Recent speed of the store, on the slowest rank. Before the first save that of a put at the start, or None."""
    in_flight_s: float
    """Seconds until earlier saves are committed. 0 if they are, infinity if that is unknown."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Leaving:
    """The process is about to end because of a notice, unless ``on_notice="continue"`` lets this rank stay."""

    step: int | None
    """Last step that this rank saved, or None."""
    durable: bool
    """True if this rank's share of the step reached the store in time."""
    left_s: float
    """Seconds until the deadline. Negative if the deadline was missed."""


Event: TypeAlias = (
    AttemptStarted
    | Resumed
    | CheckpointRejected
    | StoreDamaged
    | Salvaged
    | StepDiffers
    | NoticeSourcesFound
    | NoticeReceived
    | Staged
    | SaveDeferred
    | IntervalChanged
    | WrittenLocally
    | LocalWriteFailed
    | PushFailing
    | Committed
    | SharesCounted
    | ShareFinished
    | ShareNotFinished
    | SaveAbandoned
    | Superseded
    | Pruned
    | Kept
    | KeepFailed
    | Released
    | LastSecondsPlanned
    | Leaving
)
"""The union of all kinds of events."""

Subscriber: TypeAlias = Callable[[Event], None]
"""A function that is called with every event, on the thread that emits the event. It must not block."""

Hook: TypeAlias = Subscriber
"""Old name of :data:`Subscriber`, kept until 1.0."""


class EventBus:
    """
    Passes each event to all subscribers, in the order in which they subscribed.

    An exception in a subscriber is logged and never disturbs training.
    """

    def __init__(self, *subscribers: Subscriber) -> None:
        self.subscribers = subscribers
        """The subscribers, in order."""

    def subscribe(self, subscriber: Subscriber) -> None:
        """Add *subscriber*. Events that were emitted before are not repeated."""
        self.subscribers += (subscriber,)  # a new tuple: other threads may be walking over the old one

    def emit(self, event: Event) -> None:
        """Pass *event* to all subscribers. Callable from any thread, also from within a subscriber."""
        for subscriber in self.subscribers:
            try:
                subscriber(event)
            except Exception:
                logger.exception("a subscriber failed on %s; training continues", type(event).__name__)
