"""
Runs one of the recipes in examples/ as ``python recipe.py ARGUMENTS`` would: in a process of its own, or as a script.

If ``SIGTERM_AT`` names a file, the rank ``SIGTERM_RANK`` sends itself a SIGTERM when three steps are logged there. A
test that sent it from outside might be too late: the recipes are small, and a busy machine lets it wait for seconds.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
import threading
import time
import warnings
from pathlib import Path

import torch


def end_after_three(log):
    while not (log.exists() and len(log.read_text().splitlines()) >= 3):
        time.sleep(0.002)
    os.kill(os.getpid(), signal.SIGTERM)


def main(recipe, arguments):
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    if "SIGTERM_AT" in os.environ and os.environ.get("RANK", "0") == os.environ["SIGTERM_RANK"]:
        threading.Thread(target=end_after_three, args=(Path(os.environ["SIGTERM_AT"]),), daemon=True).start()
    sys.argv = [recipe, *arguments]
    runpy.run_path(recipe, run_name="__main__")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
