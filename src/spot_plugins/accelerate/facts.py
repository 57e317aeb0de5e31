"""The facts about a training with Accelerate that a session cannot see."""

from __future__ import annotations

import logging
import os

import accelerate
from accelerate import Accelerator

from ..program import Program
from . import internals


def host_level() -> int:
    """Return the lowest level that Accelerate shows: by its variable, or by the level of its logger."""
    word = os.environ.get("ACCELERATE_LOG_LEVEL", "").upper()
    level = logging.getLevelName(word)
    return max(level if isinstance(level, int) else logging.NOTSET, logging.getLogger("accelerate").level)


def describe(program: Program, accelerator: Accelerator) -> None:
    """Describe settings and loaders to *program*, before the resume."""
    program.add_versions(accelerate=accelerate.__version__)
    loaders = internals.loaders(accelerator)
    program.add_settings(
        prepared_loaders=len(loaders),  # a loader is known by its number
        mixed_precision=accelerator.mixed_precision,
        gradient_accumulation_steps=accelerator.gradient_accumulation_steps,
    )
    program.add_loaders(loaders)
