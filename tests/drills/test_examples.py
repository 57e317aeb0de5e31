"""The recipes run, from a preemption to the end, in their smallest form."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from launching import exit_codes, launch

EXAMPLES = Path(__file__).parents[2] / "examples"
RUN = Path(__file__).parent / "programs" / "example_run.py"
SMALLEST = ["--batch-size", "4", "--max-tokens", "8", "--epochs", "2", "--every-steps", "20"]


def start(recipe, num_steps, folder, **environment):
    arguments = ["--url", f"file://{folder}/run", "--csv", f"{folder}/log.csv", "--events", f"{folder}/events.jsonl"]
    return launch(
        "example_run",
        (str(EXAMPLES / recipe), [*arguments, *SMALLEST, "--samples", str(2 * num_steps)]),
        environment={"HF_HUB_OFFLINE": "1", **environment},
        output=folder / "output.txt",
    )


def rows(folder):
    log = folder / "log.csv"
    return [line.split(",") for line in log.read_text().splitlines()] if log.exists() else []


RECIPES = [("lightning_finetune.py", 24), ("accelerate_lora_finetune.py", 48), ("trainer_lora_finetune.py", 48)]


@pytest.mark.parametrize(("recipe", "num_steps"), RECIPES)
def test_a_preempted_recipe_goes_on_to_its_end(recipe, num_steps, tmp_path):
    """A SIGTERM in mid-epoch ends it with code 143; the same command again trains every other step once, to the end."""
    signalled = start(recipe, num_steps, tmp_path, SIGTERM_AT=str(tmp_path / "log.csv"), SIGTERM_RANK="0")
    assert exit_codes([signalled]) == [143], (tmp_path / "output.txt").read_text()[-3000:]
    assert exit_codes([start(recipe, num_steps, tmp_path)]) == [0], (tmp_path / "output.txt").read_text()[-3000:]

    assert [int(step) for step, _, _ in rows(tmp_path)] == list(range(1, num_steps + 1))
    losses = [float(loss) for _, loss, _ in rows(tmp_path)]
    assert sum(losses[-8:]) < sum(losses[:8]), "it must learn something"
    events = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert [event["event"] for event in events].count("Resumed") == 1


def test_a_preempted_torchrun_recipe_goes_on_on_other_ranks(tmp_path):
    """
    A SIGTERM to one rank of two ends both; three ranks go on behind the very step, and come to the end.
    """

    def torchrun(num_ranks, **environment):
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(num_ranks)]
        recipe = [
            str(RUN),
            str(EXAMPLES / "torchrun_fsdp2.py"),
            "--url",
            f"file://{tmp_path}/run",
            "--csv",
            f"{tmp_path}/log.csv",
        ]
        smallest = ["--samples", "192", "--batch-size", "2", "--width", "16", "--block", "16", "--epochs", "1"]
        environment |= {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
        with (tmp_path / "output.txt").open("ab") as output:
            return subprocess.Popen([*launcher, *recipe, *smallest], env=environment, stdout=output, stderr=output)

    signalled = torchrun(2, SIGTERM_AT=str(tmp_path / "log.csv"), SIGTERM_RANK="1")
    assert signalled.wait(300) == 1, "torchrun's own code, whatever the ranks' are"
    done = len(rows(tmp_path))
    assert torchrun(3).wait(300) == 0, (tmp_path / "output.txt").read_text()[-3000:]

    left = (192 - 4 * done) // 6  # two samples on each rank
    assert [int(step) for step, _ in rows(tmp_path)] == [*range(1, done + left + 1)]
    assert "exitcode  : 143" in (tmp_path / "output.txt").read_text()
    assert f"resumed from step {done} of " in (tmp_path / "output.txt").read_text()
