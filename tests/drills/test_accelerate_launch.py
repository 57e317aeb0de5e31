"""The configuration files of examples/accelerate_configs, started by ``accelerate launch``, on CPUs."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from exactness import assert_equal, events_of, newest_step
from hearing import DEADLINE_S
from launching import PROGRAMS, start, train
from ports import free_port

CONFIGS = Path(__file__).parents[2] / "examples" / "accelerate_configs"
ON_CPUS = ["--mixed_precision", "no"]
"""Options that let a configuration for GPUs compute on CPUs as the training that is left alone does."""
LINEAR = ["--fsdp_transformer_layer_cls_to_wrap", "Linear"]
"""The layer that FSDP shards in the drill's model."""
LOADED_BY_ALL = ["--fsdp_cpu_ram_efficient_loading", "false", "--fsdp_sync_module_states", "false"]
"""Without these, rank 0 alone loads the weights and sends them over its GPU."""
CASES = [
    ("two_cpus_fsdp2.yaml", LINEAR, "fsdp2", 2),
    *(
        pytest.param(*case, marks=pytest.mark.soak)
        for case in (
            ("one_cpu.yaml", [], "ddp", 1),
            ("single_gpu.yaml", ON_CPUS, "ddp", 1),
            ("two_cpus.yaml", [], "ddp", 2),
            ("ddp.yaml", ON_CPUS, "ddp", 2),
            ("fsdp1.yaml", [*ON_CPUS, *LINEAR, *LOADED_BY_ALL], "fsdp1", 2),
            ("fsdp2.yaml", [*ON_CPUS, *LINEAR, *LOADED_BY_ALL], "fsdp2", 2),
            ("several_nodes.yaml", [*ON_CPUS, "--num_processes", "2", "--main_process_ip", "127.0.0.1"], "ddp", 2),
        )
    ),
]
"""Configuration, what its command needs beside it, how the drill spreads its model, and number of ranks."""


def launch_and_wait(config, options, settings, folder):
    """Run ``accelerate launch`` with *config*, on each of its machines. Return the exit codes."""
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(CONFIGS / config)]
    launcher += [f"--main_process_port={free_port()}", *options]
    machines = [["--machine_rank", str(rank)] for rank in range(2)] if config == "several_nodes.yaml" else [[]]
    program = str(PROGRAMS / "elastic_train.py")
    processes = [
        start([*launcher, *machine, program], folder, settings, {"ACCELERATE_USE_CPU": "true"}) for machine in machines
    ]
    return [process.wait(DEADLINE_S) for process in processes]


@pytest.mark.timeout(3 * DEADLINE_S)  # it starts up to twelve processes that import torch
@pytest.mark.parametrize(("config", "options", "wrapper", "ranks"), CASES)
def test_a_preempted_training_is_bit_for_bit_the_one_left_alone(config, options, wrapper, ranks, tmp_path):
    """
    A SIGTERM to one rank, and the same command again: every loss, the weights and the optimizer are those of as many
    ranks that were left alone.
    """
    settings = {"host": "accelerate", "wrapper": wrapper, "samples": 48, "ranks": ranks}

    train("elastic_train", tmp_path / "alone", settings, expect=0)
    codes = launch_and_wait(config, options, {**settings, "stop_in": 17}, tmp_path / "resumed")
    assert set(codes) == {1}, "the launcher's own code, whatever the ranks' are"
    left = [event for rank in range(ranks) for event in events_of(tmp_path / "resumed", rank, "Leaving")]
    assert [event["durable"] for event in left] == [True] * ranks
    assert {event["step"] for event in left} == {newest_step(tmp_path / "resumed")}
    codes = launch_and_wait(config, options, settings, tmp_path / "resumed")
    assert set(codes) == {0}, (tmp_path / "resumed" / "output.txt").read_text()[-3000:]

    alone, resumed = ((tmp_path / name / "trace.jsonl").read_text().splitlines() for name in ("alone", "resumed"))
    assert sorted(map(json.loads, resumed)) == sorted(map(json.loads, alone))
    assert_equal(*(torch.load(tmp_path / name / "final.pt", weights_only=False) for name in ("alone", "resumed")))
