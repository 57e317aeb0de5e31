"""Ordinary trainings with transformers' Trainer, interrupted, and equal in every bit to those left alone."""

from __future__ import annotations

import pytest
from trainer_lives import assert_exact

NOTICES = [("notice", "train", 7), ("kill", "train", 9)]


@pytest.mark.parametrize("accumulation", [1, 3])
def test_a_notice_and_a_kill(accumulation, tmp_path):
    """A notice in a step, and a kill between two saves."""
    assert_exact(tmp_path, *NOTICES, every_steps=2, gradient_accumulation_steps=accumulation)
