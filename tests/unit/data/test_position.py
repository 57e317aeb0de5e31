"""Interrupted anywhere and resumed, a loader of any kind yields what it would have yielded."""

import json
import random
import warnings
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.data_loader import DataLoaderDispatcher, prepare_data_loader
from accelerate.state import AcceleratorState, GradientState, PartialState
from accelerate.utils import DataLoaderConfiguration
from streams import Kept
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    Sampler,
    WeightedRandomSampler,
)
from torchdata.stateful_dataloader import StatefulDataLoader

from spot_plugins.data import ElasticSampler, LoaderPosition, elastic_loader
from spot_plugins.errors import ConfigError

EPOCHS = 3
LENGTH = 11


class Numbered(Dataset):
    """Sample i is [i, a number drawn from torch's stream of whoever loads it]."""

    def __len__(self):
        return LENGTH

    def __getitem__(self, index):
        return torch.tensor([index, torch.rand(()).item()])


class Plain(Dataset):
    """Sample i is i."""

    def __len__(self):
        return LENGTH

    def __getitem__(self, index):
        return index


class Counting(IterableDataset):
    """A stream whose position is part of its state, as the torchdata documentation has it."""

    def __init__(self):
        self.next = 0

    def __iter__(self):
        while self.next < LENGTH:
            self.next += 1
            yield self.next - 1
        self.next = 0

    def __len__(self):
        return LENGTH

    def state_dict(self):
        return {"next": self.next}

    def load_state_dict(self, state):
        self.next = state["next"]


class Remembering(Plain):
    """A data set with a state that goes on from epoch to epoch: how many samples were ever drawn."""

    def __init__(self):
        self.drawn = 0

    def __getitem__(self, index):
        self.drawn += 1
        return torch.tensor([index, self.drawn])

    def state_dict(self):
        return {"drawn": self.drawn}

    def load_state_dict(self, state):
        self.drawn = state["drawn"]


class Ring:
    """A loader of somebody's own: its state is the next number, which it wraps around at the end of an epoch."""

    def __init__(self, wraps_early):
        self.wraps_early = wraps_early
        self.next = 0

    def __len__(self):
        return LENGTH

    def __iter__(self):
        while self.next < LENGTH:
            self.next += 1
            number = self.next - 1
            torch.rand(())  # augmentation
            if self.wraps_early and self.next == LENGTH:
                self.next = 0
                yield number
                return
            yield number
        self.next = 0

    def state_dict(self):
        return {"next": self.next}

    def load_state_dict(self, state):
        self.next = state["next"]


class OwnOrder(Sampler):
    """A sampler of somebody's own, which draws from python's stream when it is iterated."""

    generator = random  # not torch's kind of generator

    def __len__(self):
        return LENGTH

    def __iter__(self):
        return iter(self.generator.sample(range(LENGTH), LENGTH))


class KeepsIterators(Sampler):
    """A sampler without a state, whose iterators have one."""

    def __len__(self):
        return LENGTH

    def __iter__(self):
        return KeptDraws()


class KeptDraws:
    """Draws that its state repeats: a seed of the global stream, and a number."""

    def __init__(self):
        self.seed, self.drawn = random.getrandbits(32), 0

    def __iter__(self):
        return self

    def __next__(self):
        if self.drawn == LENGTH:
            raise StopIteration
        self.drawn += 1
        return random.Random(self.seed).sample(range(LENGTH), LENGTH)[self.drawn - 1]

    def state_dict(self):
        return {"seed": self.seed, "drawn": self.drawn}

    def load_state_dict(self, state):
        self.seed, self.drawn = state["seed"], state["drawn"]


class OwnState(OwnOrder):
    """Draws from a generator of its own, which nobody saves."""

    def __init__(self):
        self.generator = random.Random(5)


def seeded_generator():
    return torch.Generator().manual_seed(5)


def prepared(loader, **settings):
    for state in (AcceleratorState, PartialState, GradientState):
        state._reset_state()
    config = DataLoaderConfiguration(**settings)
    return Accelerator(cpu=True, dataloader_config=config).prepare(loader)


