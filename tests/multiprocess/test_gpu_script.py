"""
The script of checks for one GPU. Here it runs on the CPU, where its figures mean nothing.
"""

import json
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).parents[2]


def run_script(folder, *flags):
    """Run the script, and return its rows and what it printed."""
    command = [sys.executable, "-m", "gpu", "--device", "cpu", "--out", str(folder / "out"), "--folder", str(folder)]
    ended = subprocess.run([*command, *flags], cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout[-2000:] + ended.stderr[-3000:]
    return json.loads((folder / "out" / "gpu.json").read_text())["rows"], ended.stdout


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_dry_run_ends_with_a_row_for_each_check(tmp_path):
    """No check fails, and the table that is printed is the one in the folder."""
    rows, printed = run_script(tmp_path, "--max-s", "800")

    assert {row["number"] for row in rows} == set(range(1, 15))
    assert [row for row in rows if row["verdict"].startswith("failed")] == []
    assert (tmp_path / "out" / "gpu.md").read_text() in printed
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_check_that_is_killed_at_its_limit_leaves_a_row_and_no_process(tmp_path):
    rows, _ = run_script(tmp_path, "--parts", "13,14", "--max-s", "1.5")

    assert {row["number"] for row in rows} == {13, 14}
    assert {row["verdict"].partition(" within")[0] for row in rows} <= {"failed: not done", "not here: no time is left"}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert not [
        each for each in psutil.process_iter(["cmdline"]) if str(tmp_path) in " ".join(each.info["cmdline"] or ())
    ]
