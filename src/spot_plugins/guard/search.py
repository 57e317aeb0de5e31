"""The search for things that a training changes and no save holds."""

from __future__ import annotations

import logging
import sys
import warnings
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, Final

import torch
from torch import nn

from ..data.unwrap import plain_loader
from ..errors import ConfigError
from ..state.registry import Registry
from ..state.wrappers import plain_optimizer
from . import internals
from .census import Census, loaders_in, take_census
from .host import Host, Kind
from .optimizer_steps import OptimizerSteps
from .places import Places, find_places, optimizer_of, program_frames
from .recording import Recording
from .samples import is_plain, memory, state_of
from .suspects import (
    Feed,
    Suspect,
    look_at_container,
    look_at_generator,
    look_at_module,
    look_at_scaler,
    look_at_scheduler,
    unsaved_units,
)

logger = logging.getLogger(__name__)

LOOKS: Final = (1, 3, 10, 30, 300, 3000)
"""Calls of ``after_step()`` after which the search looks at everything. Later it does not look any more."""
FEED_STEPS: Final = 8
"""Steps after a look in which untracked iterators of loaders are watched."""
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
        self._recording: Recording | None = None
        self._recorded_at = 0
        self._num_calls = 0
        self._suspects: dict[int, Suspect] = {}
        self._feeds: list[Feed] = []
        self._known: set[int] = set()
        self._was_paused = False
        self._loses_all = False

    def before_step(self) -> None:
        """Let the next save be recorded, before the first step is reported."""
        if self._num_calls == 0:
            self._registry.record = self._record

    def after_step(self) -> bool:
        """Look, if it is time to. Return True if it was."""
        self._num_calls += 1
        if self._feeds:
            self._check_feeds()
        is_due = self._num_calls in LOOKS
        if is_due:
            self._look()
        return is_due

    def pause(self) -> None:
        """Expect that other loaders are read before the next step, for example to validate."""
        self._was_paused = True

    def close(self) -> None:
        """Forget everything."""
        self._registry.record = None
        self._suspects.clear()
        self._feeds.clear()

    def _record(self, states: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Take the states of all parts and record what that reads. After this the registry records no more."""
        self._registry.record = None
        if sys.getprofile() is not None:
            logger.debug("a profiler runs, so objects that are not saved cannot be found")
            return states()
        self._recording = Recording()
        result = self._recording.take(states)
        self._recorded_at = self._num_calls + 1
        for key, suspect in list(self._suspects.items()):
            if suspect.is_saved():
                del self._suspects[key]
        return result

    # ---- looks

    def _look(self) -> None:
        frames = list(program_frames(sys._getframe(1)))
        self._name_changed(frames)
        if self._recording is None:
            return
        census = take_census()
        places = find_places(frames, self._host.roots())
        if self._speaks:
            self._find(census, places)
        elif self._num_calls == LOOKS[0]:
            self._loses_all = self._trains_only_unsaved()
        self._recording.forget_copies()

    def _name_changed(self, frames: list[FrameType]) -> None:
        changed = []
        for key, suspect in list(self._suspects.items()):
            if not suspect.has_changed():
                continue
            if suspect.born > self._recorded_at:
                self._registry.record = self._record  # it may be saved, but was not there at the last recording
                continue
            del self._suspects[key]
            if not suspect.is_saved():
                changed.append(suspect)
        if self._loses_all and self._num_calls >= LOOKS[1]:
            raise ConfigError(
                "no parameter that the optimizers train is saved, so a resumed training would begin anew. Register "
                "the module that is trained, not a copy of it, before resume()"
            )
        self._tell([(each.kind, each.name) for each in changed], frames)

    def _check_feeds(self) -> None:
        was_paused, self._was_paused = self._was_paused, False
        feeding = [feed for feed in self._feeds if feed.count(was_paused=was_paused)]
        if self._num_calls - max(look for look in LOOKS if look < max(self._num_calls, 2)) >= FEED_STEPS:
            self._feeds.clear()
        for feed in feeding:
            self._feeds = [each for each in self._feeds if each is not feed]
            self._known.add(id(feed.iterator()))
        names = [(Kind.LOADER, feed.name) for feed in feeding]
        self._tell(names, list(program_frames(sys._getframe(1))) if names else [])

    def _tell(self, found: list[tuple[Kind, str]], frames: list[FrameType]) -> None:
        if not found:
            return
        by_kind: dict[Kind, list[str]] = {}
        for kind, name in found:
            by_kind.setdefault(kind, []).append(name)
        what = "; ".join(f"{kind.value} {_listed(names)}" for kind, names in by_kind.items())
        remedies = "; ".join(dict.fromkeys(self._host.remedies[kind] for kind in by_kind))
        message = (
            f"not saved, although this training changes it: {what}. A resumed training would begin it anew. To save "
            f"it: {remedies}"
        )
        where = frames[0] if frames else sys._getframe(1)
        registry = where.f_globals.setdefault("__warningregistry__", {})
        warnings.warn_explicit(message, UserWarning, where.f_code.co_filename, where.f_lineno, registry=registry)

    # ---- suspects

    def _find(self, census: Census, places: Places) -> None:
        recording = self._recording
        assert recording is not None
        trained = [parameter for optimizer in self._steps.seen() for parameter in _parameters_of(optimizer)]
        of_trained = {memory(each) for each in trained}
        copied = {id(each) for each in trained if not recording.has(each) and recording.has_copy_of(each, of_trained)}
        units = list(self._find_modules(census, places, copied))
        if self._num_calls == LOOKS[0]:
            self._loses_all = self._trains_only_unsaved()
        in_units = {memory(tensor) for tensor in units}
        for optimizer in self._steps.seen():
            self._find_optimizer(optimizer, places, in_units, copied)
        for scheduler in (*census.schedulers, *places.schedulers):
            changed = optimizer_of(scheduler)
            if changed is not None and self._steps.of(plain_optimizer(changed)):
                self._suspect(Kind.SCHEDULER, scheduler, places, look_at_scheduler(scheduler))
        for scaler in census.scalers:
            self._suspect(Kind.SCALER, scaler, places, look_at_scaler(scaler))
        self._find_generators(places)
        self._find_containers(census, places, trained, in_units)
        self._find_feeds(census, places)

    def _find_modules(self, census: Census, places: Places, copied: set[int]) -> Iterator[torch.Tensor]:
        """Suspect modules of which nothing is saved, and yield their tensors."""

        def is_saved(tensor: torch.Tensor) -> bool:
            return self._recording is not None and (self._recording.has(tensor) or id(tensor) in copied)

        for root in census.roots():
            for path, module, tensors in unsaved_units(root, is_saved, ""):
                yield from tensors
                if module is not root and id(module) not in places.names and id(root) in places.names:
                    places.names[id(module)] = f"{places.names[id(root)]}.{path}"
                held = [weakref.ref(tensor) for tensor in tensors]

                def all_saved(held: list[weakref.ref[torch.Tensor]] = held) -> bool:
                    live = [tensor for each in held if (tensor := each()) is not None]
                    return all(is_saved(tensor) for tensor in live if is_plain(tensor))

                self._suspect(Kind.MODULE, module, places, look_at_module(held), all_saved)

    def _find_optimizer(self, optimizer: Any, places: Places, in_units: set[int], copied: set[int]) -> None:
        held, steps = weakref.ref(optimizer), self._steps
        state = id(optimizer.state)

        def count() -> object:
            live = held()
            return steps.of(live) if live is not None else None

        self._suspect(
            Kind.OPTIMIZER,
            optimizer,
            places,
            count,
            lambda: self._recording is not None and state in self._recording.optimizer_states,
        )
        assert self._recording is not None
        lost = [
            each
            for each in _parameters_of(optimizer)
            if not self._recording.has(each) and id(each) not in copied and memory(each) not in in_units
        ]
        if lost:
            name = f"{len(lost)} parameters that {places.name_of(optimizer)} trains"
            self._suspect(
                Kind.TENSORS, lost[0], places, look_at_module([weakref.ref(each) for each in lost]), name=name
            )

    def _find_generators(self, places: Places) -> None:
        streams = internals.global_generators()
        for generator in places.generators:
            if all(generator is not stream for _, stream in streams):
                self._suspect(
                    Kind.GENERATOR, generator, places, look_at_generator(generator), self._has_state(generator)
                )
        if self._host.is_bare:
            for name, stream in streams:
                saved = self._has_state(stream, by_value=True)
                self._suspect(Kind.GENERATOR, stream, places, look_at_generator(stream), saved, name=name)

    def _has_state(self, generator: Any, *, by_value: bool = False) -> Callable[[], bool]:
        """Return a function to be called right after a recording."""

        def is_saved() -> bool:
            assert self._recording is not None
            was_asked = id(generator) in self._recording.owners and not by_value
            return was_asked or self._recording.has_generator_state(state_of(generator))

        return is_saved

    def _find_containers(self, census: Census, places: Places, trained: list[torch.Tensor], in_units: set[int]) -> None:
        """Suspect lists and dicts of tensors that look like averaged weights, by the number and shapes of tensors."""
        if not places.containers:
            return
        saved_modules = [root for root in census.roots() if any(True for _ in root.parameters())]
        shapes = {_shapes(trained)}
        for module in saved_modules:
            shapes |= {_shapes(module.parameters()), _shapes((*module.parameters(), *module.buffers()))}
            shapes.add(_shapes(each for each in module.parameters() if each.requires_grad))
        others = in_units | {memory(each.grad) for each in trained if each.grad is not None and is_plain(each.grad)}
        for container in places.containers:
            tensors = list(container.values() if isinstance(container, dict) else container)
            if _shapes(tensors) not in shapes or any(memory(tensor) in others for tensor in tensors):
                continue
            owner = places.owners.get(id(container), 0)

            def is_saved(tensors: list[Any] = tensors, owner: int = owner) -> bool:
                assert self._recording is not None
                return owner in self._recording.owners or any(map(self._recording.has, tensors))

            self._suspect(Kind.TENSORS, container, places, look_at_container(container), is_saved)

    def _find_feeds(self, census: Census, places: Places) -> None:
        recording = self._recording
        assert recording is not None
        loaders = [plain_loader(loader) for loader in self._host.loaders()]
        loaders += [loader for loader in census.loaders if id(loader) in recording.owners]
        for position in census.positions:
            if id(position) in recording.owners:
                loaders += loaders_in(position)
            elif self._num_calls == LOOKS[0]:
                self._known.add(id(position))
            elif id(position) not in self._known:  # it was made after the recording
                loaders += loaders_in(position)
        tracked = {id(internals.index_sampler(plain_loader(loader))) for loader in loaders}
        datasets = {id(getattr(plain_loader(loader), "dataset", None)) for loader in loaders}
        self._feeds = []
        for iterator in census.iterators:
            shared = internals.index_sampler(iterator)
            is_tracked = id(shared) in tracked if shared is not None else id(internals.dataset_of(iterator)) in datasets
            if is_tracked or id(iterator) in self._known:
                continue
            loader = census.loader_of(iterator)
            name = f"a DataLoader of {type(internals.dataset_of(iterator)).__name__}"
            if loader is not None and id(loader) in places.names:
                name = places.name_of(loader)
            self._feeds.append(Feed(weakref.ref(iterator), name, internals.num_yielded(iterator)))

    def _suspect(
        self,
        kind: Kind,
        thing: object,
        places: Places,
        look: Callable[[], object],
        is_saved: Callable[[], bool] | None = None,
        name: str = "",
    ) -> None:
        if id(thing) in self._known:
            return
        key = id(thing)

        def was_asked() -> bool:
            return self._recording is not None and key in self._recording.owners

        suspect = Suspect(kind, name or places.name_of(thing), self._num_calls, look, is_saved or was_asked)
        if suspect.is_saved():
            return
        self._known.add(key)
        suspect.before = look()
        self._suspects[key] = suspect

    def _trains_only_unsaved(self) -> bool:
        """Return True if optimizers have stepped, and none of their parameters is saved."""
        recording = self._recording
        assert recording is not None
        trained = [each for optimizer in self._steps.seen() for each in _parameters_of(optimizer)]
        memories = {memory(each) for each in trained}
        return bool(trained) and not any(
            recording.has(each) or recording.has_copy_of(each, memories) for each in trained
        )


def _parameters_of(optimizer: Any) -> list[torch.Tensor]:
    return [each for group in optimizer.param_groups for each in group["params"] if is_plain(each)]


def _shapes(tensors: Any) -> frozenset[tuple[torch.Size, int]]:
    return frozenset(
        Counter(tensor.shape for tensor in tensors if not isinstance(tensor, nn.UninitializedParameter)).items()
    )


def _listed(names: list[str]) -> str:
    rest = len(names) - MAX_NAMES
    return ", ".join(names[:MAX_NAMES]) + (f" and {rest} more" if rest > 0 else "")
