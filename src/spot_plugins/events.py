"""
Events of a training, as frozen values, and the bus that passes them to subscribers.

Durations end in ``_s`` (seconds), sizes in ``_bytes``. Users subscribe with ``on_event``.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from .errors import ConfigError

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class AttemptStarted:
    """A process life of the run has begun and claimed its number."""

    attempt: int
    world_size: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Resumed:
    """State was restored; training goes on behind *step*."""

    step: int
    from_attempt: int
    from_world_size: int
    """How many ranks had saved it."""
    num_bytes: int
    """Bytes that this rank read."""
    from_local_bytes: int
    """How many of them came from the local disk."""
    load_s: float
    """Seconds from the first look at the store to the last restored object."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckpointRejected:
    """A committed step could not be used; an older one is tried next."""

    step: int
    attempt: int
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Salvaged:
    """A step that an earlier attempt left on the local disks alone is committed now, and is what is resumed from."""

    step: int
    attempt: int
    """The one that saved it."""
    num_bytes: int
    """Bytes of blobs that this rank stored."""
    push_s: float
    """Seconds from the first look at the local copies until all ranks were done."""


@dataclass(frozen=True, kw_only=True, slots=True)
class NoticeSourcesFound:
    """The session has looked where it runs, and knows who may tell it of an end."""

    providers: tuple[str, ...]
    """What was recognised, for example ``aws`` and ``kubernetes``."""
    sources: tuple[str, ...]
    """Who is asked for notices, beside signals."""
    grace_s: float
    """Seconds between a notice and the end to plan for. 0: there may be none, periodic saves are all there is."""
    limited_by: str
    """What makes that so short: a provider, ``grace_seconds`` or the launcher."""


@dataclass(frozen=True, kw_only=True, slots=True)
class NoticeReceived:
    """Word came that the machine will be taken."""

    source: str
    """For example ``SIGTERM``."""
    grace_s: float | None
    """Seconds from the notice to the deadline. None: a soft one, which names none."""
    kind: str = "hard"
    """``hard``: it will be taken, and the ranks leave. ``soft``: it is likelier than usual; they save, and go on."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Staged:
    """The state of *step* is in host memory; training goes on."""

    step: int
    trigger: str
    """Why it was saved: ``steps``, ``seconds``, ``soft``, ``notice``, ``explicit``, ``end`` or ``pause``."""
    num_bytes: int
    """Bytes that this rank staged."""
    stall_s: float
    """Seconds that the training thread stood still for it."""
    copy_s: float = 0.0
    """Seconds from the begin of the save until all was copied, most of them beside training."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SaveDeferred:
    """A periodic save was due, but an earlier one is still being pushed. It is tried again."""

    step: int
    num_deferred: int
    """Deferred saves since the session began, this one included."""


