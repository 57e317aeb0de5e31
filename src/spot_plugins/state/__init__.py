"""Training state as JSON and tensors: the form that is saved, and the objects that are worth saving."""

from __future__ import annotations

from .flat import clean_name, is_flat
from .parts import ModelPart, OptimizerPart, RngPart
from .shard import Shard, memory_of
from .tree import decode, encode, graft, named

__all__ = [
    "ModelPart",
    "OptimizerPart",
    "RngPart",
    "Shard",
    "clean_name",
    "decode",
    "encode",
    "graft",
    "is_flat",
    "memory_of",
    "named",
]
