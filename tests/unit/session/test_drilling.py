"""A session in a drill: where it trains, what it says, and when it ends."""

from __future__ import annotations

import logging
import os
import shutil

import pytest
import torch
from hearing import Heard, until_idle
from steps import Holder

from spot_plugins.config import SpotConfig
from spot_plugins.events import Committed
from spot_plugins.fingerprints import RingId, ring
from spot_plugins.format.commit import committed_steps
from spot_plugins.launch.drilled import FOLDER_VARIABLE, STEPS_VARIABLE, DrillFolder, Rank, run_name
from spot_plugins.program.lines import OwnHandler
from spot_plugins.resume.prefetch import prefetch
from spot_plugins.session import SpotSession
from spot_plugins.store import open_local

URL = "s3://user:secret@bucket/run-7"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The folder of a drill that this process is part of."""
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path / "drill"))
    return DrillFolder(tmp_path / "drill")


def train(tmp_path, num_steps, **settings):
    """Run a training of the user, with all the places that a drill must not touch. Return the last step it began."""
    mine = {
        "url": URL,
        "local_dir": str(tmp_path / "local"),
        "notice_file": str(tmp_path / "notice"),
        "storage_options": {"key": "x"},
    }
    config = SpotConfig(every_steps=2, notice_sources=(), **{**mine, **settings})
    heard = Heard()
    with SpotSession(config, on_event=heard) as session:
        session.register("state", Holder({"weight": torch.zeros(3)}))
        step = session.resume() or 0
        while step < num_steps:
            step += 1
            session.after_step(step)
            if step % 2 == 0:
                heard.wait(Committed, step=step)
                until_idle(session)  # or the next save might be put off
        session.finish(step)
    return step


def test_nothing_of_the_program_is_touched(folder, tmp_path):
    """Run, local copies and notice file are those of the drill. The store of the program is not even asked."""
    train(tmp_path, 3)

    name = run_name(URL)
    run = folder.run(name)
    assert [each.step_id.step for each in committed_steps(open_local(str(run)))] == [3, 2]
    assert any(folder.local(name).iterdir())
    assert not (tmp_path / "local").exists()
    assert folder.ranks() == [Rank(pid=os.getpid(), rank=0, attempt=1, run=name, start=0)]
    assert "secret" not in name


def test_a_drill_sees_each_step_at_once(folder, tmp_path):
    """Not when the pusher process writes the file, which a SIGKILL of everything would prevent."""
    live = str(folder.live(run_name(URL)))
    seen = []
    with SpotSession(SpotConfig(url=URL, every_steps=2, notice_sources=())) as session:
        session.register("state", Holder({"weight": torch.zeros(3)}))
        session.resume()
        for step in range(1, 4):
            session.after_step(step)
            seen.append(set(ring.read(live, RingId(1, 0, 1))))
    assert seen == [{1}, {1, 2}, {1, 2, 3}]


def test_a_drill_knows_where_a_start_continues_before_it_sees_a_step(folder, tmp_path, monkeypatch):
    """It kills everything as soon as it sees one, before the pusher process has stored an event."""
    train(tmp_path, 2)
    seen = []
    monkeypatch.setattr(ring.Ring, "write", lambda _, step, *__: seen.append((step, folder.ranks()[0].start)))
    train(tmp_path, 4)
    assert seen == [(2, 2), (3, 2), (4, 2)], "the file begins with the step of the checkpoint"


def test_a_drill_knows_which_steps_a_start_has_rejected(folder, tmp_path, monkeypatch):
    """For the same reason. The run is a copy on a machine without local copies, from which it could be repaired."""
    train(tmp_path, 4)
    other = DrillFolder(tmp_path / "other")
    for name in ("attempts", "steps"):
        shutil.copytree(folder.run(run_name(URL)) / name, other.run(run_name(URL)) / name)
    for path in (other.run(run_name(URL)) / "steps").glob("0000000004-*/*"):
        path.write_bytes(b"other ones")
    monkeypatch.setenv(FOLDER_VARIABLE, str(other.path))
    train(tmp_path, 4)
    [rank] = other.ranks()
    assert (rank.start, list(rank.rejected)) == (2, [4])


def test_two_runs_of_a_program_have_two_places(folder, tmp_path):
    """A program that trains one model after the other does not resume the second from the first."""
    train(tmp_path, 3)
    train(tmp_path, 2, url="s3://bucket/run-8")
    assert {each.run for each in folder.ranks()} == {run_name(URL), run_name("s3://bucket/run-8")}
    assert len(list((folder.path / "runs").iterdir())) == 2


def test_it_says_so_in_one_line(folder, tmp_path, monkeypatch, caplog):
    """The first line of all, without the secrets of the URL."""
    monkeypatch.setenv(STEPS_VARIABLE, "2")
    with caplog.at_level(logging.INFO, "spot_plugins.run"), pytest.raises(SystemExit):
        train(tmp_path, 3)
    first = next(each.getMessage() for each in caplog.records if each.name == "spot_plugins.run")
    assert first == (
        "this is a drill: it trains in a folder of its own, not at s3://***@bucket/run-7, and ends after step 2"
    )


def test_it_ends_well_after_the_last_step(folder, tmp_path, monkeypatch):
    """The step is stored, and the exit code is 0. A start after that has nothing to do, and ends as well."""
    monkeypatch.setenv(STEPS_VARIABLE, "5")
    for _ in range(2):
        with pytest.raises(SystemExit) as ended:
            train(tmp_path, 100)
        assert ended.value.code == 0
        assert committed_steps(open_local(str(folder.run(run_name(URL)))))[0].step_id.step == 5


def test_warnings_are_kept_for_the_report(folder, tmp_path):
    """Those of the sessions, and no longer than a session is open. The lines for the user stay where they were."""
    logger = logging.getLogger("spot_plugins")
    config = SpotConfig(url=URL, every_steps=2, notice_sources=())
    with SpotSession(config) as session:
        logging.getLogger("spot_plugins.push").warning("the store is %s", "slow")
        logger.info("a detail")
        assert all(isinstance(each, OwnHandler) for each in logger.handlers)
        session.register("state", Holder({"weight": torch.zeros(3)}))
        session.resume()
    logger.warning("too late")
    assert list(folder.words()) == ["the store is slow"]
    assert logger.handlers == []


def test_a_prefetch_has_nothing_to_do(folder):
    """It would ask the store of the program."""
    assert prefetch("s3://no-such-bucket/run") is None


def test_without_a_drill_the_settings_count(tmp_path):
    """The variables of an earlier drill are not there any more."""
    train(tmp_path, 2, url=str(tmp_path / "run"), storage_options={})
    assert committed_steps(open_local(str(tmp_path / "run")))[0].step_id.step == 2
    assert (tmp_path / "local").exists()
