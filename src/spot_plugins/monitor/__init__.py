"""
The report of a run, from its event log, and its metrics while it runs.

Lives here: the figures, their forms as a page, as text and as JSON, and metrics for Prometheus.
Runs in: the process of ``spot report``, which only reads the store, and threads of the trainer for metrics.
Must never break: each second that was paid is in exactly one category, no text of the log reaches a page unescaped, and
no failure of metrics reaches training.
Begin with: :mod:`.figures`, then :mod:`.prometheus`. Nothing here imports torch.
"""

from __future__ import annotations
