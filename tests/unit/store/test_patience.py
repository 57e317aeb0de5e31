"""The limits of the patience with a store, without any waiting."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from spot_plugins.errors import StoreError
from spot_plugins.store import Patience, retry


class Waiting:
    """A clock that only :meth:`wait` moves."""

    def __init__(self, monkeypatch):
        self.now = 1000.0
        self.lines = []
        monkeypatch.setattr(retry, "time", SimpleNamespace(monotonic=lambda: self.now))
        self.patience = Patience(self.lines.append, self.wait)

    def wait(self, seconds):
        self.now += seconds


@pytest.fixture
def waiting(monkeypatch):
    return Waiting(monkeypatch)


def failing(**fields):
    def action():
        raise StoreError("put", "key", "the service's sentence", **fields)

    return action


@pytest.mark.parametrize(
    ("fields", "limit_s"),
    [
        ({}, retry.PATIENCE_S),
        ({"retryable": False, "may_settle": True}, retry.SETTLING_S),
        ({"retryable": False}, 0),
    ],
    ids=["passing", "may settle", "final"],
)
def test_trouble_is_waited_for_as_long_as_its_kind_may_last(fields, limit_s, waiting):
    """Then it is raised. Each try but the last is a line."""
    with pytest.raises(StoreError):
        waiting.patience(failing(**fields))

    assert waiting.now - 1000.0 == limit_s
    assert all(line.endswith("the service's sentence") for line in waiting.lines)
    assert len(waiting.lines) > 3 or not limit_s


def test_patience_is_spent_once_and_comes_back_with_an_answer(waiting):
    """A store that is down costs one patience, however many objects are asked for."""
    for limit_s in (retry.PATIENCE_S, 0):
        before = waiting.now
        with pytest.raises(StoreError):
            waiting.patience(failing())
        assert waiting.now - before == limit_s
    assert waiting.patience(lambda: "an object") == "an object"
    before = waiting.now
    with pytest.raises(StoreError):
        waiting.patience(failing())

    assert waiting.now - before == retry.PATIENCE_S
