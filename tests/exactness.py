"""
Whether an interrupted training, resumed, is bit for bit the one that was never interrupted. For every host's drills.

A training writes to its folder, per rank: ``trace-RANK.jsonl``, one line per batch, ``[*what and where, samples,
loss]``; ``events-RANK.jsonl``; and ``final-RANK.pt``, all the state there is at its end.
"""

from __future__ import annotations

import json

import torch

from spot_plugins.fingerprints import KINDS, compare_runs, read
from spot_plugins.format.commit import committed_steps
from spot_plugins.store import LocalStore


class References:
    """Trainings that are never interrupted, one per setting; several drills are compared with each."""

    def __init__(self, train, make_folder):
        """*train* takes a folder, settings and the exit code to expect; *make_folder* a name."""
        self._train = train
        self._make_folder = make_folder
        self._done = {}

    def __call__(self, settings):
        """Return the folder of the training with *settings*."""
        key = json.dumps(settings, sort_keys=True)
        if key not in self._done:
            folder = self._make_folder("reference")
            self._train(folder, settings, expect=0)
            self._done[key] = folder
        return self._done[key]


def lines(folder, name, rank):
    """Return what *rank* wrote to the file *name*."""
    return [json.loads(line) for line in (folder / f"{name}-{rank}.jsonl").read_text().splitlines()]


def events_of(folder, rank, name):
    """Return the events *name* of all process lives of *rank*."""
    return [event for event in lines(folder, "events", rank) if event["event"] == name]


def resumed_steps(folder, rank):
    """Return the steps behind which the process lives of *rank* went on."""
    return [event["step"] for event in events_of(folder, rank, "Resumed")]


def newest_step(folder):
    """Return the newest step that is committed, None if there is none."""
    steps = committed_steps(LocalStore(str(folder / "run")))
    return steps[0].step_id.step if steps else None


def what_was_seen(folder, rank):
    """Return what each batch saw; a batch that was trained on twice must have seen the same both times."""
    seen = {}
    for *key, samples, loss in lines(folder, "trace", rank):
        first = seen.setdefault(tuple(key), (samples, loss))
        assert first == (samples, loss), f"{key} saw something else the second time"
    return seen


def samples_by_step(trace):
    """The samples of each optimizer step, over all ranks and accumulated batches, and its mean loss."""
    steps = {}
    for epoch, step, _, samples, loss in trace:
        seen, weighted = steps.setdefault((epoch, step), ([], []))
        seen += samples
        weighted += [loss] * len(samples)
    return {key: (sorted(seen), sum(losses) / len(losses)) for key, (seen, losses) in steps.items()}


def assert_same_training(folder, reference, ranks, left_out=()):
    """Compare all that was seen, except *left_out*, and all state at the end."""
    for rank in range(ranks):
        expected = what_was_seen(reference, rank)
        for key in left_out:
            del expected[key]
        assert what_was_seen(folder, rank) == expected
        finals = (torch.load(place / f"final-{rank}.pt", weights_only=False) for place in (folder, reference))
        assert_equal(*finals)


def assert_same_fingerprints(folder, reference, ranks):
    """Check that no step that was trained again looked different, and that every step looks as in *reference*."""
    assert [events_of(folder, rank, "StepDiffers") for rank in range(ranks)] == [[]] * ranks
    assert compare_runs(str(folder / "run"), str(reference / "run")) == []
    recorded = read(str(folder / "run"))
    assert recorded.first_step == 1
    assert min(recorded.digests[kind] for kind in KINDS if kind != "cuda") > 0


def assert_equal(one, other, path=""):
    """Compare two states, every tensor in all its values."""
    if isinstance(one, dict):
        assert one.keys() == other.keys(), path
        for key in one:
            assert_equal(one[key], other[key], f"{path}/{key}")
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other), path
        for index, pair in enumerate(zip(one, other, strict=True)):
            assert_equal(*pair, f"{path}/{index}")
    elif isinstance(one, torch.Tensor):
        assert torch.equal(one, other), path
    else:
        assert one == other or one is other, path