ELASTIC = {
    "elastic": lambda: elastic_loader(Numbered(), batch_size=2, seed=1),
    "elastic, drop_last": lambda: elastic_loader(Numbered(), batch_size=2, seed=1, drop_last=True),
    "elastic, persistent workers": lambda: elastic_loader(
        Numbered(), batch_size=3, seed=1, num_workers=2, persistent_workers=True
    ),
    "elastic, unbatched": lambda: DataLoader(Plain(), batch_size=None, sampler=ElasticSampler(LENGTH)),
    "elastic in StatefulDataLoader": lambda: StatefulDataLoader(Plain(), batch_size=2, sampler=ElasticSampler(LENGTH)),
    "elastic, prepared": lambda: prepared(elastic_loader(Numbered(), batch_size=2)),
    "elastic, prepared stateful": lambda: prepared(
        elastic_loader(Numbered(), batch_size=2), use_stateful_dataloader=True
    ),
}
STATEFUL = {
    "stateful": lambda: StatefulDataLoader(Plain(), batch_size=2, shuffle=True),
    "stateful, drop_last": lambda: StatefulDataLoader(Plain(), batch_size=2, shuffle=True, drop_last=True),
    "stateful, generator": lambda: StatefulDataLoader(
        Plain(), batch_size=2, shuffle=True, generator=seeded_generator()
    ),
    "stateful, torch's sampler": lambda: StatefulDataLoader(
        Plain(), batch_sampler=BatchSampler(RandomSampler(range(LENGTH)), 2, False)
    ),
    "stateful, own sampler": lambda: StatefulDataLoader(Plain(), batch_size=2, sampler=OwnOrder()),
    "stateful, own sampler and workers": lambda: StatefulDataLoader(
        Plain(), batch_size=4, sampler=OwnOrder(), num_workers=2
    ),
    "stateful, sampler whose iterator has a state": lambda: StatefulDataLoader(
        Plain(), batch_size=2, sampler=KeepsIterators()
    ),
    "stateful, workers": lambda: StatefulDataLoader(Plain(), batch_size=4, shuffle=True, num_workers=2),
    "stateful, persistent workers": lambda: StatefulDataLoader(
        Plain(), batch_size=4, shuffle=True, num_workers=1, persistent_workers=True
    ),
    "stateful stream": lambda: StatefulDataLoader(Counting(), batch_size=2),
    "stateful data set": lambda: StatefulDataLoader(Remembering(), batch_size=2, shuffle=True),
    "stateful, not torchdata's": lambda: Ring(wraps_early=False),
    "stateful, prepared": lambda: prepared(
        DataLoader(Plain(), batch_size=2, shuffle=True), use_stateful_dataloader=True
    ),
    "stateful, prepared with workers": lambda: prepared(
        DataLoader(Plain(), batch_size=4, shuffle=True, num_workers=1), use_stateful_dataloader=True
    ),
}
COUNTED = {
    "list": lambda: [torch.tensor(number) for number in range(5)],
    "in order": lambda: DataLoader(Plain(), batch_size=2),
    "shuffled": lambda: DataLoader(Plain(), batch_size=2, shuffle=True),
    "shuffled, generator": lambda: DataLoader(Plain(), batch_size=2, shuffle=True, generator=seeded_generator()),
    "shuffled, persistent workers and generator": lambda: DataLoader(
        Plain(), batch_size=4, shuffle=True, generator=seeded_generator(), num_workers=1, persistent_workers=True
    ),
    "augmented in workers": lambda: DataLoader(Numbered(), batch_size=4, shuffle=True, num_workers=2),
    "own sampler": lambda: DataLoader(Plain(), batch_size=2, sampler=OwnOrder()),
    "weighted": lambda: DataLoader(
        Plain(), batch_size=2, sampler=WeightedRandomSampler([1.0, 2.0] * 5, num_samples=10)
    ),
    "stream": lambda: DataLoader(Counting(), batch_size=2),
    "prepared": lambda: prepared(DataLoader(Plain(), batch_size=2, shuffle=True)),
    "prepared, seedable": lambda: prepared(DataLoader(Plain(), batch_size=2, shuffle=True), use_seedable_sampler=True),
}
ALL = {**ELASTIC, **STATEFUL, **COUNTED}
ENDLESS = {"stream", "stateful stream"}  # no length that one could trust
STRICT = {"stateful, not torchdata's"}  # has to be asked for one batch more than there are
COUNTABLE = [
    name for name in ALL if name not in ENDLESS | STRICT and (name == "stateful, workers" or "work" not in name)
]


def streams():
    return random.getstate(), np.random.get_state(), torch.get_rng_state()


