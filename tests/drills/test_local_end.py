"""Local copies after the end of a training: removed where this package has chosen the directory."""

from __future__ import annotations

import os
import tempfile

import pytest
from hearing import Heard, pusher_pid, until_gone
from steps import Holder, numbers, save, state_of

from spot_plugins.config import SpotConfig
from spot_plugins.events import Committed, WrittenLocally
from spot_plugins.push import PushSettings
from spot_plugins.push.local_write import remove_copies
from spot_plugins.session import SpotSession
from spot_plugins.store import LocalStore, MemoryStore
from spot_plugins.store.private import own_directory


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    """The temporary folder of all users, also for pushers."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)


def train(folder, local_dir, end):
    """Save step 1, then call *end*. Return the store of the local copies after the pusher has ended."""
    heard = Heard()
    session = SpotSession(
        SpotConfig(url=str(folder / "store"), local_dir=local_dir, every_steps=10**6), on_event=[heard]
    )
    session.register("part", Holder(state_of(1)), replicated=("both",))
    session.resume()
    pusher = pusher_pid(session)
    session.save(1)
    heard.wait(Committed, step=1)
    heard.wait(WrittenLocally, step=1)
    end(session)
    until_gone(pusher)
    assert numbers(LocalStore(str(folder / "store")))[-1] == 1
    return LocalStore(local_dir)


def test_a_normal_end_leaves_no_state_in_the_default_directory(tmp_path):
    """
    The store has the end, so nobody needs the copies.
    """
    local = train(tmp_path, os.path.join(own_directory(), "run"), lambda session: session.finish(2))

    assert [key for key in local.keys("") if not key.startswith("fingerprints/")] == []
    assert numbers(LocalStore(str(tmp_path / "store"))) == [2, 1]


def test_a_directory_that_the_user_has_named_keeps_its_copies(tmp_path):
    """
    It is the user who decides about it.
    """
    local = train(tmp_path, str(tmp_path / "mine"), lambda session: session.finish(2))

    assert numbers(local) == [2, 1]


def test_a_training_that_does_not_end_keeps_its_copies(tmp_path):
    """
    The next attempt may come back to this machine.
    """
    local = train(tmp_path, os.path.join(own_directory(), "run"), lambda session: session.close())

    assert numbers(local) == [1]


def test_the_last_rank_of_a_machine_removes_what_the_ranks_share():
    """
    The others may still need it.
    """
    local = MemoryStore()
    local.put("attempts/000001.json", b"claim")
    local.put("frozen/x.safetensors", b"weights")
    for rank in range(2):
        save(1, MemoryStore(), rank=rank, world_size=2, local=local)
    settings = [
        PushSettings(
            url="",
            storage_options={},
            local_dir=None,
            rank=rank,
            world_size=2,
            attempt=1,
            keep_last=1,
            keep_every=None,
        )
        for rank in range(2)
    ]
    remove_copies(local, settings[0])
    assert {key.split("/")[0] for key in local.keys("")} == {"attempts", "frozen", "steps"}
    assert all("00001" in key.rpartition("/")[2] for key in local.keys("steps/"))

    remove_copies(local, settings[1])
    assert not list(local.keys(""))


@pytest.mark.parametrize("name", ["/dev/shm/spot-test", None])
def test_copies_in_memory_are_warned_of(name, tmp_path, caplog):
    """
    They take it from the training.
    """
    config = SpotConfig(url=str(tmp_path / "store"), local_dir=name or str(tmp_path / "local"), every_steps=10**6)
    with SpotSession(config):
        pass

    assert ("is in memory" in caplog.text) == (name is not None)
