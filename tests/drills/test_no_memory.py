"""Machines that have no memory and no descriptor left for a save: training continues, and each lost save is told."""

from __future__ import annotations

import errno
import mmap
import os
import resource
import signal
import subprocess
import sys
import uuid
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from hearing import Heard, until, until_idle
from steps import Holder, numbers, state_of

from spot_plugins.config import SpotConfig
from spot_plugins.errors import CommitError, Preempted
from spot_plugins.events import Committed, SaveAbandoned
from spot_plugins.session import SpotSession
from spot_plugins.store import LocalStore

ERRORS = (OSError(errno.EMFILE, "Too many open files"), OSError(errno.ENOMEM, "Cannot allocate memory"), MemoryError())


class Scarce:
    """A call of the system that fails while the machine has nothing left."""

    def __init__(self, call, error):
        self.call = call
        self.error = error
        self.has_nothing = True

    def __call__(self, *args, **kwargs):
        if self.has_nothing:
            raise self.error
        return self.call(*args, **kwargs)


def _session(url, heard, **settings):
    session = SpotSession(SpotConfig(url=str(url), **{"every_steps": 1, **settings}), on_event=heard)
    session.register("part", Holder(state_of(1)))
    return session


@pytest.fixture(params=[(os, "memfd_create"), (os, "ftruncate"), (mmap, "mmap")], ids=lambda call: call[1])
def call(request):
    return request.param


@pytest.mark.parametrize("error", ERRORS, ids=["descriptors", "memory", "python"])
def test_a_save_without_memory_is_given_up_and_the_next_one_is_stored(call, error, tmp_path, monkeypatch):
    """Each step that is lost is an event. Training gets no error."""
    heard = Heard()
    with _session(tmp_path, heard) as session:
        session.resume()
        scarce = Scarce(getattr(*call), error)
        monkeypatch.setattr(*call, scarce)
        session.after_step(1)
        session.after_step(2)
        scarce.has_nothing = False
        session.after_step(3)
        heard.wait(Committed, step=3)
        session.finish(3)

    assert [event.step for event in heard.of(SaveAbandoned)] == [1, 2]
    assert all("there is no memory for it: " in event.reason for event in heard.of(SaveAbandoned))
    assert numbers(LocalStore(str(tmp_path))) == [3]


def test_a_notice_without_memory_leaves_with_what_is_committed(call, tmp_path, monkeypatch, caplog):
    """The code is that of a notice, and the log says what is missing."""
    heard = Heard()
    with _session(tmp_path, heard) as session:
        session.handle_signals()
        session.resume()
        session.after_step(1)
        heard.wait(Committed, step=1)
        until_idle(session)
        session._opened.saver._buffers.active.drop(session._opened.saver._buffers.active.buffers[0])
        monkeypatch.setattr(*call, Scarce(getattr(*call), ERRORS[0]))
        os.kill(os.getpid(), signal.SIGTERM)
        until(lambda: session.notice is not None, "the notice is known")
        with pytest.raises(Preempted) as preempted:
            session.after_step(2)

    assert preempted.value.code == 143
    assert "step 2 could not be saved before leaving: [Errno 24] Too many open files" in caplog.text
    assert numbers(LocalStore(str(tmp_path))) == [1]


def test_a_notice_in_a_pause_without_memory_says_that_nothing_is_saved(call, tmp_path, monkeypatch, caplog):
    """The weights may be others in the pause, so it is too late to copy them then."""
    with _session(tmp_path, Heard(), every_steps=100) as session:
        session.handle_signals()
        session.resume()
        monkeypatch.setattr(*call, Scarce(getattr(*call), ERRORS[1]))
        with pytest.raises(Preempted), session.pause(1) as pause:  # noqa: PT012 - what raises is its last line
            os.kill(os.getpid(), signal.SIGTERM)
            until(lambda: session.notice is not None, "the notice is known")
            pause.check()

    assert "there is no memory to save step 1, so a notice in this pause cannot: [Errno 12]" in caplog.text
    assert "step 1 could not be saved before leaving: " in caplog.text
    assert "it was not copied before the pause, and the weights may have been swapped since" in caplog.text
    assert "nothing is saved yet; leaving with code 143" in caplog.text


