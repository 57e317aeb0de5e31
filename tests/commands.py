"""The command line as real processes."""

from __future__ import annotations

import os
import subprocess
import sys

SPOT = [sys.executable, "-m", "spot_plugins.cli"]


def spot(*words, **environ):
    """Run a verb without the settings of whoever runs the tests, and return the process that has ended."""
    plain = {key: value for key, value in os.environ.items() if not key.startswith("SPOT_")}
    return subprocess.run([*SPOT, *words], capture_output=True, text=True, env={**plain, "COLUMNS": "200", **environ})
