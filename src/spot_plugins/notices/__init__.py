"""Where notices come from. Each source calls back once, from a thread of its own."""

from __future__ import annotations

from .signals import SignalNotices

__all__ = ["SignalNotices"]
