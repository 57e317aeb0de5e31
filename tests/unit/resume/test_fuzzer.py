"""The fuzzer of the reader of steps, as a process: it is quiet about the reader, and finds a check that is missing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("atheris", reason="there is no atheris for this Python or processor")

TESTS = Path(__file__).parents[2]


def fuzz(folder, *flags, before=""):
    """Fuzz in a process that runs the code *before* first. Return the process that has ended."""
    program = (
        f"import sys; sys.path.insert(0, {str(TESTS)!r}); import fuzz_steps; {before}fuzz_steps.fuzz(sys.argv[1:])"
    )
    return subprocess.run([sys.executable, "-c", program, *flags], cwd=folder, capture_output=True, text=True)


def test_a_check_that_is_missing_is_found(tmp_path):
    """Without the check of sizes, a step is soon read as another one."""
    missing = "from spot_plugins.resume import reader; reader.find_nonsense = lambda *_, **__: None; "

    done = fuzz(tmp_path, "-runs=20000", "-seed=1", before=missing)

    assert done.returncode != 0
    assert "AssertionError" in done.stdout + done.stderr
    assert list(tmp_path.glob("crash-*"))


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_no_step_is_read_as_another_one(tmp_path):
    """For two minutes."""
    done = fuzz(tmp_path, "-max_total_time=120")

    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    assert " cov: " in done.stderr, "the reader is instrumented"
