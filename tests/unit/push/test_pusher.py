"""The pusher process: what was handed to it gets stored."""

from __future__ import annotations

import queue
import resource
import threading
import time
from contextlib import closing
from dataclasses import replace

import pytest
import torch
from hearing import DEADLINE_S, Heard, until
from steps import numbers, save

from spot_plugins.config import SpotConfig
from spot_plugins.errors import ConfigError, StoreError
from spot_plugins.events import Committed, EventBus, SaveAbandoned, Superseded
from spot_plugins.format.attempts import claim_attempt
from spot_plugins.push import Pusher, PushJob, PushSettings
from spot_plugins.push import pusher as pusher_module
from spot_plugins.push.lifecycle import StepState
from spot_plugins.save.shared_buffer import SharedBuffer
from spot_plugins.session import SpotSession
from spot_plugins.store import MemoryStore


def test_two_steps_that_are_staged_before_the_process_runs_are_both_stored(tmp_path):
    """
    A fast training is ahead of its start: then two jobs wait, and none may push the other aside.
    """
    session = SpotSession(SpotConfig(url=f"file://{tmp_path}/run", every_steps=1))
    session.register("model", torch.nn.Linear(2, 2))
    session.resume()
    session.save(1)
    session.save(2)
    deadline = time.monotonic() + DEADLINE_S
    assert [session._opened.pusher.wait_ended(step, deadline) for step in (1, 2)] == [StepState.COMMITTED] * 2
    session.close()


def settings_of(folder):
    return PushSettings(
        url=str(folder),
        storage_options={},
        local_dir=None,
        rank=0,
        world_size=1,
        attempt=1,
        keep_last=1,
        keep_every=None,
    )


def test_a_machine_without_room_for_the_process_is_told_before_training(tmp_path):
    """
    The limit of open files is a real one.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    told = r"the pusher process does not start: \[Errno 24\] Too many open files\. Allow this machine more processes, "
    try:
        pusher = Pusher(settings_of(tmp_path), EventBus())
        pusher.start()  # it leaves the error to the proof
        with pytest.raises(ConfigError, match=told + "memory or open files"):
            pusher.prove(time.sleep)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_the_process_that_is_started_early_is_the_one_that_proves_the_store(tmp_path):
    """
    The trainer does other work while it imports.
    """
    settings = replace(settings_of(tmp_path), attempt=0)  # none is claimed yet
    with closing(Pusher(settings, EventBus())) as pusher:
        pusher.start()
        early = pusher.pid
        pusher.prove(time.sleep)
        assert early is not None
        assert pusher.pid == early


def test_a_step_whose_memory_is_closed_before_it_is_sent_is_abandoned(tmp_path):
    """
    The session is being closed on another thread, while this one hands the step over and waits for its turn.
    """
    heard = Heard()
    pusher = Pusher(settings_of(tmp_path), EventBus(heard))
    with closing(pusher), closing(SharedBuffer(1, 8)) as buffer:
        job = PushJob(step=1, blobs=(), tensors=(), state=None)
        with pusher._sending:
            submits = threading.Thread(target=pusher.submit, args=(job, {1: buffer}))
            submits.start()
            until(lambda: pusher.ledger.holds(1), "the step is accepted")
            pusher.ledger.forget(1)
        submits.join()

    [abandoned] = heard.of(SaveAbandoned)
    assert abandoned.reason == "the session is being closed, so the memory of the step is no longer there"


def test_a_step_after_the_end_is_abandoned(tmp_path):
    """
    Nobody would end the process that it would need.
    """
    heard = Heard()
    pusher = Pusher(settings_of(tmp_path), EventBus(heard))
    pusher.close()
    pusher.submit(PushJob(step=1, blobs=(), tensors=(), state=None), {})

    assert [event.reason for event in heard.of(SaveAbandoned)] == ["the session is closed"]
    assert pusher.pid is None


class Overtaken(MemoryStore):
    """A newer attempt is claimed right behind the first manifest that is put."""

    def put(self, key, data):
        super().put(key, data)
        if "/rank-" in key:
            claim_attempt(self, b"")


def test_an_attempt_that_is_superseded_between_its_commit_and_its_removals_has_committed():
    """
    It reports both, and does not take the step back: the trainer would take that for a bug and listen no more.
    """
    store = Overtaken()
    claim_attempt(store, b"")

    told = save(1, store)

    assert [type(event) for event in told] == [Committed, Superseded]
    assert numbers(store) == [1]


def test_a_process_that_does_not_answer_is_not_waited_for_without_a_limit(monkeypatch):
    """
    The time is over at once here.
    """
    monkeypatch.setattr(pusher_module, "PROOF_S", 0.0)
    with pytest.raises(StoreError, match="the pusher process got no answer within 0 s"):
        pusher_module._await_proof(queue.SimpleQueue(), None, time.sleep)
