"""The priority of threads, when a hurry comes at the worst moment."""

from __future__ import annotations

import os
import threading

from hearing import DEADLINE_S

from spot_plugins.push.priority import NICENESS, Priority


def test_a_thread_that_is_just_lowering_its_priority_is_raised(monkeypatch):
    """It has asked whether there is a hurry, and is stopped before it lowers its priority."""
    asked, over = threading.Event(), threading.Event()
    values = []

    def set_priority(_, thread, value):
        if value == NICENESS:
            asked.set()
            over.wait(0.5)  # a hurry that waits for this thread is over later
        if thread == lowering.native_id:
            values.append(value)

    monkeypatch.setattr(os, "setpriority", set_priority)
    priority = Priority()
    lowering = threading.Thread(target=lambda: (priority.lower(), over.wait(DEADLINE_S)))
    lowering.start()
    assert asked.wait(DEADLINE_S)
    priority.hurry()
    over.set()
    lowering.join()

    assert values == [NICENESS, 0]
