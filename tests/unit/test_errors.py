"""Texts of the errors."""

from __future__ import annotations

from spot_plugins.errors import Preempted


def test_a_notice_says_what_is_saved_and_what_to_do():
    """The last line of a program that does not catch it, and what a program prints that does."""
    assert str(Preempted(3)) == "preempted: step 3 is saved; run the same command again to continue"
    assert str(Preempted(None)) == "preempted: nothing was saved; run the same command again to continue"
