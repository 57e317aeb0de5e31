"""The visible lines: shown without any set-up of logging, once, and silenced by the usual means."""

from __future__ import annotations

import io
import logging
import os
import sys
import threading

import pytest

from spot_plugins.program import Lines
from spot_plugins.program.lines import LOGGER, StderrHandler

ALL = ["spot_plugins: resumed", "spot_plugins: the same on all", "spot_plugins: SIGTERM: waiting"]


@pytest.fixture
def nothing_set_up():
    """Logging as Python begins with it, without the handlers of pytest. What a test sets up is undone."""
    loggers = [logging.getLogger(name) for name in (None, "spot_plugins", "spot_plugins.run")]
    before = [(each, each.level, each.handlers[:]) for each in loggers]
    for each in loggers:
        each.setLevel(logging.WARNING if each.name == "root" else logging.NOTSET)
        each.handlers[:] = [handler for handler in each.handlers if isinstance(handler, StderrHandler)]
    yield
    logging.disable(logging.NOTSET)
    for each, level, handlers in before:
        each.setLevel(level)
        each.handlers[:] = handlers


@pytest.fixture
def shown(nothing_set_up, capsys):
    """A function that says three lines, and returns what stderr got."""

    def say(*, rank=0, host_level=None):
        root = logging.getLogger()  # pytest adds its handlers after the fixtures
        root.handlers[:] = [each for each in root.handlers if not type(each).__module__.startswith("_pytest")]
        lines = Lines(rank, host_level or (lambda: logging.NOTSET))
        lines.say("resumed")
        lines.say_first("the same on all")
        lines.answer("SIGTERM: waiting")
        return capsys.readouterr().err.splitlines()

    return say


def test_a_program_that_sets_nothing_up_shows_the_lines(shown):
    """Each line begins with the name of the package."""
    assert shown() == ALL


def test_other_ranks_name_themselves_and_leave_the_rest_to_rank_0(shown):
    """A line that is the same on all ranks is written once."""
    assert shown(rank=3) == ["spot_plugins rank 3: resumed", "spot_plugins rank 3: SIGTERM: waiting"]


@pytest.mark.parametrize(
    "silence",
    [
        lambda: logging.getLogger("spot_plugins").setLevel("WARNING"),
        lambda: logging.getLogger("spot_plugins.run").setLevel("ERROR"),
        lambda: logging.getLogger().setLevel("ERROR"),
        lambda: logging.disable(logging.INFO),
        lambda: logging.getLogger("spot_plugins").addHandler(logging.NullHandler()),
    ],
)
def test_the_usual_means_silence_the_lines(silence, shown):
    """Levels, logging.disable, and a handler that takes them."""
    silence()

    assert shown() == []


def test_the_level_of_the_host_silences_them_too(shown):
    """A user who has silenced the host's own lines wants none of ours."""
    assert shown(host_level=lambda: logging.WARNING) == []
    assert shown(host_level=lambda: logging.INFO) == ALL


@pytest.mark.parametrize("level", [None, "INFO", "WARNING"])
@pytest.mark.parametrize("name", [None, "spot_plugins"])
def test_the_handlers_of_the_user_get_them_and_nobody_else(name, level, shown):
    """No line is shown twice. The level that basicConfig() leaves at the root says nothing about these lines."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("mine %(message)s"))
    logging.getLogger(name).addHandler(handler)
    if level is not None:
        logging.getLogger().setLevel(level)

    assert shown() == [line.replace("spot_plugins: ", "mine ") for line in ALL]


@pytest.mark.parametrize("stream", [None, "closed", "broken"])
def test_a_stderr_that_takes_nothing_does_no_harm(stream, monkeypatch):
    """A daemon has none, and the reader of a pipe may be gone."""

    class Broken(io.StringIO):
        def write(self, text):
            raise BrokenPipeError

    target = {"closed": io.StringIO(), "broken": Broken(), None: None}[stream]
    if stream == "closed":
        target.close()
    monkeypatch.setattr(sys, "stderr", target)
    record = logging.makeLogRecord({"name": "spot_plugins.unheard", "msg": "text"})
    monkeypatch.setattr("spot_plugins.program.lines.others_handle", lambda name: False)

    StderrHandler().emit(record)


def test_an_answer_waits_for_no_reader():
    """A notice is passed on although the handler of the lines is stuck, as with a pipe that is full."""
    read_fd, write_fd = os.pipe()
    os.set_blocking(write_fd, False)
    try:
        while True:
            os.write(write_fd, b"x" * 4096)
    except BlockingIOError:
        os.set_blocking(write_fd, True)
    with os.fdopen(write_fd, "w") as full:
        stuck = logging.StreamHandler(full)
        LOGGER.addHandler(stuck)
        try:
            Lines(0, lambda: logging.NOTSET).answer("SIGTERM: waiting")
        finally:
            LOGGER.removeHandler(stuck)
        while b"SIGTERM" not in os.read(read_fd, 65536):
            pass
        for thread in threading.enumerate():
            if thread.name == "spot-line":
                thread.join()
    os.close(read_fd)
