"""``make demo``, and its report counted anew."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from event_logs import agrees, recount

from spot_plugins.store import LocalStore

ROOT = Path(__file__).parents[2]


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_the_demo_and_its_report():
    """Both trainings are equal. The report says what the raw lines of the preempted one say."""
    done = subprocess.run([sys.executable, ROOT / "examples/demo.py"], capture_output=True, text=True)

    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]
    output = ROOT / "demo-output"
    assert "steps lost" in (output / "report.html").read_text()
    run = output / "preempted/run"
    store = LocalStore(str(run))
    counted = recount({key: store.get(key) for key in store.keys("events/")})
    assert list(counted["ends"].values()) == ["left", "killed", "finished"]
    assert counted["lost"][1] == 0
    agrees(run, counted)
