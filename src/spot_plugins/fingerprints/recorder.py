"""The recorder, which takes the fingerprint of each step and compares steps that are trained again."""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Iterable
from typing import Any, ClassVar, Final
from weakref import WeakSet

from ..errors import ConfigError
from ..events import EventBus, StepDiffers
from ..ranks import Job
from ..state import OptimizerPart, ShardedPart
from ..store import scratch_directory
from . import rates
from .earlier import ADVICE, EarlierStep, earlier_steps, remove_all
from .record import Digests, StepRecord, hash_32
from .ring import Ring, RingId
from .stored import NUM_RECORDS, Stored
from .streams import Streams

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

    def __init__(self, folder: str | None, ring_id: RingId, bus: EventBus) -> None:
        """
        Record nothing yet.

        Args:
            folder: Directory for the files on the local disk. None: keep none.
            ring_id: This attempt and rank.
            bus: Gets the events.
        """
        self._folder = folder
        self._id = ring_id
        self._bus = bus
        self._streams = Streams()
        self._optimizers: list[OptimizerPart] = []
        self._digests = Digests()
        self._first_step = 1
        self._newest: deque[StepRecord] = deque(maxlen=NUM_RECORDS)
        self._ring: Ring | None = None
        self._earlier: dict[int, EarlierStep] = {}
        self._told: set[str] = set()
        self._is_broken = False
        self._recording.add(self)

    def state_dict(self) -> dict[str, Any]:
        """Return the fingerprints up to the last step."""
        return Stored(
            step=self._newest[-1].step if self._newest else 0,
            first_step=self._first_step,
            world_size=self._id.world_size,
            digests=self._digests.values,
            records=tuple(self._newest),
        ).encode()

    def for_new_rank(self, state: Any, rank: int) -> Any:
        """Return nothing, because a new rank has trained no step."""
        return None

    def load_state_dict(self, state: Any) -> None:
        """Continue the digests of the checkpoint, if it was saved on the same number of ranks."""
        stored = Stored.decode(state)
        if stored is not None and stored.world_size == self._id.world_size:
            self._digests = Digests(stored.digests)
            self._first_step = stored.first_step
            self._newest.extend(stored.records)

    def begin(self, step: int | None, parts: Iterable[ShardedPart]) -> None:
        """
        Begin after the resume.

        Args:
            step: The step from which training continues. None on a first run.
            parts: The parts of the training, of which the optimizers are looked at.
        """
        self._optimizers = [part for part in parts if isinstance(part, OptimizerPart)]
        is_continued = bool(self._newest) and self._newest[-1].step == step
        if not is_continued:
            self._digests, self._first_step = Digests(), (step or 0) + 1
            self._newest.clear()
        if self._folder is None:
            return
        if step is None:
            remove_all(self._folder, self._id.rank)
        elif is_continued:
            self._earlier = earlier_steps(self._folder, self._id, step, self._newest[-1].digest)

    def record(self, step: int, position: tuple[int, ...], num_batches: int) -> None:
        """
        Take the fingerprint of *step*, and compare it if an earlier attempt has trained this step too.

        Args:
            step: The optimizer step that is done.
            position: Numbers that say how far training is in its data. Empty if that is unknown.
            num_batches: Batches of this rank in the step.
        """
        if self._is_broken:
            return
        try:
            record = self._record_of(step, position, num_batches)
            self._write(record)
            self._newest.append(record)
            if self._earlier:
                self._compare(record)
        except Exception:  # a fingerprint must not end a training
            self._is_broken = True
            logger.exception("the fingerprint of step %s failed, and no other one is taken; training continues", step)

    def close(self) -> None:
        """Close the file. It stays on the disk for the next attempt."""
        self._recording.discard(self)
        self._is_broken = True
        if self._ring is not None:
            self._ring.close()

    def _record_of(self, step: int, position: tuple[int, ...], num_batches: int) -> StepRecord:
        streams = self._streams.look(step) if len(self._recording) == 1 else _NO_STREAMS
        data = hash_32(repr(position).encode()) if position else 0
        hashes = (data, rates.look(self._optimizers, step), hash_32(b"%d" % num_batches), *streams)
        self._digests.add(hashes)
        return StepRecord.after(self._newest[-1].digest if self._newest else 0, step, hashes)

    def _write(self, record: StepRecord) -> None:
        if self._folder is None:
            return
        try:
            if self._ring is None:
                self._ring = Ring(self._folder, self._id)
                if self._newest:  # the step of the checkpoint, by which the next attempt knows these steps
                    self._ring.write(self._newest[-1])
            self._ring.write(record)
        except OSError as error:
            self._folder = None
            logger.info("the local disk takes no fingerprints of steps: %s", error)

    def _compare(self, record: StepRecord) -> None:
        earlier = self._earlier.pop(record.step, None)
        if earlier is None:
            return
        new = tuple(kind for kind in record.differs_from(earlier.record) if kind not in self._told)
        if not new:
            return
        self._told.update(new)
        on_rank = f" on rank {self._id.rank}" if self._id.world_size > 1 else ""
        logger.warning(
            "step %s%s is not the step %s that attempt %s trained before it ended. %s If you have changed the program "
            "on purpose, this is no error. Otherwise the training is not the one that was interrupted",
            record.step,
            on_rank,
            record.step,
            earlier.attempt,
            " ".join(ADVICE[kind] for kind in new),
        )
        self._bus.emit(StepDiffers(step=record.step, attempt=earlier.attempt, what=new))


def recorder_of(url: str, local_dir: str | None, attempt: int, job: Job, bus: EventBus) -> Recorder:
    """
    Return the recorder of this rank. Its file lies beside the local copies, or in the temporary directory.

    Args:
        url: URL of the run.
        local_dir: Directory of the local copies, if there are any.
        attempt: Number of this attempt.
        job: The ranks of the job.
        bus: Gets the events.
    """
    folder: str | None = local_dir
    if local_dir is None:
        try:
            folder = scratch_directory(url)
        except ConfigError as error:
            logger.info("no fingerprints of steps are kept on the local disk: %s", error)
    path = None if folder is None else os.path.join(folder, _FOLDER)
    return Recorder(path, RingId(attempt, job.rank, job.world_size), bus)
