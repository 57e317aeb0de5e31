"""The ten minutes of each host's page: the program of its block, rehearsed by the command of its block."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import pytest
from commands import spot

DOCS = Path(__file__).parents[2] / "docs"
PAGES = ["quickstart.md", "tutorials/accelerate.md", "tutorials/bare.md", "tutorials/trainer.md"]


@pytest.mark.soak
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("page", PAGES)
def test_the_rehearsal_of_the_page_keeps_all_promises(page, tmp_path, monkeypatch):
    """``spot drill`` with the documented options, and one fault after the other that the page names."""
    text = (DOCS / page).read_text()
    program = re.search(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL).group(1)
    command, table = re.search(r"^\$ (spot drill .*?) -- python train.py\n(.*?)^```", text, re.M | re.S).groups()
    monkeypatch.chdir(tmp_path)
    Path("train.py").write_text(program)

    done = spot(*shlex.split(command)[1:], "--", sys.executable, "train.py", OMP_NUM_THREADS="1")

    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert done.stdout.endswith("All promises were kept.\n")
    faults = re.search("--faults ([a-z,]+)", command).group(1).split(",")
    for out in (done.stdout, table):
        assert re.findall(r"^(\w+) +\d+ +\d+ +\d+ ", out, re.MULTILINE) == faults
