"""The order in which DDP adds up gradients, so that a resumed training rounds as the one before."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

ORDER = "rebuilt_per_bucket_param_indices"


class Buckets:
    """
    The buckets of gradients of one model in DDP.

    DDP begins with buckets in the order of the parameters. After the first backward it rebuilds them, in the order in
    which the gradients became ready. On three or more ranks the order of additions follows the place in a bucket. So
    the first step of a new process would differ in its last bits from the same step of an uninterrupted training.

    Checked against torch 2.13.
    """

    def __init__(self, model: DistributedDataParallel) -> None:
        self._model = model
        self._order: list[int] = []

    def order(self) -> list[int]:
        """
        Return the numbers of the parameters in the order of the rebuilt buckets. Empty before the first backward.

        DDP rebuilds them with its second forward pass, and logs the order with its third. A step that is saved before
        needs the order too, so they are rebuilt here. All ranks call this together.
        """
        model = self._model
        if not self._order and (model.reducer._rebuild_buckets() or model._has_rebuilt_buckets):
            model._has_rebuilt_buckets = True
            model.logger.set_runtime_stats_and_log()  # type: ignore[union-attr]
            found = model._get_ddp_logging_data().get(ORDER, "")  # type: ignore[no-untyped-call]
            self._order = [int(number) for number in found.replace(",", " ").split()]
        return self._order

    def restore(self, order: Sequence[int]) -> None:
        """
        Let DDP rebuild its buckets in *order* with the next forward pass, before any gradient is computed.

        A backward pass makes a gradient of zeros for each parameter in that order. All ranks call this together. What
        DDP would not rebuild, or could not from such a pass, is left as it is.
        """
        parameters = [each for each in self._model.module.parameters() if each.requires_grad]
        if self._order or sorted(order) != [*range(len(parameters))] or not self._can_rebuild(parameters):
            return
        self._order = [*order]
        model = self._model
        module, model.module = model.module, _Zeros([parameters[number] for number in order])
        broadcasts, model.broadcast_buffers = model.broadcast_buffers, False  # DDP fails if there are none
        try:
            with torch.enable_grad():
                forward = DistributedDataParallel.forward(model)  # type: ignore[no-untyped-call]  # past the program's hooks
                forward.backward()
        finally:
            model.module = module
            model.broadcast_buffers = broadcasts
            for parameter in parameters:
                parameter.grad = None

    def _can_rebuild(self, parameters: Sequence[nn.Parameter]) -> bool:
        model = self._model
        has_hooks = any(each._backward_hooks or each._post_accumulate_grad_hooks for each in parameters)
        return (
            len(parameters) == model._get_ddp_logging_data()["num_parameter_tensors"]  # type: ignore[no-untyped-call]
            and len({each.device for each in parameters}) == 1
            and not any(each.grad is not None or each.is_complex() for each in parameters)
            and not any(getattr(each, "sparse", False) for each in model.module.modules())
            and not (has_hooks or model._comm_hooks or model.mixed_precision)
            and model.require_backward_grad_sync
        )


def buckets_of(model: nn.Module) -> Buckets | None:
    """Return the buckets of *model* if DDP rebuilds them, and if that can change the order of additions."""
    model = getattr(model, "_orig_mod", model)  # the wrapper of torch.compile
    if not isinstance(model, DistributedDataParallel) or dist.get_world_size(model.process_group) < 3:
        return None
    return None if model.find_unused_parameters or model.static_graph else Buckets(model)


class _Zeros(nn.Module):
    """A module whose backward pass makes gradients of zeros, those of the first parameters first."""

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        super().__init__()
        self._sought = tuple(parameters)  # in a tuple, so that they do not become parameters of this module

    def forward(self) -> torch.Tensor:
        """Return a number that depends on all parameters. Autograd begins with what was added last."""
        total = torch.zeros((), device=self._sought[0].device)
        for parameter in reversed(self._sought):
            total = total + 0 * parameter.sum()
        return total
