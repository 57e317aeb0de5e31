"""Each step as a drill sees it: written, read, and put in words."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from spot_plugins.fingerprints.seen import Seen, SeenFile, read_seen, trained_in_words
from spot_plugins.fingerprints.weights import sum_of_weights


def test_what_was_seen_is_read_as_it_was_written(tmp_path):
    """A line that is not finished, because its process was killed, is left out."""
    live = str(tmp_path / "live")
    seen = SeenFile(live)
    seen.write(1, Seen((0, 0, 0, 8), 17))
    seen.write(2, Seen((), None))
    [file] = tmp_path.iterdir()
    file.write_text(file.read_text() + "[3, [0")
    assert read_seen(live) == {1: Seen((0, 0, 0, 8), 17), 2: Seen((), None)}
    assert read_seen(str(tmp_path / "other")) == {}


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
def test_words_for_the_data_that_a_step_has_trained(place, control, before, text):
    """They name the first loader that differs. The control gives the size of the step."""
    assert trained_in_words(place, control=control, before=before) == text


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, torch.complex64, torch.float8_e4m3fn])
def test_one_bit_of_one_weight_changes_their_sum(dtype):
    """Of any type, also where the values in memory are not contiguous."""
    weights = torch.nn.Parameter(torch.ones(4, 6).to(dtype).t(), requires_grad=False)
    optimizer = SimpleNamespace(param_groups=[{"params": [weights]}])
    before = sum_of_weights([optimizer])
    weights.untyped_storage()[5] ^= 1
    assert sum_of_weights([optimizer]) not in (before, None)
    weights.untyped_storage()[5] ^= 1
    assert sum_of_weights([optimizer]) == before


def test_no_optimizer_has_no_sum():
    """So it is not compared."""
    assert sum_of_weights([]) is None
