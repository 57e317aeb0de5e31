"""The state of a ``Trainer`` beside model, optimizer and data: its log, its counters, its callbacks, what is due."""

from __future__ import annotations

import dataclasses
import json
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

from transformers import Trainer
from transformers.trainer_callback import ExportableState

from ..errors import ConfigError
from . import internals, trl_internals
from .hook import SAMPLES
from .trackers import Trackers

OF_PROCESS: Final = frozenset(
    {
        "eval_steps",
        "is_hyper_param_search",
        "is_local_process_zero",
        "is_world_process_zero",
        "logging_steps",
        "max_steps",
        "num_train_epochs",
        "save_steps",
        "stateful_callbacks",
        "train_batch_size",
        "trial_name",
        "trial_params",
    }
)
"""Fields of a ``TrainerState`` that follow from the program and its arguments. They are not restored."""


@dataclass(kw_only=True, slots=True)
class Place:
    """The place in the training that the saved step stands at, and what is left to do for that step."""

    updates: int = 0
    """Steps of the epoch that are done."""

    at_epoch_end: bool = False
    """True if the callbacks of the end of the epoch have run."""

    evaluate: bool = False
    """True if an evaluation belongs to the step and is not done."""

    save: bool = False
    """True if a checkpoint of the trainer itself belongs to the step and is not written."""

    stops_epoch: bool = False
    """True if a callback has ended the epoch early."""

    stops_training: bool = False
    """True if a callback has ended the training, or its last step is done."""

    grad_norm: Any = None
    """The norm of the gradients of the step, for a log at the end of the epoch."""

    learning_rate: Any = None
    """The learning rate of the step, for the same log."""

    @property
    def is_due(self) -> bool:
        """True if something of the step is left to do."""
        return self.evaluate or self.save


class TrainerPart:
    """
    The state of the trainer, as a part to save.

    A resumed process sets the fields of ``trainer.state`` at once. The counters of the loss are set by
    :meth:`restore_counters`, because the training loop sets them to 0 when it begins.
    """

    def __init__(self, trainer: Trainer, samples_per_step: int) -> None:
        self.place = Place()
        self.is_loaded = False
        self.is_longer = False
        """True if the training had ended, and the program has more steps now."""
        self.trackers = Trackers(trainer)
        self._trainer = trainer
        self._samples_per_step = samples_per_step
        self._counters: dict[str, Any] = {}
        self._tracked: dict[str, dict[str, Any]] = {}

    def state_dict(self) -> dict[str, Any]:
        """Return the state. Log and callbacks are JSON, as in the checkpoints of the trainer itself."""
        trainer, control = self._trainer, self._trainer.control
        place = dataclasses.replace(
            self.place,
            evaluate=self.place.evaluate or control.should_evaluate,
            save=self.place.save or control.should_save,
            stops_epoch=control.should_epoch_stop,
            stops_training=control.should_training_stop,
        )
        fields = {name: value for name, value in vars(trainer.state).items() if name not in OF_PROCESS}
        return {
            "state": json.dumps(fields, default=_for_json),
            "callbacks": json.dumps([[name, each.state()] for name, each in self._exportable()], default=_for_json),
            "metrics": json.dumps(trl_internals.metrics(trainer), default=_for_json),
            "generations": trl_internals.generations(trainer) if trl_internals.generates(trainer) else None,
            "counters": internals.loss_counters(trainer),
            "place": {each.name: _plain(getattr(place, each.name)) for each in dataclasses.fields(place)},
            "max_steps": trainer.state.max_steps,
            "trackers": self.trackers.state(),
            SAMPLES: self._samples_per_step,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what can be restored before the training loop begins."""
        trainer = self._trainer
        vars(trainer.state).update(json.loads(state["state"]))
        saved = json.loads(state["callbacks"])
        for name, callback in self._exportable():
            mine = next((each for each in saved if each[0] == name), None)
            if mine is not None:
                saved.remove(mine)
                vars(callback).update(mine[1]["attributes"])
        trl_internals.set_metrics(trainer, json.loads(state["metrics"]))
        if (generations := state.get("generations")) is not None:
            _check_shape(trainer, generations["shape"])
            trl_internals.set_generations(trainer, generations)
        self._counters = state["counters"]
        self._tracked = state.get("trackers", {})
        self.place = Place(**state["place"])
        # A training that its last step has ended goes on if the program has more steps now.
        if state["max_steps"] <= trainer.state.global_step < trainer.state.max_steps:
            self.place.stops_training, self.is_longer = False, True
        elif trainer.state.global_step >= trainer.state.max_steps:
            self.place.stops_training = True  # the program has fewer steps now, and the loop would make one more
        self.is_loaded = True

    def resume_trackers(self) -> None:
        """Let the trackers continue their runs. The log of the saved step comes again if more of it is left to do."""
        has_more = self.place.is_due or self.place.stops_training
        self.trackers.resume(self._tracked, self._trainer.state.global_step + (not has_more))

    def restore_counters(self) -> None:
        """Restore the counters of the loss. Call it after the training loop has set them to 0."""
        if self.is_loaded:
            internals.set_loss_counters(self._trainer, self._counters)

    def _exportable(self) -> list[tuple[str, Any]]:
        callbacks = self._trainer.callback_handler.callbacks
        return [(type(each).__name__, each) for each in callbacks if isinstance(each, ExportableState)]


def _check_shape(trainer: Trainer, before: dict[str, int]) -> None:
    """Raise :exc:`ConfigError` if a generation is divided into batches in another way than *before*."""
    for name, now in trl_internals.shape_of_generations(trainer).items():
        if now != before[name]:
            raise ConfigError(
                f"{name}={now} differs from {name}={before[name]} in the checkpoint, so the generation that was "
                f"begun does not fit this process. Use the same settings and ranks as before, or start a new run"
            )


def _plain(value: Any) -> Any:
    """Return *value*, a number of numpy or torch as one of Python."""
    return value.item() if hasattr(value, "item") else value


def _for_json(value: Any) -> Any:
    with suppress(AttributeError, RuntimeError, ValueError):  # no number, or several
        return value.item()
    raise ConfigError(
        f"a callback of the trainer, or its log, has a {type(value).__name__}, which JSON does not hold. Let its state "
        f"be numbers, texts, lists and dicts"
    )
