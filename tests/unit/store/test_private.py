"""The directory for local copies, in a folder where every user of the machine may write."""

from __future__ import annotations

import os
import stat
import tempfile

import pytest

from spot_plugins.errors import ConfigError, StoreError
from spot_plugins.store import open_local, scratch_directory
from spot_plugins.store.private import own_directory

URL = "s3://bucket/run"


@pytest.fixture(autouse=True)
def shared_folder(tmp_path, monkeypatch):
    """The temporary folder of all users."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    tmp_path.chmod(0o1777)
    return tmp_path


def _a_file():
    with open(own_directory(), "w"):
        pass


def _a_link(target):
    os.makedirs(target)
    os.symlink(target, own_directory())


def test_the_directory_is_made_for_this_user_alone():
    """Whatever the umask says."""
    before = os.umask(0)
    try:
        scratch_directory(URL)
    finally:
        os.umask(before)

    assert stat.S_IMODE(os.lstat(own_directory()).st_mode) == 0o700


def test_rights_of_others_are_taken_away():
    """A directory of an older version, or one that was made by hand."""
    os.mkdir(own_directory())
    os.chmod(own_directory(), 0o755)

    scratch_directory(URL)

    assert stat.S_IMODE(os.lstat(own_directory()).st_mode) == 0o700


def test_a_file_in_its_place_is_refused():
    """Another user could replace it by a directory later."""
    _a_file()

    with pytest.raises(ConfigError, match="is a file or a link that somebody has put there: remove it, or give"):
        scratch_directory(URL)


def test_a_link_in_its_place_is_refused(shared_folder):
    """Also one to a directory of this user, because its owner can turn it to another one."""
    _a_link(shared_folder / "elsewhere")

    with pytest.raises(ConfigError, match="is a file or a link"):
        scratch_directory(URL)


def test_a_directory_of_another_user_is_refused(monkeypatch):
    """It can be read by that user, whatever its mode is."""
    stranger = os.getuid() + 1
    monkeypatch.setattr(os, "getuid", lambda: stranger)
    os.mkdir(own_directory(), mode=0o700)

    with pytest.raises(ConfigError, match="belongs to another user, who could read the weights"):
        scratch_directory(URL)


@pytest.mark.parametrize("replace", [_a_file, lambda: _a_link(f"{own_directory()}-theirs")], ids=["file", "link"])
def test_a_pusher_writes_nothing_where_the_directory_was_replaced(replace, shared_folder):
    """A cleaner of temporary files may remove it while a training runs. Another user may be the next to make it."""
    directory = scratch_directory(URL)
    store = open_local(directory)
    store.put("steps/one", b"weights")
    assert store.get("steps/one") == b"weights"
    os.rename(own_directory(), shared_folder / "cleaned")
    replace()

    with pytest.raises(StoreError, match="is a file or a link"):
        store.put("steps/two", b"weights")

    assert not list(shared_folder.glob("*-theirs/**/*"))


def test_a_directory_that_was_removed_is_made_again_for_this_user_alone(shared_folder):
    """A cleaner of temporary files costs one copy at most."""
    store = open_local(scratch_directory(URL))
    os.rmdir(own_directory())
    store.put("steps/one", b"weights")

    assert stat.S_IMODE(os.lstat(own_directory()).st_mode) == 0o700
    assert store.get("steps/one") == b"weights"


def test_a_directory_that_was_given_is_used_as_it_is(tmp_path):
    """Its rights are the user's own choice."""
    given = tmp_path / "given"
    given.mkdir(mode=0o755)

    open_local(str(given)).put("steps/one", b"weights")

    assert stat.S_IMODE(given.stat().st_mode) == 0o755
