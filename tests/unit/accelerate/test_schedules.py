"""Learning rate schedules on another number of processes than the run began with, and schedules nobody prepared."""

from __future__ import annotations

import warnings

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from accelerate.utils import GradientAccumulationPlugin
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, LinearLR, OneCycleLR, SequentialLR, StepLR

from spot_plugins.accelerate.counters import CountersPart
from spot_plugins.accelerate.schedules import Schedules
from spot_plugins.loop.told import Told

BATCHES = 144  # of the data set, over all processes, per epoch
EPOCHS = 3


class Ranks:
    """A loop on a number of processes, as one of them sees it. Nothing but the number is real."""

    def __init__(
        self, processes, make, *, accumulation=12, split=False, tied=True, keep=True, per="step", prepared=True
    ):
        for state in (AcceleratorState, PartialState, GradientState):
            state._reset_state()
        plugin = GradientAccumulationPlugin(num_steps=accumulation, adjust_scheduler=per == "step")
        self.accelerator = Accelerator(
            cpu=True, gradient_accumulation_plugin=plugin, step_scheduler_with_optimizer=tied
        )
        self.accelerator.dataloader_config.split_batches = split
        PartialState().num_processes = self.accelerator.state.num_processes = processes
        self.optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=1.0)
        scheduler = make(self.optimizer)
        self.wrapped = self.accelerator.prepare(self.optimizer)
        self.scheduler = self.accelerator.prepare(scheduler) if prepared else scheduler
        self.at_once = 1 if split else processes
        self.per = per
        self.said = []
        schedules = Schedules(self.accelerator, [], Told())
        if not prepared:
            schedules.find()
        self.part = CountersPart(self.accelerator, schedules, self.said.append, keep_batch=keep)
        self.steps = 0

    def train(self, first, last):
        """Train on batches *first* to *last* of all, and return the learning rate after each whole step."""
        rates = {}
        for number in range(first, last, self.at_once):
            done = number + self.at_once
            self.accelerator.step += 1
            synced = self.accelerator.step % self.accelerator.gradient_accumulation_steps == 0
            self.accelerator.gradient_state._set_sync_gradients(synced)
            self.wrapped.step()
            if self.per == "batch" or (self.per == "step" and synced):
                self.scheduler.step()
            if done % BATCHES == 0 and self.per == "epoch":
                self.accelerator.gradient_state._set_sync_gradients(True)
                self.scheduler.step()
            self.steps += synced
            self.part.end_batch()
            if synced:
                rates[done] = self.optimizer.param_groups[0]["lr"]
        return rates

    def state(self):
        return [self.scheduler.state_dict(), self.optimizer.state_dict(), self.part.state_dict(), self.steps]

    def load(self, state):
        self.scheduler.load_state_dict(state[0])
        self.optimizer.load_state_dict(state[1])
        self.part.load_state_dict(state[2])
        self.steps = state[3]
        self.part.resume(self.steps)


TOTAL = BATCHES * EPOCHS // 12  # in units of a prepared scheduler: one for each batch, by the accumulation

SCHEDULES = {
    "cosine": lambda optimizer: CosineAnnealingLR(optimizer, TOTAL),
    "linear": lambda optimizer: LambdaLR(optimizer, lambda n: max(0.0, 1 - n / TOTAL)),
    "warm-up": lambda optimizer: SequentialLR(
        optimizer,
        [LinearLR(optimizer, 0.1, total_iters=4), CosineAnnealingLR(optimizer, TOTAL - 4)],
        milestones=[4],
    ),
    "one cycle": lambda optimizer: OneCycleLR(optimizer, 1.0, total_steps=TOTAL + 1),
    "staircase": lambda optimizer: StepLR(optimizer, 4, gamma=0.5),
}
PAIRS = [(before, after) for before in (1, 2, 3, 4) for after in (1, 2, 3, 4)]


def changed(pair, make, middle=BATCHES, back=False, **settings):
    """Train one half on the first number of processes, and the other half on the second."""
    before, after = pair
    ranks = Ranks(before, make, **settings)
    rates = ranks.train(0, middle)
    state = ranks.state()
    again = Ranks(after, make, **settings)
    again.load(state)
    last = BATCHES * EPOCHS
    if not back:
        return rates | again.train(middle, last), again
    rates |= again.train(middle, middle + BATCHES)
    state = again.state()
    third = Ranks(before, make, **settings)
    third.load(state)
    return rates | third.train(middle + BATCHES, last), third


