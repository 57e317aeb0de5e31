"""The one deep module: what a host needs, and nothing of how it is done."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from typing import Final

from . import events
from .agreement import Agreement, Decision, Group, Notice, Solo
from .clock import Clock, SystemClock
from .config import SpotConfig
from .data import end_shielded_workers
from .errors import Preempted
from .events import EventBus, Hook, Subscriber, subscribers_of
from .launch import roster
from .leave.listener import Listener
from .leave.measurements import Measurements
from .push import Pusher, PushSettings
from .ranks import Job, Ranks, current_ranks
from .resume.join import join_run
from .resume.newest import apply_state, check_alike, load_newest
from .resume.prefetch import stop_prefetch
from .resume.salvage import salvage
from .save import SavedSteps, Saver
from .schedule import Pacer, Trigger
from .state.part import Part
from .state.registry import Registry
from .store import is_local

logger = logging.getLogger(__name__)

STUCK_S: Final = 1.0
"""How long the training thread may take to leave a pause once all ranks are done."""

FINISH_WAIT_S: Final = 600.0
"""Longest wait for the last push of a training that ended well; behind it the pusher goes on alone."""

POLL_S: Final = 0.02
"""How often the wait for the last push looks for notices."""


class SpotSession:
    """
    One process life of one run: saves on triggers, leaves on a notice, resumes at the start.

    A host registers the parts of its training, then calls, on every rank and always from the training thread:
    :meth:`resume` once; :meth:`after_step` at the end of every optimizer step; :meth:`finish` when the
    training is done, or :meth:`close` when it failed. Between steps it may stand still in
    :meth:`enter_pause` ... :meth:`exit_pause`, for example in validation.
    """

    def __init__(
        self,
        config: SpotConfig,
        *,
        ranks: Ranks | None = None,
        on_event: Subscriber | Sequence[Subscriber] = (),
        hooks: Sequence[Hook] | None = None,
        clock: Clock | None = None,
    ) -> None:
        """
        Check that the run's store can be used. Every rank calls this.

        Args:
            config: What to save, when and where to.
            ranks: The processes of the job; those of ``torch.distributed`` if None.
            on_event: Called with every :data:`~spot_plugins.events.Event` of this rank; one function or several.
            hooks: The old name of *on_event*, accepted until 1.0.
            clock: For the time trigger of tests.

        Raises:
            ConfigError: A setting cannot work: unknown URL scheme, missing package, no permission.
            StoreError: The store does not answer.
        """
        self._config = config
        self._bus = EventBus(*subscribers_of(on_event, hooks))
        self._ranks = ranks or current_ranks()
        self._job = Job(self._ranks, self._ranks.open_board())
        self._run = run = join_run(config, self._job)
        self._pacing = Pacer(config, run.store, run.attempt, self._ranks.rank, clock or SystemClock(), self._bus)
        self._parts = Registry()
        self._pusher = Pusher(
            PushSettings(
                url=run.url,
                storage_options=dict(config.storage_options),
                local_dir=run.local_dir,
                rank=self._ranks.rank,
                world_size=self._ranks.world_size,
                attempt=run.attempt,
                keep_last=config.keep_last,
                keep_every=config.keep_every,
            ),
            self._bus,
        )
        self._pusher.open()
        self._saver = Saver(self._parts, self._ranks, self._pusher, self._bus, config.buffer_bytes)
        self._is_prepared = False
        self._last_seconds = Measurements(config.local_dir_survives, self._bus)
        self._bus.subscribe(self._last_seconds.on_event)
        self._bus.subscribe(self._pacing.on_event)
        self._num_deferred = 0
        self._saves = SavedSteps(self._saver, self._pusher, config.grace_s)
        self._paused: int | None = None
        self._leaving = threading.Lock()
        self._left: int | None = None
        self._stays = False  # without the ranks that left: what this one saves would never be committed
        self._training_thread_leaves = threading.Event()
        self._closed = False
        self._agreement = self._open_agreement()  # last: its thread uses all of the above
        self._bus.emit(events.AttemptStarted(attempt=run.attempt, world_size=self._ranks.world_size))
        self._listener = Listener(config, self._agreement, self._bus, is_first=self._ranks.rank == 0)

    @property
    def attempt(self) -> int:
        """Number of this process life of the run, counted from 1."""
        return self._run.attempt

    @property
    def notice(self) -> Notice | None:
        """The notice received by any rank, or None."""
        return self._agreement.notice

    def register(self, name: str, part: Part, *, replicated: tuple[str, ...] = ()) -> None:
        """
        Add something to save and restore, before :meth:`resume`.

        Args:
            name: A word, the same in every process life.
            part: An object with ``state_dict()`` and ``load_state_dict()``.
            replicated: Top-level keys of its state whose tensors are equal on all ranks; the ranks share
                the work of storing them.
        """
        self._parts.add(name, part, replicated)

    def watch_signals(self) -> None:
        """Take SIGTERM as a notice, under SLURM SIGUSR1 too. On the main thread; again, to take it back from a host."""
        self._listener.watch_signals()

    def resume(self) -> int | None:
        """
        Restore the newest committed step that is intact, on all ranks.

        A newer one that is on the local disks of all ranks, but never reached the store, is committed first.

        Returns:
            The step behind which training goes on, or None on a first run.

        Raises:
            NothingToResumeError, IncompatibleCheckpointError, StoreError: See
                :func:`spot_plugins.resume.newest.load_newest`.
            UnsafeStateError: A registered part has state that could not be saved later.
        """
        want = self._parts.wanted()
        check_alike(self._job, self._parts.alike(self._ranks.world_size))
        run = self._run
        stop_prefetch(run.local_dir)
        salvage(run.store, run.local, self._job, run.attempt, self._bus)
        started = time.monotonic()
        is_mirror = is_local(run.url) and "sagemaker" in self._listener.providers  # of its S3 prefix
        loaded = load_newest(run.store, run.local, run.url, self._job, self._bus, want, is_mirror=is_mirror)
        if loaded is not None:
            apply_state(loaded, list(self._parts.items()), self._ranks.rank)
        step = loaded.step_id.step if loaded is not None else None
        self._saves.resumed(step)
        self._last_seconds.saved(step or 0)
        self._agreement.saved(step or 0)
        if loaded is not None:
            event = events.Resumed(
                step=loaded.step_id.step,
                from_attempt=loaded.step_id.attempt,
                from_world_size=loaded.world_size,
                num_bytes=loaded.num_bytes,
                from_local_bytes=loaded.from_local_bytes,
                load_s=time.monotonic() - started,
            )
            logger.info("resumed behind step %s, %.1f s, %s bytes", event.step, event.load_s, event.num_bytes)
            self._bus.emit(event)
        return step

    def after_step(self, step: int) -> None:
        """
        Say that optimizer step *step* is done. In a quiet step this costs microseconds.

        If it is saved, weights and optimizer state are copied while training goes on. The next step of any optimizer
        waits for that by itself; whoever else changes them calls :meth:`fence` before.

        Raises:
            Preempted: After a notice, once all is safe or the time is up.
            UnsafeStateError: Some state has no pickle-free form.
            ConfigError: The state does not fit into ``buffer_bytes``.
        """
        self._last_seconds.passed()
        decision = self._agreement.at_boundary(step)
        if decision is None:
            if not self._is_prepared:  # not before: an optimizer has no state before its first step
                self._is_prepared = True
                self._saver.prepare()
            return
        if decision.leaves:
            self._leave(step)
        else:
            self._save(step, decision.trigger)

    def save(self, step: int) -> None:
        """
        Save *step* now, whatever the triggers say. Call it on every rank behind the same step. See :meth:`after_step`.

        It does nothing once other ranks have left this one behind (``on_notice="continue"``).

        Raises:
            UnsafeStateError: Some state has no pickle-free form.
            StoreError: Two earlier saves are still on their way and did not end within the grace.
        """
        self._save(step, "explicit")

    def fence(self) -> None:
        """
        Wait until no save depends on live state any more.

        To be called before weights or the state of an optimizer are changed by anything but an optimizer's step, such
        as weights being clipped or swapped for averaged ones. Pauses, and the end of the training, include it.
        """
        self._saver.fence()

    def enter_pause(self, step: int) -> None:
        """
        Say that training will stand still behind *step*, for example in validation.

        The state is staged first: a notice in the pause then has nothing left to copy, even when weights are
        swapped meanwhile (as averaging callbacks do), and pushes exactly *step*. Every rank calls it behind the
        same step.
        """
        with self._leaving:  # a notice from now on waits until the state is staged
            self._paused = step
            self._last_seconds.paused()
            self._agreement.enter_pause()
            self._saver.fence()
            if not self._stays:
                self._saves.hold(step)

    def in_pause(self) -> None:
        """
        Within a pause, as often as convenient: leave if there is a notice.

        Raises:
            Preempted: As :meth:`after_step`.
        """
        self._leave_paused(self._agreement.in_pause())

    def exit_pause(self) -> None:
        """
        Say that training goes on.

        Raises:
            Preempted: As :meth:`after_step`.
        """
        self._leave_paused(self._agreement.exit_pause())
        self._paused = None
        self._saves.release()

    def finish(self, step: int) -> None:
        """
        Say that training is done, behind *step*: save it and wait until it is stored. Then close.

        Raises:
            Preempted: A notice came before the end was stored, and left no time for that.
        """
        if self._is_pressed():
            self._leave(step)
        deadline = time.monotonic() + FINISH_WAIT_S
        self._wait(lambda: self._saver.has_room, step, deadline)
        if self._saver.has_room and not self._pusher.is_superseded:
            self._save(step, "end")
        self._wait(lambda: self._pusher.has_ended(step), step, deadline)
        if not self._pusher.has_ended(step):
            logger.error("step %s is still not stored; the pusher process goes on trying", step)
        elif not self._saves.has(step):
            logger.error("step %s is not stored, and will not be", step)
        self._job.meet(time.monotonic() + self._config.grace_s)
        self.close()

    def fail(self, error: BaseException) -> None:
        """
        Say that training failed with *error*, then close.

        Raises:
            Preempted: All ranks had agreed to leave: then the error only says that another rank is gone.
        """
        paused, notice = self._paused, self._agreement.notice
        if paused is not None and notice is not None and not isinstance(error, Preempted):
            self._leave_paused(self._agreement.exit_pause())
        self.close()

    def close(self) -> None:
        """Stop. What is staged is still pushed, by the pusher process. May be called twice."""
        if self._closed:
            return
        self._closed = True
        self._listener.close()
        self._agreement.close()
        self._saver.close()  # what is being copied goes to the pusher
        self._pusher.close()
        self._listener.release_signals()
        self._job.board.close()

    def _save(self, step: int, trigger: Trigger) -> None:
        if not self._stays and self._saves.save(step, trigger):
            self._last_seconds.saved(step, because_of_notice=trigger == "notice")
        self._agreement.saved(step)

    def _wait(self, done: Callable[[], bool], step: int, deadline: float) -> None:
        """Wait until *done* or *deadline*; leave with *step* if a notice leaves no time for that."""
        while not done() and time.monotonic() < deadline:
            if self._is_pressed():
                self._leave(step)
            time.sleep(POLL_S)

    def _is_pressed(self) -> bool:
        """Whether there is a notice that is to be obeyed at once, or whose time is up."""
        notice = self._agreement.notice
        return notice is not None and (notice.at_once or time.monotonic() > self._leave_by())

    def _leave_paused(self, decision: Decision | None) -> None:
        if decision is not None:
            assert self._paused is not None
            self._leave(self._paused)

    def _leave(self, step: int) -> None:
        """Save *step*, make it durable within the grace, and raise :exc:`Preempted`, unless this rank stays."""
        self._training_thread_leaves.set()
        self._make_durable(step)
        if self._stays and self._agreement.notice is None:
            return
        self._listener.release_signals(for_good=True)
        self.close()
        roster.leave()
        raise Preempted(self._saves.last)

    def _leave_in_pause(self) -> None:
        """
        The same, on a thread of the agreement, while the training thread stands in a pause.

        If that thread is caught in a collective with a rank that is gone, it would never come to leave.
        """
        assert self._paused is not None
        self._make_durable(self._paused)
        if not self._stays and not self._training_thread_leaves.wait(STUCK_S):
            logger.warning("the training thread is stuck in the pause; ending the process")
            end_shielded_workers()
            self._job.board.close()
            roster.leave()
            os._exit(Preempted.EXIT_CODE)

    def _make_durable(self, step: int) -> None:
        """Push *step*, and wait until it is stored and all ranks have come so far, or the time is up."""
        with self._leaving:
            if self._stays or self._left == step:  # the other thread has done it, or nobody is left to do it with
                return
            notice = self._known_notice()
            self._pusher.hurry()
            self._last_seconds.leave(step, notice)
            before = self._saves.last
            durable = self._saves.push_last(step, self._leave_by)
            saved, notice = self._saves.last, self._known_notice()  # an earlier end may have become known
            if saved is not None and saved != before:
                self._last_seconds.saved(saved, because_of_notice=True)
            left_s = notice.deadline - time.monotonic()
            logger.warning(
                "notice by %s: step %s is %s, %.1f s left",
                notice.source,
                saved,
                "stored" if durable else "NOT stored yet",
                left_s,
            )
            self._bus.emit(events.Leaving(step=saved, durable=durable, left_s=left_s))
            self._job.meet(notice.deadline - notice.margin_s)
            if durable and self._config.acknowledge_notice:
                self._listener.acknowledge()
            self._left = step
            if self._config.on_notice == "continue" and self._agreement.stay():
                self._stays = True
                logger.warning("this rank stays: it goes on from step %s, and saves nothing from now on", step)

    def _known_notice(self) -> Notice:
        notice = self._agreement.notice
        assert notice is not None
        return notice

    def _leave_by(self) -> float:
        """Return when to leave; earlier than it was, once an earlier end has become known."""
        notice = self._known_notice()
        return notice.deadline - notice.margin_s

    def _open_agreement(self) -> Agreement:
        trigger = self._pacing.trigger
        if self._ranks.world_size == 1:
            return Solo(trigger, self._is_ready, self._on_deferred, self._last_seconds)
        return Group(
            self._ranks,
            self._job.board,
            trigger,
            self._is_ready,
            self._on_deferred,
            self._leave_in_pause,
            self._last_seconds,
        )

    def _is_ready(self) -> bool:
        return self._saver.has_room and not self._pusher.is_busy

    def _on_deferred(self, step: int) -> None:
        self._num_deferred += 1
        logger.info("step %s is not saved: an earlier one is still being pushed", step)
        self._bus.emit(events.SaveDeferred(step=step, num_deferred=self._num_deferred))
