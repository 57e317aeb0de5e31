"""
Make spot and preemptible GPUs harmless for PyTorch training.

Start with :class:`spot_plugins.lightning.SpotCheckpoint` (a Lightning callback) or
:class:`spot_plugins.accelerate.SpotHook` (an Accelerate hook). Importing this package alone
imports neither torch nor any of those frameworks: the pusher process relies on that.
"""

from __future__ import annotations

__version__ = "0.1.0"

from .resume.prefetch import prefetch

__all__ = ["__version__", "prefetch"]
