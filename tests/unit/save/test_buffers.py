"""Memory for saves: how much there is, who makes it, and what a save does while it is being made."""

from __future__ import annotations

import errno
import logging
import os
import queue
import threading
import time
from contextlib import closing, contextmanager

import pytest
import torch
from emulated import emulated_device
from hearing import Heard, until, until_idle
from steps import Holder

from spot_plugins.config import SpotConfig
from spot_plugins.errors import ConfigError, StoreError
from spot_plugins.events import Committed, SaveAbandoned
from spot_plugins.machine import host_memory
from spot_plugins.machine.host_memory import NotEnoughError
from spot_plugins.push.ledger import Ledger
from spot_plugins.save import shared_buffer, snapshot
from spot_plugins.save.buffers import Buffers
from spot_plugins.save.shared_buffer import SharedBuffer
from spot_plugins.session import SpotSession

MIB = 1024**2
WITHIN_S = 300.0


def present_bytes(buffer):
    return os.fstat(buffer.fd).st_blocks * 512


@pytest.mark.parametrize("advice", [shared_buffer._POPULATE_WRITE, 9999], ids=["populate", "an older kernel"])
def test_all_pages_of_a_buffer_are_present(advice, monkeypatch):
    monkeypatch.setattr(shared_buffer, "_POPULATE_WRITE", advice)
    monkeypatch.setattr(shared_buffer, "STEP_BYTES", MIB)
    left = []
    with closing(SharedBuffer(1, 5 * MIB // 2, left.append)) as buffer:
        assert left == [5 * MIB // 2, 3 * MIB // 2, MIB // 2]
        assert present_bytes(buffer) == 5 * MIB // 2


def test_a_buffer_that_cannot_be_completed_is_given_back(monkeypatch):
    """Its descriptor is closed, and what was pinned of it is not any more."""
    monkeypatch.setattr(shared_buffer, "PIECE_BYTES", MIB)

    def look(left_bytes):
        if left_bytes < 2 * MIB:
            raise NotEnoughError(left_bytes, 0)

    with emulated_device() as device:
        before = set(os.listdir("/proc/self/fd"))
        with pytest.raises(NotEnoughError):
            SharedBuffer(1, 3 * MIB, look)
        assert set(os.listdir("/proc/self/fd")) <= before  # less: sessions of earlier tests are still ending
        assert device.pinned == {}


class Reader:
    """The pusher's side of buffers, without a process."""

    def __init__(self):
        self.ledger = Ledger()
        self.forgotten = []

    def forget_buffer(self, number):
        self.forgotten.append(number)


class Copying:
    """The copying thread of a test, which does one action whenever it is told to."""

    def __init__(self):
        self.actions = queue.SimpleQueue()

    def do_next(self):
        self.actions.get(timeout=WITHIN_S)()


@pytest.fixture
def reader():
    return Reader()


@pytest.fixture
def copying():
    return Copying()


@pytest.fixture
def buffers(reader, copying):
    """Buffers of which one is made and being pushed, as step 1."""
    buffers = Buffers(reader, None, copying.actions.put)
    buffers.prepare(MIB, 0)
    copying.do_next()
    reader.ledger.announce(1, [1])
    yield buffers
    buffers.close()
    while not copying.actions.empty():
        copying.do_next()


@contextmanager
def taking(buffers, num_bytes=MIB, within_s=WITHIN_S):
    """Take a buffer on another thread. Yield the list that gets it, or the error, after it waits."""
    results = []

    def take():
        end = time.monotonic() + within_s
        try:
            results.append(buffers.take(num_bytes, deadline=end, make_by=end))
        except Exception as error:  # noqa: BLE001 - the test looks at it
            results.append(error)

    thread = threading.Thread(target=take)
    thread.start()
    yield results
    thread.join(WITHIN_S)
    assert not thread.is_alive()


def test_a_save_during_a_push_takes_the_buffer_that_is_made(buffers, copying):
    with taking(buffers) as results:
        copying.do_next()
    assert results[0].number == 2


def test_a_save_during_a_push_takes_its_buffer_if_that_is_free_earlier(buffers, reader, copying):
    """The part of the other buffer that is made by then is given back."""
    with taking(buffers) as results:
        until(lambda: not copying.actions.empty(), "the other buffer is asked for")
        reader.ledger.release([1])
    assert results[0].number == 1
    copying.do_next()
    assert [each.number for each in buffers.active.buffers] == [1]
    assert buffers.has_room


def test_a_buffer_that_is_not_made_in_time_is_not_waited_for(buffers):
    with taking(buffers, within_s=0.05) as results:
        pass
    assert isinstance(results[0], StoreError)
    assert "was not made in time" in str(results[0])


def test_too_little_memory_for_a_second_buffer_waits_for_the_push(buffers, reader, copying, monkeypatch):
    monkeypatch.setattr(host_memory, "available_bytes", lambda: MIB)
    assert not buffers.has_room
    with taking(buffers) as results:
        copying.do_next()
        assert copying.actions.empty()
        assert results == []
        reader.ledger.release([1])
    assert results[0].number == 1


def test_no_descriptor_for_a_second_buffer_gives_the_save_up_at_once(buffers, copying, monkeypatch):
    """Training does not wait for the store. The buffer that is being pushed stays as it is."""

    def refuse(*arguments):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(os, "memfd_create", refuse)
    with taking(buffers) as results:
        copying.do_next()
    assert results[0].errno == errno.EMFILE
    assert [each.number for each in buffers.active.buffers] == [1]


def test_memory_that_is_gone_while_it_is_taken_is_given_back(buffers, reader, copying, monkeypatch):
    """Other ranks look at the same memory at the same time, and take it too."""
    monkeypatch.setattr(shared_buffer, "STEP_BYTES", MIB)
    figures = iter([99 * MIB, 99 * MIB, 0])
    monkeypatch.setattr(host_memory, "available_bytes", lambda: next(figures))
    with taking(buffers, 3 * MIB) as results:
        copying.do_next()
        assert [each.number for each in buffers.active.buffers] == [1]
        reader.ledger.release([1])  # it is too small, so another one is tried, and there is memory again
        monkeypatch.setattr(host_memory, "available_bytes", lambda: 99 * MIB)
        copying.do_next()
        copying.do_next()
    assert results[0].num_bytes >= 3 * MIB
    assert reader.forgotten == [1]


def test_a_grown_state_without_memory_is_given_up(buffers, reader, copying, monkeypatch):
    """Training continues: the save learns the numbers."""
    monkeypatch.setattr(host_memory, "available_bytes", lambda: MIB)
    reader.ledger.release([1])
    with taking(buffers, 9 * MIB) as results:
        copying.do_next()
        copying.do_next()
    assert isinstance(results[0], NotEnoughError)


@contextmanager
def session_of(url, holder, **settings):
    heard = Heard()
    session = SpotSession(SpotConfig(url=str(url), **{"every_steps": 1, **settings}), on_event=heard)
    session.register("part", holder)
    with closing(session):
        session.resume()
        yield session, heard


@pytest.mark.parametrize("every_steps", [1, 100])
def test_too_little_memory_for_one_state_ends_the_training_at_its_first_step(every_steps, tmp_path, monkeypatch):
    """The error has the numbers and the remedy."""
    monkeypatch.setattr(host_memory, "available_bytes", lambda: 3 * MIB)
    figures = r"needs [45] MiB .* 3 MiB are available .* with more memory"
    holder = Holder({"w": torch.zeros(MIB)})
    with (
        session_of(tmp_path, holder, every_steps=every_steps) as (session, _),
        pytest.raises(ConfigError, match=figures),
    ):
        session.after_step(1)


def test_pieces_are_pinned_and_unpinned_by_the_copying_thread(tmp_path, monkeypatch):
    """Copies cross no edge of a piece, which a strict driver refuses."""
    monkeypatch.setattr(shared_buffer, "PIECE_BYTES", 65536)
    monkeypatch.setattr(snapshot, "PIECE_BYTES", 65536)
    state = {"turned": torch.randn(300, 700).t(), "flat": torch.randn(100_000), "cube": torch.randn(9, 50, 80)[:, ::2]}
    with emulated_device() as device, session_of(tmp_path, Holder(state)) as (session, heard):
        session.after_step(1)
        heard.wait(Committed, step=1)
        assert len(device.pinned) > 20
        session._opened.saver.close()
        assert device.pinned == {}
        assert device.num_blocking == 0
    assert device.pin_threads == {"spot-copy"}

    again = Holder({})
    with session_of(tmp_path, again) as (session, _):
        assert session.resumed_from == 1
    assert all(torch.equal(again.state[name], value) for name, value in state.items())


def test_a_driver_that_refuses_to_pin_costs_speed_alone(tmp_path, monkeypatch, caplog):
    """Each step is committed, one warning says why saves are slower, and no later work of the device fails."""
    monkeypatch.setattr(shared_buffer, "PIECE_BYTES", 65536)
    holder = Holder({"w": torch.randn(100_000)})
    with emulated_device() as device, caplog.at_level(logging.WARNING):
        device.refuses_to_pin = True
        with session_of(tmp_path, holder) as (session, heard):
            for step in (1, 2, 3):
                holder.state = {"w": torch.full((step * 600_000,), float(step))}  # it grows, so buffers are replaced
                session.after_step(step)
                heard.wait(Committed, step=step)
                until_idle(session)
        assert heard.of(SaveAbandoned) == []
        assert device.num_blocking == device.num_copies > 0
    assert caplog.text.count("cannot be pinned (CUDA error 1)") == 1
    again = Holder({})
    with session_of(tmp_path, again) as (session, _):
        assert session.resumed_from == 3
    assert torch.equal(again.state["w"], holder.state["w"])
