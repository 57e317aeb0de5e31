"""
The way of staged bytes to the local disk and to the store, in a process of their own.

The training process talks to its pusher through :class:`Pusher`; the process itself is
:mod:`spot_plugins.push.worker`. Nothing here imports torch.
"""

from __future__ import annotations

from .messages import BlobImage, PushJob, PushSettings
from .pusher import Pusher

__all__ = ["BlobImage", "PushJob", "PushSettings", "Pusher"]
