"""Training state as JSON and tensors: the form that is saved, and the objects that are worth saving."""

from __future__ import annotations

from .document import decode, encode, graft, named
from .fsdp1 import clean_name, is_flat
from .model import ModelPart
from .optimizer import OptimizerPart
from .rng import RngPart
from .shard import Shard, memory_of

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
