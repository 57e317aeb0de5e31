"""
The callback for transformers' ``Trainer``: ``Trainer(callbacks=[SpotTrainerCallback("s3://bucket/run-7")])``.

Needs ``pip install "spot_plugins[transformers]"``.

Lives here: the translation of the ``Trainer`` and its subclasses into calls of the Accelerate hook. It decides nothing.
Runs in: the training thread of every rank.
Must never break: a resumed ``train()`` continues right after the saved step, and does what belongs to that step once.
Begin with: :mod:`.callback`, then :mod:`.overrides`. :mod:`.internals` has all private names of transformers.
"""

from __future__ import annotations

from .callback import SpotTrainerCallback

__all__ = ["SpotTrainerCallback"]
