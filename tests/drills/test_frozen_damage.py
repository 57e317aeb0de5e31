"""Frozen blobs that the store loses during a run: no step that names them is lost with the machine."""

from __future__ import annotations

import os
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
import torch
from hearing import Heard, remove, until, until_idle
from torch import nn

import spot_plugins
from spot_plugins.config import SpotConfig
from spot_plugins.events import Committed, StoreDamaged
from spot_plugins.session import SpotSession
from spot_plugins.store import LocalStore

LOOKING = Path(__file__).with_name("looking")


def cut(store, key):
    store.put(key, store.get(key)[:100])


def flip(store, key):
    data = bytearray(store.get(key))
    data[-1] ^= 1
    store.put(key, bytes(data))


DAMAGES = {"gone": LocalStore.delete, "cut": cut, "flipped": flip}
every_damage = pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)


@pytest.fixture
def looking(monkeypatch):
    """Let pushers look all the time."""
    package = Path(spot_plugins.__file__).parents[1]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(LOOKING), str(package)]))


@contextmanager
def life(folder, seed=0):
    """A session with a frozen base and a head that is trained."""
    torch.manual_seed(seed)
    model = nn.ModuleDict({"base": nn.Linear(300, 300), "head": nn.Linear(16, 4)})
    model["base"].requires_grad_(False)
    heard = Heard()
    config = SpotConfig(url=str(folder / "store"), local_dir=str(folder / "local"), every_steps=10**6, keep_last=1)
    with closing(SpotSession(config, on_event=[heard])) as session:
        session.register_model(model, [torch.optim.AdamW(model["head"].parameters())])
        session.resumed = session.resume()
        yield session, model, heard


def save(session, heard, step):
    session.save(step)
    heard.wait(Committed, step=step)
    until_idle(session)


def the_blob(folder):
    store = LocalStore(str(folder / "store"))
    (key,) = store.keys("frozen/")
    return store, key


def assert_restored_elsewhere(folder, step, expected):
    """The machine is lost, and another one finds the step."""
    remove(folder / "local")
    with life(folder, seed=1) as (session, model, _):
        assert session.resumed == step
        assert torch.equal(model["base"].weight, expected)


@every_damage
def test_damage_in_a_life_is_repaired_from_the_disk(damage, looking, tmp_path, caplog):
    """
    Between two saves, without a call of the training, and a warning says so.
    """
    with life(tmp_path) as (session, model, heard):
        save(session, heard, 1)
        store, key = the_blob(tmp_path)
        whole = store.get(key)
        damage(store, key)
        event = heard.wait(StoreDamaged)
        until(lambda: list(store.keys(key)) and store.get(key) == whole, "the blob is whole")
        save(session, heard, 2)
        expected = model["base"].weight.clone()

    assert (event.key, event.is_repaired) == (key, True)
    assert key in caplog.text
    assert_restored_elsewhere(tmp_path, 2, expected)


@every_damage
def test_damage_without_a_copy_on_the_disk_is_repaired_by_the_next_save(damage, looking, tmp_path, caplog):
    """
    From the weights themselves, and again if the new blob is damaged, too.
    """
    with life(tmp_path) as (session, model, heard):
        save(session, heard, 1)
        store, key = the_blob(tmp_path)
        whole = store.get(key)
        for number, step in enumerate((2, 3), 1):
            remove(tmp_path / "local" / "frozen")
            damage(store, key)
            until(lambda: len(heard.of(StoreDamaged, is_repaired=False)) == number, "the damage is known")  # noqa: B023
            save(session, heard, step)
            assert store.get(key) == whole
        assert heard.wait(StoreDamaged, is_repaired=True).key == key
        assert f"damage in the store: {key} " in caplog.text
        assert "The next save stores it again, if it can" in caplog.text
        # The pusher process repairs it from the new copy on the disk if it looks again before it stores the blob.
        assert f"{key} was missing or damaged" in caplog.text or "It was stored again" in caplog.text
        save(session, heard, 4)
        expected = model["base"].weight.clone()

    assert_restored_elsewhere(tmp_path, 4, expected)


@every_damage
def test_damage_between_two_lives_is_repaired_at_the_start(damage, tmp_path):
    """
    Before the next life has saved anything.
    """
    with life(tmp_path) as (session, _, heard):
        save(session, heard, 1)
    store, key = the_blob(tmp_path)
    whole = store.get(key)
    damage(store, key)
    with life(tmp_path, seed=1) as (session, model, heard):
        assert session.resumed == 1
        assert heard.wait(StoreDamaged).is_repaired
        expected = model["base"].weight.clone()

    assert store.get(key) == whole
    assert_restored_elsewhere(tmp_path, 1, expected)
