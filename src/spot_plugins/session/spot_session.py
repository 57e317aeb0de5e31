"""The session of one attempt: what a host needs of this package, and nothing of the way in which it is done."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Final

from torch import nn
from torch.optim import Optimizer

from ..agreement import Notice
from ..clock import Clock, SystemClock
from ..config import SpotConfig
from ..errors import Preempted
from ..events import AttemptStarted, EventBus, Hook, Subscriber
from ..guard import Guard, Host
from ..leave.phase import Phase, PhaseTracker
from ..leave.way_out import Pause
from ..locations import is_local
from ..program import Program, subscribers_of
from ..program.program import PART, ProgramPart
from ..ranks import Ranks, current_ranks
from ..resume.peek import Peeked, peek
from ..resume.restore import restore
from ..schedule import Trigger
from ..state.part import Part
from ..state.registry import Registry, register_model
from .banner import show_banner, show_failure
from .drilling import Drilling
from .ending import check_ends, end_of, settle
from .keeping import KeepsSteps
from .milestones import Milestones
from .opened import Opened, is_free_for_signals, join_and_build, opening

__all__ = ["Pause", "SpotSession"]

FINISH_WAIT_S: Final = 600.0
"""Longest wait in seconds for the last push of a training that ended well. The pusher continues after it."""


class SpotSession(KeepsSteps):
    """
    One attempt of one run: saves on triggers, leaves after a notice, and resumes at its start.

    A host registers the parts of its training, opens the session and calls :meth:`resume`. Then it calls
    :meth:`after_step` after every optimizer step, and :meth:`finish` when the training is done. Every rank makes the
    same calls, always on the training thread. Between two steps it may stand still in :meth:`pause`. A ``with`` block
    on the main thread takes SIGTERM as a notice::

        with SpotSession(config) as session:
            session.register_model(model, [optimizer])
            step = session.resume() or 0
            while step < num_steps:
                ...
                step += 1
                session.after_step(step)
            session.finish(step)

    Args:
        config: The settings of the run.
        ranks: The processes of the job. None: those of ``torch.distributed``.
        on_event: Called with every :data:`~spot_plugins.events.Event` of this rank. One function or several.
        hooks: The old name of *on_event*, accepted until 1.0.
        clock: The clock of the time trigger. None: that of the system.
        host: The view of a host on its training. None: a loop that calls the session itself.
    """

    def __init__(
        self,
        config: SpotConfig,
        *,
        ranks: Ranks | None = None,
        on_event: Subscriber | Sequence[Subscriber] = (),
        hooks: Sequence[Hook] | None = None,
        clock: Clock | None = None,
        host: Host | None = None,
    ) -> None:
        self._drilling = Drilling(config)
        self._milestones = Milestones()
        self._bus = EventBus(self._milestones.on_event, self._drilling.on_event, *subscribers_of(on_event, hooks))
        self._ranks = ranks
        self._clock = clock or SystemClock()
        self._registry = Registry()
        self._phase = PhaseTracker()
        self._stack = ExitStack()
        self._it: Opened | None = None
        self._guard = Guard(host or Host(), self._registry)
        self._is_prepared = False
        self._program = Program()

    def __enter__(self) -> SpotSession:
        with opening(self.close):
            if is_free_for_signals(self._phase):
                self.handle_signals()
            self._open_if_new()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if exc is not None:
                self.fail(exc)
        finally:
            self.close()

    def open(self) -> None:
        """
        Join the run: prove on every rank that its store can be written to, claim an attempt, listen for notices.

        Trouble with the store that may pass is waited for, at most two minutes, with a line for each try.

        Raises:
            ConfigError: A setting cannot work, such as an unknown URL scheme, a missing package or no permission.
            StoreError: The store does not answer.
            Preempted: There was a notice before the store answered.
        """
        self._phase.check("open")
        with opening(self.close):
            self._it = it = join_and_build(
                self._drilling.config,
                self._ranks or current_ranks(),
                self._registry,
                self._bus,
                self._clock,
                self._phase,
                self._stack,
                self._guard.host.log_level,
            )
            self._phase.move(Phase.JOINED)
            it.agreement.open()
            self._bus.emit(AttemptStarted(attempt=it.run.attempt, world_size=it.job.world_size))
            it.listener.open()
            self._drilling.begin(it, self._stack)
            self._stack.callback(self._guard.close)
            self._guard.open(speaks=it.job.rank == 0)

    @property
    def attempt(self) -> int:
        """Number of this attempt of the run, counted from 1."""
        return self._opened.run.attempt

    @property
    def notice(self) -> Notice | None:
        """The notice that any rank received, or None."""
        return self._opened.agreement.notice

    @property
    def last_committed_step(self) -> int | None:
        """The newest step of which this attempt has stored the part of this rank, or None."""
        return self._milestones.last_committed_step

    @property
    def resumed_from(self) -> int | None:
        """The step that this attempt resumed from, or None."""
        return self._milestones.resumed_from

    @property
    def program(self) -> Program:
        """The facts about this program. A host adds to them what a session cannot see, before :meth:`resume`."""
        return self._program

    def register(self, name: str, part: Part, *, replicated: tuple[str, ...] = ()) -> None:
        """
        Add something to save and restore, before :meth:`resume`.

        Args:
            name: A word, the same in every attempt. The word ``program`` is taken.
            part: An object with ``state_dict()`` and ``load_state_dict()``.
            replicated: Top-level keys of its state whose tensors are equal on all ranks. The ranks share the work of
                storing them.
        """
        self._phase.check("register")
        if name == PART:
            raise ValueError(f"{name!r} is the name of this package's own part: choose another name")
        self._registry.add(name, part, replicated)

    def register_model(
        self, model: nn.Module, optimizers: Iterable[Optimizer] = (), schedulers: Iterable[Part] = ()
    ) -> None:
        """
        Add a model and what trains it, under the names ``model``, ``optimizer-0``, ``scheduler-0`` and so on.

        Call it before :meth:`resume`. Pass the model as it is trained, in its wrapper of DDP or FSDP.
        """
        self._phase.check("register")
        register_model(self.register, model, optimizers, schedulers)

    def handle_signals(self) -> None:
        """
        Take SIGTERM as a notice, and under SLURM SIGUSR1 too. Call it on the main thread. It opens a new session.

        A ``with`` block calls it. A second call takes the signals back from a host that has its own handler in place.
        """
        self._phase.check("handle_signals")
        self._open_if_new()
        self._opened.listener.handle_signals()

    watch_signals = handle_signals  # the old name, accepted until 1.0

    def peek(self, path: Sequence[str] = ()) -> Peeked | None:
        """
        Find the step from which :meth:`resume` will continue, on all ranks, and load nothing. It opens a new session.

        Args:
            path: Keys that lead to a plain value in the saved state, beginning with the name of the part.

        Returns:
            The step, with the value at *path* on rank 0, or None on a first run.

        Raises:
            IncompatibleCheckpointError, StoreError: See :func:`spot_plugins.resume.peek.peek`.
        """
        self._phase.check("peek")
        self._open_if_new()
        with self._opened.way_out.before_training():
            return peek(self._opened.run, self._opened.job, self._bus, path)

    def resume(self) -> int | None:
        """
        Restore the newest committed step that is intact, on all ranks. It opens a new session.

        A newer step that lies on the local disks of all ranks, and never reached the store, is committed first. Rank 0
        shows where training starts, and what differs from the program that saved the step.

        Returns:
            The step after which training continues, or None on a first run.

        Raises:
            NothingToResumeError, IncompatibleCheckpointError, StoreError: See :func:`~.resume.restore.restore`.
            UnsafeStateError: A registered part has state that could not be saved later.
        """
        self._phase.check("resume")
        self._open_if_new()
        it = self._opened
        is_mirror = is_local(it.run.url) and "sagemaker" in it.listener.providers  # of its S3 prefix
        self._program.gather({name: part.subject for name, part in self._registry.items()})
        self._registry.add(PART, ProgramPart(self._program))
        with it.way_out.before_training():
            step = restore(
                self._registry,
                it.run,
                it.job,
                self._bus,
                is_mirror=is_mirror,
                check=lambda state: self._program.check(state.get(PART)),
            )
            self._drilling.resumed(it, step)
            it.fingerprints.begin(step, [part for _, part in self._registry.items()])
            it.load_compiled()
            if step is not None:
                it.keeper.resumed(is_mirror=is_mirror)
        it.saved_steps.resumed(step)
        it.measurements.on_saved(step or 0)
        it.agreement.saved(step or 0)
        self._phase.move(Phase.TRAINING)
        it.watchers.begin(step)
        self._guard.begin(step)
        show_banner(it, self._program, self._milestones.resumed)
        self._drilling.end(step or 0, self.finish)
        return step

    def after_step(self, step: int, *, position: tuple[int, ...] = (), num_batches: int = 1) -> None:
        """
        Report that optimizer step *step* is done. In a quiet step this costs microseconds.

        If the step is saved, weights and optimizer state are copied while training continues. The next step of any
        optimizer waits for the copy by itself. Whoever changes them in another way calls :meth:`fence` first.

        Args:
            step: Optimizer steps done, over all attempts.
            position: Numbers that say how far training is in its data, three for each loader: any, epoch, batches.
                They are part of the step's fingerprint, and ``spot drill`` names the data of a step by them.
            num_batches: Batches of this rank that the step is made of. Part of the fingerprint as well.

        Raises:
            Preempted: There was a notice, and all is safe or the time is up.
            UnsafeStateError: Some state has no pickle-free form.
            ConfigError: The state does not fit into ``buffer_bytes``, *step* is not higher than the step before, or
                nothing that is trained is saved.
        """
        self._phase.check("after_step")
        it = self._opened
        self._guard.before_step(step)
        it.fingerprints.record(step, position, num_batches)
        it.measurements.on_step(it.agreement.notice)
        it.saved_steps.reached(step)
        if not (self._is_prepared or it.listener.is_pressed):  # an optimizer has no state before its first step
            self._is_prepared = True
            it.measurements.on_prepared(it.saver.prepare())
        decision = it.agreement.at_boundary(step)
        if decision is not None and decision.leaves:
            it.way_out.leave(step)
        elif decision is not None:
            self._save(step, decision.trigger)
        if self._guard.after_step():
            it.measurements.on_interlude()
        self._drilling.end(step, self.finish)

    def save(self, step: int) -> None:
        """
        Save *step* now, whatever the triggers say. Call it on every rank after the same step. See :meth:`after_step`.

        It does nothing after the other ranks have left this one behind (``on_notice="continue"``).

        Raises:
            UnsafeStateError: Some state has no pickle-free form.
            StoreError: Two earlier saves are still being pushed and did not end within the grace.
        """
        self._phase.check("save")
        self._guard.save()
        self._save(step, "explicit")

    def fence(self, *, copied: bool = False) -> None:
        """
        Wait until no save depends on live state any more, and with *copied* until no copy runs on a device either.

        Call it before weights or optimizer state are changed by anything but the step of an optimizer, such as the
        clipping of weights, or a swap for averaged ones. A pause and the end of the training include it. Call it with
        *copied* before a CUDA graph is captured. In a capture, or if a copy hangs for 600 s, it raises a RuntimeError.
        """
        self._opened.saver.fence(copied=copied)

    def pause(self, step: int) -> Pause:
        """
        Return the pause after *step*, to be entered with ``with``. Every rank enters it after the same step.

        Raises:
            Preempted: Raised by :meth:`Pause.check` and at the end of the block, as by :meth:`after_step`.
        """
        self._phase.check("pause")
        it = self._opened
        self._guard.pause()
        if it.keeper.is_used:
            it.keeper.hold(step)  # it waits for room, because this step may turn out to be worth keeping
        return Pause(it.way_out, step)

    def finish(self, step: int) -> None:
        """
        Report that training is done after *step*: save it, wait until it is stored, and close.

        Raises:
            Preempted: A notice came before the end was stored and left no time for that, or a signal came later.
            CommitError: The end of the training is not stored. If a newer attempt runs, that is only logged.
        """
        self._phase.check("finish")
        it = self._opened
        if step == self.resumed_from:
            self._program.tell_finished(step)
        it.listener.awaits = f"waiting until step {step} is stored"
        if it.listener.is_pressed:
            it.way_out.leave(step)
        deadline = time.monotonic() + FINISH_WAIT_S
        it.way_out.wait(lambda: it.saver.has_room, step, deadline)
        if it.saver.has_room and not it.pusher.ledger.is_superseded:
            self._save(step, "end")
        it.way_out.wait(lambda: it.pusher.has_ended(step), step, deadline)
        it.way_out.wait(lambda: not it.pusher.wishes, step, time.monotonic() + self._drilling.config.grace_s)
        meeting = it.job.meet(deadline + self._drilling.config.grace_s, end_of(it, step))
        it.way_out.wait(lambda: meeting.is_over, step, math.inf)
        try:
            if self._phase.now is not Phase.LEFT_BEHIND:
                check_ends(step, meeting, it.job.world_size)
                settle(it, step)
                it.saved_steps.finish(step)
        finally:
            self.close()

    def fail(self, error: BaseException) -> None:
        """
        Report that training failed with *error*, and close. An error that leaves the ``with`` block is passed here.

        Raises:
            Preempted: All ranks had agreed to leave. Then the error only shows that another rank is gone.
        """
        if self._phase.now not in (Phase.NEW, Phase.CLOSED):
            self._opened.watchers.fail(error)
            show_failure(self._opened, error)
        if self._phase.now is Phase.PAUSED and self._opened.agreement.notice and not isinstance(error, Preempted):
            self._opened.way_out.exit_pause()
        self.close()

    def close(self) -> None:
        """Stop. The pusher still stores what is staged. Raises ``Preempted`` if a signal came in the last moment."""
        self._phase.move(Phase.CLOSED)
        self._stack.close()

    def _open_if_new(self) -> None:
        if self._phase.now is Phase.NEW:
            self.open()

    def _save(self, step: int, trigger: Trigger) -> None:
        it = self._opened
        if self._phase.now is not Phase.LEFT_BEHIND and it.saved_steps.save(step, trigger):
            it.measurements.on_saved(step, because_of_notice=trigger == "notice")
        it.agreement.saved(step)
