"""The objects of a training that a host saves, as the loop sees them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

from ..errors import ConfigError
from ..program import Program
from ..state.part import Part


@dataclass(frozen=True, slots=True)
class NamedPart:
    """A part to register with the session, with its name."""

    name: str
    part: Part


class Saved:
    """All that a host saves for a loop beside the position in the data and the random streams."""

    def parts(self) -> list[NamedPart]:
        """
        Return what there is to save. Called once, at the resume.

        Raises:
            ConfigError: There is nothing, or something that is trained would not be saved.
        """
        raise NotImplementedError

    def describe(self, program: Program) -> None:
        """Add the facts to *program* that a session cannot see."""
        raise NotImplementedError

    def resume(self, step: int) -> None:
        """Continue after *step*. Called after everything was loaded."""

    def end_batch(self) -> None:
        """Take note that a batch has ended."""

    def check_none_is_late(self) -> None:
        """Raise :exc:`ConfigError` if the program named anything after the resume."""


def check_owners(optimizers: Iterable[Any], modules: Iterable[Any], remedy: str) -> None:
    """
    Check that the *modules*, which are saved, have all parameters that the *optimizers* train.

    Raises:
        ConfigError: They have not. The error ends with *remedy*.
    """
    saved = {parameter for module in modules if isinstance(module, nn.Module) for parameter in module.parameters()}
    for index, optimizer in enumerate(optimizers):
        num_lost = sum(parameter not in saved for parameter in parameters_of(optimizer))
        if num_lost:
            raise ConfigError(f"optimizer {index} trains {num_lost} parameters of {remedy}")


def parameters_of(optimizer: Any) -> Iterator[nn.Parameter]:
    """Yield the parameters that *optimizer* trains."""
    for group in optimizer.param_groups:
        yield from group["params"]
