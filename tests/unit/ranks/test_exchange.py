"""What all ranks do together, when one of them does not."""

from __future__ import annotations

import pytest

from spot_plugins.ranks import BoardClosedError, Job, MemoryBoard, exchange


class Two:
    rank = 0
    world_size = 2


def test_a_rank_that_never_comes_is_not_waited_for_without_a_limit(monkeypatch):
    """The error names what was waited for, and so the rank."""
    monkeypatch.setattr(exchange, "EXCHANGE_S", 0.05)

    with pytest.raises(BoardClosedError, match="nobody wrote 'joining/1'"):
        Job(Two(), MemoryBoard()).exchange("joining", None)