@pytest.mark.parametrize("pair", PAIRS, ids=str)
@pytest.mark.parametrize("name", SCHEDULES)
def test_a_prepared_schedule_continues_per_sample(name, pair, recwarn):
    """
    Whatever the numbers of processes, each sample has the learning rate that it would have had. The optimizer steps
    after as many samples as before, because accumulation makes up for the processes.
    """
    whole = Ranks(pair[0], SCHEDULES[name]).train(0, BATCHES * EPOCHS)
    rates, ranks = changed(pair, SCHEDULES[name])
    assert rates == pytest.approx(whole)
    steps = ranks.accelerator.gradient_accumulation_steps
    assert steps * pair[1] == 12 * pair[0]
    is_same = pair[0] == pair[1]
    assert [line.split(":")[0] for line in ranks.said] == (
        [] if is_same else [f"gradient_accumulation_steps={steps} on {pair[1]} processes"]
    )
    told = [str(each.message) for each in recwarn]
    of_torch = "The epoch parameter in `scheduler.step()`"  # torch 2.6 warns of its own call
    assert not [text for text in told if "schedule" in text and not text.startswith(of_torch)]


@pytest.mark.parametrize("pair", [(2, 1), (1, 2), (4, 3), (3, 2)], ids=str)
@pytest.mark.parametrize("name", SCHEDULES)
def test_it_does_after_a_way_there_and_back(name, pair):
    """
    The schedule is that of the first process, however often the number changes.
    """
    whole = Ranks(pair[0], SCHEDULES[name]).train(0, BATCHES * EPOCHS)
    assert changed(pair, SCHEDULES[name], back=True)[0] == pytest.approx(whole)


@pytest.mark.parametrize("pair", [(2, 3), (3, 2), (4, 3), (1, 3)], ids=str)
def test_a_step_is_whole_after_a_way_there_and_back(pair):
    """
    The batches that Accelerate has counted are of steps that the other number of processes accumulates in other parts.
    """
    there, back = pair
    per_step = 12 * there
    first = Ranks(there, SCHEDULES["linear"])
    first.train(0, per_step)
    state = first.state()
    second = Ranks(back, SCHEDULES["linear"])
    second.load(state)
    second.train(per_step, 2 * per_step)
    state = second.state()
    third = Ranks(there, SCHEDULES["linear"])
    third.load(state)
    assert [*third.train(2 * per_step, 4 * per_step)] == [3 * per_step, 4 * per_step]


def test_a_step_is_whole_after_the_program_has_changed_the_accumulation():
    """
    One step of 4 batches on each process, then steps of 3.
    """
    first = Ranks(2, SCHEDULES["linear"], accumulation=4)
    first.train(0, 8)
    state = first.state()
    second = Ranks(2, SCHEDULES["linear"], accumulation=3)
    second.load(state)
    assert [*second.train(8, 20)] == [14, 20]


@pytest.mark.parametrize("pair", PAIRS, ids=str)
def test_it_does_where_the_samples_per_step_change(pair):
    """
    With elastic_batch="scale" steps are made of other numbers of samples, and the rate at the same sample is the same.
    """
    whole = Ranks(pair[0], SCHEDULES["linear"], accumulation=4).train(0, BATCHES * EPOCHS)
    rates, _ = changed(pair, SCHEDULES["linear"], accumulation=4, keep=False)
    both = whole.keys() & rates.keys()
    assert len(both) > 4
    assert [rates[done] for done in both] == pytest.approx([whole[done] for done in both])


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("pair", PAIRS, ids=str)
def test_a_schedule_per_epoch_makes_as_many_steps_per_epoch_as_before(pair, keep):
    """
    Accelerate makes one for each process, so a run that began on two makes two, on any number.
    """
    settings = {"per": "epoch", "keep": keep}
    make = lambda optimizer: StepLR(optimizer, 1, gamma=0.5)  # noqa: E731
    _, ranks = changed((pair[0], pair[0]), make, **settings)
    _, again = changed(pair, make, **settings)
    assert again.scheduler.scheduler.last_epoch == ranks.scheduler.scheduler.last_epoch == EPOCHS * pair[0]


@pytest.mark.parametrize("pair", PAIRS, ids=str)
def test_split_batches_have_the_same_samples_on_any_number(pair):
    """
    So neither accumulation nor schedule changes.
    """
    whole = Ranks(pair[0], SCHEDULES["cosine"], split=True).train(0, BATCHES * EPOCHS)
    rates, ranks = changed(pair, SCHEDULES["cosine"], split=True)
    assert rates == pytest.approx(whole)
    assert ranks.accelerator.gradient_accumulation_steps == 12


