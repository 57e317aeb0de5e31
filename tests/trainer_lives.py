"""Trainings with transformers' Trainer in this process, interrupted at a chosen place and started again."""

from __future__ import annotations

import json
import os
import signal
import threading

import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from contract.hosts.lives import differences
from hearing import remove, until
from torch import nn
from transformers import Trainer, TrainerCallback, TrainingArguments, set_seed

from spot_plugins.errors import Preempted
from spot_plugins.events import Committed
from spot_plugins.transformers import SpotTrainerCallback

FIGURES = "spot/"
"""Begin of the names of the figures of a run, which no two runs have in common."""
TIMES = ("_runtime", "_per_second", "_preparation_time")
"""Ends of the names of what a log has and no two trainings have in common."""


class Killed(Exception):  # noqa: N818 - not an error of the program
    """The machine is gone: nothing is saved on the way out."""


class Numbers(torch.utils.data.Dataset):
    """Sample i is a vector that depends on i, and noise that is drawn."""

    def __init__(self, length):
        self.length = length

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        x = torch.sin(torch.arange(1.0, 5.0) * (index + 1)) + 0.1 * torch.randn(4)
        return {"x": x, "number": index, "labels": torch.tensor(index % 3)}


def masked(samples):
    """Collate, and mask some values at random, as masked language modelling does."""
    batch = torch.utils.data.default_collate(samples)
    return batch | {"x": batch["x"] * (torch.rand(batch["x"].shape) > 0.15)}


class Net(nn.Module):
    """Records which samples each batch had, and the loss, by the step that it belongs to."""

    def __init__(self, trace):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 6), nn.Dropout(0.2), nn.Tanh(), nn.Linear(6, 3))
        self.record = trace
        self.state = None

    def forward(self, x, labels, number=None):
        logits = self.layers(x)
        loss = nn.functional.cross_entropy(logits, labels)
        self.record("train" if self.training else "evaluate", number.tolist(), loss.item())
        return {"loss": loss, "logits": logits}


class Interrupt(TrainerCallback):
    """
    Interrupts one life.

    *where* is "train" or "evaluate", *at* the number of the batch of that kind in this life, from 1, *how* "notice" or
    "kill".
    """

    def __init__(self, how, where, at):
        self.how, self.where, self.at = how, where, at
        self.spot = None
        self.num = 0
        self.committed = threading.Event()

    def on_event(self, event):
        if isinstance(event, Committed):
            self.committed.set()

    def __call__(self, where):
        """End this life if it is time. Called for each batch, in its forward pass."""
        self.num += where == self.where
        if self.num != self.at or where != self.where:
            return
        self.num += 1  # once
        if self.how == "kill":
            assert self.committed.wait(300)
            raise Killed
        os.kill(os.getpid(), signal.SIGTERM)
        session = self.spot._attached.fit.hook._session
        until(lambda: session.notice is not None, "the notice is known")


class Life:
    """One life of a program. *change* gets the keyword arguments of the trainer before it is made."""

    def __init__(self, url, folder, interrupt=None, *, change=None, every_steps=100, make=Trainer, **settings):
        for each in (AcceleratorState, PartialState, GradientState):
            each._reset_state()
        set_seed(1)
        self.url, self.interrupt, self.trace, self.log, self.order = url, interrupt, {}, [], []
        quiet = {"report_to": [], "disable_tqdm": True, "use_cpu": True, "save_strategy": "no", "logging_steps": 2}
        usual = {
            "per_device_train_batch_size": 2,
            "per_device_eval_batch_size": 2,
            "num_train_epochs": 2,
            "learning_rate": 0.02,
            "label_names": ["labels"],
        }
        arguments = TrainingArguments(output_dir=str(folder), remove_unused_columns=False, **(quiet | usual | settings))
        on_event = [interrupt.on_event] if interrupt else []
        self.spot = SpotTrainerCallback(url, every_steps=every_steps, grace_seconds=60, on_event=on_event)
        callbacks = [self.spot, Logged(self.log)]
        if interrupt:
            interrupt.spot = self.spot
        given = {
            "model": Net(self.record),
            "args": arguments,
            "train_dataset": Numbers(21),
            "eval_dataset": Numbers(5),
            "data_collator": masked,
            "callbacks": callbacks,
        }
        self.trainer = make(**(change(given) if change else given))

    def record(self, where, numbers, loss):
        step = self.trainer.state.global_step
        key = (where, step, sum(known[:2] == (where, step) for known in self.order))
        self.order.append((where, step))
        if where == "evaluate":
            key = (where, step, *numbers)
        self.trace[key] = (numbers, loss)
        if self.interrupt:
            self.interrupt(where)

    def run(self, **arguments):
        """Train until the end, or until it is interrupted. Return how it has ended."""
        try:
            self.trainer.train(**arguments)
        except (Preempted, Killed) as error:
            return type(error).__name__
        return "finished"

    def state(self):
        """Return all that there is at the end."""
        trainer = self.trainer
        fields = {name: value for name, value in vars(trainer.state).items() if name != "stateful_callbacks"}
        fields["log_history"] = [without_times(each) for each in fields["log_history"]]
        return {
            "model": trainer.model.state_dict(),
            "optimizer": trainer.optimizer.state_dict(),
            "scheduler": trainer.lr_scheduler.state_dict(),
            "state": json.loads(json.dumps(fields, default=float)),
            "loss": [trainer._total_loss_scalar, trainer._globalstep_last_logged],
        }


class Logged(TrainerCallback):
    """Records what was logged, and at which step."""

    def __init__(self, log):
        self.log = log

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.log.append((state.global_step, without_times(logs)))


def without_times(log):
    return {name: value for name, value in log.items() if not name.endswith(TIMES) and not name.startswith(FIGURES)}


def assert_exact(folder, *interrupts, arguments=None, loses_output=False, **settings):
    """
    Interrupt a training as each of *interrupts* says, let it end, and compare it with one that was left alone.

    *arguments* are those of ``train()``, in every life. With *loses_output* each life is on a machine without the
    output of those before. Return the lives: the one that was left alone, and all others.
    """
    torch.set_num_threads(1)
    alone = Life(f"{folder}/control", folder / "output-control", **settings)
    assert alone.run(**(arguments or {})) == "finished"
    trace, lives = {}, [alone]
    for each in (*interrupts, None):
        life = Life(f"{folder}/run", folder / "output", Interrupt(*each) if each else None, **settings)
        lives.append(life)
        expected = {"notice": "Preempted", "kill": "Killed"}[each[0]] if each else "finished"
        assert life.run(**(arguments or {})) == expected
        if loses_output and each:
            remove(folder / "output")
        for key in trace.keys() & life.trace.keys():
            assert trace[key] == life.trace[key], key
        trace |= life.trace
    if all(how == "notice" for how, *_ in interrupts):
        assert [each for life in lives[1:] for each in life.log] == alone.log, "each step is logged once"
    assert len(life.trace) < len(alone.trace), "it must have continued, and not begun anew"
    assert trace == alone.trace
    final, expected = life.state(), alone.state()
    for state in (final["state"], expected["state"]):
        if state["best_model_checkpoint"]:
            state["best_model_checkpoint"] = os.path.basename(state["best_model_checkpoint"])
    assert final["state"] == expected["state"], differences(final["state"], expected["state"])
    assert differences(final, expected) == []
    return lives
