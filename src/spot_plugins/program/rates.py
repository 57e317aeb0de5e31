"""The learning rates that the functions of a program give, compared with those that the run has had."""

from __future__ import annotations

from functools import partial
from math import isclose
from types import FunctionType, MethodType
from typing import Any

from torch.optim.lr_scheduler import LambdaLR

from ..data.rng import borrowed_streams
from .facts import scheduler_in


def other_rate(thing: Any) -> str | None:
    """
    Return a sentence if the function of a restored ``LambdaLR`` gives another rate than the scheduler has set last.

    No checkpoint holds the function. One that was made for another number of steps is found in this way, unless the
    run is still at rates that do not depend on that number. The sentence is None for any other scheduler.

    The random streams stay as they are. An object that is called is not asked, because a call may change it, and the
    checkpoint has its attributes.
    """
    scheduler = scheduler_in(thing)
    if not isinstance(scheduler, LambdaLR) or scheduler.last_epoch <= 0:
        return None
    try:
        for base, function, last in zip(scheduler.base_lrs, scheduler.lr_lambdas, scheduler.get_last_lr(), strict=True):
            if not isinstance(function, FunctionType | MethodType | partial):
                continue
            with borrowed_streams():
                old, now = float(last), float(base * function(scheduler.last_epoch))
            if not isclose(old, now, rel_tol=1e-6):
                return (
                    f"the schedule of this program gives a learning rate of {now:.6g} where the run has come to, and "
                    f"the run had {old:.6g}. Compute its number of steps in the same way on any number of ranks, and "
                    f"with the same settings as before"
                )
    except Exception:  # noqa: BLE001 - any function of the program may be here, and no rate is worth an error
        return None
    return None
