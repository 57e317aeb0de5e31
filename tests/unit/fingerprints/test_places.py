"""The places in the data of a drill: written, read, and put in words."""

from __future__ import annotations

import pytest

from spot_plugins.fingerprints.places import Places, in_words, read_places


def test_places_are_read_as_they_were_written(tmp_path):
    """A line that is not finished, because its process was killed, is left out."""
    live = str(tmp_path / "live")
    places = Places(live)
    places.write(1, (0, 0, 0, 8))
    places.write(2, ())
    [file] = tmp_path.iterdir()
    file.write_text(file.read_text() + "[3, 0, 0")
    assert read_places(live) == {1: (0, 0, 0, 8), 2: ()}
    assert read_places(str(tmp_path / "other")) == {}


@pytest.mark.parametrize(
    ("place", "control", "before", "text"),
    [
        ((0, 1, 16), (0, 1, 12), (0, 1, 8), "it trained 12..15 of epoch 1 instead of 8..11 of epoch 1"),
        ((0, 0, 1), (0, 1, 1), (0, 0, 40), "it trained 0 of epoch 0 instead of 0 of epoch 1"),
        ((1, 0, 1, 2), (1, 0, 1, 8), (1, 0, 1, 7), "it trained 1 of epoch 1 instead of 7 of epoch 1"),
        ((0, 0, 4), (0, 0, 8), (), "it trained 0..3 of epoch 0 instead of 0..7 of epoch 0"),
        ((0, 0, 4, 0, 0, 9), (0, 0, 4, 0, 0, 6), (0, 0, 3, 0, 0, 5), "it trained 8 of epoch 0 instead of 5 of epoch 0"),
        ((0, 0, 4), (0, 0, 4), (0, 0, 3), ""),
        ((), (0, 0, 4), (0, 0, 3), ""),
    ],
    ids=["samples", "another epoch", "batches of a loop", "first step", "second loader", "the same", "unknown"],
)
def test_what_a_step_has_trained_is_put_in_words(place, control, before, text):
    """By the loader that differs. The size of the step is that of the control."""
    assert in_words(place, control=control, before=before) == text
