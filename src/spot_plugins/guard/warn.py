"""Warnings that point at the line of the program that is running, not at a line of a library."""

from __future__ import annotations

import sys
import warnings

from .places import program_frames


def warn(message: str) -> None:
    """Warn of *message*, at the innermost frame of the program."""
    where = next(program_frames(sys._getframe(1)), sys._getframe(1))
    registry = where.f_globals.setdefault("__warningregistry__", {})
    warnings.warn_explicit(message, UserWarning, where.f_code.co_filename, where.f_lineno, registry=registry)
