"""Steps that are kept until they are released, such as the best one by validation."""

from __future__ import annotations

import logging
import threading
from typing import Any, Final, cast

from ..errors import StoreError
from ..events import Committed, Event, EventBus, KeepFailed, Kept, Released, SaveAbandoned, SharesCounted
from ..format.commit import CommittedStep
from ..format.kept import KeptStep, kept_steps
from ..leave.phase import Phase, PhaseTracker
from ..leave.way_out import WayOut
from ..push import Pusher
from ..push.messages import KeepRequest
from ..ranks import Job, SingleRank
from ..resume.join import Membership
from ..resume.manifests import manifests_of
from ..resume.reader import StepReader
from ..resume.stored import choose_step
from ..resume.weights import Weights
from ..save import SavedSteps
from ..store import patiently

logger = logging.getLogger(__name__)

PROGRAM: Final = "program"
"""The owner of the steps that a program keeps itself."""


class Keeper:
    """
    The steps that this job keeps, by owner. Every rank saves its share; rank 0 lets its pusher put the marks.

    Args:
        job: The ranks of the job.
        run: The run and its store.
        pusher: Puts and removes the marks.
        saved_steps: The steps of this attempt.
        way_out: Saves the present step, also after a pause.
        phase: The phase of the session.
        bus: Gets the events.
        grace_s: Longest wait for room in memory.
    """

    def __init__(
        self,
        job: Job,
        run: Membership,
        pusher: Pusher,
        saved_steps: SavedSteps,
        way_out: WayOut,
        phase: PhaseTracker,
        bus: EventBus,
        grace_s: float,
    ) -> None:
        self._job = job
        self._run = run
        self._pusher = pusher
        self._saved_steps = saved_steps
        self._way_out = way_out
        self._phase = phase
        self._bus = bus
        self._grace_s = grace_s
        self._lock = threading.Lock()
        self._kept: set[tuple[int, str]] = set()
        self._unneeded: dict[tuple[int, str], int] = {}  # with the step that still names it
        self._is_used = False

    def resumed(self, *, is_mirror: bool) -> None:
        """
        Find the steps that earlier attempts kept. Every rank calls this after a resume.

        Raises:
            StoreError: The store does not answer. Every rank raises it.
        """
        found: list[Any] = []
        problem: list[Any] = []
        if self._job.rank == 0:
            try:
                marks = list(kept_steps(self._run.patient))
                found = [[mark.step_id.step, mark.owner] for mark in marks if mark.is_committed or is_mirror]
                self._drop([mark for mark in marks if not mark.is_committed and not is_mirror], found)
            except StoreError as error:
                problem = [error.operation, error.key, error.reason]
        found, problem = cast("Any", self._job.exchange("resume/kept", cast("Any", [found, problem]))[0])
        if problem:
            raise StoreError(*problem)
        with self._lock:
            self._kept = {(step, owner) for step, owner in found}
        self._is_used = bool(found)

    @property
    def is_used(self) -> bool:
        """True if a step is kept, or was in this attempt."""
        return self._is_used

    def steps_of(self, owner: str) -> tuple[int, ...]:
        """Return the steps that *owner* keeps, in order."""
        with self._lock:
            return tuple(sorted(step for step, by in self._kept if by == owner))

    def keep(self, step: int, owner: str, *, saves_live: bool = True) -> None:
        """
        Keep *step*. If it is the present step and not saved, save it now.

        Args:
            step: The present step or an earlier one.
            owner: A word in small letters.
            saves_live: Whether the live state may be saved, if none is held. False after other code than that of the
                step may have changed the live state.

        Raises:
            ValueError: *step* is not trained yet, or *owner* is no word.
        """
        self._phase.check("keep")
        present = step if self._saved_steps.present is None else self._saved_steps.present
        if step > present:
            raise ValueError(f"keep({step}): step {step} is not trained yet, the last one is {present}")
        if not (owner.isascii() and owner.isalpha() and owner.islower()):
            raise ValueError(f"owner={owner!r} must be a word in small letters, such as 'program'")
        self._is_used = True
        with self._lock:
            self._kept.add((step, owner))
            self._unneeded.pop((step, owner), None)
        if self._phase.now is Phase.LEFT_BEHIND:
            self._fail(step, owner, "the other ranks have left, and this rank saves nothing any more")
        elif step == present and (reason := self._way_out.save(step, saves_live=saves_live)) is not None:
            self._fail(step, owner, reason)
        elif self._pusher.is_abandoned(step):
            self._fail(step, owner, "it could not be stored")
        elif self._job.rank == 0:
            is_saving = not self._pusher.has_ended(step)
            self._pusher.ask(KeepRequest(step=step, owner=owner, keeps=True, is_saving=is_saving))

    def hold(self, step: int) -> None:
        """
        Copy the state of *step*, the present one, so that it can be kept until the next step.

        It waits for room in memory, at most ``grace_s`` and not after a notice.
        """
        if self._phase.now is not Phase.LEFT_BEHIND:
            self._way_out.hold(step, self._grace_s)

    def forget_held(self) -> None:
        """Let the next :meth:`keep` of the present step save the live state."""
        if self._phase.now is not Phase.PAUSED:
            self._saved_steps.release()

    def state_of(self, step: int) -> dict[str, Any]:
        """
        Read the whole state of a committed step, as one process would get it. A kept step is preferred.

        Raises:
            ConfigError: The store does not have the step.
            CorruptCheckpointError, IncompatibleCheckpointError, StoreError: It cannot be read.
        """
        store, committed = self._run.store, self._committed(step)
        return StepReader(store, self._run.local, committed, SingleRank(), lambda name, shape: None).read().state

    def weights_of(self, step: int, part: str) -> Weights:
        """
        Return the weights of a model in a committed step, which are read later. A kept step is preferred.

        Args:
            step: The step.
            part: The name of the model in the state.

        Raises:
            ConfigError: The store does not have the step, or the step does not have the model.
            CorruptCheckpointError, IncompatibleCheckpointError, StoreError: It cannot be read.
        """
        store, committed = self._run.store, self._committed(step)
        return Weights(store, committed.step_id, manifests_of(store, committed), part)

    def _committed(self, step: int) -> CommittedStep:
        store = self._run.store
        marked = {mark.step_id for mark in patiently(lambda: list(kept_steps(store))) if mark.is_committed}
        return choose_step(store, step, kept=any(each.step == step for each in marked))

    def release(self, step: int, owner: str) -> None:
        """Let *step* be pruned like any other, unless another owner keeps it."""
        self._phase.check("release")
        self._release(step, owner)

    def release_after(self, step: int, owner: str, *, named_by: int) -> None:
        """
        Release *step* as soon as all ranks have stored a step after *named_by*. Rank 0 does so.

        Until then a resume may begin at *named_by* or before it, and the state of these steps still names *step*.
        """
        self._phase.check("release")
        if self._job.rank != 0:
            self._release(step, owner)
            return
        with self._lock:
            self._unneeded.setdefault((step, owner), named_by)  # a later call names a later step

    def on_visible(self, stored: int) -> None:
        """Release what no step names from *stored* on, which all ranks have stored. On any thread of rank 0."""
        with self._lock:
            unneeded = [key for key, named_by in self._unneeded.items() if named_by < stored]
        for step, owner in unneeded:
            self._release(step, owner)

    def on_event(self, event: Event) -> None:
        """Say that a step is not kept after all, and release what no stored step names. On any thread."""
        match event:
            case Committed(step=stored) if self._job.world_size == 1:
                self.on_visible(stored)
            case SharesCounted(visible_step=int(stored)):
                self.on_visible(stored)
            case SaveAbandoned(step=step):
                with self._lock:
                    owners = [owner for kept, owner in self._kept if kept == step]
                for owner in owners:
                    self._fail(step, owner, f"it will not be committed, because {event.reason}")
                    if self._job.rank == 0:
                        self._pusher.ask(KeepRequest(step=step, owner=owner, keeps=False))
            case KeepFailed(step=step, owner=owner):
                with self._lock:
                    self._kept.discard((step, owner))
                logger.warning("step %s is not kept: %s", step, event.reason)
            case Kept(step=step, attempt=attempt, owner=owner):
                logger.info("step %s of attempt %s is kept by the %s", step, attempt, owner)
            case Released(step=step, owner=owner):
                logger.info("step %s is released by the %s", step, owner)

    def _release(self, step: int, owner: str) -> None:
        with self._lock:
            self._kept.discard((step, owner))
            self._unneeded.pop((step, owner), None)
        if self._job.rank == 0 and self._phase.now is not Phase.LEFT_BEHIND:
            self._pusher.ask(KeepRequest(step=step, owner=owner, keeps=False))

    def _fail(self, step: int, owner: str, reason: str) -> None:
        self._bus.emit(KeepFailed(step=step, owner=owner, reason=reason))

    def _drop(self, lost: list[KeptStep], found: list[Any]) -> None:
        """Remove the marks of steps that were never committed. On rank 0."""
        for mark in lost:
            step, owner = mark.step_id.step, mark.owner
            if [step, owner] not in found:
                self._fail(step, owner, "an earlier attempt wanted it, but ended before all ranks had stored it")
                self._pusher.ask(KeepRequest(step=step, owner=owner, keeps=False))
