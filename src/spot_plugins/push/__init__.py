"""
The pusher: staged bytes go to the local disk and to the store in a process of their own, one per rank.

:class:`.Pusher` runs in the trainer, :mod:`.worker` and :mod:`.step_push` in the pusher process; :mod:`.messages` is
between them. What must never break: a step that was handed over is committed although the trainer or one pusher process
dies, and nothing here imports torch. Begin with :mod:`.pusher`, then read :mod:`.ledger` and :mod:`.worker`.
"""

from __future__ import annotations

from .messages import BlobImage, FrozenUse, PushJob, PushSettings
from .other_shares import LostError
from .pusher import Pusher
from .shared_file import FileWriter, SharedFile
from .shared_memory import open_memory

__all__ = [
    "BlobImage",
    "FileWriter",
    "FrozenUse",
    "LostError",
    "PushJob",
    "PushSettings",
    "Pusher",
    "SharedFile",
    "open_memory",
]
