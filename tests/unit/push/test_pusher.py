"""The pusher process: what was handed to it gets stored."""

from __future__ import annotations

import queue
import time

import pytest
import torch
from steps import numbers, save

from spot_plugins.config import SpotConfig
from spot_plugins.errors import StoreError
from spot_plugins.events import Committed, Superseded
from spot_plugins.format.attempts import claim_attempt
from spot_plugins.push import pusher
from spot_plugins.push.lifecycle import StepState
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
    deadline = time.monotonic() + 30
    assert [session._opened.pusher.wait_ended(step, deadline) for step in (1, 2)] == [StepState.COMMITTED] * 2
    session.close()


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
    monkeypatch.setattr(pusher, "PROOF_S", 0.0)
    with pytest.raises(StoreError, match="the pusher process got no answer within 0 s"):
        pusher._await_proof(queue.SimpleQueue(), None, time.sleep)