def readable(state):
    return state[0], [str(part.tolist() if hasattr(part, "tolist") else part) for part in state[1]], state[2].tolist()


def set_streams(state):
    random.setstate(state[0])
    np.random.set_state(state[1])
    torch.set_rng_state(state[2])


def train(make, *, stop=None, state=None, leap=False, late=False, rng=None, exhaust=True):
    """
    Go through the epochs as a host does, in what stands for a new process.

    Args:
        make: Makes the loader.
        stop: (epoch, batches) to be interrupted at: after so many batches of this epoch's iterator.
        state: Where to go on: (position, streams), as an earlier call returned them.
        leap: Whether to begin the next epoch at once when nothing is left of the resumed one.
        late: Whether to restore the streams after the iterator is made, or before.
        rng: Seed of the new process.
        exhaust: Whether to ask for one batch more than there are, as a for loop does and Lightning does not.

    Returns:
        What training saw, by epoch: (batch, a number drawn from the stream, as dropout does); and at *stop*
        what to go on with.
    """
    torch.manual_seed(torch.seed() if rng is None else rng)
    random.seed(rng)
    loader = make()
    position = LoaderPosition(loader, 1)
    seen = {epoch: [] for epoch in range(EPOCHS)}
    if state is not None:
        position.load_state_dict(state[0])
        set_streams(state[1])
    first = position.epoch + (1 if leap and position.epoch_done else 0)
    for epoch in range(first, EPOCHS):
        position.begin_epoch(epoch)
        iterator = iter(loader)
        position.fast_forward(iterator)
        if state is not None and late and epoch == first:
            set_streams(state[1])
        if stop == (epoch, 0):
            return seen, (position.state_dict(0), streams())
        for batch in iterator:
            seen[epoch].append((torch.as_tensor(batch).tolist(), torch.rand(()).item()))
            if stop == (epoch, len(seen[epoch])):
                return seen, (position.state_dict(len(seen[epoch])), streams())
            if not exhaust and position.state_dict(len(seen[epoch]))["epoch_done"]:
                break
    return seen, None


def resumed(first, rest):
    return {epoch: first[epoch] + rest[epoch] for epoch in first}


def places(name, whole):
    """Every batch of every epoch; where workers have to be started each time, these three."""
    if "workers" in name:
        return [(0, 1), (1, 1), (1, len(whole[1]))]
    return [(epoch, batch) for epoch in whole for batch in range(len(whole[epoch]) + 1)]


@pytest.fixture(autouse=True)
def _the_cost_of_counting_is_known():
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="fetching .* batches again")
        warnings.filterwarnings("ignore", message="the workers of the training loader begin anew")
        yield


@pytest.mark.parametrize("name", ALL)
def test_interrupted_anywhere_and_resumed_the_batches_are_those_of_an_uninterrupted_run(name):
    """
    At every batch of every epoch, its first and its last included, whatever seed the new process begins with.
    """
    whole, _ = train(ALL[name], rng=3)
    for stop in places(name, whole):
        first, state = train(ALL[name], rng=3, stop=stop)
        rest, _ = train(ALL[name], state=state, late=stop[1] % 2 == 1)
        assert resumed(first, rest) == whole, stop


@pytest.mark.parametrize("name", ALL)
def test_at_the_end_of_an_epoch_a_host_may_begin_the_next_one_at_once(name):
    """
    Lightning resumes a checkpoint of the last batch in the next epoch; that one is then complete.
    """
    whole, _ = train(ALL[name], rng=3)
    for epoch in [1] if "workers" in name else range(EPOCHS):
        first, state = train(ALL[name], rng=3, stop=(epoch, len(whole[epoch])))
        assert state[0]["epoch_done"] == (name not in ENDLESS)
        rest, _ = train(ALL[name], state=state, leap=True)
        assert resumed(first, rest) == whole


@pytest.mark.parametrize("name", COUNTABLE)
def test_the_host_may_leave_an_epoch_without_asking_for_one_batch_more(name):
    """
    Lightning counts batches and never meets the end of an iterator.
    """
    whole, _ = train(ALL[name], rng=3, exhaust=False)
    for stop in [(0, len(whole[0])), (1, 0), (1, 1)]:
        first, state = train(ALL[name], rng=3, stop=stop, exhaust=False)
        for leap in [False, True] if state[0]["epoch_done"] else [False]:
            rest, _ = train(ALL[name], state=state, leap=leap, exhaust=False)
            assert resumed(first, rest) == whole


