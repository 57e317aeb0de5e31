"""Notices while a session waits for its store: a signal that comes when the wait is over is obeyed, or told."""

from __future__ import annotations

import logging
import os
import signal
import threading

import pytest
from hearing import DEADLINE_S

from spot_plugins.config import SpotConfig
from spot_plugins.errors import Preempted
from spot_plugins.events import EventBus, NoticeReceived
from spot_plugins.leave.early_notices import EarlyNotices
from spot_plugins.leave.phase import PhaseTracker
from spot_plugins.program import Lines


@pytest.fixture
def early(tmp_path):
    """Notices of a session that waits, and a function that sends a SIGTERM and returns when it is known."""
    known = threading.Event()
    bus = EventBus(lambda event: known.set() if isinstance(event, NoticeReceived) else None)
    config = SpotConfig(url=str(tmp_path), every_steps=1, notice_sources=())

    def terminate():
        os.kill(os.getpid(), signal.SIGTERM)
        assert known.wait(DEADLINE_S)

    return EarlyNotices(config, bus, Lines(0, lambda: logging.INFO), PhaseTracker()), terminate


def test_a_signal_after_the_last_look_is_obeyed(early):
    notices, terminate = early
    with pytest.raises(Preempted), notices:
        terminate()


def test_an_error_is_shown_in_place_of_a_notice_and_a_warning_says_so(early, caplog):
    notices, terminate = early
    with pytest.raises(OSError, match="broken"), notices:  # noqa: PT012 - the signal comes before the error
        terminate()
        raise OSError("broken")
    assert "the signal is not obeyed, because training ends with an error" in caplog.text
