"""The texts of several ranks, told as one."""

from __future__ import annotations

import pytest

from spot_plugins.ranks import texts_of_ranks


@pytest.mark.parametrize(
    ("texts", "told"),
    [
        ([None, None], ""),
        (["a"], "a"),
        (["a", "a"], "a"),
        ([None, "a"], "rank 1: a"),
        (["a", "b", "a", None], "ranks 0, 2: a; rank 1: b"),
    ],
)
def test_each_text_is_told_once_with_its_ranks(texts, told):
    """Ranks are named unless all of them gave the same text."""
    assert texts_of_ranks(texts) == told
