"""
The report of a run, from its event log: attempts, losses, goodput, and what to change.

Lives here: the figures, and their forms as a page, as text and as JSON.
Runs in: the process of ``spot report``. It only reads the store.
Must never break: each second that was paid is in exactly one category, and no text of the log reaches a page unescaped.
Begin with: :mod:`.figures`. Nothing here imports torch.
"""

from __future__ import annotations
