"""The settings of all drill programs, in one place: one value, checked where a test makes it, JSON on its way."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

Place: TypeAlias = list[Any]
"""An exact place in a training: a word and numbers, such as ``["backward", 11]``. See :mod:`drill`."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """One training. A name that is none of these fails in the test, before anything is started."""

    folder: str
    """The place of all files that the program writes."""
    url: str | None = None
    """The run; None is ``run`` in the folder."""
    ranks: int = 1

    # the training
    samples: int = 40
    epochs: int = 3
    every_steps: int = 5
    loader: str = "elastic"
    workers: int = 0
    persistent: bool = False
    trainer: dict[str, Any] = field(default_factory=dict)
    """Arguments of the host's trainer."""
    callbacks: list[str] = field(default_factory=list)
    """Names of further callbacks of Lightning."""
    manual: int = 0
    """Optimize by hand, in every so many batches; 0 is Lightning's own way."""
    plateau: str | None = None
    """Interval of a scheduler that looks at a metric: ``step`` or ``epoch``."""
    monitor: str | None = None
    """That metric; None is the loss of training by steps, of validation by epochs."""
    augment: bool = True
    stop_at: int | None = None
    """Number of the batch in which Lightning is asked to stop."""
    accumulate: int = 1
    sampling: str = "random"  # train_sampling_strategy of a Trainer
    output: str = "output"
    """Folder of the checkpoints of a Trainer itself. ``{rank}`` in it is the rank, as if each had a disk of its own."""
    lora: bool = False
    """True if the model is frozen and has adapters."""
    reference: bool = False
    """True if a trainer of TRL is given a reference model."""
    scaler: bool = False
    validate: str = "epoch"
    """Place of the validation under Accelerate: after an ``epoch``, or in the ``head`` or ``body`` of the loop."""
    other: str | None = None
    """Use of a second loader under Accelerate."""
    dataloader: dict[str, Any] = field(default_factory=dict)
    """Arguments of Accelerate's ``DataLoaderConfiguration``. The loaders are plain ones then."""
    stuck: bool = False
    """True if workers get stuck."""

    # the interruption, see drill.py
    at: Place | None = None
    to: list[tuple[int, float]] | None = None
    signal: str | None = None
    slow: Place | None = None
    freeze: Place | None = None
    wait_at: Place | None = None

    # elastic_train
    host: str | None = None
    wrapper: str = "ddp"
    batch: int = 2
    drop_last: bool = False
    elastic_batch: str | None = None
    frequency: int = 1
    """Batches from one step of Lightning's schedule to the next."""
    stop_in: int | None = None
    """Step from which on the last rank is preempted."""

    # start_train
    endpoints: list[str] = field(default_factory=list)
    """The endpoint of the store, for each rank."""
    patience_s: float | None = None
    """Patience at the start and the end. None: that of the package."""

    # outage_train, dying_trainer and start_train
    config: dict[str, Any] = field(default_factory=dict)
    """Fields of the session's ``SpotConfig``."""
    goes_on: bool = True
    """True if anything is trained after the resume."""
    death: str | None = None

    @property
    def run(self) -> str:
        """The URL of the run."""
        return self.url or f"file://{self.folder}/run"

    @property
    def path(self) -> Path:
        """The folder."""
        return Path(self.folder)

    def encode(self) -> str:
        """Return the settings as one argument of a command."""
        return json.dumps(asdict(self))

    @classmethod
    def decode(cls, text: str) -> Settings:
        """Return the settings that are such an argument."""
        return cls(**json.loads(text))
