"""Check 5: the tests marked gpu, twice."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def run(settings, report):
    """Run the files that have such tests. Without a GPU, only collect them."""
    tests = ROOT / "tests"
    files = sorted(str(path) for path in tests.rglob("test_*.py") if "mark.gpu" in path.read_text())
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tests), os.environ["PYTHONPATH"]])}
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", "--tb=short", *files]
    if not settings.has_cuda:
        command.append("--collect-only")
    for time_of in ("first", "second") if settings.has_cuda else ("only collected",):
        ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        print(ended.stdout[-20_000:], ended.stderr[-5_000:])
        lines = ended.stdout.strip().splitlines() or [f"exit code {ended.returncode}"]
        failed = [line for line in lines if re.match(r"(FAILED|ERROR) ", line)]
        figure = "; ".join([lines[-1], *(line[:160] for line in failed)])
        report.fact(f"pytest -m gpu, {time_of}", figure, "all pass", not ended.returncode, needs_cuda=True)
