"""The price of fetching batches again is told while it is paid, if that takes long."""

from __future__ import annotations

import pytest
import torch
from torch.utils.data import Dataset

from spot_plugins.clock import SystemClock
from spot_plugins.data import LoaderPosition
from spot_plugins.data.price import Price


class Watch:
    """A clock that a test sets."""

    now = 100.0

    def monotonic(self):
        return self.now


@pytest.fixture
def lines(caplog):
    """Return a function that gives the lines that were told since its last call."""

    def told():
        found = list(caplog.messages)
        caplog.clear()
        return found

    return told


def test_a_price_is_told_after_five_seconds_and_then_every_minute(lines):
    """With what is left, from what it took so far, and at the end in one sum."""
    price = Price(1000, watch := Watch())
    told = {}
    for after_s, number in [(0, 1), (4.9, 98), (5, 100), (30, 600), (64, 800), (66, 900), (70, 999), (71, 1000)]:
        watch.now = 100 + after_s
        price.fetched(number)
        told[number] = lines()

    assert {number: said for number, said in told.items() if said} == {
        100: ["fetching 1000 batches again: 100 in 5 s, so about 45 s are left"],
        900: ["fetching 1000 batches again: 900 in 66 s, so about 7 s are left"],
        1000: ["fetching 1000 batches again took 71 s"],
    }


def test_what_is_fetched_within_seconds_costs_no_line(lines):
    """Nobody wants to read of it."""
    price = Price(2, watch := Watch())
    watch.now += 4.9
    price.fetched(1)
    price.fetched(2)

    assert lines() == []


def test_a_resume_measures_what_it_fetches(lines, monkeypatch):
    """A data set whose samples take two seconds each, by the clock that the resume reads."""
    watch = Watch()
    monkeypatch.setattr(SystemClock, "monotonic", lambda self: watch.now)

    class Slow(Dataset):
        def __len__(self):
            return 8

        def __getitem__(self, index):
            watch.now += 2
            return index

    loader = torch.utils.data.DataLoader(Slow())
    before = LoaderPosition(loader, 1)
    before.begin_epoch(0)
    position = LoaderPosition(loader, 1)
    position.load_state_dict(before.state_dict(6))
    position.begin_epoch(0)
    with pytest.warns(UserWarning, match="fetching 6 batches again"):
        position.fast_forward(iter(loader))

    assert lines() == [
        "fetching 6 batches again: 3 in 6 s, so about 6 s are left",
        "fetching 6 batches again took 12 s",
    ]
