"""The wrapper of DDP around a prepared model, which only the program holds."""

from __future__ import annotations

from types import SimpleNamespace

from accelerate.utils import DistributedType
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from spot_plugins.accelerate import prepared


def test_a_wrapper_whose_constructor_has_failed_is_passed_over():
    """It is alive as long as somebody holds the exception, and has no model."""
    model, accelerator = nn.Linear(2, 1), SimpleNamespace(num_processes=3, distributed_type=DistributedType.MULTI_CPU)
    unfinished = DistributedDataParallel.__new__(DistributedDataParallel)

    assert prepared._in_ddp(model, accelerator) is model
    assert not hasattr(unfinished, "module")
