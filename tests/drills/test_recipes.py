"""The recipes of examples/, tiny on a CPU: preempted and resumed, they are those that were left alone."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from exactness import assert_equal, newest_step
from hearing import DEADLINE_S
from launching import exit_codes, launch
from ports import free_port

from spot_plugins import load_weights
from spot_plugins.fingerprints import compare_runs

EXAMPLES = Path(__file__).parents[2] / "examples"
RUN = Path(__file__).parent / "programs" / "example_run.py"
NUM_STEPS = 24
RECIPES = [
    ("qlora_7b", ["--steps", str(NUM_STEPS)], 1),
    ("pretrain_torchrun", ["--steps", str(NUM_STEPS)], 2),
    pytest.param(
        "vision_lightning", ["--epochs", "2", "--samples", str(16 * NUM_STEPS // 2)], 1, marks=pytest.mark.soak
    ),
    pytest.param("finetune_lightning_fsdp2", ["--steps", str(NUM_STEPS)], 2, marks=pytest.mark.soak),
]
"""Folder, arguments for so many steps, and number of ranks of each recipe that Accelerate does not launch."""


def start(name, arguments, ranks, folder, **environment):
    """Start a recipe in *folder* on its ranks, as torchrun would."""
    folder.mkdir(exist_ok=True)
    arguments = [*arguments, "--url", f"file://{folder}/run", "--csv", f"{folder}/log.csv", "--every-steps", "20"]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(ranks)}
    return [
        launch(
            "example_run",
            (str(EXAMPLES / name / "train.py"), arguments),
            environment=environment
            | {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(folder / "cache")}
            | (shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)} if ranks > 1 else {}),
            output=folder / f"output-{rank}.txt",
        )
        for rank in range(ranks)
    ]


def rows(folder):
    log = folder / "log.csv"
    return [line.split(",") for line in log.read_text().splitlines()] if log.exists() else []


def printed(folder):
    return "".join(path.read_text() for path in sorted(folder.glob("output-*.txt")))


@pytest.mark.timeout(3 * DEADLINE_S)
@pytest.mark.parametrize(("name", "arguments", "ranks"), RECIPES)
def test_a_preempted_recipe_is_the_one_left_alone(name, arguments, ranks, tmp_path, monkeypatch):
    """
    A SIGTERM to one rank ends all with code 143. The same command trains every other step once. Every loss, the
    fingerprint of every step, and the weights at the end are those of the recipe that was left alone.
    """
    alone, taken = tmp_path / "alone", tmp_path / "taken"
    monkeypatch.chdir(tmp_path)
    signalled = {"SIGTERM_AT": str(taken / "log.csv"), "SIGTERM_RANK": str(ranks - 1)}
    assert exit_codes(start(name, arguments, ranks, taken, **signalled)) == [143] * ranks, printed(taken)
    assert exit_codes(start(name, arguments, ranks, alone)) == [0] * ranks, printed(alone)
    left = newest_step(taken)
    assert exit_codes(start(name, arguments, ranks, taken)) == [0] * ranks, printed(taken)

    assert_same(taken, alone, left)


@pytest.mark.soak
@pytest.mark.timeout(3 * DEADLINE_S)
def test_a_preempted_recipe_that_accelerate_launches_is_the_one_left_alone(tmp_path):
    """The same for LoRA of a model in 4 bits under FSDP2, by the command of its README."""
    recipe = EXAMPLES / "lora_70b_fsdp2"

    def launch_in(folder, **environment):
        folder.mkdir(exist_ok=True)
        launcher = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(recipe / "two_cpus.yaml")]
        program = [str(RUN), str(recipe / "train.py"), "--nf4", "--steps", str(NUM_STEPS), "--every-steps", "20"]
        where = ["--url", f"file://{folder}/run", "--csv", f"{folder}/log.csv", "--out", f"{folder}/out"]
        environment |= {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        with (folder / "output-0.txt").open("ab") as output:
            return subprocess.Popen(
                [*launcher, f"--main_process_port={free_port()}", *program, *where],
                env=environment,
                stdout=output,
                stderr=output,
                cwd=folder,
            )

    alone, taken = tmp_path / "alone", tmp_path / "taken"
    signalled = launch_in(taken, SIGTERM_AT=str(taken / "log.csv"), SIGTERM_RANK="1")
    assert signalled.wait(DEADLINE_S) == 1, "the launcher's own code, whatever the ranks' are"
    assert launch_in(alone).wait(DEADLINE_S) == 0, printed(alone)
    left = newest_step(taken)
    assert launch_in(taken).wait(DEADLINE_S) == 0, printed(taken)

    assert_same(taken, alone, left)


def assert_same(taken, alone, left):
    """Check that *taken* was preempted after step *left*, and that nothing else tells it from *alone*."""
    assert f"step {left} is stored; leaving with code 143" in printed(taken)
    assert left < NUM_STEPS
    assert f"resumed from step {left} " in printed(taken)
    assert [int(step) for step, *_ in rows(alone)] == list(range(1, NUM_STEPS + 1))
    assert rows(taken) == rows(alone)
    losses = [float(loss) for _, loss, *_ in rows(alone)]
    assert sum(losses[-8:]) < sum(losses[:8]), "it learns"
    assert compare_runs(str(taken / "run"), str(alone / "run")) == []
    # By their bytes, because some of those of weights in 4 bits are not a number.
    weights = [load_weights(f"file://{folder}/run") for folder in (taken, alone)]
    assert_equal(*({name: each.flatten().view(torch.uint8) for name, each in state.items()} for state in weights))
