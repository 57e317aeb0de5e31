"""A program that a LightningCLI configures. Run by test_lightning_programs.py."""

from __future__ import annotations

import warnings

from lightning.pytorch.cli import LightningCLI
from lightning_handler import Net

if __name__ == "__main__":
    warnings.simplefilter("ignore")
    LightningCLI(Net, save_config_callback=None)
