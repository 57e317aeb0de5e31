"""The recorder, which takes the fingerprint of each step and compares steps that are trained again."""

from __future__ import annotations

import logging
import marshal
import os
from collections.abc import Callable, Iterable
from typing import Any, ClassVar, Final
from weakref import WeakSet

from torch.optim import Optimizer

from ..events import EventBus
from ..push import SharedFile
from ..ranks import Job
from ..state import ShardedPart
from ..store import HangingDiskError, LocalDisk
from .earlier import Comparison, earlier_steps, remove_all
from .history import History
from .rates import Rates
from .record import StepRecord, hash_32
from .ring import Ring, RingId
from .seen import Seen
from .stored import Stored
from .streams import Streams
from .weights import sum_of_weights

logger = logging.getLogger(__name__)

_NO_STREAMS: Final = (0, 0, 0, 0)
_FOLDER: Final = "fingerprints"


class Recorder(ShardedPart):
    """
    Takes the fingerprint of each step of one rank.

    It is a part of the training too: the fingerprints go to the store with each checkpoint. Steps that an earlier
    attempt trained after that checkpoint are compared as they are trained again. An error in all this is logged, and
    nothing is recorded any more.
    """

    is_optional = True  # checkpoints of earlier versions have no fingerprints

    _recording: ClassVar[WeakSet[Recorder]] = WeakSet()
    """Recorders of this process. Several of them are ranks that are threads, which share the random streams."""

    def __init__(
        self,
        folder: str | None,
        disk: LocalDisk,
        ring_id: RingId,
        bus: EventBus,
        share: Callable[[SharedFile], None],
        live_folder: str | None = None,
    ) -> None:
        """
        Record nothing yet.

        Args:
            folder: Directory for the files on the local disk. None: keep none.
            disk: The limit for the work on *folder*.
            ring_id: This attempt and rank.
            bus: Gets the events.
            share: Gives the file of this attempt to the pusher process, which keeps it on the disk.
            live_folder: Folder in which a drill reads each step at once. None: this is no drill.
        """
        self._folder = folder
        self._disk = disk
        self._id = ring_id
        self._bus = bus
        self._share = share
        self._live_folder = live_folder
        self._streams: Streams | None = Streams()
        self._rates = Rates([])
        self._history = History(ring_id.world_size)
        self._ring: Ring | None = None
        self._comparison: Comparison | None = None
        self._is_on = True
        self._recording.add(self)

    def state_dict(self) -> dict[str, Any]:
        """Return the fingerprints up to the last step."""
        return self._history.stored().encode()

    def for_new_rank(self, state: Any, rank: int) -> Any:
        """Return nothing, because a new rank has trained no step."""
        return None

    def load_state_dict(self, state: Any) -> None:
        """Continue the fingerprints of the checkpoint, if it was saved on the same number of ranks."""
        if (stored := Stored.decode(state)) is not None:
            self._history.load(stored)

    def begin(self, step: int | None, parts: Iterable[ShardedPart]) -> None:
        """
        Begin after the resume.

        Args:
            step: The step from which training continues. None on a first run.
            parts: The parts of the training, of which the optimizers are looked at.
        """
        self._rates = Rates(part.subject for part in parts if isinstance(part.subject, Optimizer))
        if len(self._recording) > 1:
            self._streams = None
        last = self._history.last
        if last is None or last.step != step:
            last = None
            self._history.begin_anew((step or 0) + 1)
        if (folder := self._folder) is None:
            return
        try:
            if step is None:
                self._disk.do(lambda: remove_all(folder, self._id))
            else:
                earlier = self._disk.do(lambda: earlier_steps(folder, self._id, step, last))
                self._comparison = Comparison(earlier, self._id, self._bus)
        except HangingDiskError:
            return
        self._ring = self._new_ring(folder, last)

    def record(self, step: int, position: tuple[int, ...], num_batches: int) -> None:
        """
        Take the fingerprint of *step*, and compare it if an earlier attempt has trained this step too.

        Args:
            step: The optimizer step that is done.
            position: Numbers that say how far training is in its data. Empty if that is unknown.
            num_batches: Batches of this rank in the step.
        """
        if not self._is_on:
            return
        try:
            streams = _NO_STREAMS if self._streams is None else self._streams.look(step)
            data = hash_32(marshal.dumps(position, 2)) if position else 0
            record = self._history.add(step, (data, self._rates.look(step), num_batches + 1, *streams))
            if self._ring is not None:
                self._ring.write(step, record, self._see(position))
            if self._comparison is not None:
                self._compare(self._comparison)
        except Exception:  # a fingerprint must not end a training
            self._is_on = False
            logger.exception("the fingerprint of step %s failed, and no other one is taken; training continues", step)

    def close(self) -> None:
        """Record nothing any more. The file stays on the disk for the next attempt."""
        self._recording.discard(self)
        self._is_on = False
        self._ring = None

    def _see(self, position: tuple[int, ...]) -> Seen | None:
        """Return what a drill sees of the step. None if this is no drill, which has no time for it."""
        return None if self._live_folder is None else Seen(position, sum_of_weights(self._rates.optimizers))

    def _new_ring(self, folder: str, last: StepRecord | None) -> Ring | None:
        """Return a file that begins with the step of the checkpoint, by which the next attempt knows all others."""
        try:
            ring = Ring(folder, self._id, self._live_folder)
        except OSError as error:
            logger.info("no fingerprints of steps are kept on the local disk: %s", error)
            return None
        if last is not None:
            ring.write(last.step, last.encode())
        self._share(ring.file)
        return ring

    def _compare(self, comparison: Comparison) -> None:
        if (last := self._history.last) is not None:
            comparison.compare(last)
        if comparison.is_over:
            self._comparison = None


def recorder_of(
    scratch: str | None,
    disk: LocalDisk,
    attempt: int,
    job: Job,
    bus: EventBus,
    share: Callable[[SharedFile], None],
    live_folder: str | None,
) -> Recorder:
    """
    Return the recorder of this rank.

    Args:
        scratch: Directory for local files. None: there is none.
        disk: The limit for the work on *scratch*.
        attempt: Number of this attempt.
        job: The ranks of the job.
        bus: Gets the events.
        share: Gives a file to the pusher process.
        live_folder: Folder in which a drill reads each step at once. None: this is no drill.
    """
    path = None if scratch is None else os.path.join(scratch, _FOLDER)
    return Recorder(path, disk, RingId(attempt, job.rank, job.world_size), bus, share, live_folder)