@dataclass(frozen=True, kw_only=True, slots=True)
class IntervalChanged:
    """``every_seconds="auto"`` found a better interval between saves, or a soft notice shortened it. Told by rank 0."""

    interval_s: float
    before_s: float
    """Infinity if saves were due on steps alone."""
    stall_s: float
    """Seconds that training lately stood still for a save: the mean."""
    push_s: float
    """Seconds that a push lately took: the longest. The interval is never shorter."""
    mean_between_preemptions_s: float
    """Seconds between preemptions that are expected, from those seen and a prior."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WrittenLocally:
    """All blobs of this rank are on the local disk."""

    step: int
    num_bytes: int
    write_s: float
    write_bytes_per_s: float | None = None
    """How fast this rank's blobs have lately gone to the local disk; None if not known."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LocalWriteFailed:
    """The local disk took no copy; the push to the store goes on from memory."""

    step: int
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class PushFailing:
    """The store refuses or does not answer; the pusher keeps trying the newest staged step."""

    step: int
    num_tries: int
    """Failed tries of this step so far."""
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Committed:
    """This rank's part of *step* is stored. The step is visible once all ranks say so."""

    step: int
    num_bytes: int
    """Bytes that this rank stored."""
    push_s: float
    """Seconds from the end of staging to this rank's manifest."""
    put_bytes_per_s: float | None = None
    """How fast this rank's blobs have lately gone to the store, all parallel puts together; None if not known."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SaveAbandoned:
    """*step* will never be committed: a newer one took its place, or it could not be stored."""

    step: int
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Superseded:
    """A newer attempt runs; this one writes no manifest any more."""

    attempt: int
    newest: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Pruned:
    """An old checkpoint was removed from the store."""

    step: int
    attempt: int


@dataclass(frozen=True, kw_only=True, slots=True)
class LastSecondsPlanned:
    """What is done with the time that a notice leaves, and the numbers that say so. Told again when that changes."""

    step: int
    choice: str
    """``train_on``, ``save``, ``save_locally``, ``finish_push`` or ``nothing_fits``: see docs/notices.md."""
    is_promised: bool
    """Whether it is in time by what was measured, with a margin. Not so where nothing was measured yet."""
    needs_s: float | None
    """Seconds until the last save is where it shall be, by what was measured; None without a promise."""
    left_s: float
    """Seconds until then at most. What leaving takes is subtracted already."""
    num_steps: int
    """Steps that fit before the last save."""
    save_first: bool
    """Whether this step is saved as well, in case that the notice was too optimistic."""
    step_s: float | None
    """Seconds of one step."""
    num_bytes: int | None
    """Bytes of one save, on the rank that has most; None before the first one."""
    stage_bytes_per_s: float | None
    disk_bytes_per_s: float | None
    store_bytes_per_s: float | None
    """What the slowest rank lately reached; None where nothing was measured."""
    in_flight_s: float
    """Seconds until earlier saves are committed; 0 if they are, infinity where nobody knows."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Leaving:
    """Because of a notice the process is about to end, unless ``on_notice="continue"`` lets this rank stay."""

    step: int | None
    """Last step this rank saved, or None."""
    durable: bool
    """Whether this rank's part of it reached the store in time."""
    left_s: float
    """Seconds that remained until the deadline; negative when it was missed."""


Event: TypeAlias = (
    AttemptStarted
    | Resumed
    | CheckpointRejected
    | Salvaged
    | NoticeSourcesFound
    | NoticeReceived
    | Staged
    | SaveDeferred
    | IntervalChanged
    | WrittenLocally
    | LocalWriteFailed
    | PushFailing
    | Committed
    | SaveAbandoned
    | Superseded
    | Pruned
    | LastSecondsPlanned
    | Leaving
)
"""A union, one member per kind of event."""

Subscriber: TypeAlias = Callable[[Event], None]
"""A function that is called with every event, on the thread that emits the event. It must not block."""

Hook: TypeAlias = Subscriber
"""Old name of :data:`Subscriber`, kept until 1.0."""


def subscribers_of(
    on_event: Subscriber | Sequence[Subscriber], hooks: Sequence[Subscriber] | None
) -> tuple[Subscriber, ...]:
    """
    Return the subscribers that a constructor was given, by the argument *on_event* or by its old name *hooks*.

    The constructor calls this itself, so that a warning names the line of its caller.

    Raises:
        ConfigError: Both are given, or one is neither a function nor a sequence of functions.
    """
    name: str = "on_event"
    given: Any = on_event  # a user may give anything
    if hooks is not None:
        if on_event != ():
            raise ConfigError(f"on_event={on_event!r} and hooks={hooks!r}: hooks is the old name. Give on_event alone")
        warnings.warn("hooks is the old name of on_event. Write on_event=...", DeprecationWarning, stacklevel=3)
        name, given = "hooks", hooks
    subscribers = (given,) if callable(given) else tuple(given) if isinstance(given, Iterable) else None
    if subscribers is None or not all(callable(each) for each in subscribers):
        raise ConfigError(f"{name}={given!r} must be a function or a list of functions, each taking one event")
    return subscribers


class EventBus:
    """
    Passes each event to all subscribers, in the order in which they subscribed.

    A subscriber that raises is logged and never disturbs training.
    """

    def __init__(self, *subscribers: Subscriber) -> None:
        self._subscribers = subscribers

    def subscribe(self, subscriber: Subscriber) -> None:
        """Add *subscriber*. Events that were emitted before are not repeated."""
        self._subscribers += (subscriber,)  # a new tuple: other threads may be walking over the old one

    def emit(self, event: Event) -> None:
        """Pass *event* to all subscribers. Callable from any thread, also from within a subscriber."""
        for subscriber in self._subscribers:
            try:
                subscriber(event)
            except Exception:
                logger.exception("a subscriber failed on %s; training continues", type(event).__name__)
