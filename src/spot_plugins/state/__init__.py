"""
The state of a training as JSON and tensors: the parts that have state, their registry, the encoder and the decoder.

All of it runs in the process of the training, on its training thread, while training stands still. What must never
break: nothing is pickled, and a restored object has the values, bit for bit, and the types that were saved. Tensors are
live ones, not copies. Begin with :mod:`.part`, then read :mod:`.registry`; :mod:`.document` describes the JSON.
"""

from __future__ import annotations

from .document import decode, encode, graft, named
from .fsdp1 import is_flat
from .model import ModelPart
from .optimizer import OptimizerPart, by_index
from .part import Part, ShardedPart
from .registry import register_model, register_optimizers
from .rng import RngPart
from .shard import Shard, memory_of
from .tags import register_dict_kind
from .wrappers import clean_name

__all__ = [
    "ModelPart",
    "OptimizerPart",
    "Part",
    "RngPart",
    "Shard",
    "ShardedPart",
    "by_index",
    "clean_name",
    "decode",
    "encode",
    "graft",
    "is_flat",
    "memory_of",
    "named",
    "register_dict_kind",
    "register_model",
    "register_optimizers",
]
