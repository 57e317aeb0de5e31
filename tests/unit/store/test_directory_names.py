"""The names of directories in a local store: on disk when a put returns, whoever has made the directories."""

from __future__ import annotations

import os

import pytest

from spot_plugins.store import LocalStore


@pytest.fixture
def synced(monkeypatch):
    """Return the directories that are forced to disk, in their order."""
    directories, fsync = [], os.fsync

    def record(file):
        path = os.readlink(f"/proc/self/fd/{file}")
        if os.path.isdir(path):
            directories.append(path)
        fsync(file)

    monkeypatch.setattr(os, "fsync", record)
    return directories


def test_the_names_of_directories_that_another_thread_has_just_made_are_forced_to_disk(synced, tmp_path):
    """
    The other one may die, with the machine, before it has done so: then this object would be gone.
    """
    root = tmp_path / "root"
    (root / "steps" / "1").mkdir(parents=True)
    store = LocalStore(str(root))
    store.put("steps/1/a", b"a")

    assert {str(tmp_path), str(root), str(root / "steps"), str(root / "steps" / "1")} <= set(synced)
    del synced[:]
    store.put("steps/1/b", b"b")
    assert synced == [str(root / "steps" / "1")], "once is enough"


def test_a_directory_that_was_removed_is_forced_to_disk_again(synced, tmp_path):
    """
    Its name is a new one.
    """
    store = LocalStore(str(tmp_path))
    store.put("steps/1/a", b"a")
    store.delete("steps/1/a")
    del synced[:]
    store.put("steps/1/b", b"b")

    assert synced.count(str(tmp_path / "steps")) == 1


def test_a_directory_in_one_that_may_not_be_read_is_used(tmp_path, monkeypatch):
    """
    Somebody else has made the root, so its name is their concern.
    """
    root = tmp_path / "root"
    root.mkdir()
    opens = os.open

    def refuse(path, *args, **kwargs):
        if path == str(tmp_path):
            raise PermissionError(13, "Permission denied")
        return opens(path, *args, **kwargs)

    monkeypatch.setattr(os, "open", refuse)
    store = LocalStore(str(root))
    store.put("a", b"a")

    assert store.get("a") == b"a"
