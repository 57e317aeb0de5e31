"""Judges programs as users write them: in the test's process, interrupted and left alone, "exact, or told"."""

from __future__ import annotations

import os
import signal
import threading
from contextlib import suppress

import pytest
import torch
from contract.hosts.lives import differences, listening

from spot_plugins.errors import Preempted, SpotError
from spot_plugins.events import NoticeReceived


class Life:
    """One life of a program. The program calls :meth:`trained` after each batch, and gives its final state."""

    def __init__(self, url, notice_before):
        self.url = url
        self.rows = []
        self.told = []
        self.final = None
        self.resumed_from = None
        self._notice_before = notice_before
        self._noticed = threading.Event()

    def __deepcopy__(self, memo):
        return self  # callbacks copy the modules that hold it

    def begin_batch(self):
        """Send the notice before the batch that it is due before."""
        if len(self.rows) + 1 == self._notice_before:
            os.kill(os.getpid(), signal.SIGTERM)
            assert self._noticed.wait(300), "the notice was not received"

    def trained(self, step, *values):
        """Record a batch: the optimizer steps before it, and all that it saw."""
        self.rows.append([step, *(value.tolist() if isinstance(value, torch.Tensor) else value for value in values)])

    def on_event(self, event):
        if isinstance(event, NoticeReceived):
            self._noticed.set()


def run_life(program, url, notice_before=None):
    """Run *program*, a function of a :class:`Life`, and return the life."""
    life = Life(url, notice_before)
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)  # another number adds in another order
    try:
        with listening(life.told), suppress(Preempted):
            torch.manual_seed(1)
            life.final = program(life)
    finally:
        torch.set_num_threads(num_threads)
        torch.utils.data._utils.python_exit_status = False  # a notice sets it, and this process lives on
    return life


def assert_told(program, folder, notice, says):
    """Interrupt *program* once, and expect an error of the library at the resume that names what does not fit."""
    run_life(program, f"file://{folder}/run", notice)
    with pytest.raises(SpotError, match=says):
        run_life(program, f"file://{folder}/run")


def assert_exact(program, folder, notices, says=""):
    """
    Interrupt *program* before the batches *notices*, one for each life, and compare it with one left alone.

    With *says* it is not exact, and a life that is resumed has to say so in these words.
    """
    control = run_life(program, f"file://{folder}/control")
    lives = [run_life(program, f"file://{folder}/run", notice) for notice in notices]
    assert all(life.final is None for life in lives), "the notice did not end the training"
    lives.append(run_life(program, f"file://{folder}/run"))
    if says:
        assert any(says in line for life in lives[1:] for line in life.told), [life.told for life in lives]
        return
    rows = [row for life in lives for row in life.rows]
    at = next((number for number, pair in enumerate(zip(rows, control.rows, strict=False)) if pair[0] != pair[1]), None)
    assert at is None, f"batch {at}: {rows[at]} and, left alone, {control.rows[at]}"
    assert len(rows) == len(control.rows), f"{len(rows)} batches and, left alone, {len(control.rows)}"
    assert differences(lives[-1].final, control.final) == []
