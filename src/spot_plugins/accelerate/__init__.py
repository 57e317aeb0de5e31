"""
The Accelerate hook: ``with SpotHook(accelerator, "s3://bucket/run-7", every_steps=100) as spot: ...``.

Needs ``pip install "spot_plugins[accelerate]"``.
"""

from __future__ import annotations

from .hook import Progress, SpotHook

__all__ = ["Progress", "SpotHook"]