def test_a_loader_that_has_wrapped_around_already_is_not_driven_through_an_epoch():
    """
    Some say at their last batch that they are at the beginning, and are right.
    """

    def make():
        return Ring(wraps_early=True)

    whole, _ = train(make, rng=3)
    first, state = train(make, rng=3, stop=(0, LENGTH))
    rest, _ = train(make, state=state, leap=True)

    assert resumed(first, rest) == whole


@pytest.mark.parametrize("leap", [False, True])
@pytest.mark.parametrize("name", ["elastic", "stateful", "stateful data set", "shuffled, generator", "own sampler"])
def test_interrupted_again_right_after_a_resume_the_position_is_the_same(name, leap):
    """
    A second notice comes before the first batch, or even before the epoch is begun.
    """
    whole, _ = train(ALL[name], rng=3)
    first, state = train(ALL[name], rng=3, stop=(1, len(whole[1]) if leap else 2))

    unbegun = LoaderPosition(ALL[name](), 1)
    unbegun.load_state_dict(state[0])
    unbegun = unbegun.state_dict(0)
    again, begun = train(ALL[name], state=(unbegun, state[1]), leap=leap, stop=(1 + leap, 0))
    rest, _ = train(ALL[name], state=begun)

    assert unbegun["epoch_done"] == leap
    assert not any(again.values())
    assert resumed(first, rest) == whole


def test_a_new_epoch_is_not_done():
    """
    Although the one that was loaded is.
    """
    position = LoaderPosition(ELASTIC["elastic"](), 1)
    _, state = train(ELASTIC["elastic"], rng=3, stop=(1, 6))
    position.load_state_dict(state[0])

    done = [position.epoch_done]
    for epoch in (1, 2):
        position.begin_epoch(epoch)
        done.append(position.epoch_done)

    assert done == [True, True, False]


def test_under_an_elastic_sampler_too_the_workers_are_seeded_by_the_script_and_the_epoch():
    """
    With a loader of one's own the order is exact; what workers draw is at least not always the same.
    """

    def make():
        return DataLoader(Numbered(), sampler=ElasticSampler(LENGTH, shuffle=False), num_workers=1)

    runs = [train(make, rng=rng)[0] for rng in (3, 4)]

    drawn_first = [run[epoch][0][0][0][1] for run in runs for epoch in range(EPOCHS)]
    assert len(set(drawn_first)) == 2 * EPOCHS


def test_at_the_beginning_of_an_epoch_there_is_nothing_to_fetch_again():
    """
    And nothing to warn of.
    """
    _, state = train(COUNTED["shuffled"], rng=3, stop=(1, 0))

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rest, _ = train(COUNTED["shuffled"], state=state)

    assert len(rest[1]) == 6


@pytest.mark.parametrize("name", ALL)
def test_the_state_holds_nothing_that_needs_pickle(name):
    """
    Numbers, strings, None and tensors, in dicts and lists: what a manifest and a blob can hold.
    """

    def plain(value):
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items() if isinstance(key, str) or 1 / 0}
        if isinstance(value, list):
            return [plain(item) for item in value]
        return value.tolist() if type(value) is torch.Tensor else value

    _, (state, _) = train(ALL[name], rng=3, stop=(1, 2))

    assert json.loads(json.dumps(plain(state))) == plain(state)


@pytest.mark.parametrize("kinds", [("elastic", ELASTIC), ("stateful", STATEFUL), ("counted", COUNTED)])
def test_the_kind_shows_in_the_loader(kinds):
    """
    Whatever a host has wrapped around it.
    """
    kind, makes = kinds

    assert {name: LoaderPosition(make(), 1).kind for name, make in makes.items()} == dict.fromkeys(makes, kind)


def test_batches_that_workers_fetched_ahead_do_not_count():
    """
    The position is what the loop says it has trained on.
    """
    loader = elastic_loader(Plain(), batch_size=2, num_workers=2, prefetch_factor=2)
    position = LoaderPosition(loader, 1)
    position.begin_epoch(0)
    iterator = iter(loader)
    next(iterator)

    assert [position.state_dict(done)["at"]["consumed"] for done in range(7)] == [0, 2, 4, 6, 8, 10, 11]
    assert [position.state_dict(done)["epoch_done"] for done in (5, 6)] == [False, True]


