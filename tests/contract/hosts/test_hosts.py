"""
What every host promises: an interrupted training is the one that was left alone, or the user is told.

The situations are data, in ``situations.py``. A host takes part by an adapter, see docs/extending.md.
"""

from __future__ import annotations

from functools import cache

import pytest
from contract.hosts.judge import judge, judge_rest
from contract.hosts.lives import HOSTS, differences, has, live, live_apart
from contract.hosts.situation import Interruption, Program
from contract.hosts.situations import KILLED_FOR_REAL, SITUATIONS, TWO_RANKS

KNOWN: dict[tuple[str, str], str] = {}
"""Faults that are known, by host and situation. A test that passes in spite of its entry fails: remove the entry."""

ALWAYS = {"sft": {"notice in the validation of an epoch", "notice within an accumulation of three"}}
"""Hosts that do not take turns, because they begin slowly, and the situations that they are always put into."""


def cases(situations):
    """
    Return one case for each host and situation. A known fault is expected, so that its end is noticed.

    Hosts take turns in every other situation. All else is left to the soak.
    """
    made = []
    for number, each in enumerate(situations):
        programs = (each.program, each.last_program)
        known = [host for host in HOSTS if host not in each.unknown_to and all(has(host, one) for one in programs)]
        in_turn = [host for host in known if host not in ALWAYS]
        for host in known:
            reason = KNOWN.get((host, each.name))
            marks = [pytest.mark.xfail(reason=reason, strict=True)] if reason else []
            is_in_turn = number % 2 == 0 and host == in_turn[number // 2 % len(in_turn)]
            if not is_in_turn and each.name not in ALWAYS.get(host, ()):
                marks.append(pytest.mark.soak)
            made.append(pytest.param(host, each, id=f"{host}-{each.name}", marks=marks))
    return made


def each_host():
    """Return one case for each host. Those that do not take turns are left to the soak."""
    return [pytest.param(host, marks=pytest.mark.soak if host in ALWAYS else ()) for host in HOSTS]


@pytest.fixture(scope="module")
def control(tmp_path_factory):
    """Outcomes of programs that are never interrupted."""

    @cache
    def of(host, program):
        return live(host, program, tmp_path_factory.mktemp("control"))

    return of


@pytest.mark.parametrize(("host", "situation"), cases(SITUATIONS))
def test_a_situation_ends_as_the_training_left_alone_or_the_user_is_told(host, situation, control, tmp_path):
    """Samples, learning rates, losses and the final state are equal in every bit, and nothing is lost at a notice."""
    expected = control(host, situation.last_program)
    ends = situation.interruptions or (None,)  # a change without an interruption follows a training that was finished

    lives = [live(host, situation.program, tmp_path, due) for due in ends]
    lives.append(live(host, situation.last_program, tmp_path))

    judge(situation, expected, lives)


@pytest.mark.parametrize("host", each_host())
def test_a_finished_training_started_again_trains_nothing(host, control, tmp_path):
    """It ends well, with the final state of before, as often as it is started."""
    program = Program(validate="epoch", schedule="plateau")
    live(host, program, tmp_path)

    for _ in range(2):
        again = live(host, program, tmp_path)

        assert (again.end, again.rows) == ("finished", [])
        assert again.resumed_from == 12
        final, expected = dict(again.final), dict(control(host, program).final)
        assert differences(final, expected) == []


@pytest.mark.parametrize("host", each_host())
def test_a_life_tells_its_events_in_their_order(host, tmp_path):
    """A first life starts and commits; the next starts, resumes, and only then commits."""
    program = Program(every_steps=2)

    first = live(host, program, tmp_path, Interruption(number=4))
    second = live(host, program, tmp_path)

    kinds = [type(event).__name__ for event in first.events]
    assert kinds[0] == "AttemptStarted"
    assert "Resumed" not in kinds
    assert kinds[-1] == "Leaving"
    assert first.last_committed_step == 4
    kinds = [type(event).__name__ for event in second.events]
    assert kinds.index("AttemptStarted") < kinds.index("Resumed") < kinds.index("Committed")
    assert (second.resumed_from, second.last_committed_step) == (4, 12)


@pytest.mark.parametrize(("host", "situation"), cases(KILLED_FOR_REAL))
def test_a_killed_process_is_followed_by_one_that_continues(host, situation, control, tmp_path):
    """The steps after the last save are trained again, on the same samples with the same random numbers."""
    lives = [live_apart(host, situation.program, tmp_path, due)[0] for due in situation.interruptions]
    lives.append(live(host, situation.last_program, tmp_path))

    judge_rest(control(host, situation.last_program), lives)


@pytest.mark.parametrize(("host", "situation"), cases(TWO_RANKS))
def test_ranks_leave_together_and_continue_together(host, situation, tmp_path):
    """All of them save one step, end with code 143, and train what they would have trained."""
    folders = [tmp_path / name for name in ("control", "interrupted")]
    for folder in folders:
        folder.mkdir()
    controls = live_apart(host, situation.program, folders[0])
    lives = [live_apart(host, situation.program, folders[1], due) for due in (*situation.interruptions, None)]

    for rank, expected in enumerate(controls):
        assert expected.end == "finished", (folders[0] / f"output-{rank}.txt").read_text()[-3000:]
        judge(situation, expected, [life[rank] for life in lives])
    assert len({life.resumed_from for life in lives[-1]}) == 1
