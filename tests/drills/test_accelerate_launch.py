"""The configuration files of examples/accelerate_configs for CPUs, started by ``accelerate launch``."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from exactness import assert_equal, events_of, newest_step
from launching import PROGRAMS, start, train
from ports import free_port

CONFIGS = Path(__file__).parents[2] / "examples" / "accelerate_configs"
OPTIONS = {"two_cpus.yaml": [], "two_cpus_fsdp2.yaml": ["--fsdp_transformer_layer_cls_to_wrap", "Linear"]}
"""The configurations, and what the model of the drill needs beside them."""
CASES = [pytest.param("two_cpus.yaml", "ddp", marks=pytest.mark.soak), ("two_cpus_fsdp2.yaml", "fsdp2")]


@pytest.mark.timeout(600)  # it starts twelve processes that import torch
@pytest.mark.parametrize(("config", "wrapper"), CASES)
def test_a_preempted_training_is_bit_for_bit_the_one_left_alone(config, wrapper, tmp_path):
    """
    A SIGTERM to one of two ranks, and the same command again: every loss, the weights and the optimizer are those of
    two ranks that were left alone.
    """
    settings = {"host": "accelerate", "wrapper": wrapper, "samples": 48, "ranks": 2}
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(CONFIGS / config)]

    def launch(**more):
        command = [
            *launcher,
            f"--main_process_port={free_port()}",
            *OPTIONS[config],
            str(PROGRAMS / "elastic_train.py"),
        ]
        return start(command, tmp_path / "resumed", {**settings, **more}, {"ACCELERATE_USE_CPU": "true"}).wait(240)

    train("elastic_train", tmp_path / "alone", settings, expect=0)
    assert launch(stop_in=17) == 1, "the launcher's own code, whatever the ranks' are"
    left = [event for rank in range(2) for event in events_of(tmp_path / "resumed", rank, "Leaving")]
    assert [event["durable"] for event in left] == [True, True]
    assert {event["step"] for event in left} == {newest_step(tmp_path / "resumed")}
    assert launch() == 0, (tmp_path / "resumed" / "output.txt").read_text()[-3000:]

    alone, resumed = ((tmp_path / name / "trace.jsonl").read_text().splitlines() for name in ("alone", "resumed"))
    assert sorted(map(json.loads, resumed)) == sorted(map(json.loads, alone))
    assert_equal(*(torch.load(tmp_path / name / "final.pt", weights_only=False) for name in ("alone", "resumed")))