@pytest.mark.parametrize(("drop_last", "expected"), [(False, 3), (True, 2)])
def test_the_last_batch_of_an_epoch_consumes_all_of_it(drop_last, expected):
    """
    What two ranks left over, or padded, is not a batch for one rank later.
    """
    loader = elastic_loader(Plain(), batch_size=2, drop_last=drop_last)
    loader.sampler.bind(num_replicas=2, rank=0)
    position = LoaderPosition(loader, 2)
    position.begin_epoch(0)

    assert len(list(loader)) == expected
    states = [position.state_dict(batches) for batches in range(expected + 1)]
    assert [state["at"]["consumed"] for state in states] == [*[0, 4, 8][:expected], LENGTH]
    assert [state["epoch_done"] for state in states] == [False] * expected + [True]


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("shuffled", "A loader from spot_plugins.data.elastic_loader goes there at once"),
        (
            "stream",
            "A torchdata StatefulDataLoader over a data set with state_dict() and load_state_dict() goes there at once",
        ),
    ],
)
def test_counting_warns_once_and_says_what_it_costs(name, advice):
    """
    Fetching again can take as long as training; people should know, and know what to do.
    """
    _, state = train(COUNTED[name], rng=3, stop=(0, 4))
    loader = COUNTED[name]()
    position = LoaderPosition(loader, 1)
    position.load_state_dict(state[0])
    position.begin_epoch(0)

    with pytest.warns(UserWarning, match="fetching 4 batches again to find the position in the training data") as met:
        position.fast_forward(iter(loader))

    assert len(met) == 1
    assert str(met[0].message).endswith(f". {advice}")


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_sampler_with_a_state_of_its_own_in_a_stateful_loader_is_named(num_workers):
    """In its first epoch the order is that of a new process. Later it is not, which must not stay a secret."""

    def make():
        return StatefulDataLoader(Plain(), batch_size=2, sampler=OwnState(), num_workers=num_workers)

    whole, _ = train(make)
    seen, state = train(make, stop=(0, 3))
    rest, _ = train(make, state=state)
    assert [batch for batch, _ in resumed(seen, rest)[0]] == [batch for batch, _ in whole[0]]

    _, state = train(make, stop=(1, 3))
    with pytest.warns(UserWarning, match="yields another order of this epoch than the one that was trained on"):
        train(make, state=state)


class DrawnInWorkers(Plain):
    """Draws from a generator of its own, in whichever process it is read."""

    def __init__(self):
        self.generator = random.Random(5)

    def __getitem__(self, index):
        return index + 1000 * self.generator.randrange(1000)


WORKERS = {
    "stateful": (lambda data: StatefulDataLoader(data, batch_size=4, num_workers=2), (1, 1), True),
    "stateful, new epoch": (lambda data: StatefulDataLoader(data, batch_size=4, num_workers=2), (1, 0), False),
    "plain": (lambda data: DataLoader(data, batch_size=4, num_workers=2), (1, 1), False),
    "plain, persistent": (
        lambda data: DataLoader(data, batch_size=4, num_workers=2, persistent_workers=True),
        (1, 0),
        True,
    ),
    "plain, persistent, first epoch": (
        lambda data: DataLoader(data, batch_size=4, num_workers=2, persistent_workers=True),
        (0, 1),
        False,
    ),
}


@pytest.mark.parametrize("name", WORKERS)
def test_workers_that_begin_anew_where_others_would_go_on_are_named(name):
    """Exactly where a data set in them differs, and not for one that is known to keep nothing."""
    make, stop, differs = WORKERS[name]
    told = []
    for data in (DrawnInWorkers, lambda: range(LENGTH)):
        whole, _ = train(lambda data=data: make(data()), rng=3)
        first, state = train(lambda data=data: make(data()), rng=3, stop=stop)
        with warnings.catch_warnings(record=True) as met:
            warnings.simplefilter("always")
            rest, _ = train(lambda data=data: make(data()), state=state)
        told.append(any("workers of the training loader begin anew" in str(each.message) for each in met))
        batches = [[[batch for batch, _ in seen[epoch]] for epoch in seen] for seen in (resumed(first, rest), whole)]
        assert (batches[0] != batches[1]) == told[-1]
    assert told == [differs, False]


