"""Programs as people write training loops. Interrupted and resumed, each is exact, or says what is not."""

from __future__ import annotations

import pytest
import torch
from user_accelerate import ACCELERATE, LabelNoise
from user_accelerate_loops import LOOPS_OF_ACCELERATE, GroupAdded
from user_lightning import LIGHTNING, NoisyModule
from user_lives import assert_exact, assert_told
from user_loops import LOOPS

NOTICES = [(6,), (9,), (3, 4)]
"""Batches before which the lives of a program are interrupted."""

OTHER_ORDER = "fetched again are not those that were trained on"
DRAWN = "draws before it takes each batch"
TOLD = {
    "SelfPaced-9": OTHER_ORDER,
    "SelfPaced-3-4": OTHER_ORDER,
    "RoundRobin-6": DRAWN,
    "RoundRobin-9": DRAWN,
    "RoundRobin-3-4": DRAWN,
}
"""Programs that cannot be exact, by name and notices, and the words by which their user is told at the resume."""


def cases(programs):
    """
    Return each program with each list of notices, and the words by which it tells that it is not exact.

    All but one list per program are left to the soak, and programs side by side have different ones.
    """
    made = []
    for number, program in enumerate(programs):
        chosen = NOTICES[number % len(NOTICES)]
        for notices in NOTICES:
            name = "-".join([program.__name__, *map(str, notices)])
            marks = [] if notices == chosen or name in TOLD else pytest.mark.soak
            made.append(pytest.param(program, notices, TOLD.get(name, ""), id=name, marks=marks))
    return made


@pytest.mark.sampled
@pytest.mark.parametrize(("program", "notices", "says"), cases([*ACCELERATE, *LOOPS_OF_ACCELERATE]))
def test_a_program_of_accelerate_is_exact(program, notices, says, tmp_path):
    """Samples, losses and the final state are those of the program left alone, or the user is told why not."""
    assert_exact(lambda life: program().run(life), tmp_path, notices, says)


def test_a_group_that_is_added_in_the_middle_is_told_at_the_resume(tmp_path):
    """The optimizer of the new process has not got the group yet when its state is restored."""
    assert_told(lambda life: GroupAdded().run(life), tmp_path, 9, "group")


def folds(run_fold):
    """Return a program that trains three folds in one process, each at its own URL."""

    def program(life):
        url, finals = life.url, []
        for fold in range(3):
            torch.manual_seed(fold)
            life.url = f"{url}-{fold}"
            finals.append(run_fold(life))
        return finals

    return program


@pytest.mark.sampled
@pytest.mark.parametrize("notices", [(5,), (15,), (15, 4)], ids=str)
@pytest.mark.parametrize(
    "run_fold",
    [lambda life: LabelNoise().run(life), lambda life: NoisyModule(life).run()],
    ids=["accelerate", "lightning"],
)
def test_folds_in_one_process_are_exact(run_fold, notices, tmp_path):
    """A fold that is done is only loaded, and the next ones are those of the program left alone."""
    assert_exact(folds(run_fold), tmp_path, notices)


@pytest.mark.sampled
@pytest.mark.parametrize(("module", "notices", "says"), cases(LIGHTNING))
def test_a_program_of_lightning_is_exact(module, notices, says, tmp_path):
    """Samples, losses, learning rates and the final state are those of the program left alone."""
    assert_exact(lambda life: module(life).run(), tmp_path, notices, says)


@pytest.mark.sampled
@pytest.mark.parametrize(("loop", "notices", "says"), cases(LOOPS))
def test_a_loop_of_ones_own_is_exact(loop, notices, says, tmp_path):
    """Samples, losses and the final state are those of the loop left alone."""
    assert_exact(lambda life: loop().run(life), tmp_path, notices, says)
