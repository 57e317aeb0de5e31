"""One call of ``trainer.train()``: its hook, its parts, and the way to the place where a run continues."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Final

from transformers import Trainer

from ..accelerate.internals import models
from ..errors import ConfigError
from ..guard import warn
from ..state import ModelPart
from ..state.part import Part
from . import internals, trl_internals
from .best import BestStep
from .hook import PART, TrainerHook
from .loaders import EpochBatches
from .part import TrainerPart

OTHER_ORDER: Final = (
    "resume_from_checkpoint={checkpoint} stands in the middle of an epoch, and this run has an order of samples of its "
    "own. In this epoch some samples come twice or never"
)


class Fit:
    """One training of a trainer, from the opening of the run to its end."""

    def __init__(self, trainer: Trainer, hook: TrainerHook, registered: Iterable[tuple[str, Part]]) -> None:
        self.hook = hook
        self.best = BestStep(trainer, hook)
        self.loader: Any = None
        """The prepared training loader."""
        self.prepared: Any = None
        """The model and the loader, from their preparation until the loop asks for them."""
        self.users_checkpoint: Any = None
        """The checkpoint of the trainer itself that the first process begins with."""
        self._trainer = trainer
        self._registered = registered
        self._part: TrainerPart | None = None
        self._epochs: Iterator[int] = iter(())
        self._last_step = 0
        self._continues_in: int | None = None  # the epoch of the saved step, until it is entered
        self._begun: int | None = None  # the epoch of which some updates are done, until it is entered

    @property
    def part(self) -> TrainerPart:
        """The state of the trainer."""
        assert self._part is not None, "the training has not begun"
        return self._part

    @property
    def is_resumed(self) -> bool:
        """True if this process continues from a step of the run."""
        return self._part is not None and self._part.is_loaded

    def begin(self, checkpoint: Any) -> None:
        """
        Look for the run, and let a step keep its number of samples.

        Args:
            checkpoint: The ``resume_from_checkpoint`` of the program, or None.

        Raises:
            ConfigError: A step cannot be made of as many samples as before.
        """
        found = self.hook.find_run(self._trainer.args)
        self.users_checkpoint = checkpoint or None
        samples = self.samples_per_step
        if found is not None:
            step, samples = found
            if checkpoint:
                self.hook.say(
                    f"resume_from_checkpoint={checkpoint} counts at the start of a run. This one continues from its "
                    f"own step {step}"
                )
                self.users_checkpoint = None
            self._keep_samples(samples)
        self._part = TrainerPart(self._trainer, samples)

    def resume(self, num_train_epochs: int, start: tuple[int, int]) -> tuple[int, int]:
        """
        Restore the newest step, and return the epoch and the batches of it that are done.

        Args:
            num_train_epochs: Epochs of the whole training.
            start: The place where the trainer would begin without the run.
        """
        trainer, part = self._trainer, self.part
        for name, each in (("lr-scheduler", trainer.lr_scheduler), (PART, part), *self._registered):
            self.hook.register(name, each)
        self._register_reference()
        progress = self.hook.resume()
        self._epochs = self.hook.epochs(num_train_epochs)
        self._last_step = trainer.state.global_step
        if not part.is_loaded:
            self.hook.count_from(trainer.state.global_step)
            # The intervals of the program count, not those of a checkpoint, in this process as in later ones.
            trainer.state.compute_steps(trainer.args, trainer.state.max_steps)
            if start[1]:
                warn(OTHER_ORDER.format(checkpoint=self.users_checkpoint))
                self._begun, part.place.updates = start[0], start[1] // trainer.args.gradient_accumulation_steps
            return start
        self.best.restore()
        part.resume_trackers()
        self._continues_in = self._begun = progress.epoch
        return progress.epoch, part.place.updates * trainer.args.gradient_accumulation_steps

    def enter(self, epoch: int) -> bool:
        """Begin *epoch*. Return True if it is the one of the step from which this process continues."""
        # More than one only if a checkpoint of the trainer itself stands in a later epoch.
        while next(self._epochs, epoch) < epoch:
            pass
        continues, is_begun = epoch == self._continues_in, epoch == self._begun
        self._continues_in = self._begun = None
        if not is_begun:
            self.part.place.updates, self.part.place.at_epoch_end = 0, False
        return continues

    def batches(self) -> EpochBatches:
        """Return the batches of the present epoch."""
        return EpochBatches(self.hook, self.loader)

    def logged_with(self, grad_norm: Any, learning_rate: Any) -> tuple[Any, Any]:
        """Return the norm and the rate of the last step, which at the end of an epoch may be one before the resume."""
        place = self.part.place
        if self._trainer.state.global_step != self._last_step:
            place.grad_norm, place.learning_rate = grad_norm, learning_rate
        return place.grad_norm, place.learning_rate

    def hold_back(self) -> bool:
        """Put off what is due for this step beside the log. Return True if anything is."""
        control, place = self._trainer.control, self.part.place
        place.evaluate, place.save = place.evaluate or control.should_evaluate, place.save or control.should_save
        control.should_evaluate = control.should_save = False
        return place.is_due

    def release(self) -> None:
        """Let the trainer do what was put off."""
        control, place = self._trainer.control, self.part.place
        control.should_evaluate |= place.evaluate
        control.should_save |= place.save
        place.evaluate = place.save = False

    def after_log(self) -> None:
        """Report the step, if there is a new one. Its log is written, and all else is put off."""
        step = self._trainer.state.global_step
        if step == self._last_step:
            return
        self._last_step = step
        self.part.place.updates += 1
        self.hook.after_step(stepped=True)

    @property
    def samples_per_step(self) -> int:
        """Samples of one step over all ranks and batches."""
        return self._samples_at_once * int(self._trainer.args.gradient_accumulation_steps)

    @property
    def _samples_at_once(self) -> int:
        return internals.batch_size(self._trainer) * int(self._trainer.args.world_size)

    def _register_reference(self) -> None:
        """Save a reference model of TRL that changes. Let the models that never change be stored once."""
        trainer = self._trainer
        for model in trl_internals.untrained_models(trainer):
            model.requires_grad_(False)
        reference = trl_internals.synchronized_model(trainer)
        # TRL prepares it with Accelerate, which then saves it, except under FSDP.
        if reference is not None and not any(each is reference for each in models(trainer.accelerator)):
            self.hook.register("reference", ModelPart(reference))

    def _keep_samples(self, samples: int) -> None:
        """Change gradient accumulation so that a step is made of *samples*, as the run began."""
        args = self._trainer.args
        at_once, before = self._samples_at_once, args.gradient_accumulation_steps
        if at_once * before == samples:
            return
        if samples % at_once:
            raise ConfigError(
                f"a step of this run is made of {samples} samples, which do not divide into batches of "
                f"{internals.batch_size(self._trainer)} on {args.world_size} ranks. Choose "
                f"per_device_train_batch_size so that they do, or start anew at another URL"
            )
        args.gradient_accumulation_steps = samples // at_once
        self.hook.say(
            f"gradient_accumulation_steps={samples // at_once}, not {before}: a step is made of {samples} samples, as "
            f"the run began"
        )
