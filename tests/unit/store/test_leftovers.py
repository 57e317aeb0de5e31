"""Local copies that nobody needs any more, and directories that are memory."""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path

import pytest

from spot_plugins.store import LocalStore, is_in_memory, scratch_directory, sweep
from spot_plugins.store.leftovers import KEPT_S


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    """The temporary folder of all users."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


def run_of(url, days):
    """Make the directory of a run that was last written to so many *days* ago. Return its path."""
    path = scratch_directory(url)
    LocalStore(path).put("steps/1/a", b"a")
    then = time.time() - days * 86400
    for folder, _, files in os.walk(path):
        for name in [*files, "."]:
            os.utime(os.path.join(folder, name), (then, then))
    return Path(path)


def test_runs_that_nothing_was_written_to_for_two_weeks_are_removed():
    """
    The present one stays, and so do those that are in use or may come back.
    """
    old, recent, present = run_of("s3://a/old", 15), run_of("s3://a/recent", 13), run_of("s3://a/present", 15)
    sweep(str(present))

    assert [each.exists() for each in (old, recent, present)] == [False, True, True]


def test_a_run_with_one_recent_file_stays():
    """
    Such as the fingerprints of a training that saves nothing.
    """
    path = run_of("s3://a/old", 15)
    (path / "fingerprints").mkdir()
    (path / "fingerprints" / "steps").touch()
    sweep(None)

    assert path.exists()


def test_a_run_that_is_used_again_stays():
    """
    Another one that starts at the same moment leaves it alone.
    """
    path = run_of("s3://a/old", 15)
    scratch_directory("s3://a/old")
    sweep(None)

    assert path.exists()


def test_only_directories_of_this_user_are_removed(tmp_path):
    """
    A link leads out of the folder, so what it leads to stays.
    """
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    own = run_of("s3://a/old", 15).parent
    (own / "link").symlink_to(elsewhere)
    (own / "file").touch()
    sweep(None)

    assert elsewhere.exists()
    assert sorted(each.name for each in own.iterdir()) == ["file", "link"]


def test_nothing_to_sweep():
    """
    There is no directory yet.
    """
    sweep(None)


def test_memory_is_told_from_a_disk(tmp_path):
    """
    Also of a directory that is still to be made.
    """
    assert KEPT_S == 14 * 86400
    assert is_in_memory("/dev/shm/not/there/yet")
    assert not is_in_memory("/proc")
