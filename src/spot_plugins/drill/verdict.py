"""The verdict: each promise, whether it was kept, and the first difference in plain words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from ..fingerprints.record import KINDS
from .command import gives_143
from .equality import WEIGHTS, final_difference, first_difference, in_words, num_compared, shortened, unseeded_kinds
from .faults import READ_S
from .lives import Injected, Life, Run
from .plan import Pace
from .promise import Promise, last_error, output_lines, told_exit
from .runner import Facts
from .survival import of_survived
from .timings import FaultFigures, figures_of

_MOST_WORDS: Final = 12
_DEAF: Final = (
    "The program ignores the signal or has a handler of its own, or its launcher does not forward it: see spot run"
)
_UNUSED: Final = frozenset({"python", "numpy"})
"""Random streams that many trainings never draw from, so that it does no harm if nobody seeds them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """The result of a drill."""

    facts: Facts
    promises: tuple[Promise, ...]
    figures: tuple[FaultFigures, ...]
    words: tuple[str, ...]
    """Warnings and errors of the training, if a promise was broken."""

    @property
    def is_kept(self) -> bool:
        """True if all promises were kept."""
        return all(each.is_kept for each in self.promises)

    @property
    def first_broken(self) -> Promise | None:
        """The first promise that was broken, or None."""
        return next((each for each in self.promises if not each.is_kept), None)


def judge(facts: Facts) -> Verdict:
    """Return the verdict on *facts*."""
    promises = [*_of_control(facts.control)]
    figures: list[FaultFigures] = []
    if facts.pace is not None and facts.rehearsal is not None:
        figures = figures_of(facts.rehearsal) if facts.rehearsal.url else []
        promises += _of_faults(facts.rehearsal, figures, facts.pace)
        promises += _of_end(facts.rehearsal, facts.pace)
        promises += of_equality(facts.control, facts.rehearsal, facts.pace)
    is_kept = all(each.is_kept for each in promises)
    words = () if is_kept else tuple(_words_of([run for run in (facts.control, facts.rehearsal) if run is not None]))
    return Verdict(facts=facts, promises=tuple(promises), figures=tuple(figures), words=words)


def _of_control(control: Run) -> Iterator[Promise]:
    (life,) = control.lives
    name = "the control comes to its end"
    if life.problems:
        yield Promise(name, False, "; ".join(life.problems))
    elif life.exit_code != 0:
        yield Promise(name, False, f"{told_exit(life)} after step {life.reached_step}{last_error(life)}")
    elif not control.url:
        yield Promise(name, False, "no session of spot_plugins was opened, so there is nothing to interrupt")
    elif not life.reached_at:
        yield Promise(name, False, "no step was done, so there is nothing to interrupt")
    else:
        yield Promise(name, True, f"{life.reached_step} steps in {life.ended_at - life.began_at:.1f} s")


def _of_faults(rehearsal: Run, figures: Sequence[FaultFigures], pace: Pace) -> Iterator[Promise]:
    by_fault = {(each.life, each.fault, each.step): each for each in figures}
    for life in rehearsal.lives:
        following = next((each for each in rehearsal.lives if each.number == life.number + 1), None)
        for injected in life.injected:
            if injected.fault.ends_training:
                figure = by_fault[life.number, injected.fault.name, life.reached_step]
                yield from _of_ending(life, injected, figure, following, pace)
            else:
                figure = by_fault[life.number, injected.fault.name, injected.step]
                yield from of_survived(life, injected, figure, pace)


def _of_ending(
    life: Life, injected: Injected, figure: FaultFigures, following: Life | None, pace: Pace
) -> Iterator[Promise]:
    name = f"{injected.fault.name} after step {injected.step}"
    problems, text = list(life.problems), f"{injected.told}; all were gone after {life.gone_at - injected.at:.1f} s"
    if injected.fault.is_notice and injected.fault.takes_machine and life.exit_code is None:
        text = f"{injected.told}; all was killed {injected.limit_s:.0f} s later, and the last step was stored before"
        if not life.log.has_left and life.log.committed < pace.last_step:
            problems.append(f"the training had not ended {injected.limit_s:.0f} s after {injected.told}")
    is_deaf = not life.log.has_notice and life.gone_at - injected.at >= READ_S
    if injected.fault.kills_launcher and is_deaf and injected.step < pace.last_step <= life.reached_step:
        problems.append(f"without their launcher the ranks trained on, to their end at step {life.reached_step}")
    yield Promise(f"{name}: all processes end in time", not problems, "; ".join(problems) or text)
    is_over = life.exit_code == 0 and life.reached_step >= pace.last_step
    if injected.fault.is_notice:
        is_too_late = is_over and life.ended_at - injected.at < READ_S
        text = "a session has received it" if life.log.has_notice else "no session has received it"
        if not life.log.has_notice:
            text += ", because the training ended first" if is_too_late else f". {_DEAF}"
        yield Promise(f"{name}: the training learns of it", life.log.has_notice or is_too_late, text)
    if life.exit_code is not None:
        expects_143 = injected.fault.is_notice and gives_143(life.command)
        is_right = is_over or (life.exit_code == 143 if expects_143 else life.exit_code != 0)
        wanted = "" if is_right else f", and not {'143' if expects_143 else 'one other than 0'}"
        why = "" if is_right or life.exit_code else ". A scheduler would not start it again"
        yield Promise(f"{name}: the exit code says so", is_right, f"{told_exit(life)}{wanted}{why}")
    if following is None:
        return
    start = following.log.start_step
    if start is None:
        text = f"the next start trained nothing: {told_exit(following)}{last_error(following)}"
        yield Promise(f"{name}: the next start resumes", False, text)
        return
    least = life.reached_step if injected.fault.is_notice else injected.committed
    text = f"resumed from step {start}, step {figure.step} was the last one done; steps lost: {figure.lost_steps}"
    if start < least and injected.fault.is_notice:
        text += f". The training had {injected.limit_s:.0f} s to save"
    elif start < least:
        text += f". Step {least} was in the store"
    yield Promise(f"{name}: nothing that was saved is lost", start >= least, text)
    if injected.damaged is not None:
        yield _of_damage(f"{name}: the damaged step is not used", injected.damaged, injected.committed, following)


