"""Imported once by the server that ``launching`` forks from. Nothing here may start a thread."""

import accelerate  # noqa: F401
import lightning.pytorch  # noqa: F401
import torch  # noqa: F401
import torchdata.stateful_dataloader  # noqa: F401

import spot_plugins.lightning  # noqa: F401
