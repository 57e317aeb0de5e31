"""The blocks of docs/tutorials/bare.md are programs that run, are preempted and continue."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from launching import exit_codes, launch
from ports import free_port

PAGE = (Path(__file__).parents[2] / "docs/tutorials/bare.md").read_text()
TRAIN, TENSOR_PARALLEL, FABRIC, SHARDED = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
DDP = "    model = DistributedDataParallel(model)\n"
LOADER = "elastic_loader(dataset, batch_size=32, seed=7)"

PREEMPTED = """
import builtins, os, signal
from hearing import until_notice

def print(text, **how):
    builtins.print(text, **how)
    if text.startswith("step {step},"):
        os.kill(os.getpid(), signal.SIGTERM)
        until_notice()  # all other steps take less time than that

"""
"""The beginning of a program whose machine is taken after a step."""


def start(code, folder, *, step=None, ranks=1):
    """Start *code* in *folder*. The last rank is preempted after *step*. Return the exit codes of the ranks."""
    code = re.sub(r'"spot-run/\w+"', f'"file://{folder}/run"', code).replace("time.sleep(0.02)", "pass")
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(ranks)}
    processes = []
    for rank in range(ranks):
        program = folder / f"train-{rank}.py"
        program.write_text((PREEMPTED.format(step=step) if step and rank == ranks - 1 else "") + code)
        environment = shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)} if ranks > 1 else {}
        output = folder / f"output-{rank}.txt"
        processes.append(launch("example_run", (str(program), []), environment=environment, output=output))
    return exit_codes(processes)


def printed(folder, rank=0):
    return (folder / f"output-{rank}.txt").read_text()


def losses(folder):
    return re.findall(r"^step .*", printed(folder), re.MULTILINE)


@pytest.mark.parametrize("code", [TRAIN, FABRIC], ids=["plain", "fabric"])
def test_the_program_continues_with_the_losses_of_one_left_alone(code, tmp_path):
    """It leaves with code 143 after step 50, and the same command prints the rest of the same losses."""
    alone, taken = tmp_path / "alone", tmp_path / "taken"
    alone.mkdir()
    taken.mkdir()

    assert start(code, alone) == [0], printed(alone)[-3000:]
    assert start(code, taken, step=50) == [143], printed(taken)[-3000:]
    assert start(code, taken) == [0], printed(taken)[-3000:]

    assert len(losses(alone)) == 5
    assert losses(taken) == losses(alone)
    [left] = re.findall(r"resumed from step (\d+)", printed(taken))
    assert 50 <= int(left) < 250


def test_two_ranks_leave_together_and_one_continues_with_as_many_samples_per_step(tmp_path):
    """A SIGTERM to one rank is one to both. One rank accumulates two batches and ends at the step of two ranks."""
    assert start(TRAIN, tmp_path, step=50, ranks=2) == [143, 143], printed(tmp_path)[-3000:]
    assert start(TRAIN, tmp_path) == [0], printed(tmp_path)[-3000:]

    said = "gradient_accumulation_steps=2 on 1 processes: an optimizer step is made of 2 batches, as before"
    assert said in printed(tmp_path)
    assert "step 125 is stored" in printed(tmp_path) or "step 100," in printed(tmp_path)


MODULE = "model, optimizer = fabric.setup(model, torch.optim.AdamW(model.parameters(), lr=1e-3))\n"


@pytest.mark.soak
@pytest.mark.parametrize("block", [MODULE, SHARDED], ids=["setup", "setup_module"])
def test_two_ranks_of_fabric_continue_with_the_losses_of_ones_left_alone(block, tmp_path):
    """DDP on two ranks, of which one is preempted. Both ways to set the model up."""
    assert MODULE in FABRIC
    code = FABRIC.replace("devices=1", 'devices=2, strategy="ddp"').replace(MODULE, block)
    alone, taken = tmp_path / "alone", tmp_path / "taken"
    alone.mkdir()
    taken.mkdir()

    assert start(code, alone, ranks=2) == [0, 0], printed(alone)[-3000:]
    assert start(code, taken, step=50, ranks=2) == [143, 143], printed(taken)[-3000:]
    assert start(code, taken, ranks=2) == [0, 0], printed(taken)[-3000:]

    for rank in range(2):
        lines = [re.findall(r"^step .*", printed(folder, rank), re.MULTILINE) for folder in (alone, taken)]
        assert lines[0] == lines[1]
        assert len(lines[0]) == 2


def test_ranks_that_share_each_sample_continue(tmp_path):
    """The block on tensor parallelism, in place of DDP: both ranks train on each batch."""
    assert DDP in TRAIN
    assert LOADER in TRAIN
    code = TRAIN.replace(LOADER, "loader").replace(DDP, re.sub("^", "    ", TENSOR_PARALLEL, flags=re.MULTILINE))

    assert start(code, tmp_path, step=50, ranks=2) == [143, 143], printed(tmp_path)[-3000:]
    assert start(code, tmp_path, ranks=2) == [0, 0], printed(tmp_path)[-3000:]

    assert [line.split(",")[0] for line in losses(tmp_path)] == [f"step {step}" for step in (50, 100, 150, 200, 250)]
