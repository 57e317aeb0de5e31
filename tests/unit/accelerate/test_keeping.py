"""A loop of Accelerate that keeps its best step, on machines that are lost."""

from __future__ import annotations

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from hearing import remove, until_pushers_end
from torch import nn

from spot_plugins import load_weights
from spot_plugins.accelerate import SpotHook
from spot_plugins.data import elastic_loader
from spot_plugins.events import KeepFailed
from spot_plugins.resume.stored import stored_steps

SCORES = [0.3, 0.9, 0.4, 0.5]


class MachineLostError(Exception):
    """Ends a training in the middle, as the loss of a machine does."""


def train(folder, *, lost_after=None, in_pause=True, accumulate=1):
    """Train four epochs and keep the best. Return the weights of the best, by the loop itself, and the hook."""
    for state in (AcceleratorState, PartialState, GradientState):
        state._reset_state()
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=accumulate)
    torch.manual_seed(1)
    net = nn.Linear(2, 1)
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.1)
    loader = elastic_loader(list(torch.arange(16.0).view(8, 2)), batch_size=2, seed=3)
    best = {}
    spot = SpotHook(accelerator, str(folder / "run"), every_steps=3, keep_last=1, local_dir=str(folder / "local"))
    with spot:
        net, optimizer, loader = accelerator.prepare(net, optimizer, loader)
        spot.resume()
        for epoch in spot.epochs(4):
            for batch in spot.batches(loader):
                with accelerator.accumulate(net):
                    accelerator.backward(net(batch).square().mean())
                    optimizer.step()
                    optimizer.zero_grad()
                spot.after_step()
                if spot.progress.step == lost_after:
                    raise MachineLostError
            with spot.pause():
                weights = {name: value.clone() for name, value in net.state_dict().items()}
                is_best = SCORES[epoch] == max(SCORES[: epoch + 1])
                with torch.no_grad():
                    net.weight.mul_(2)  # as averaging does for a validation
                if is_best and in_pause:
                    keep_only_the_present(spot)
                with torch.no_grad():
                    net.weight.copy_(weights["weight"])
            if is_best and not in_pause:
                keep_only_the_present(spot)
            if is_best:
                best = weights
    return best, spot


def keep_only_the_present(spot):
    """Keep the present step in place of the one that was the best before."""
    for step in spot.kept:
        if step != spot.progress.step:
            spot.release(step)
    spot.keep()


@pytest.mark.parametrize("in_pause", [True, False])
@pytest.mark.parametrize("lost_after", [10, 14])
def test_the_best_step_outlives_the_machine(in_pause, lost_after, tmp_path):
    """The second of four epochs is the best; its weights are read from the store at the end of another process."""
    best, _ = train(tmp_path / "control", in_pause=in_pause)
    with pytest.raises(MachineLostError):
        train(tmp_path / "spot", lost_after=lost_after, in_pause=in_pause)
    remove(tmp_path / "spot/local")

    _, spot = train(tmp_path / "spot", in_pause=in_pause)

    assert spot.kept == (8,)
    found = load_weights(str(tmp_path / "spot/run"), spot.kept[0])
    assert found.keys() == best.keys()
    for name, tensor in best.items():
        assert torch.equal(found[name], tensor), name
    until_pushers_end()  # a commit is told before the old steps are removed
    steps = {each.step: each.kept_by for each in stored_steps(str(tmp_path / "spot/run"))}
    assert steps == {16: (), 8: ("program",)}


def test_a_keep_that_cannot_be_is_refused_or_told(tmp_path):
    """Before the first step there is nothing; in the middle of a step the live state belongs to no step."""
    for state in (AcceleratorState, PartialState, GradientState):
        state._reset_state()
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    told = []
    with SpotHook(accelerator, str(tmp_path / "run"), every_steps=1000, on_event=told.append) as spot:
        net, optimizer = accelerator.prepare(net := nn.Linear(2, 1), torch.optim.SGD(net.parameters()))
        assert spot.kept == ()
        with pytest.raises(RuntimeError, match=r"call spot.resume\(\) first"):
            spot.keep()
        spot.resume()
        with pytest.raises(RuntimeError, match="before the first step"):
            spot.keep()
        for _ in range(3):
            with accelerator.accumulate(net):
                accelerator.backward(net(torch.ones(1, 2)).sum())
                optimizer.step()
                optimizer.zero_grad()
            spot.after_step()
        with pytest.raises(ValueError, match="step 2 is not trained yet, the last one is 1"):
            spot.keep(2)
        spot.keep()
        assert [event.step for event in told if isinstance(event, KeepFailed)] == [1]
        assert spot.kept == ()
