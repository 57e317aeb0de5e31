"""Everything that an open session consists of, and the order in which it is built and closed."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from ..agreement import Agreement, Group, Solo
from ..clock import Clock
from ..compiled import CompileCache
from ..config import SpotConfig
from ..errors import ConfigError, Preempted
from ..eventlog.recorder import Recorder as EventRecorder
from ..eventlog.watchers import Watched, Watcher, Watchers
from ..events import EventBus
from ..fingerprints import PART, Recorder, recorder_of
from ..launch.drilled import live_folder
from ..leave.commit_age import CommitAge
from ..leave.departure import Departure
from ..leave.early_notices import EarlyNotices
from ..leave.first_save import FirstSave
from ..leave.last_resort import LastResort
from ..leave.listener import Listener
from ..leave.lost_rank import LostRank
from ..leave.lost_shares import LostShares
from ..leave.measurements import Measurements
from ..leave.participant import TrainingParticipant
from ..leave.phase import Phase, PhaseTracker
from ..leave.short_grace import ShortGrace
from ..leave.way_out import WayOut
from ..machine.threads import NoThreadError
from ..machine.versions import Installed, unwanted
from ..notices.signals import check_signals_free
from ..program import Lines
from ..push import Pusher
from ..ranks import Job, Ranks
from ..resume.join import Membership, join_run
from ..save import SavedSteps, Saver
from ..schedule import Pacer, Preemptions, recent_preemptions
from ..state.registry import Registry
from ..store import Patience
from .keeper import Keeper


@dataclass(frozen=True, slots=True)
class Opened:
    """The objects of an open session."""

    job: Job
    lines: Lines
    run: Membership
    pusher: Pusher
    saver: Saver
    saved_steps: SavedSteps
    measurements: Measurements
    agreement: Agreement
    listener: Listener
    way_out: WayOut
    fingerprints: Recorder
    keeper: Keeper
    watchers: Watchers
    unsuitable: list[Installed]
    """The installed packages of a version that this release does not work with. Only known on rank 0."""
    load_compiled: Callable[[], None]
    """Loads what an earlier attempt has compiled. Does nothing without the setting."""


def join_and_build(
    config: SpotConfig,
    ranks: Ranks,
    registry: Registry,
    bus: EventBus,
    clock: Clock,
    phase: PhaseTracker,
    stack: ExitStack,
    host_level: Callable[[], int],
) -> Opened:
    """
    Join the run and build the objects of a session. Nothing but the board and the store is used yet.

    Args:
        config: The settings of the run.
        ranks: The processes of the job.
        registry: The parts of the training.
        bus: Gets the events.
        clock: The clock of the time trigger.
        phase: The phase of the session.
        stack: Closes what is built, in reverse order, also if this raises.
        host_level: Returns the lowest level of logging that the host shows.

    Raises:
        ConfigError, StoreError, Preempted: See :func:`~spot_plugins.resume.join.join_run`.
    """
    lines = Lines(ranks.rank, host_level)
    early = EarlyNotices(config, bus, lines, phase)
    job = Job(ranks, ranks.open_board(), early.wait)
    stack.callback(job.board.close)
    run, pusher, unsuitable, load_compiled = _join(config, job, bus, lines, early, stack)
    saver = Saver(registry, job.ranks, pusher, bus, config.buffer_bytes, grows_blobs=run.takes_large_puts)
    fingerprints = recorder_of(run.scratch, run.disk, run.attempt, job, bus, pusher.file_way.share, live_folder(config))
    stack.callback(fingerprints.close)
    registry.add(PART, fingerprints)
    saved_steps = SavedSteps(saver, pusher, job, config.grace_s)
    measurements = Measurements(config.local_dir_survives, bus, run.put_bytes_per_s)
    pacer = _pacer(config, run, job, clock, bus)
    participant = TrainingParticipant(saver, pusher, measurements, bus)
    early.agreement = agreement = _agreement(job, pacer, participant)
    listener = Listener(config, agreement, bus, lines, phase, is_first=job.rank == 0)
    departure = Departure(
        config=config,
        job=job,
        saved_steps=saved_steps,
        measurements=measurements,
        agreement=agreement,
        listener=listener,
        phase=phase,
        bus=bus,
        lines=lines,
        lost_shares=LostShares(job, run, pusher, saved_steps, lines),
    )
    participant.way_out = way_out = WayOut(
        phase=phase,
        job=job,
        agreement=agreement,
        listener=listener,
        saver=saver,
        saved_steps=saved_steps,
        measurements=measurements,
        departure=departure,
        stack=stack,
    )
    _end_if_stuck(participant, config, agreement, phase, saved_steps)
    keeper = Keeper(job, run, pusher, saved_steps, way_out, phase, bus, config.grace_s)
    watchers = _watch(config, job, run, pusher, saved_steps, bus)
    age = CommitAge(clock, counts_shares=job.rank == 0 < job.world_size - 1)
    grace = ShortGrace(measurements)
    for subscriber in (keeper, measurements, FirstSave(agreement, measurements), pacer, age, grace):
        bus.subscribe(subscriber.on_event)
    # Closed from the last to the first: the saver before the pusher, which gets what is being copied.
    for close in (way_out.release_signals, pusher.close, watchers.close, saver.close, agreement.close, listener.close):
        stack.callback(close)
    opened = (job, lines, run, pusher, saver, saved_steps, measurements, agreement, listener, way_out, fingerprints)
    return Opened(*opened, keeper, watchers, unsuitable, load_compiled)


def _join(
    config: SpotConfig, job: Job, bus: EventBus, lines: Lines, early: EarlyNotices, stack: ExitStack
) -> tuple[Membership, Pusher, list[Installed], Callable[[], None]]:
    """
    Join the run. Rank 0 compares the installed packages while its pusher process starts.

    Returns:
        The run, the pusher, the packages that do not suit, and a function that loads compiled code before training.
    """
    compile_cache = CompileCache() if config.compile_cache else None
    unsuitable: list[Installed] = []
    patience = Patience(lambda text: lines.say(text, logging.WARNING), early.wait)
    with leaving_early(job), early:
        run, pusher = join_run(
            config, job, bus, patience, lambda: unsuitable.extend(unwanted() if job.rank == 0 else ())
        )
    stack.callback(pusher.close)  # once more in the right order, when all is built
    if compile_cache is None:
        return run, pusher, unsuitable, lambda: None
    bus.subscribe(compile_cache.on_event)
    stack.callback(compile_cache.close)
    compile_cache.open(run.store, job.rank, run.attempt)
    return run, pusher, unsuitable, lambda: compile_cache.load(early.wait)


@contextmanager
def leaving_early(job: Job) -> Iterator[None]:
    """Let the other ranks know if the block raises ``Preempted``."""
    try:
        yield
    except Preempted:
        job.leave_early()
        raise


def is_free_for_signals(phase: PhaseTracker) -> bool:
    """
    Return True if a session in *phase* may take signals, because this is the main thread.

    Raises:
        ConfigError: The session is new, and another one of this process has taken them.
    """
    is_main = threading.current_thread() is threading.main_thread()
    if is_main and phase.now is Phase.NEW:
        check_signals_free()
    return is_main


@contextmanager
def opening(close: Callable[[], None]) -> Iterator[None]:
    """
    Call *close* if the block raises, which opens a session.

    Raises:
        ConfigError: The machine has no room for a thread of the session.
    """
    try:
        yield
    except NoThreadError as error:
        close()
        raise ConfigError(f"this machine cannot run the session: {error}") from error
    except BaseException:
        close()
        raise


def _end_if_stuck(
    participant: TrainingParticipant,
    config: SpotConfig,
    agreement: Agreement,
    phase: PhaseTracker,
    saved_steps: SavedSteps,
) -> None:
    participant.lost_rank = LostRank(agreement, phase, participant.way_out, saved_steps.describe_stored)
    if config.on_notice == "leave":
        participant.last_resort = LastResort(agreement, phase, participant.way_out.end_process)


def _watch(
    config: SpotConfig, job: Job, run: Membership, pusher: Pusher, saved_steps: SavedSteps, bus: EventBus
) -> Watchers:
    """Begin the event log, and let the subscribers that are watchers know the session."""
    recorder = EventRecorder(pusher.log_way, lambda: saved_steps.present, lambda: pusher.is_finished)
    watchers = Watchers(recorder, [each for each in bus.subscribers if isinstance(each, Watcher)])
    bus.subscribe(recorder.on_event)
    watchers.open(
        Watched(
            config=config,
            store=run.store,
            attempt=run.attempt,
            rank=job.rank,
            world_size=job.world_size,
            process_s=recorder.process_s,
            reached=lambda: saved_steps.present,
        )
    )
    return watchers


def _agreement(job: Job, pacer: Pacer, participant: TrainingParticipant) -> Agreement:
    if job.world_size > 1:
        return Group(job, pacer.trigger, participant)
    return Solo(pacer.trigger, participant)


def _pacer(config: SpotConfig, run: Membership, job: Job, clock: Clock, bus: EventBus) -> Pacer:
    preemptions = Preemptions()
    if config.every_s == "auto" and job.rank == 0:
        preemptions = recent_preemptions(run.store, run.attempt, clock)
    return Pacer(config, job.rank, preemptions, clock, bus)
