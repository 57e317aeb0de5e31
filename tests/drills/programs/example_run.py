"""
Runs one of the recipes in examples/ as ``python recipe.py ARGUMENTS`` would: in a process of its own, or as a script.

If ``SIGTERM_AT`` names a file, the rank ``SIGTERM_RANK`` sends itself a SIGTERM in the first step after three
are logged there, and waits until it is heard. The recipes are small, so a signal from outside might come too late.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
import warnings
from pathlib import Path

import torch
from hearing import until_notice
from torch.optim.optimizer import register_optimizer_step_pre_hook


def end_after_three(log):
    """Let the first step of an optimizer after three logged ones send the signal."""

    is_sent = False

    def look(*_):
        nonlocal is_sent
        if not is_sent and log.exists() and len(log.read_text().splitlines()) >= 3:
            is_sent = True
            os.kill(os.getpid(), signal.SIGTERM)
            until_notice()

    register_optimizer_step_pre_hook(look)


def main(recipe, arguments):
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    if "SIGTERM_AT" in os.environ and os.environ.get("RANK", "0") == os.environ["SIGTERM_RANK"]:
        end_after_three(Path(os.environ["SIGTERM_AT"]))
    sys.argv = [recipe, *arguments]
    runpy.run_path(recipe, run_name="__main__")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