def _of_damage(name: str, damaged: int, intact: int, following: Life) -> Promise:
    """Judge whether the next start has seen that the step *damaged* is damaged. *intact* is the step before."""
    reason = following.log.rejected.get(damaged)
    if (following.log.start_step or 0) > intact:
        return Promise(name, False, f"resumed from step {following.log.start_step}, though its bytes have changed")
    if reason is None:
        return Promise(name, False, f"no session has said that step {damaged} is damaged")
    return Promise(name, True, reason)


def _of_end(rehearsal: Run, pace: Pace) -> Iterator[Promise]:
    last = rehearsal.lives[-1]
    name = "the rehearsal comes to its end"
    if last.ending is None and last.problems:
        yield Promise(name, False, "; ".join(last.problems))
    elif last.exit_code != 0:
        yield Promise(
            name, False, f"start {last.number}: {told_exit(last)} after step {last.reached_step}{last_error(last)}"
        )
    elif last.reached_step != pace.last_step:
        text = f"it ended after step {last.reached_step}, and the control after step {pace.last_step}"
        yield Promise(name, False, text)
    else:
        yield Promise(name, True, f"after step {last.reached_step}, with {len(rehearsal.lives)} starts")
    if rehearsal.left:
        names = ", ".join(f"{fault.name} after step {step}" for fault, step in rehearsal.left)
        text = f"not injected, because the training was over before: {names}. Give it more or longer steps"
        yield Promise("all faults are injected", False, text)


def of_equality(control: Run, rehearsal: Run, pace: Pace) -> Iterator[Promise]:
    """Yield the promises that every step, and the state after the last one, are those of the control."""
    name = "every step is made of the same as in the control"
    unseeded = unseeded_kinds(control, rehearsal)
    streams = " and ".join(kind for kind in KINDS if kind in unseeded)
    note = (
        f". Random streams of {streams} were not compared, because the training does not seed them" if unseeded else ""
    )
    if not _UNUSED.issuperset(unseeded):
        remedy = "Seed everything when it starts, for example with torch.manual_seed"
        if WEIGHTS in unseeded:  # they are compared if all else is the same
            remedy += ", and call torch.use_deterministic_algorithms(True)"
        text = (
            f"in a step before any fault {in_words(unseeded)}: two starts of this training are never the same. "
            f"{remedy}, so that it can be judged"
        )
        yield Promise(name, False, text)
        return
    difference = first_difference(control, rehearsal, but=unseeded)
    if difference is None:
        yield Promise(name, True, f"{num_compared(control, rehearsal)} fingerprints of steps are the same{note}")
    else:
        yield Promise(name, False, f"{difference.text}, in start {difference.life}. {difference.advice}{note}")
    last = rehearsal.lives[-1]
    if last.exit_code != 0 or last.reached_step != pace.last_step:
        return
    state = final_difference(control, rehearsal, pace.last_step, unseeded)
    text = shortened(state.texts) or f"step {pace.last_step} has the same state, bit for bit"
    if state.note:
        text = f"{shortened(state.texts)}. {state.note}".removeprefix(". ")
    yield Promise("the state at the end is that of the control", not state.texts, text)


def _words_of(runs: Sequence[Run]) -> Iterator[str]:
    """Yield what the sessions warned of, and Python's warnings in the output, each once."""
    lives = [life for run in runs for life in run.lives]
    lines = [line for life in lives for line in output_lines(life)]
    warned = [line.partition("Warning: ")[2] for line in lines if "UserWarning: " in line]
    wanted = {each.fault.refusal for life in lives for each in life.injected if each.fault.refusal}
    said = [word for run in runs for word in run.words if not any(each in word for each in wanted)]
    yield from list(dict.fromkeys([*said, *warned]))[:_MOST_WORDS]