def test_a_training_whose_end_finds_no_memory_does_not_end_well(call, tmp_path, monkeypatch):
    """The end of the training is lost, so the exit code is not 0."""
    with _session(tmp_path, Heard(), every_steps=100) as session:
        session.resume()
        monkeypatch.setattr(*call, Scarce(getattr(*call), ERRORS[1]))
        told = (
            r"step 1 is not known to be committed: the end of the training is not stored, and no process tries it any "
        )
        with pytest.raises(CommitError, match=told + r"more\. See the warnings in the log"):
            session.finish(1)


@contextmanager
def _no_descriptor():
    """Let the process have no free descriptor."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_no_descriptor_left_of_the_real_limit(tmp_path):
    """The limit of the process is reached for the first saves, and raised again."""
    heard = Heard()
    with _session(tmp_path, heard) as session:
        session.resume()
        with _no_descriptor():
            session.after_step(1)
        session.after_step(2)
        heard.wait(Committed, step=2)

    assert [event.step for event in heard.of(SaveAbandoned)] == [1]


def test_no_descriptor_left_at_a_step_that_is_not_saved(tmp_path):
    """The first buffers are not begun then, and the first save makes them."""
    heard = Heard()
    with _session(tmp_path, heard, every_steps=2) as session:
        session.resume()
        with _no_descriptor():
            session.after_step(1)
        session.after_step(2)
        heard.wait(Committed, step=2)


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.EPERM])
def test_a_sandbox_without_memfd_saves_all_the_same(code, tmp_path, monkeypatch):
    """Old seccomp profiles refuse memfd. Memory without a name in /dev/shm takes its place."""
    monkeypatch.setattr(os, "memfd_create", Scarce(os.memfd_create, OSError(code, os.strerror(code))))
    heard = Heard()
    with _session(tmp_path, heard) as session:
        session.resume()
        session.after_step(1)
        heard.wait(Committed, step=1)
        session.finish(1)

    assert not heard.of(SaveAbandoned)
    assert numbers(LocalStore(str(tmp_path))) == [1]


LIMITED = """
import os, sys
import torch
from steps import Holder
from spot_plugins.config import SpotConfig
from spot_plugins.errors import ConfigError
from spot_plugins.session import SpotSession

url, group = sys.argv[1:]
session = SpotSession(SpotConfig(url=url, every_steps=1))
session.register("part", Holder({"w": torch.ones(25 * 1024**2)}))
session.resume()
with open(f"{group}/cgroup.procs", "w") as file:  # only what is taken from now on counts
    file.write(str(os.getpid()))
try:
    session.after_step(1)
except ConfigError as error:
    print(error, flush=True)
    os._exit(3)
"""


@pytest.fixture
def limited_group():
    """A cgroup with 64 MiB of memory."""
    for mount, limit in (("memory", "memory.limit_in_bytes"), ("", "memory.max")):
        group = Path("/sys/fs/cgroup", mount, f"spot-{uuid.uuid4().hex}")
        with suppress(OSError):
            group.mkdir()
            try:
                (group / limit).write_text(str(64 * 1024**2))
                yield group
                return
            finally:
                group.rmdir()
    pytest.skip("this user may make no cgroup")


def test_a_cgroup_that_is_too_small_is_an_error_and_kills_nothing(limited_group, tmp_path):
    """The kernel would kill the training at its first save, and again after each restart."""
    command = [sys.executable, "-c", LIMITED, str(tmp_path), str(limited_group)]
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}  # the program uses helpers of tests
    ended = subprocess.run(command, capture_output=True, text=True, check=False, env=environ)

    assert ended.returncode == 3, ended.stderr[-2000:]
    assert "needs 101 MiB of host memory" in ended.stdout
    assert " 64 MiB are available" in ended.stdout or " 63 MiB are available" in ended.stdout
