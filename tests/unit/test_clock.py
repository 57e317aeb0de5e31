"""The wall clock: it is read in one place, in which ``spot drill`` can set it for its own processes."""

from __future__ import annotations

import ast
import time
from pathlib import Path

import pytest

import spot_plugins
from spot_plugins.clock import DRILL_VARIABLE, SystemClock, wall_time

SOURCE = Path(spot_plugins.__file__).parent

# Without a moment as an argument, the last three read the clock, too.
READS = {
    "time": {"time", "time_ns", "ctime", "CLOCK_REALTIME", "gmtime", "localtime"},
    "datetime": {"now", "utcnow", "today"},
    "date": {"today"},
}


def reads_of(tree):
    """Return the lines in which the wall clock is read."""
    found = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module == "time"]
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name | ast.Attribute):
            owner = node.value.id if isinstance(node.value, ast.Name) else node.value.attr
            if node.attr in READS.get(owner, ()):
                found.append(node)
    return [node.lineno for node in found]


def test_only_one_module_reads_the_wall_clock():
    """Else a jump of the clock could not be drilled there. A duration or a deadline is monotonic anyway."""
    found = {
        str(path.relative_to(SOURCE)): lines
        for path in sorted(SOURCE.rglob("*.py"))
        if (lines := reads_of(ast.parse(path.read_text())))
    }
    assert found.pop("clock.py")
    assert found == {}, "call clock.wall_time() or SystemClock().utc() instead"


def test_a_drill_sets_the_wall_clock_alone(tmp_path, monkeypatch):
    """Both forms of it, by what is in the file. Without a file and without a drill it is that of the machine."""
    file = tmp_path / "clock"
    file.write_text("-7200")
    monkeypatch.setenv(DRILL_VARIABLE, str(file))
    clock = SystemClock()
    assert time.time() - wall_time() == pytest.approx(7200, abs=300)
    assert time.time() - clock.utc().timestamp() == pytest.approx(7200, abs=300)
    assert clock.monotonic() == pytest.approx(time.monotonic(), abs=300)
    file.unlink()
    assert time.time() == pytest.approx(wall_time(), abs=300)
    file.write_text("-7200")
    monkeypatch.delenv(DRILL_VARIABLE)
    assert time.time() == pytest.approx(wall_time(), abs=300)
