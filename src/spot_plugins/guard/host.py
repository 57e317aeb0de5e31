"""The facts about a training that only its host knows, and the remedies that fit the host."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Final


class Kind(Enum):
    """The kinds of things that a training changes. The value is the word for one in a warning."""

    OPTIMIZER = "optimizer"
    SCHEDULER = "learning rate scheduler"
    MODULE = "module"
    TENSORS = "tensors"
    GENERATOR = "random generator"
    SCALER = "gradient scaler"
    LOADER = "position in the data of"
    NUMBERS = "what changes in"


_BARE: Final = {
    Kind.OPTIMIZER: "pass optimizers to session.register_model()",
    Kind.SCHEDULER: "pass schedulers to session.register_model()",
    Kind.MODULE: "pass modules to session.register(name, module)",
    Kind.TENSORS: "keep tensors in an object with state_dict() and load_state_dict(), and session.register() it",
    Kind.GENERATOR: "register generators, the global ones with session.register('rng', RngPart())",
    Kind.SCALER: "pass the scaler to session.register('scaler', scaler)",
    Kind.LOADER: "register a LoaderPosition of the loader",
}


COMMON: Final = {
    Kind.NUMBERS: "let samples and their order depend on the seed, the epoch and the index alone, or use a torchdata "
    "StatefulDataLoader over a data set or sampler with state_dict() and load_state_dict()",
}
"""The advice that is the same for every host."""


def _nothing() -> Iterable[Any]:
    return ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Host:
    """The view of a host on its training. The default is a bare loop, of which nothing is known beforehand."""

    remedies: Mapping[Kind, str] = field(default_factory=lambda: _BARE)
    """The advice for each kind of thing that is not saved."""

    roots: Callable[[], Iterable[tuple[str, object]]] = _nothing
    """Names and objects in which the guard looks for others, beside the variables of the program."""

    loaders: Callable[[], Iterable[Any]] = _nothing
    """The loaders whose position is saved."""

    log_level: Callable[[], int] = lambda: logging.NOTSET
    """Returns the lowest level of logging that the host shows."""

    held: Callable[[], Iterable[object]] = _nothing
    """The objects that are saved as soon as they change, so that a recording of one save need not have them."""

    named: Callable[[], Iterable[Any]] = _nothing
    """The things of which the host warns by itself that they are not saved."""

    is_bare: bool = True
    """True if the program itself numbers the steps and saves the global random streams."""