@pytest.mark.filterwarnings("ignore:Detected call")
@pytest.mark.parametrize("per", ["step", "batch"])
@pytest.mark.parametrize("pair", [(2, 1), (1, 2), (4, 2), (2, 4)], ids=str)
def test_a_schedule_that_is_not_tied_to_the_optimizer_continues_per_sample(pair, per):
    """
    Of step_scheduler_with_optimizer=False Accelerate makes one step per call.
    """
    total = BATCHES * EPOCHS // pair[0] // (12 if per == "step" else 1)
    make = lambda optimizer: CosineAnnealingLR(optimizer, total)  # noqa: E731
    whole = Ranks(pair[0], make, tied=False, per=per).train(0, BATCHES * EPOCHS)
    rates, _ = changed(pair, make, tied=False, per=per)
    assert rates == pytest.approx(whole)


def test_a_loop_without_accumulate_keeps_its_accumulation():
    """
    Accelerate would divide each gradient by it, while the optimizer steps on every batch.
    """
    ranks = Ranks(2, SCHEDULES["linear"], accumulation=1)
    state = ranks.state()
    assert state[2]["step"] == 0
    again = Ranks(1, SCHEDULES["linear"], accumulation=1)
    with pytest.warns(
        UserWarning,
        match=r"instead of 2, because the loop does not accumulate.*with accelerator.accumulate\(model\)",
    ):
        again.load(state)
    assert again.accelerator.gradient_accumulation_steps == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Ranks(2, SCHEDULES["linear"], accumulation=1).load(state)


def test_accumulate_is_known_at_the_end_of_an_epoch_too():
    """
    There Accelerate's counter of batches is 0, as if it had counted none.
    """
    ranks = Ranks(2, SCHEDULES["linear"], accumulation=1)
    ranks.train(0, 4)
    ranks.accelerator.step = 0
    state = ranks.state()
    again = Ranks(1, SCHEDULES["linear"], accumulation=1)
    again.load(state)
    assert again.accelerator.gradient_accumulation_steps == 2


@pytest.mark.filterwarnings("ignore:Detected call")
def test_another_function_of_the_program_is_named():
    """
    No checkpoint holds the function of a LambdaLR. The session names that of a prepared one, and this part the others.
    """
    ranks = Ranks(2, SCHEDULES["linear"], prepared=False)
    ranks.train(0, BATCHES)
    state = ranks.state()
    other = Ranks(2, lambda optimizer: LambdaLR(optimizer, lambda n: max(0.0, 1 - n / TOTAL / 2)), prepared=False)
    with pytest.warns(UserWarning, match="the schedule of this program gives a learning rate of 0.916.*had 0.833"):
        other.load(state)


@pytest.mark.filterwarnings("ignore:Detected call")
def test_a_schedule_per_batch_that_is_not_prepared_is_named_on_another_number_of_processes():
    """
    It makes twice as many steps for the same samples on one process as on two, and nothing makes up for that.
    """
    ranks = Ranks(2, SCHEDULES["linear"], prepared=False, per="batch")
    ranks.train(0, BATCHES)
    state = ranks.state()
    again = Ranks(1, SCHEDULES["linear"], prepared=False, per="batch")
    with pytest.warns(UserWarning, match="LambdaLR is not prepared, so it makes a step per call and not per sample"):
        again.load(state)


@pytest.mark.parametrize("in_checkpoint", [True, False])
def test_a_schedule_that_is_not_prepared_and_on_one_side_only_is_named(in_checkpoint):
    """
    Its rate would begin anew, or nobody would continue it.
    """
    before, after = (
        Ranks(2, SCHEDULES["cosine"], prepared=prepared) for prepared in (not in_checkpoint, in_checkpoint)
    )
    where = "the checkpoint" if in_checkpoint else "this program"
    with pytest.warns(UserWarning, match=f"only {where} has a CosineAnnealingLR that is not prepared, so the learning"):
        after.part.load_state_dict(before.part.state_dict())


def test_accumulation_that_no_number_makes_up_for_is_named():
    """
    Two batches per step cannot be spread over four processes.
    """
    ranks = Ranks(2, SCHEDULES["linear"], accumulation=1)
    ranks.train(0, 4)
    again = Ranks(4, SCHEDULES["linear"], accumulation=1)
    with pytest.warns(UserWarning, match="4 batches now instead of 2, which do not divide over 4 processes"):
        again.load(ranks.state())
