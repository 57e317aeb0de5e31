"""A local disk that hangs beside a healthy store: no save is lost for it, and the pusher lives on."""

from __future__ import annotations

import os
import signal
import threading
from contextlib import closing
from pathlib import Path

import pytest
import torch
from hearing import Heard, pusher_pid, until, until_gone, until_idle
from sick_disks import SickDisk
from steps import Holder, assert_same, load, numbers, state_of

import spot_plugins
from spot_plugins.config import SpotConfig
from spot_plugins.errors import Preempted
from spot_plugins.events import Committed, Leaving, LocalWriteFailed, WrittenLocally
from spot_plugins.session import SpotSession
from spot_plugins.store import LocalStore

SICK_DISK = Path(__file__).with_name("sick_disk")


@pytest.fixture
def gate(tmp_path, monkeypatch):
    """Let every fsync of pushers below TMP_PATH/local hang. Return the FIFO that lets them through while it is open."""
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    package = Path(spot_plugins.__file__).parents[1]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(SICK_DISK), str(package)]))
    monkeypatch.setenv("SICK_DIR", str(tmp_path / "local"))
    monkeypatch.setenv("SICK_GATE", str(gate))
    return gate


def session_at(folder, **settings):
    heard = Heard()
    config = SpotConfig(
        url=str(folder / "store"), local_dir=str(folder / "local"), **{"every_steps": 10**6, **settings}
    )
    session = SpotSession(config, on_event=[heard])
    session.register("part", holder := Holder(state_of(1)), replicated=("both",))
    session.resume()
    return session, holder, heard


def num_threads(pid):
    return len(os.listdir(f"/proc/{pid}/task"))


def test_a_disk_that_hangs_costs_no_save(gate, tmp_path):
    """
    Every step is committed. Each local write that fails is told, the first one because it is late, the others at once.
    No further thread hangs with them, and the process ends with its session.
    """
    session, holder, heard = session_at(tmp_path)
    pusher = pusher_pid(session)
    counts = []
    for step in range(1, 6):
        holder.state = state_of(step)
        session.save(step)
        heard.wait(Committed, step=step)
        failed = heard.wait(LocalWriteFailed, step=step)
        until_idle(session)
        counts.append(num_threads(pusher))
    session.close()
    until_gone(pusher)

    assert "has not done the work" in failed.reason
    assert counts[1:] == counts[1:2] * 4
    assert not heard.of(WrittenLocally)
    store = LocalStore(str(tmp_path / "store"))
    assert numbers(store) == [5, 4]
    assert_same(load(store).state["part"], state_of(5))


def test_a_disk_that_hangs_holds_up_no_step(gate, tmp_path):
    """
    From the second step on it hangs in both processes. The training process does not touch it, and the pusher process
    ends with its session.
    """
    session, holder, heard = session_at(tmp_path)
    pusher = pusher_pid(session)
    session.after_step(1)
    with SickDisk(tmp_path / "local") as sick:
        rescue = threading.Timer(30, sick.let_go)  # of a training that stands still
        rescue.start()
        for step in range(2, 50):
            session.after_step(step)
        holder.state = state_of(49)
        session.save(49)
        heard.wait(Committed, step=49)
        session.close()
        rescue.cancel()
        assert not sick.hangs.is_set()
    until_gone(pusher)
    assert_same(load(LocalStore(str(tmp_path / "store"))).state["part"], state_of(49))


def test_a_disk_that_recovers_is_written_to_again(gate, tmp_path):
    """
    Of the step that was given up nothing is left, though its last bytes arrived later.
    """
    session, holder, heard = session_at(tmp_path)
    with closing(session):
        session.save(1)
        heard.wait(LocalWriteFailed, step=1)
        until_idle(session)
        opened = os.open(gate, os.O_RDWR)
        local, step = LocalStore(str(tmp_path / "local")), 1
        while not heard.of(WrittenLocally):
            step += 1
            holder.state = state_of(step)
            session.save(step)
            heard.wait(Committed, step=step)
            until_idle(session)
        os.close(opened)
        assert numbers(local) == [step]
        assert {key.split("/")[1] for key in local.keys("steps/")} == {f"{step:010d}-000001"}


def test_a_temporary_directory_that_hangs_costs_no_save(gate, tmp_path, monkeypatch):
    """The pusher process looks for its temporary directory. It does so on the thread of the disk alone."""
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setenv("SICK_TMP", "1")
    session, _, heard = session_at(tmp_path)
    pusher = pusher_pid(session)
    session.save(1)
    heard.wait(Committed, step=1)
    session.finish(1)
    until_gone(pusher)
    assert numbers(LocalStore(str(tmp_path / "store"))) == [1]


@pytest.mark.parametrize("has_one_buffer", [False, True])
def test_a_notice_is_in_time_though_the_disk_hangs(has_one_buffer, gate, tmp_path):
    """
    The last step is stored before the deadline, also if the memory for it is still being written to the disk.
    """
    num_bytes = 3_000_000 if has_one_buffer else None
    session, holder, heard = session_at(tmp_path, buffer_bytes=num_bytes)
    session.handle_signals()
    holder.state = {"w": torch.zeros(300_000), "step": 1}
    session.save(1)
    heard.wait(Committed, step=1)
    holder.state = {"w": torch.ones(300_000), "step": 2}
    os.kill(os.getpid(), signal.SIGTERM)
    until(lambda: session.notice, "the notice is heard")
    with pytest.raises(Preempted):
        session.after_step(2)

    (leaving,) = heard.of(Leaving)
    assert (leaving.step, leaving.durable) == (2, True)
    assert numbers(LocalStore(str(tmp_path / "store"))) == [2, 1]