class Late(Kept):
    """A stream that has no state before it is iterated."""

    def __init__(self, length):
        self.length, self.start = length, 0


def test_a_stream_that_stays_restored_and_had_no_state_before_is_named():
    """
    Nothing can bring it back to its beginning, where an uninterrupted process begins the next epoch.
    """

    def make():
        return StatefulDataLoader(Late(LENGTH), batch_size=2)

    _, state = train(make, stop=(0, 2))
    told = r"Late begins every epoch where it was restored to, and had no state before its first epoch\. Let it forget "
    with pytest.warns(UserWarning, match=told + r"the state of load_state_dict\(\) when an iterator is made"):
        train(make, state=state)


def test_fast_forward_leaves_the_streams_alone():
    """
    What a resume draws to find the position is not taken from what training draws.
    """
    _, state = train(COUNTED["shuffled"], rng=3, stop=(0, 4))
    loader = COUNTED["shuffled"]()
    position = LoaderPosition(loader, 1)
    position.load_state_dict(state[0])

    drawn = random.random(), np.random.random(), torch.rand(())
    before = readable(streams())
    position.begin_epoch(0)
    between = readable(streams())
    position.fast_forward(iter(loader))

    assert len(drawn) == sum(now != then for now, then in zip(between, before, strict=True))
    assert readable(streams()) == before


def test_on_another_number_of_ranks_as_many_samples_are_passed_over():
    """
    Four batches on two ranks are eight on one; three on one are one on two, and some samples come twice.
    """
    for world, other, batches, expected in [(2, 1, 4, 8), (1, 2, 3, 1)]:
        old = LoaderPosition(range(20), world)
        old.begin_epoch(0)
        new = LoaderPosition(range(20), other)
        twice = pytest.warns(UserWarning, match="1 batches of this epoch are trained on twice, because 3 were")
        with twice if batches == 3 else nullcontext():
            new.load_state_dict(old.state_dict(batches))
        new.begin_epoch(0)
        iterator = iter(range(20))
        new.fast_forward(iterator)
        assert next(iterator) == expected


def state_of(make, world_size=1):
    position = LoaderPosition(make(), world_size)
    position.begin_epoch(0)
    return position.state_dict(0)


@pytest.mark.parametrize(
    ("state", "loader", "message"),
    [
        (
            state_of(COUNTED["in order"]),
            ELASTIC["elastic"],
            "the training loader's kind=elastic differs from kind=counted in the checkpoint, so its position cannot be "
            "restored. Use the same loader as before, or start a new run",
        ),
        (
            state_of(COUNTED["in order"]),
            COUNTED["list"],
            "the training loader's batch_size=None differs from batch_size=2 in the checkpoint, so its batches cannot "
            "be compared. Use the same batches as before, or start a new run",
        ),
        (state_of(ELASTIC["elastic"]), lambda: elastic_loader([1], batch_size=1, seed=1), "num_samples=1 "),
        (state_of(STATEFUL["stateful"], 2), STATEFUL["stateful"], "world_size=1 differs from world_size=2"),
        (state_of(STATEFUL["stateful"]), STATEFUL["stateful, workers"], "num_workers=2 .* num_workers=0"),
        (
            state_of(STATEFUL["stateful"]),
            lambda: StatefulDataLoader(Plain(), batch_size=3, shuffle=True),
            "batch_size over 1 ranks=3 differs from batch_size over 1 ranks=2",
        ),
    ],
)
def test_a_position_of_something_else_is_refused(state, loader, message):
    """
    With the values and the remedy, before anything is trained.
    """
    with pytest.raises(ConfigError, match=message):
        LoaderPosition(loader(), 1).load_state_dict(state)


def test_a_loader_that_became_shorter_is_refused():
    """
    There is no such position in it.
    """
    position = LoaderPosition([1, 2], 1)
    position.load_state_dict({**state_of(lambda: [1, 2, 3]), "at": {**state_of(list)["at"], "batches": 3}})
    position.begin_epoch(0)

    with pytest.raises(ConfigError, match="the training loader ended after 2 batches, but 3"):
        position.fast_forward(iter([1, 2]))


def test_an_elastic_sampler_under_batches_without_a_size_is_refused():
    """
    Batches that differ in size cannot be counted in samples.
    """
    loader = DataLoader(Plain(), batch_sampler=type("Buckets", (), {"sampler": ElasticSampler(3)})())

    with pytest.raises(ConfigError, match="batch_sampler=Buckets has no fixed batch_size"):
        LoaderPosition(loader, 1)


