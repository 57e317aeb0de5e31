"""The folder in which the ranks of a command say that they have joined, and that one has left."""

from __future__ import annotations

import os

from spot_plugins.launch import roster


def test_the_roster_knows_who_has_joined_and_that_one_has_left(tmp_path, monkeypatch):
    """
    Without spot run nothing is written, and a folder that is gone is no error.
    """
    roster.join()
    monkeypatch.setenv(roster.VARIABLE, str(tmp_path))
    assert roster.ranks(tmp_path) == set()
    roster.join()
    assert roster.ranks(tmp_path) == {os.getpid()}
    assert not roster.has_left(tmp_path)
    roster.leave()
    assert roster.has_left(tmp_path)
    assert not roster.machine_ends(tmp_path)
    roster.leave(machine_ends=True)
    assert roster.machine_ends(tmp_path)
    roster.clear(tmp_path)
    assert not roster.has_left(tmp_path)
    assert not roster.machine_ends(tmp_path)
    monkeypatch.setenv(roster.VARIABLE, str(tmp_path / "gone"))
    roster.join()
