"""
Private names of the callbacks that transformers has for TensorBoard, W&B and MLflow.

Checked against transformers 5.23 with tensorboard 2.21, wandb 0.31 and mlflow 3.17. No other module of this package
touches a private name of these callbacks.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from copy import copy
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

from transformers import Trainer
from transformers.integrations import MLflowCallback, TensorBoardCallback, WandbCallback

from .internals import TRANSFORMERS


class Tracker(NamedTuple):
    """A kind of tracker."""

    kind: type[Any]
    """The class of its callback."""

    attributes: tuple[str, ...]
    """Attributes of the callback that this module uses."""

    state: Callable[[Trainer, Any], dict[str, Any]]
    """Return the name of the run that the callback logs to as "run", with what else the next process needs."""

    resume: Callable[[Trainer, Any, Mapping[str, Any], int], None]
    """Let the callback continue the run of a state, and log from a step on. Raises what the tracker raises."""


def trackers(trainer: Trainer) -> Iterator[tuple[str, Tracker, Any]]:
    """Yield the name, the kind and the callback of each tracker that this rank reports to. Only one rank has any."""
    if not trainer.is_world_process_zero():
        return
    for callback in trainer.callback_handler.callbacks:
        for name, tracker in TRACKERS.items():
            if isinstance(callback, tracker.kind):
                TRANSFORMERS.require(tracker.kind.__name__, callback, tracker.attributes)
                yield name, tracker, callback


def _tensorboard_state(trainer: Trainer, callback: Any) -> dict[str, Any]:
    """Return the folder. If it is below ``output_dir``, from there on, because the next process may have another."""
    if callback.tb_writer is None or callback.logging_dir is None:
        return {}
    folder = os.path.relpath(callback.logging_dir, trainer.args.output_dir)
    return {"run": callback.logging_dir if folder.startswith(os.pardir) else folder}


def _resume_tensorboard(trainer: Trainer, callback: Any, state: Mapping[str, Any], step: int) -> None:
    """
    Write into the same folder, unless the program has chosen another one.

    What the folder has of *step* and later steps counts no more. What the history of the trainer has of them is written
    again. If there is nothing in the folder, all that the history has is written.
    """
    if callback.tb_writer is not None:
        return
    folder = callback.logging_dir or os.path.join(trainer.args.output_dir, state["run"])
    if not any(Path(folder).glob("events.out.tfevents.*")):
        step = 0
    callback.tb_writer = callback._SummaryWriter(log_dir=folder, purge_step=step)
    callback.logging_dir = folder
    _log_history(trainer, callback, step)


def _log_history(trainer: Trainer, callback: Any, step: int) -> None:
    """Log again what the history of the trainer has from *step* on."""
    for entry in trainer.state.log_history:
        if entry.get("step", -1) >= step:
            state = copy(trainer.state)
            state.global_step = entry["step"]
            logs = {name: value for name, value in entry.items() if name != "step"}
            callback.on_log(trainer.args, state, trainer.control, logs=logs)


def _wandb_state(trainer: Trainer, callback: Any) -> dict[str, Any]:
    run = callback._wandb.run
    return {} if run is None else {"run": run.id, "rows": run.step}


def _resume_wandb(trainer: Trainer, callback: Any, state: Mapping[str, Any], step: int) -> None:
    """
    Begin the run as the callback would, which takes the one that there is. A run of the program counts more.

    W&B knows a row by its number. Online, the server says how many rows there are. Offline, a process would count from
    0 again. So rows that a killed process has logged after the saved step have the same numbers as those that replace
    them.
    """
    wandb, run = callback._wandb, state["run"]
    if wandb.run is None and os.environ.get("WANDB_RUN_ID", run) == run:
        project = os.getenv("WANDB_PROJECT", "huggingface")
        wandb.init(project=project, name=trainer.args.run_name, id=run, resume="allow")
    if wandb.run is not None and wandb.run.id == run and wandb.run.step < state["rows"]:
        wandb.run.log({}, step=state["rows"])


MLFLOW_RUN: Final = "MLFLOW_RUN_ID"
"""Variable of the run that MLflow continues."""


def _mlflow_state(trainer: Trainer, callback: Any) -> dict[str, Any]:
    run = callback._ml_flow.active_run()
    return {} if run is None else {"run": run.info.run_id}


def _resume_mlflow(trainer: Trainer, callback: Any, state: Mapping[str, Any], step: int) -> None:
    """
    Begin the run, and leave out what it has already. A run of the program counts more.

    MLflow logs in a thread of its own, so a killed process may have logged less than it has stored.
    """
    mlflow, run = callback._ml_flow, state["run"]
    if mlflow.active_run() is None and os.environ.get(MLFLOW_RUN, run) == run:
        os.environ[MLFLOW_RUN] = run
        try:
            callback.setup(trainer.args, trainer.state, trainer.model)
        finally:
            os.environ.pop(MLFLOW_RUN, None)  # if MLflow has not done it
    if _mlflow_state(trainer, callback).get("run") != run:
        return
    client = mlflow.MlflowClient()
    names = [name for name in client.get_run(run).data.metrics if not name.startswith("system/")]
    known = {name: {each.step for each in client.get_metric_history(run, name)} for name in names}
    callback.on_log = partial(_log_unknown, type(callback).on_log, callback, known)
    _log_history(trainer, callback, 0)


def _log_unknown(
    on_log: Callable[..., None],
    callback: Any,
    known: Mapping[str, set[int]],
    args: Any,
    state: Any,
    control: Any,
    logs: Mapping[str, Any],
    **kwargs: Any,
) -> None:
    """Log what MLflow does not have of this step."""
    unknown = {name: value for name, value in logs.items() if state.global_step not in known.get(_of_mlflow(name), ())}
    if unknown:
        on_log(callback, args, state, control, logs=unknown, **kwargs)


def _of_mlflow(name: str) -> str:
    """Return *name* as the callback changes it for MLflow."""
    return re.sub(r"[^0-9A-Za-z_\-\.\ :/]", "_", name)


TRACKERS: Final = {
    "tensorboard": Tracker(
        TensorBoardCallback, ("logging_dir", "tb_writer", "_SummaryWriter"), _tensorboard_state, _resume_tensorboard
    ),
    "wandb": Tracker(WandbCallback, ("_wandb",), _wandb_state, _resume_wandb),
    "mlflow": Tracker(MLflowCallback, ("setup", "_ml_flow"), _mlflow_state, _resume_mlflow),
}
"""The trackers that a resumed process continues, by their names in ``report_to``."""
