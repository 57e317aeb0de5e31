"""The pusher process: what was handed to it gets stored."""

from __future__ import annotations

import time

import torch

from spot_plugins.config import SpotConfig
from spot_plugins.lifecycle import StepState
from spot_plugins.session import SpotSession


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
    assert [session._pusher.wait_settled(step, deadline) for step in (1, 2)] == [StepState.COMMITTED] * 2
    session.close()
