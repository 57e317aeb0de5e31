"""The search for things that a training changes and no save holds."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Set
from typing import Any, Final

from ..errors import ConfigError
from ..state.registry import Registry
from .averages import Averages
from .census import take_census
from .feeds import Feeds
from .host import COMMON, Host, Kind
from .look import Look
from .optimizer_steps import OptimizerSteps
from .places import find_places, program_frames
from .recording import Recording
from .suspects import Suspect
from .warn import warn

logger = logging.getLogger(__name__)

LOOKS: Final = (1, 3, 30, 300, 3000)
"""Calls of ``after_step()`` with a look. After the last one there are only extra looks."""
MAX_EXTRA_LOOKS: Final = 3
RARE: Final = frozenset({Kind.SCHEDULER, Kind.GENERATOR, Kind.NUMBERS})
"""Things that may change once per epoch."""
RARE_STEPS: Final = 16
"""Steps between two checks of such things, if they are not saved."""
MAX_NAMES: Final = 6


class Search:
    """
    Finds what a training changes and no save holds, and names it in a warning.

    After some of the first steps it looks at all objects of the process. What no recording holds is a suspect. If a
    later look sees that the training has changed a suspect, the suspect is named. All methods run on the training
    thread. Between the looks a step costs less than a microsecond.
    """

    def __init__(self, host: Host, registry: Registry, steps: OptimizerSteps, *, speaks: bool) -> None:
        """
        Begin the search.

        Args:
            host: The view of the host.
            registry: The parts that are saved.
            steps: The steps of all optimizers.
            speaks: True on the rank that warns.
        """
        self._host = host
        self._registry = registry
        self._steps = steps
        self._speaks = speaks
        self._recorded: tuple[int, Recording] | None = None  # with the call of after_step() in which it was made
        self._num_calls = 0
        self._next_look = 1
        self._num_extra_looks = 0
        self._suspects: list[Suspect] = []
        self._known: set[int] = set()
        self._averages = Averages()
        self._feeds = Feeds()

    def before_step(self) -> None:
        """Let the next save be recorded, before the first step is reported."""
        if self._num_calls == 0:
            self._registry.record = self._record

    def after_step(self) -> bool:
        """
        Look, if it is time to. Return True if it was.

        Raises:
            ConfigError: Nothing that is trained is saved.
        """
        self._num_calls += 1
        fed = self._feeds.after_step()
        if fed:
            self._tell([(Kind.LOADER, name) for name in fed])
        if self._num_calls == self._next_look:
            self._next_look = next((number for number in LOOKS if number > self._num_calls), 0)
            self._look()
            return True
        if self._suspects and self._num_calls % RARE_STEPS == 0:
            self._tell(self._changed(RARE))
        return False

    def pause(self) -> None:
        """Expect that other loaders are read before the next step, for example to validate."""
        self._feeds.pause()

    def expect_new(self) -> None:
        """Look twice soon, because an optimizer has begun to step."""
        if self._num_calls and self._num_extra_looks < MAX_EXTRA_LOOKS:
            self._num_extra_looks += 1
            self._look_soon()

    def close(self) -> None:
        """Forget everything."""
        self._registry.record = None
        self._suspects.clear()

    def _look_soon(self) -> None:
        if not self._num_calls < self._next_look <= self._num_calls + 2:
            self._next_look = self._num_calls + 2

    def _record(self, states: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Take the states of all parts and record what that reads. After this the registry records no more."""
        self._registry.record = None
        if sys.getprofile() is not None:
            logger.debug("a profiler runs, so objects that are not saved cannot be found")
            return states()
        recording = Recording()
        result = recording.take(states)
        self._recorded = (self._num_calls + 1, recording)
        self._suspects = [suspect for suspect in self._suspects if not suspect.is_saved()]
        if self._suspects and self._num_calls:
            self._look_soon()
        return result

    def _recording(self) -> Recording:
        assert self._recorded is not None
        return self._recorded[1]

    def _look(self) -> None:
        if self._recorded is None:
            return
        changed = self._changed()
        look = Look(
            host=self._host,
            steps=self._steps,
            census=take_census(),
            places=find_places(program_frames(sys._getframe(1)), self._host.roots()),
            recording=self._recording,
            number=self._num_calls,
            known=self._known,
        )
        if self._num_calls == 1 and self._host.is_bare and look.trains_only_unsaved():
            raise ConfigError(
                "no parameter that the optimizers train is saved, so a resumed training would begin anew. Register "
                "the module that is trained, not a copy of it, before resume()"
            )
        if self._speaks:
            self._tell([*changed, *((Kind.TENSORS, name) for name in self._averages.changed(look))])
            self._suspects += look.suspects()
            self._feeds.watch(look)
        self._recording().forget_copies()
        if any(suspect.born > self._recorded[0] for suspect in self._suspects):
            self._registry.record = self._record  # what was not there at the last recording may be saved

    def _changed(self, kinds: Set[Kind] = frozenset(Kind)) -> list[tuple[Kind, str]]:
        """Return kind and name of the suspects that have changed, and suspect them no more."""
        assert self._recorded is not None
        changed = [
            suspect
            for suspect in self._suspects
            if suspect.kind in kinds and suspect.born <= self._recorded[0] and suspect.has_changed()
        ]
        self._suspects = [suspect for suspect in self._suspects if suspect not in changed]
        return [(suspect.kind, suspect.name) for suspect in changed]

    def _tell(self, found: list[tuple[Kind, str]]) -> None:
        if not found:
            return
        by_kind: dict[Kind, list[str]] = {}
        for kind, name in found:
            by_kind.setdefault(kind, []).append(name)
        what = "; ".join(f"{kind.value} {_listed(names)}" for kind, names in by_kind.items())
        advice = {**COMMON, **self._host.remedies}
        remedies = "; ".join(dict.fromkeys(advice[kind] for kind in by_kind))
        warn(
            f"not saved, although this training changes it: {what}. A resumed training would begin it anew. To save "
            f"it: {remedies}"
        )


def _listed(names: list[str]) -> str:
    rest = len(names) - MAX_NAMES
    return ", ".join(names[:MAX_NAMES]) + (f" and {rest} more" if rest > 0 else "")
