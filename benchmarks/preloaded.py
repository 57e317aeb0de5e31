"""Imports of the fork server, from which all ranks are forked."""

from __future__ import annotations

import accelerate
import lightning.pytorch
import torch.distributed.checkpoint
import torch.distributed.checkpoint.state_dict

__all__ = ["accelerate", "lightning", "torch"]
