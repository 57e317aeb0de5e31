"""
The trackers of a Trainer continue one run after a kill and after a notice, and have each step once.

Real trackers in real processes. They are in no extra of this package, because tensorboard changes the default logger of
Lightning: `pip install tensorboard wandb mlflow-skinny`.
"""

from __future__ import annotations

import sys

import pytest
from exactness import assert_same_training, resumed_steps
from launching import PROGRAMS, start

pytestmark = pytest.mark.soak

TIMES = ("_runtime", "_per_second", "_preparation_time")
"""Ends of the names of what a log has and no two trainings have in common."""

LIVES = [(["batch", 7], "SIGKILL", -9), (["val", 6], "SIGTERM", 143), (None, None, 0)]
"""
A kill in the seventh step, when the fourth one is saved and logged, and its evaluation too. Then a notice in the second
evaluation, that of the eighth step, in a process that has repeated the first one. The last process ends the training.
"""


def train(folder, tracker, lives, **settings):
    """Train in *folder* by *lives*, in processes that end as those of a user do."""
    folder.mkdir(exist_ok=True)
    arguments = {"report_to": [tracker], "logging_steps": 1, "eval_strategy": "steps", "eval_steps": 4}
    settings = {"samples": 21, "batch": 2, "epochs": 2, "every_steps": 4, "trainer": arguments} | settings
    for at, signal, code in lives:
        command = [sys.executable, str(PROGRAMS / "trainer_train.py")]
        process = start(command, folder, settings | {"at": at, "signal": signal})
        assert process.wait(240) == code, (folder / "output.txt").read_text()[-3000:]


def without_own(curves):
    """Return *curves* without those that differ in any two trainings."""
    return {name: curve for name, curve in curves.items() if not name.endswith(TIMES) and "spot/" not in name}


def tensorboard_curves(folder):
    """Return what TensorBoard shows of the only run in *folder*: a list of steps and values by name."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    [run] = (folder / "output/runs").iterdir()
    shown = EventAccumulator(str(run), size_guidance={"scalars": 0})
    shown.Reload()
    return {name: [(each.step, each.value) for each in shown.Scalars(name)] for name in shown.Tags()["scalars"]}


def test_tensorboard(tmp_path):
    """One folder, the curves of a training that was left alone. They are whole, too, if the folder was lost."""
    pytest.importorskip("tensorboard")
    alone, interrupted, lost = (tmp_path / name for name in ("alone", "interrupted", "lost"))
    train(alone, "tensorboard", LIVES[-1:])
    train(interrupted, "tensorboard", LIVES)
    train(lost, "tensorboard", LIVES[:1], output="first")
    train(lost, "tensorboard", LIVES[2:])

    assert resumed_steps(interrupted, 0) == [4, 8]
    assert_same_training(interrupted, alone, 1)
    expected = without_own(tensorboard_curves(alone))
    assert [step for step, _ in expected["train/loss"]] == list(range(1, 23))
    assert without_own(tensorboard_curves(interrupted)) == expected
    assert without_own(tensorboard_curves(lost)) == expected


def mlflow_curves(folder):
    """Return what the only run in *folder* has: a list of steps and values by name."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    [run] = client.search_runs(["0"])
    assert run.info.status == "FINISHED"
    curves = {name: client.get_metric_history(run.info.run_id, name) for name in run.data.metrics}
    return {name: sorted((each.step, each.value) for each in curve) for name, curve in curves.items()}
