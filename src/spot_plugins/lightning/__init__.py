"""
The Lightning callback: ``Trainer(callbacks=[SpotCheckpoint("s3://bucket/run-7", every_steps=100)])``.

Needs ``pip install "spot_plugins[lightning]"``.

Lives here: the translation of Lightning's hooks and loops into calls of the session. It decides nothing.
Runs in: the training thread of every rank.
Must never break: a resumed ``fit`` continues right after the saved batch, with everything that follows it.
Begin with: :mod:`.callback`, then :mod:`.fit`. :mod:`.internals` has all private names of Lightning.
"""

from __future__ import annotations

from .callback import SpotCheckpoint

__all__ = ["SpotCheckpoint"]
