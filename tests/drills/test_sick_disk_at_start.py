"""A local disk that hangs in the training process, from the start to the first step: the store is enough."""

from __future__ import annotations

import logging
import os
import signal
import tempfile
import threading
from contextlib import closing

import pytest
from hearing import DEADLINE_S, Heard, until, until_idle
from sick_disks import SickDisk
from steps import Holder, assert_same, numbers, state_of

from spot_plugins.config import SpotConfig
from spot_plugins.errors import Preempted
from spot_plugins.events import Committed, WrittenLocally
from spot_plugins.session import SpotSession
from spot_plugins.store import LocalStore
from spot_plugins.testing import run_thread_ranks

SAID = "the local disk has not answered"


def session_at(folder, *, ranks=None, **settings):
    rank = 0 if ranks is None else ranks.rank
    heard = Heard()
    config = SpotConfig(
        url=str(folder / "store"),
        **{"every_steps": 10**6, "local_dir": str(folder / f"local-{rank}"), "notice_sources": (), **settings},
    )
    session = SpotSession(config, ranks=ranks, on_event=[heard])
    session.register("part", holder := Holder(state_of(0, rank)), replicated=("both",))
    return session, holder, heard


def train(folder, steps, **settings):
    """Run one life that saves each of *steps*."""
    session, holder, heard = session_at(folder, **settings)
    with closing(session):
        session.resume()
        for step in steps:
            holder.state = state_of(step)
            session.after_step(step)
            session.save(step)
            heard.wait(Committed, step=step)


PLACES = {
    "all": "",
    "list of steps": "steps",
    "claim": "attempts",
    "fingerprints": "fingerprints",
    "blob": "safetensors",
}


@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
def test_a_training_resumes_without_its_disk(place, tmp_path, caplog):
    """It loads the newest step from the store, trains and saves. One warning names the directory and the remedy."""
    train(tmp_path, [1, 2])
    with SickDisk(tmp_path / "local-0", part=place) as sick:
        session, holder, heard = session_at(tmp_path)
        with closing(session):
            assert session.resume() == 2
            assert_same(holder.state, state_of(2))
            holder.state = state_of(3)
            session.after_step(3)
            session.save(3)
            heard.wait(Committed, step=3)
        assert sick.hangs.is_set()
    warnings = [each for each in caplog.records if each.levelno >= logging.WARNING]
    # Where these tests run in a container, its first process may be a shell, which is told at each start.
    [warning] = [each.getMessage() for each in warnings if each.name != "spot_plugins.notices.surroundings"]
    assert SAID in warning
    assert f" at {tmp_path / 'local-0'}, " in warning
    assert "set local_dir or SPOT_LOCAL_DIR" in warning
    assert numbers(LocalStore(str(tmp_path / "store")))[0] == 3


def test_a_first_run_begins_without_its_disk(tmp_path, monkeypatch, caplog):
    """The directory for temporary files lies on it. Only fingerprints of steps are kept there."""
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    with SickDisk(tmp_path / "tmp") as sick:
        train(tmp_path, [1], local_dir=None)
        assert sick.hangs.is_set()
    assert f"{SAID} for 0 s at {tmp_path / 'tmp'}, " in caplog.text
    assert numbers(LocalStore(str(tmp_path / "store"))) == [1]


@pytest.mark.parametrize("place", ["steps", "attempts", "fingerprints", "safetensors"])
def test_a_notice_is_obeyed_at_once(place, tmp_path, caplog):
    """The disk is not given up before, so nothing but the notice has ended the wait."""
    train(tmp_path, [1])
    with SickDisk(tmp_path / "local-0", part=place, is_given_up=False) as sick:
        session, holder, _ = session_at(tmp_path)
        with closing(session):
            session.handle_signals()
            sender = threading.Thread(
                target=lambda: sick.hangs.wait(DEADLINE_S) and os.kill(os.getpid(), signal.SIGTERM)
            )
            sender.start()
            with pytest.raises(Preempted):
                session.resume()
            sender.join()
            assert holder.num_loads == (place == "fingerprints")
    assert SAID not in caplog.text


def test_spot_run_is_not_waited_for(tmp_path, monkeypatch, caplog):
    """The folder in which it looks for its ranks hangs. Warnings say what it will not know, and the process leaves."""
    roster = tmp_path / "spot-run"
    monkeypatch.setenv("SPOT_ROSTER", str(roster))
    monkeypatch.setattr("spot_plugins.launch.roster.HANG_S", 0.1)
    with SickDisk(roster) as sick:
        rescue = threading.Timer(30, sick.let_go)  # of a training that stands still
        rescue.start()
        session, _, _ = session_at(tmp_path)
        with closing(session):
            session.resume()
            session.handle_signals()
            os.kill(os.getpid(), signal.SIGTERM)
            until(lambda: session.notice, "the notice is heard")
            with pytest.raises(Preempted):
                session.after_step(1)
        rescue.cancel()
        assert sick.hangs.is_set()
    said = f"the folder {roster} did not answer within 0 s, so "
    remedy = ". Set TMPDIR to a directory on another disk, and start spot run again"
    assert [each.getMessage() for each in caplog.records if each.name == "spot_plugins.launch.roster"] == [
        f"{said}a signal to spot run may not reach this process{remedy}",
        f"{said}spot run may start its command again on this machine{remedy}",
    ]


def test_a_notice_ends_the_wait_for_another_rank_whose_disk_hangs(tmp_path, caplog):
    """Rank 0 has the notice, and waits for rank 1 in an exchange. Both leave."""

    def life(ranks):
        session, _, _ = session_at(
            tmp_path, ranks=ranks, notice_sources="auto", notice_file=str(tmp_path / f"notice-{ranks.rank}")
        )
        with closing(session), pytest.raises(Preempted):
            session.resume()

    with SickDisk(tmp_path / "local-1", is_given_up=False) as sick:
        sender = threading.Thread(target=lambda: sick.hangs.wait(DEADLINE_S) and (tmp_path / "notice-0").touch())
        sender.start()
        run_thread_ranks(2, life)
        sender.join()
    assert SAID not in caplog.text


def test_one_rank_without_its_disk_leaves_the_step_that_only_the_disks_have(tmp_path, caplog):
    """All ranks resume from the step in the store, and say why."""
    store = LocalStore(str(tmp_path / "store"))

    def life(ranks):
        session, holder, heard = session_at(tmp_path, ranks=ranks)
        with closing(session):
            step = session.resume() or 0
            assert_same(holder.state, state_of(step, ranks.rank))
            for number in (step + 1, step + 2):
                holder.state = state_of(number, ranks.rank)
                session.after_step(number)
                session.save(number)
                heard.wait(Committed, step=number)
                heard.wait(WrittenLocally, step=number)
                until_idle(session)  # the old copies are removed
        return step

    assert run_thread_ranks(2, life) == [0, 0]
    until(lambda: numbers(store) == [2, 1], "the step is committed")
    for key in list(store.keys("steps/0000000002")):
        store.delete(key)
    caplog.clear()
    with SickDisk(tmp_path / "local-1", part="safetensors") as sick:
        assert run_thread_ranks(2, life) == [1, 1]
        assert sick.hangs.is_set()
    reason = f"cannot use '{tmp_path / 'local-1'}': the local disk does not answer"
    assert f"step 2 is on local disks only and cannot be stored: {reason}" in caplog.text
