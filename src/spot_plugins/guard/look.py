"""One look at all objects of the process: the things that no save holds, as far as the newest recording shows."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from ..data import LoaderPosition
from ..state.wrappers import plain_optimizer
from . import internals
from .census import Census, loaders_in
from .host import Host, Kind
from .optimizer_steps import OptimizerSteps
from .places import Places, is_closed, optimizer_of
from .recording import Recording
from .samples import is_plain, memory, parameters_of, state_of
from .suspects import (
    Suspect,
    look_at_buffer,
    look_at_generator,
    look_at_module,
    look_at_scaler,
    look_at_scheduler,
    look_at_source,
    unsaved_units,
)


@dataclass(frozen=True, kw_only=True)
class Look:
    """Everything that one look goes by."""

    host: Host
    steps: OptimizerSteps
    census: Census
    places: Places
    recording: Callable[[], Recording]
    """Returns the newest recording, also later."""
    number: int
    """Number of the call of ``after_step()`` in which it is made."""
    known: set[int] = field(default_factory=set)
    """``id()`` of the things that an earlier look has judged."""

    def suspects(self) -> Iterator[Suspect]:
        """Yield the things of which nothing is saved, and add to :attr:`known` all that were looked at."""
        self.known.update(map(id, self.host.named()))
        for suspect in self._candidates():
            if suspect.key not in self.known:
                self.known.add(suspect.key)
                if suspect.key not in self.held and not suspect.is_saved():
                    suspect.before = suspect.look()
                    yield suspect

    def trains_only_unsaved(self) -> bool:
        """Return True if optimizers have stepped, and none of their parameters is saved."""
        return bool(self.trained) and not any(map(self._is_saved, self.trained))

    @cached_property
    def trained(self) -> list[torch.Tensor]:
        """The parameters of all optimizers that have stepped."""
        return [each for optimizer in self.steps.seen() for each in parameters_of(optimizer)]

    @cached_property
    def held(self) -> set[int]:
        """``id()`` of the objects that are saved as soon as they change."""
        return {id(each) for each in self.host.held()}

    @cached_property
    def tracked(self) -> list[Any]:
        """The loaders whose position is saved."""
        owners = self.recording().owners
        saved = [loader for loader in self.census.loaders if id(loader) in owners]
        return [*self.host.loaders(), *saved, *(loader for each in self._positions for loader in loaders_in(each))]

    @cached_property
    def _positions(self) -> list[LoaderPosition]:
        """The positions that are saved."""
        return [position for position in self.census.positions if id(position) in self.recording().owners]

    @cached_property
    def unsaved_memory(self) -> set[int]:
        """The memory of the modules of which nothing is saved."""
        return {memory(tensor) for _, _, _, tensors in self._units for tensor in tensors}

    @cached_property
    def _copied(self) -> set[int]:
        """``id()`` of the trained parameters of which a part returned a copy."""
        recording, memories = self.recording(), {memory(each) for each in self.trained}
        return {id(each) for each in self.trained if not recording.has(each) and recording.has_copy_of(each, memories)}

    def _is_saved(self, tensor: torch.Tensor) -> bool:
        return self.recording().has(tensor) or id(tensor) in self._copied

    @cached_property
    def _units(self) -> list[tuple[nn.Module, str, nn.Module, list[torch.Tensor]]]:
        return [
            (root, path, module, tensors)
            for root in self.census.roots()
            for path, module, tensors in unsaved_units(root, self._is_saved)
        ]

    def _candidates(self) -> Iterator[Suspect]:
        for optimizer in self.steps.seen():
            yield from self._of_optimizer(optimizer)
        for scheduler in (*self.census.schedulers, *self.places.schedulers):
            changed = optimizer_of(scheduler)
            if changed is not None and self.steps.of(plain_optimizer(changed)):
                yield self._suspect(Kind.SCHEDULER, scheduler, look_at_scheduler(scheduler))
        for scaler in self.census.scalers:
            yield self._suspect(Kind.SCALER, scaler, look_at_scaler(scaler))
        for root, path, module, tensors in self._units:
            yield self._of_module(root, path, module, tensors)
        yield from self._of_generators()
        yield from self._of_transient_buffers()
        for position in self._positions:
            for source in position.sources:
                if not is_closed(type(source)):
                    yield self._suspect(Kind.NUMBERS, source, look_at_source(position, id(source)))

    def _of_optimizer(self, optimizer: Optimizer) -> Iterator[Suspect]:
        if id(optimizer) in self.known:
            return
        held, steps = weakref.ref(optimizer), self.steps

        def count() -> object:
            live = held()
            return None if live is None else steps.of(live)

        def is_saved() -> bool:
            live = held()
            return live is None or recording().has_optimizer(live)

        recording = self.recording
        yield self._suspect(Kind.OPTIMIZER, optimizer, count, is_saved)
        lost = [
            each
            for each in parameters_of(optimizer)
            if not self._is_saved(each) and memory(each) not in self.unsaved_memory
        ]
        if lost:
            name = f"{len(lost)} parameters that {self.places.name_of(optimizer)} trains"
            yield self._suspect(Kind.TENSORS, lost[0], look_at_module([weakref.ref(each) for each in lost]), name=name)

    def _of_module(self, root: nn.Module, path: str, module: nn.Module, tensors: list[torch.Tensor]) -> Suspect:
        names = self.places.names
        if module is not root and id(module) not in names and id(root) in names:
            names[id(module)] = f"{names[id(root)]}.{path}"
        held, recording = [weakref.ref(tensor) for tensor in tensors], self.recording

        def is_saved() -> bool:
            live = [tensor for each in held if (tensor := each()) is not None]
            return all(recording().has(tensor) for tensor in live if is_plain(tensor))

        return self._suspect(Kind.MODULE, module, look_at_module(held), is_saved)

    def _of_transient_buffers(self) -> Iterator[Suspect]:
        """Yield the buffers of the modules that are trained that are in no ``state_dict()``."""
        trained = {id(each) for each in self.trained}
        roots = [root for root in self.census.roots() if any(id(each) in trained for each in root.parameters())]
        for module in {id(each): each for root in roots for each in root.modules()}.values():
            transient, buffers = internals.transient_buffers(module), dict(module.named_buffers(recurse=False))
            for name in sorted(transient & buffers.keys()):
                if is_plain(buffers[name]) and not self.recording().has(buffers[name]):
                    text = f"buffer {name!r} (persistent=False) of {self.places.name_of(module)}"
                    look = look_at_buffer(module, name)
                    yield self._suspect(Kind.TENSORS, buffers[name], look, lambda: False, name=text)

    def _of_generators(self) -> Iterator[Suspect]:
        streams = internals.global_generators()
        ours = {id(stream) for _, stream in streams}
        for generator in self.places.generators:
            if id(generator) not in ours:
                is_saved = self._has_state(generator)
                yield self._suspect(Kind.GENERATOR, generator, look_at_generator(generator), is_saved)
        if self.host.is_bare:
            for name, stream in streams:
                is_saved = self._has_state(stream, by_value=True)
                yield self._suspect(Kind.GENERATOR, stream, look_at_generator(stream), is_saved, name=name)

    def _has_state(self, generator: Any, *, by_value: bool = False) -> Callable[[], bool]:
        """Return a function to be called right after a recording."""
        recording = self.recording

        def is_saved() -> bool:
            was_asked = id(generator) in recording().owners and not by_value
            return was_asked or recording().has_generator_state(state_of(generator))

        return is_saved

    def _suspect(
        self,
        kind: Kind,
        thing: object,
        look: Callable[[], object],
        is_saved: Callable[[], bool] | None = None,
        *,
        name: str = "",
    ) -> Suspect:
        key, recording = id(thing), self.recording

        def was_asked() -> bool:
            return key in recording().owners

        name = name or self.places.name_of(thing)
        return Suspect(kind=kind, key=key, name=name, born=self.number, look=look, is_saved=is_saved or was_asked)
