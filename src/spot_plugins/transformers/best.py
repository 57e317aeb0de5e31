"""The best checkpoint of a ``Trainer``, which lies in ``output_dir`` and not in the store of the run."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from accelerate.utils import gather_object
from transformers import Trainer

from ..guard import warn
from . import internals

BEST: Final = (
    "load_best_model_at_end=True: the best checkpoint, {path} of step {step}, {problem}. Unless a later step is "
    "better, the training ends with the weights of its last step. Let output_dir be on a disk that survives, and leave "
    "FSDP and its state_dict_type as they were"
)
GONE: Final = "is not on this machine"
OTHER: Final = "has no weights that this process can load, because it was written with another setting of FSDP"
OF_OTHERS: Final = "is not on the machine of another rank"


def check_best(trainer: Trainer) -> None:
    """
    Forget the best checkpoint if it cannot be loaded, and say so.

    All ranks forget it together, because under FSDP they load it together. Every rank calls this after a resume.
    """
    state, problem = trainer.state, _problem(trainer)
    if not trainer.args.load_best_model_at_end:
        state.best_model_checkpoint = None if problem else state.best_model_checkpoint
        return
    # wait: until the timeout of the process group, in torch; the collective fails
    problems = gather_object([problem])
    of_writers = problems if internals.all_ranks_write(trainer) else problems[:1]
    if any(of_writers):
        own = problem if trainer.args.process_index < len(of_writers) else None
        warn(BEST.format(path=state.best_model_checkpoint, step=state.best_global_step, problem=own or OF_OTHERS))
        # Not the step either, because the trainer takes any folder with that number for the checkpoint.
        state.best_model_checkpoint = state.best_global_step = None


def _problem(trainer: Trainer) -> str | None:
    path = trainer.state.best_model_checkpoint
    if path is None or internals.has_weights(trainer, Path(path)):
        return None
    return OTHER if Path(path).is_dir() else GONE
