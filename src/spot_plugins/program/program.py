"""The program of this attempt: its facts, which are saved with each step, and what its user is shown about them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from ..state import ShardedPart
from .compare import compare
from .facts import Facts, describe, describe_loader, describe_process, device_of, plain_fields
from .lines import Lines
from .rates import other_rate

PART: Final = "program"
"""Name of the part that holds the facts."""


class Program:
    """
    The facts about the program of this attempt, as they were before the resume.

    A host describes what a session cannot see: its settings, its loaders, its version. Describe before the resume what
    exists by then. Loaders that are made later are described later, and compared at once.
    """

    def __init__(self) -> None:
        self.start = "at step 0"
        """The place where a first attempt starts, for its line."""
        self.epoch: Callable[[], int] | None = None
        """Returns the epoch of the training after the resume. None if the host knows none."""
        self._facts: dict[str, Facts] = {}
        self._saved: Any = None
        self._pending: list[tuple[str, int]] = []
        self._lines: Lines | None = None
        self._is_finished = False
        self._has_other_schedule = False
        self._things: list[Any] = []

    @property
    def facts(self) -> dict[str, Facts]:
        """The facts to save: those of this program, with the checkpoint's values where those are used."""
        return {name: self._facts[name] for name in sorted(self._facts)}

    def add_settings(self, **settings: Any) -> None:
        """Describe settings of the host, such as ``precision``. A later attempt names those that differ."""
        self._facts.setdefault("settings", {"is": "settings"}).update(plain_fields(settings))

    def add_hparams(self, hparams: Mapping[str, Any]) -> None:
        """Describe what the user calls the hyperparameters of the training."""
        fields = plain_fields({str(name): value for name, value in hparams.items()})
        if fields:
            self._facts["hparams"] = {**fields, "is": "hparams"}

    def add_versions(self, **versions: str) -> None:
        """Describe the packages that the training depends on, beside torch."""
        self._facts.setdefault("software", {"is": "software"}).update(versions)

    def add_loaders(self, loaders: Iterable[Any]) -> None:
        """Describe the training loaders. After the resume, differences are shown at once."""
        found = {f"loader-{index}": describe_loader(loader) for index, loader in enumerate(loaders)}
        if self._saved is not None:
            result = compare(self._saved, found)
            self._pending += [(text, logging.WARNING) for text in result.lines]
        self._facts.update(found)
        if self._lines is not None:
            self.tell(self._lines)

    def gather(self, things: Mapping[str, Any]) -> None:
        """Describe *things*, the objects whose state is saved, by the names of their parts, and this process."""
        self._things = list(things.values())
        for name, thing in things.items():
            if (facts := describe(thing)) is not None:
                self._facts.setdefault(name, facts)
        for name, facts in describe_process(device_of(things.values())).items():
            self._facts[name] = {**facts, **self._facts.get(name, {}), "is": facts["is"]}

    def check(self, saved: Any) -> str | None:
        """
        Compare with *saved*, the facts of the checkpoint, before anything is restored. None: it has no facts.

        Returns:
            The reason why the checkpoint cannot be used, or None. Other differences are kept for :meth:`tell`.
        """
        if saved is None:
            return None
        result = compare(saved, self._facts)
        self._saved, self._facts = saved, result.facts
        self._has_other_schedule = bool(result.other_functions)
        self._pending += [(text, logging.WARNING) for text in result.lines]
        return "; ".join(result.refusals) or None

    def check_schedules(self, before: int, now: int) -> None:
        """
        Name schedules that do not continue as they were. Call it after everything is restored.

        Args:
            before: Number of ranks that saved the step.
            now: Number of ranks of this job.
        """
        texts = []
        if before != now and self._has_other_schedule:
            texts.append(
                f"a learning rate schedule has other numbers with {now} instead of {before} ranks, so it does not end "
                f"where it would have. Compute its number of steps in the same way on any number of ranks"
            )
        texts += [text for each in self._things if (text := other_rate(each)) is not None]
        self._pending += [(text, logging.WARNING) for text in texts]

    def tell(self, lines: Lines) -> None:
        """Show what was not shown yet, on rank 0. From now on differences are shown when they are found."""
        self._lines = lines
        pending, self._pending = self._pending, []
        for text, level in pending:
            lines.say_first(text, level)

    def say(self, text: str) -> None:
        """Show *text* on rank 0, in the course of a resume after its first line."""
        if self._lines is None:
            self._pending.append((text, logging.INFO))
        else:
            self._lines.say_first(text)

    def tell_finished(self, step: int, reason: str = "") -> None:
        """Show, once and on rank 0, that nothing is left to train after the resume from *step*."""
        if self._is_finished or self._lines is None:
            return
        self._is_finished = True
        if reason:
            self._lines.say_first(f"nothing is left to train: {reason}")
        self._lines.say_first(f"this training is finished at step {step}; use another URL to train again")


class ProgramPart(ShardedPart):
    """The facts as a part of the state. They are compared before the parts are loaded, so loading does nothing."""

    is_optional = True

    def __init__(self, program: Program) -> None:
        self._program = program

    def state_dict(self) -> dict[str, Facts]:
        """Return the facts."""
        return self._program.facts

    def load_state_dict(self, state: Any) -> None:
        """Do nothing, because :meth:`Program.check` has used the facts."""
