"""Estimate of the bytes of a checkpoint, from the number of parameters."""

from __future__ import annotations

from typing import Final

WEIGHT_BYTES: Final = {"fp32": 4, "bf16": 2, "fp16": 2, "mixed": 4}
"""Bytes per stored weight. With ``mixed``, as with autocast, weights are fp32 and the computation is 16 bits wide."""

MOMENTS: Final = {"adamw": 2, "adam": 2, "sgd-momentum": 1, "sgd": 0}
"""Numbers that the optimizer keeps per trained parameter. PyTorch keeps them in the type of the parameter."""


def checkpoint_bytes(params: float, optimizer: str, dtype: str) -> float:
    """
    Estimate the bytes of weights and optimizer state: ``parameters x bytes per weight x (1 + moments)``.

    All parameters are taken to be trained. Other state, such as buffers and random streams, is small. A format with
    more copies, such as 16-bit weights beside fp32 ones, is larger: 14 to 16 bytes per parameter for Adam.

    Args:
        params: Number of parameters, above 0.
        optimizer: A key of :data:`MOMENTS`.
        dtype: A key of :data:`WEIGHT_BYTES`.
    """
    return params * WEIGHT_BYTES[dtype] * (1 + MOMENTS[optimizer])