@pytest.mark.parametrize("name", ["elastic", "stateful", "shuffled", "shuffled, generator"])
def test_every_epoch_has_an_order_of_its_own(name):
    """
    And another seed has others.
    """
    orders = [str([batch[0] for batch in epoch]) for rng in (3, 4) for epoch in train(ALL[name], rng=rng)[0].values()]

    assert len(set(orders[:EPOCHS])) == EPOCHS
    assert name in ("elastic", "shuffled, generator") or not set(orders[:EPOCHS]) & set(orders[EPOCHS:])


def test_the_generator_that_accelerate_synchronises_stays_the_samplers():
    """
    Accelerate gives all ranks rank 0's state of it, so that they agree on an order without a common seed.
    """
    prepared(Plain())
    loader = prepare_data_loader(DataLoader(Plain(), shuffle=True), num_processes=2, process_index=1)
    LoaderPosition(loader, 2).begin_epoch(0)

    assert loader.synchronized_generator is loader.batch_sampler.batch_sampler.sampler.generator


def test_accelerates_dispatching_loader_is_refused_on_more_than_one_rank():
    """
    Rank 0 would deal itself its own share only, and hand out parts of that.
    """
    prepared(Plain())
    inner = elastic_loader(Plain(), batch_size=2)
    loader = DataLoaderDispatcher(inner.dataset, batch_sampler=inner.batch_sampler)

    assert LoaderPosition(loader, 1).kind == "elastic"
    with pytest.raises(ConfigError, match="dispatch_batches=True"):
        LoaderPosition(loader, 2)


def test_the_state_of_a_loader_that_one_rank_reads_for_all_is_not_used():
    """Accelerate saves it some batches too late, so samples would never come."""
    prepared(Plain())
    loader = DataLoaderDispatcher(Counting(), batch_size=2, use_stateful_dataloader=True)

    assert LoaderPosition(loader, 1).kind == "stateful"
    position = LoaderPosition(loader, 2)
    assert position.kind == "counted"
    position.begin_epoch(0)
    position.load_state_dict(position.state_dict(2))
    position.begin_epoch(0)
    with pytest.warns(
        UserWarning, match="at once if each rank reads its own share, with Accelerate's dispatch_batches=F"
    ):
        position.fast_forward(iter(loader))


@pytest.mark.parametrize("split_batches", [False, True])
@pytest.mark.parametrize("world", [2, 3])
def test_accelerates_processes_resume_together(world, split_batches):
    """
    The loaders that Accelerate prepares for each process, interrupted at each step: an epoch as if it were whole.
    """
    prepared(Plain())
    batch_size = 6 if split_batches else 2

    def life(state=None, stop=None):
        shares, states = [], []
        for rank in range(world):
            loader = prepare_data_loader(
                elastic_loader(Plain(), batch_size=batch_size),
                num_processes=world,
                process_index=rank,
                split_batches=split_batches,
            )
            position = LoaderPosition(loader, world)
            if state is not None:
                position.load_state_dict(state)
            position.begin_epoch(0)
            share = []
            for batch in loader:
                share.append(batch.tolist())
                if len(share) == stop:
                    states.append(position.state_dict(stop))
                    break
            assert stop is not None or len(share) == len(loader) or state is not None
            shares.append(share)
        assert states == states[:1] * len(states)
        return list(zip(*shares, strict=True)), states and states[0]

    whole, _ = life()
    for stop in range(1, len(whole) + 1):
        first, state = life(stop=stop)
        rest, _ = life(state=state)
        assert first + rest == whole


@pytest.mark.parametrize("kind", [DataLoader, StatefulDataLoader])
def test_an_iterator_that_was_not_brought_to_the_position_is_noticed(kind):
    """
    Else a loop of the user's own would train on other samples, or with other random numbers, in silence.
    """
    first = LoaderPosition(loader := kind(range(8), batch_size=2, shuffle=True), 1)
    first.begin_epoch(0)
    next(iter(loader))
    position = LoaderPosition(loader := kind(range(8), batch_size=2, shuffle=True), 1)
    position.load_state_dict(first.state_dict(1))
    position.begin_epoch(0)

    next(iter(loader))

    with pytest.raises(RuntimeError, match="fast_forward"):
        position.state_dict(1)
