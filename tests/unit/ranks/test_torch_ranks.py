"""The port over which the ranks of torch agree, where it cannot be opened or reached."""

from __future__ import annotations

import re

import pytest
import torch.distributed as dist
from ports import free_port

from spot_plugins.errors import ConfigError
from spot_plugins.ranks import TorchRanks

NOWHERE = "fe80::1"  # only together with the name of an interface it would be an address


def test_an_address_that_is_not_that_of_rank_0_is_named(monkeypatch):
    """Every rank gets the error, with the address and the variable to set."""
    monkeypatch.setenv("MASTER_ADDR", NOWHERE)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    told = f"rank 0 cannot listen on any address that the ranks have for it, [('{NOWHERE}', ['{NOWHERE}'])]: none of "
    told += f"['{NOWHERE}'] belongs to this machine. Set MASTER_ADDR to an address of the machine of rank 0"
    try:
        with pytest.raises(ConfigError, match=re.escape(told)):
            TorchRanks().open_board()
    finally:
        dist.destroy_process_group()


def test_a_port_that_cannot_be_reached_is_named(monkeypatch):
    """Nothing listens there, as behind a firewall."""
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    port = free_port()
    where = ("127.0.0.1", port, True, "secret")
    monkeypatch.setattr(TorchRanks, "_serve", lambda self, found: (None, where))
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        with pytest.raises(ConfigError, match=rf"rank 0 cannot be reached at '127\.0\.0\.1', port {port}: ") as told:
            TorchRanks().open_board()
    finally:
        dist.destroy_process_group()

    assert str(told.value).endswith(
        "The ranks of a job agree over a port of their own; let the job's machines connect to each other"
    )
