"""A training whose event log is read afterwards. Run by test_event_log.py."""

from __future__ import annotations

import os
import time

import torch.distributed as dist
from hearing import pusher_pid, until
from steps import Holder, state_of

from spot_plugins.config import SpotConfig
from spot_plugins.eventlog import recorder
from spot_plugins.push.log_way import LogWay
from spot_plugins.session import SpotSession

STEP_S = 0.01


def main(settings):
    """
    Train to step ``settings.stop_in``, with a save at every step that 8 divides, and finish.

    Unless ``settings.goes_on``, do not finish: stand still there, until there is a notice, and leave. FOLDER/pids-RANK
    has the ids of trainer and pusher then, after a heartbeat with the step was sent. If the trainer alone is to die, no
    heartbeat is put while it lives.
    """
    recorder.BEAT_S = 0.05
    recorder.HEARTBEAT_S = 3600.0 if settings.death == "trainer" else 0.05
    folder, beats = settings.path, listen()
    if settings.ranks > 1:
        dist.init_process_group("gloo")
    rank = dist.get_rank() if settings.ranks > 1 else 0
    config = SpotConfig(**{"every_steps": 10**6, **settings.config})
    with SpotSession(config) as session:
        holder = Holder(state_of(0, rank))
        session.register("part", holder, replicated=("both",))
        session.handle_signals()
        step = session.resume() or 0
        while step < settings.stop_in or not settings.goes_on:
            if step >= settings.stop_in:
                until(lambda step=step: step in beats, "a heartbeat tells the step")
                stand_still(folder / f"pids-{rank}", session)
            step += 1
            time.sleep(STEP_S)
            holder.state = state_of(step, rank)
            session.after_step(step)
            if step % 8 == 0:
                session.save(step)
                until(lambda step=step: session._opened.pusher.has_ended(step), "the step is stored")
        session.finish(step)
    if settings.ranks > 1:
        dist.destroy_process_group()


def listen():
    """Return the steps of heartbeats, to which those that are sent from now on are added."""
    beats, send = [], LogWay.send

    def send_and_remember(way, records):
        is_sent = send(way, records)
        beats.extend(each["fields"]["step"] for each in records if is_sent and each["kind"] == "Heartbeat")
        return is_sent

    LogWay.send = send_and_remember
    return beats


def stand_still(file, session):
    unfinished = file.with_suffix(".part")
    unfinished.write_text(f"{os.getpid()} {pusher_pid(session)}")
    unfinished.replace(file)
    until(lambda: session.notice is not None, "a notice comes")
