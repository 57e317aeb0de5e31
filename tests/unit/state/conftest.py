"""Fixtures for tests of state."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture
def one_rank_mesh():
    from torch.distributed.tensor import init_device_mesh

    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        yield init_device_mesh("cpu", (1,))
    finally:
        torch.distributed.destroy_process_group()
