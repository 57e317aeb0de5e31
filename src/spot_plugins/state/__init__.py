"""Training state as JSON and tensors: the form that is saved, and the objects that are worth saving."""

from __future__ import annotations

from .parts import ModelPart, OptimizerPart, RngPart
from .tree import decode, encode

__all__ = ["ModelPart", "OptimizerPart", "RngPart", "decode", "encode"]
