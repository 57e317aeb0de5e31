"""The comparison of the rehearsal with the control: fingerprints of steps, and the state of the last step."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Final

from ..errors import SpotError
from ..eventlog.reading import read_event_log
from ..events import Staged
from ..fingerprints import earlier
from ..fingerprints.ring import RingId
from ..fingerprints.seen import Seen, trained_in_words
from ..store import open_store
from ..upkeep.compare import Comparison, TensorDifference, compare_steps
from ..upkeep.tensors import open_step
from .lives import Life, Run

_FINGERPRINTS: Final = "fingerprints"
_MOST: Final = 3
_NOTHING: Final = Seen((), None)
_TRAINED: Final = ("model", "optimizer")
WEIGHTS: Final = "weights"

_WORDS: Final = {
    "data": "the position in the training data is another one",
    "rates": "learning rates, momentums or weight decays are other ones",
    "accumulation": "it is made of another number of batches",
    "torch": "the random stream of torch on the CPU is another one",
    "python": "the random stream of Python is another one",
    "numpy": "the random stream of numpy is another one",
    "cuda": "the random stream of a CUDA device is another one",
    WEIGHTS: "the weights at its end are other ones",
}

_ADVICE: Final = {
    **earlier.ADVICE,
    WEIGHTS: "The weights differ. If nothing else does, look for what decides a step and is not saved: generators, "
    "samplers and counters of the program.",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class StepDifference:
    """The first step that is made of something else than in the control."""

    step: int
    rank: int
    life: int
    what: tuple[str, ...]
    """Kinds that differ, see :data:`~spot_plugins.fingerprints.KINDS`, and ``weights``."""
    trained: str = ""
    """The part of the data that it has trained, and the part in the control. Empty if they are not known."""

    @property
    def text(self) -> str:
        """The difference in words."""
        trained = f": {self.trained}" if self.trained else ""
        return f"step {self.step}, rank {self.rank}: {in_words(self.what)}{trained}"

    @property
    def advice(self) -> str:
        """The places to look at."""
        return " ".join(_ADVICE[kind] for kind in self.what).rstrip(".")


def in_words(kinds: Collection[str]) -> str:
    """Return the meaning of a difference in *kinds*."""
    return ", and ".join(_WORDS[kind] for kind in kinds)


def first_difference(
    control: Run, rehearsal: Run, *, until: int | None = None, but: Collection[str] = ()
) -> StepDifference | None:
    """
    Return the first step of the rehearsal that differs from the control, in the order of its lives.

    Args:
        control: The training that was left alone.
        rehearsal: The one that was interrupted.
        until: The last step to look at, in the first life alone. None: all of them.
        but: Kinds that do not count.
    """
    alone = control.lives[0]
    ranks = {ring_id.rank: ring_id for ring_id in alone.records}
    sizes = _sizes(control.lives)
    for life in rehearsal.lives if until is None else rehearsal.lives[:1]:
        # Ranks of another number get other samples and draw other numbers, also when the old number is back. They have
        # the same learning rates.
        sizes |= _sizes([life])
        found = [
            StepDifference(step=step, rank=ring_id.rank, life=life.number, what=what)
            for ring_id, records in life.records.items()
            if (other := ranks.get(ring_id.rank)) is not None
            for step in records.keys() & alone.records[other].keys()
            if until is None or step <= until
            if (what := _differing(step, (life, ring_id), (alone, other), but, same_ranks=len(sizes) == 1))
        ]
        if found:
            first = min(found, key=lambda each: (each.step, each.rank))
            return replace(first, trained=_trained(alone, life, first)) if "data" in first.what else first
    return None


def _differing(
    step: int, mine: tuple[Life, RingId], other: tuple[Life, RingId], but: Collection[str], *, same_ranks: bool
) -> tuple[str, ...]:
    """Return the kinds in which *step* of two ranks differs. The weights differ in consequence, so they come last."""
    one, two = (life.records[ring_id][step] for life, ring_id in (mine, other))
    if what := tuple(kind for kind in one.differs_from(two) if kind not in but and (same_ranks or kind == "rates")):
        return what
    weights = {_seen(*each).get(step, _NOTHING).weights for each in (mine, other)} - {None}
    return (WEIGHTS,) if len(weights) > 1 and same_ranks and WEIGHTS not in but else ()


def _seen(life: Life, ring_id: RingId) -> Mapping[int, Seen]:
    return life.log.seen.get(ring_id, {})


def _trained(alone: Life, life: Life, first: StepDifference) -> str:
    """Return what the step of *first* has trained, and what the same step of the control has trained."""
    found, expected = (
        next((_seen(each, ring_id) for ring_id in each.log.seen if ring_id.rank == first.rank), {})
        for each in (life, alone)
    )
    step = first.step
    if step not in found or step not in expected:
        return ""
    before = expected.get(step - 1, _NOTHING).place
    return trained_in_words(found[step].place, control=expected[step].place, before=before)


def num_compared(control: Run, rehearsal: Run) -> int:
    """Return the number of steps that were compared, those that were trained twice included."""
    known = {ring_id.rank: records.keys() for ring_id, records in control.lives[0].records.items()}
    return sum(
        len(records.keys() & known.get(ring_id.rank, set()))
        for life in rehearsal.lives
        for ring_id, records in life.records.items()
    )


def unseeded_kinds(control: Run, rehearsal: Run) -> tuple[str, ...]:
    """Return the kinds that differ before the first fault, because two starts of the training are not the same."""
    injected = rehearsal.lives[0].injected
    until = injected[0].step if injected else rehearsal.lives[0].reached_step
    kinds: tuple[str, ...] = ()
    while (found := first_difference(control, rehearsal, until=until, but=kinds)) is not None:
        kinds += found.what
    return kinds


def _sizes(lives: Iterable[Life]) -> set[int]:
    """Return the numbers of ranks that have trained in *lives*."""
    return {ring_id.world_size for life in lives for ring_id in life.records}


@dataclass(frozen=True, kw_only=True, slots=True)
class StateDifference:
    """The difference of the states of the last step."""

    texts: tuple[str, ...]
    """Each difference in words. Empty if the states are the same."""
    note: str
    """Limits of the comparison, or nothing."""


def final_difference(control: Run, rehearsal: Run, step: int, but: Collection[str] = ()) -> StateDifference:
    """Compare the states of *step*, the last one, of both trainings. Random streams of the kinds *but* do not count."""
    try:
        one, other = (open_step(open_store(run.url), step) for run in (control, rehearsal))
        found = compare_steps(one, other)
    except SpotError as error:
        return StateDifference(texts=(f"step {step} cannot be compared: {error}",), note="")
    if len(_sizes([*control.lives, *rehearsal.lives])) > 1:
        return _of_other_ranks(found)
    tensors = [each for each in found.tensors if not _is_in(each.name.name, but)]
    values = [each for each in found.values if not _is_in(each.path, (*but, _FINGERPRINTS))]
    triggers = {_trigger(control.url, step), _trigger(rehearsal.url, step)}
    note = ""
    if len(triggers) > 1:
        note = (
            "One of the two trainings saved the last step before its last validation, and the other after it, so "
            "only models and optimizers were compared"
        )
        # A validation in between changes metrics and random streams.
        tensors, values = [each for each in tensors if each.name.part.startswith(_TRAINED)], []
    texts = [_tensor_text(each) for each in tensors]
    texts += [f"{each.path} of rank {each.rank} is {each.after!r} instead of {each.before!r}" for each in values]
    return StateDifference(texts=tuple(texts), note=note)


def shortened(texts: tuple[str, ...]) -> str:
    """Return the first of *texts*, and the number of the others."""
    more = f", and {len(texts) - _MOST} more" if len(texts) > _MOST else ""
    return "; ".join(texts[:_MOST]) + more


def _is_in(path: str, names: Collection[str]) -> bool:
    """Return whether one of *names* is a part of *path*."""
    return not set(names).isdisjoint(path.split("/"))


def _tensor_text(each: TensorDifference) -> str:
    if each.num_items is None:
        return f"{each.name} is {each.after} instead of {each.before}"
    by = "" if each.max_abs is None else f", by {each.max_abs:.3g} at most"
    return f"{each.name} differs in {each.num_items} elements{by}"


def _of_other_ranks(found: Comparison) -> StateDifference:
    """Compare states after other numbers of ranks: which tensors there are, and by how much they differ."""
    texts = [
        f"{each.name} is {each.after} instead of {each.before}"
        for each in found.tensors
        if each.num_items is None and each.name.rank is None
    ]
    largest = max((each.max_abs or 0.0 for each in found.tensors if each.name.part.startswith("model")), default=0.0)
    return StateDifference(
        texts=tuple(texts),
        note="Other numbers of ranks add in another order, so the states are not compared by their bits. The weights "
        f"differ by {largest:.3g} at most",
    )


def _trigger(url: str, step: int) -> str | None:
    """Return the reason for which rank 0 has saved *step*."""
    found = [
        record.entry.trigger
        for log in read_event_log(open_store(url)).ranks
        if log.rank == 0
        for record in log.records
        if isinstance(record.entry, Staged) and record.entry.step == step
    ]
    return found[-1] if found else None
