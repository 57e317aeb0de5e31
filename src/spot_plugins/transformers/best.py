"""
The best checkpoint of a ``Trainer``, whose step is kept in the store of the run so that it outlives the machine.

The trainer writes its own checkpoints to ``output_dir`` and remembers the best of them. After a resume this module
writes the weights of that step again if they are not on the machine. Under FSDP all ranks would have to write, so it
loads the weights from the run at the end of the training. Where it cannot, it says so.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any, Final

import torch
from accelerate.utils import gather_object
from transformers import Trainer

from ..accelerate.internals import models
from ..errors import SpotError
from ..format.keys import FROZEN_PREFIX
from ..guard import warn
from ..resume.tensors import tensor_of
from ..resume.weights import Weight, Weights
from ..state.shard import fill
from ..state.wrappers import clean_name, plain_module
from . import internals
from .hook import TrainerHook

OWNER: Final = "trainer"
"""The owner of the best step in the store."""

BEST: Final = (
    "load_best_model_at_end=True: the best checkpoint, {path} of step {step}, {problem}. Unless a later step is "
    "better, the training ends with the weights of its last step. Let output_dir be on a disk that survives, and leave "
    "FSDP as it was"
)
GONE: Final = "is not on this machine"
NOT_WRITTEN: Final = "is not on this machine, and the run does not give its weights: {error}"
OTHER: Final = "has no weights that this process can load, because it was written with another setting of FSDP"
OF_OTHERS: Final = "is not on the machine of another rank"


class BestStep:
    """
    The best step of one training. Every rank makes the same calls.

    Args:
        trainer: The trainer.
        hook: Its hook, whose run is open.
    """

    def __init__(self, trainer: Trainer, hook: TrainerHook) -> None:
        self._trainer = trainer
        self._hook = hook
        self._is_kept = trainer.args.load_best_model_at_end
        self._lost: str | None = None  # the checkpoint for which the run stands, because some rank does not have it

    def hold(self) -> None:
        """Copy the state of the present step, before an evaluation that may find that the step is the best."""
        if self._is_kept:
            self._hook.keeper.hold(self._trainer.state.global_step)

    def keep(self) -> None:
        """Keep the present step if it is the best, after the trainer has written its checkpoint. Release the others."""
        step, keeper = self._trainer.state.global_step, self._hook.keeper
        if self._is_kept and self._trainer.state.best_global_step == step:
            keeper.keep(step, OWNER, saves_live=False)
            self._release_others(step)

    def restore(self) -> None:
        """
        Write the weights of the best step again if they are not on this machine. Call it after a resume.

        Under FSDP, all ranks agree to load them from the run at the end. If they cannot be loaded nevertheless, all
        ranks forget the best step together, because they load it together, and the user is told.
        """
        trainer, state = self._trainer, self._trainer.state
        failure = None
        if self._is_kept and state.best_global_step:
            self._release_others(state.best_global_step)  # those that an earlier process did not come to release
        if self._is_kept and not trainer.is_fsdp_enabled:
            if trainer.args.should_save and self._problem() == GONE:
                failure = self._write()
            # wait: until the timeout of the process group, in torch; the collective fails
            trainer.accelerator.wait_for_everyone()
            self._look_again()
        problem = failure or self._problem()
        if not trainer.args.load_best_model_at_end:
            state.best_model_checkpoint = None if problem else state.best_model_checkpoint
            return
        # wait: until the timeout of the process group, in torch; the collective fails
        problems = gather_object([problem])
        of_writers = problems if internals.all_ranks_write(trainer) else problems[:1]
        if any(of_writers) and trainer.is_fsdp_enabled:
            problem = self._problem_of_run()
            # wait: until the timeout of the process group, in torch; the collective fails
            of_writers = problems = gather_object([problem])
            if not any(problems):
                self._lost = state.best_model_checkpoint
                self._hook.say(
                    f"{self._lost} is not on all machines, so the best weights will be loaded from step {self._step()} "
                    f"of the run"
                )
        if any(of_writers):
            own = problem if trainer.args.process_index < len(of_writers) else None
            warn(BEST.format(path=state.best_model_checkpoint, step=state.best_global_step, problem=own or OF_OTHERS))
            # Not the step either, because the trainer takes any folder with that number for the checkpoint.
            state.best_model_checkpoint = state.best_global_step = None

    def _release_others(self, best: int) -> None:
        keeper = self._hook.keeper
        for each in keeper.steps_of(OWNER):
            if each != best:
                keeper.release_after(each, OWNER, named_by=best)

    def load(self) -> bool:
        """
        Load the best weights from the run if some rank does not have their checkpoint. Return True if that is so.

        Each rank reads all of them, one tensor after the other, and keeps its shards.
        """
        model, state = self._trainer.model, self._trainer.state
        if self._lost is None or state.best_model_checkpoint != self._lost:
            return False
        live = {clean_name(name): value for name, value in model.state_dict().items()}
        weights = self._weights()
        with torch.no_grad():
            for weight, image in weights.read(each for each in self._changed(weights) if each.name in live):
                fill(live[weight.name], tensor_of(weight, image))
        state.best_model_checkpoint = None  # the trainer wants to compare its path with those of other folders
        return True

    def _problem_of_run(self) -> str | None:
        try:
            self._weights()
        except SpotError as error:
            return NOT_WRITTEN.format(error=error)
        return None

    def _problem(self) -> str | None:
        path = self._trainer.state.best_model_checkpoint
        if path is None or internals.has_weights(self._trainer, Path(path)):
            return None
        return OTHER if Path(path).is_dir() else GONE

    def _step(self) -> int | None:
        """Return the step of the best checkpoint. A later step may have a better metric and no checkpoint."""
        return internals.step_of_checkpoint(self._trainer.state.best_model_checkpoint or "")

    def _folder(self) -> Path | None:
        """Return the folder of the best checkpoint in the present ``output_dir``, whatever path the run names."""
        step = self._step()
        return None if step is None else internals.checkpoint_folder(self._trainer, step)

    def _look_again(self) -> None:
        """Let the trainer use the folder that was written, which may be in another ``output_dir`` than before."""
        folder = self._folder()
        if self._problem() == GONE and folder is not None and internals.has_weights(self._trainer, folder):
            self._trainer.state.best_model_checkpoint = str(folder)

    def _write(self) -> str | None:
        """Write the weights of the best step as the trainer would. Return the problem if that fails."""
        folder, step = self._folder(), self._step()
        if folder is None or step is None or folder.exists():
            return None
        unfinished = folder.with_name(f"unfinished-{folder.name}-{os.getpid()}")
        try:
            internals.save_weights(self._trainer, unfinished, self._best_state())
            unfinished.rename(folder)
        except Exception as error:  # noqa: BLE001  the libraries that write raise anything, and training can continue
            return NOT_WRITTEN.format(error=error)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
        self._hook.say(
            f"{folder} was on another machine, and its weights are written again, from step {step} of the run"
        )
        return None

    def _best_state(self) -> dict[str, Any]:
        """Return the state of the model at the best step, without the optimizer."""
        model, weights = self._trainer.model, self._weights()
        wanted = self._changed(weights)
        read: dict[str, Any] = {weight.name: tensor_of(weight, image) for weight, image in weights.read(wanted)}
        unread = self._frozen.union(weights.left_out) - read.keys()
        live = {clean_name(name): (name, value) for name, value in model.state_dict().items()}
        return {name: value if clean in unread else read[clean] for clean, (name, value) in live.items()}

    def _weights(self) -> Weights:
        """Return the weights of the best step, which are read later."""
        step, accelerator = self._step(), self._trainer.accelerator
        assert step is not None, "the trainer has named its checkpoint"
        prepared = [plain_module(each) for each in models(accelerator)]
        return self._hook.keeper.weights_of(step, f"model-{prepared.index(plain_module(self._trainer.model))}")

    def _changed(self, weights: Weights) -> list[Weight]:
        """
        Return those of *weights* that may differ from the weights of the model.

        Parameters that were frozen then and are frozen now are those of the model. They may be the largest part.
        """
        frozen = self._frozen
        return [each for each in weights.tensors if each.name not in frozen or not _is_frozen(each)]

    @property
    def _frozen(self) -> set[str]:
        parameters = self._trainer.model.named_parameters()
        return {clean_name(name) for name, each in parameters if not each.requires_grad}


def _is_frozen(weight: Weight) -> bool:
    """Return True if *weight* was stored apart, because it was frozen."""
    return all(manifest.blobs[piece.blob].key.startswith(FROZEN_PREFIX) for manifest, piece in weight.pieces)
