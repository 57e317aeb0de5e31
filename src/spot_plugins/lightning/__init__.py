"""
The Lightning callback: ``Trainer(callbacks=[SpotCheckpoint("s3://bucket/run-7", every_steps=100)])``.

Needs ``pip install "spot_plugins[lightning]"``.
"""

from __future__ import annotations

from .callback import SpotCheckpoint

__all__ = ["SpotCheckpoint"]
