"""Batches that were trained on are passed over at the sampler, and nothing but that is different from fetching them."""

from __future__ import annotations

import random
import warnings

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.data_loader import DataLoaderDispatcher, prepare_data_loader
from torch.utils.data import (
    BatchSampler,
    ConcatDataset,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    Sampler,
    StackDataset,
    Subset,
    TensorDataset,
    WeightedRandomSampler,
    default_collate,
)

from spot_plugins.data import LoaderPosition
from spot_plugins.data.passing import depends_on_index_alone
from spot_plugins.errors import ConfigError

LENGTH = 23
EPOCHS = 2


class Numbers(Dataset):
    """Sample i is i. It knows which samples were asked for."""

    def __init__(self):
        self.asked = []

    def __len__(self):
        return LENGTH

    def __getitem__(self, index):
        self.asked.append(int(index))
        return torch.tensor([index])


class Noisy(Numbers):
    """Draws from all streams of its process."""

    def __getitem__(self, index):
        drawn = [random.random(), np.random.random(), torch.rand(()).item()]
        return torch.tensor([*drawn, *super().__getitem__(index)], dtype=torch.float64)


class Private(Numbers):
    """Draws from a generator that no stream of the process knows of."""

    def __init__(self):
        super().__init__()
        self.generator = np.random.default_rng(1)

    def __getitem__(self, index):
        return torch.cat([super().__getitem__(index), torch.tensor([self.generator.integers(10**9)])])


class OwnOrder(Sampler):
    """Draws from a stream of the process when it is iterated."""

    def __len__(self):
        return LENGTH

    def __iter__(self):
        return iter(random.sample(range(LENGTH), LENGTH))


class Pairs(Sampler):
    """A batch sampler of somebody's own."""

    def __len__(self):
        return 9

    def __iter__(self):
        return iter(torch.randint(LENGTH, (9, 2)).tolist())


def prepared(loader):
    return Accelerator(cpu=True).prepare(loader)


LOADERS = {
    "in order": lambda data: DataLoader(data, batch_size=4),
    "shuffled": lambda data: DataLoader(data, batch_size=4, shuffle=True),
    "drop_last": lambda data: DataLoader(data, batch_size=4, shuffle=True, drop_last=True),
    "generator": lambda data: DataLoader(data, batch_size=4, shuffle=True, generator=torch.Generator().manual_seed(5)),
    "no batches": lambda data: DataLoader(data, batch_size=None, shuffle=True),
    "distributed": lambda data: DataLoader(
        data, batch_size=2, sampler=DistributedSampler(data, num_replicas=2, rank=1)
    ),
    "weighted": lambda data: DataLoader(
        data, batch_size=4, sampler=WeightedRandomSampler(torch.arange(1.0, LENGTH + 1), LENGTH)
    ),
    "own sampler": lambda data: DataLoader(data, batch_size=4, sampler=OwnOrder()),
    "own batches": lambda data: DataLoader(data, batch_sampler=Pairs()),
    "batch sampler": lambda data: DataLoader(data, batch_sampler=BatchSampler(RandomSampler(data), 4, False)),
    "prepared": lambda data: prepared(DataLoader(data, batch_size=4, shuffle=True)),
    "one of two processes": lambda data: (
        prepared(0) or prepare_data_loader(DataLoader(data, batch_size=2, shuffle=True), num_processes=2)
    ),
}
WORKERS = {
    "workers": lambda data: DataLoader(data, batch_size=3, shuffle=True, num_workers=2),
    "persistent workers": lambda data: DataLoader(
        data, batch_size=3, shuffle=True, num_workers=1, persistent_workers=True
    ),
}


def rows():
    return TensorDataset(torch.arange(float(LENGTH)))


def train(make, *, stop=None, state=None, fast_forward="auto"):
    """
    Go through the epochs of a new loader as a host does, and draw from all streams for each batch, as dropout does.

    Returns:
        Batches and drawn numbers by epoch, and at *stop* (an epoch, and its batches) the state to continue from.
    """
    seed = 1 if state is None else 9
    random.seed(seed), np.random.seed(seed), torch.manual_seed(seed)
    loader = make()
    position = LoaderPosition(loader, 1, fast_forward=fast_forward)
    seen = [[] for _ in range(EPOCHS)]
    ahead = hasattr(loader, "base_dataloader")
    if state is not None:
        position.load_state_dict(state[0])
        random.setstate(state[1][0]), np.random.set_state(state[1][1]), torch.set_rng_state(state[1][2])
    for epoch in range(position.epoch, EPOCHS):
        position.begin_epoch(epoch)
        iterator = iter(loader)
        position.fast_forward(iterator)
        while True:
            num_done = len(seen[epoch])
            if stop == (epoch, num_done):
                streams = random.getstate(), np.random.get_state(), torch.get_rng_state()
                return seen, (position.state_dict(num_done), streams)
            if ahead:
                batch = position.fetch_ahead(iterator, num_done)
            else:
                position.note_fetch(num_done)
                batch = next(iterator, None)
            if not isinstance(batch, (torch.Tensor, list)):
                break
            batch = batch if isinstance(batch, torch.Tensor) else batch[0]
            seen[epoch].append((batch.tolist(), random.random(), np.random.random(), torch.rand(()).item()))
    return seen, None


def assert_same_after_any_batch(make, places=None, **settings):
    """Interrupt the training of a loader at *places*, or at all, and compare it with an uninterrupted one."""
    whole, _ = train(make)
    everywhere = [(epoch, number) for epoch in range(EPOCHS) for number in range(len(whole[epoch]) + 1)]
    for stop in places or everywhere:
        first, state = train(make, stop=stop)
        rest, _ = train(make, state=state, **settings)
        assert [a + b for a, b in zip(first, rest, strict=True)] == whole, stop


@pytest.fixture
def asked(monkeypatch):
    """The indices that a TensorDataset was asked for."""
    original, found = TensorDataset.__getitem__, []

    def getitem(self, index):
        found.append(int(index))
        return original(self, index)

    monkeypatch.setattr(TensorDataset, "__getitem__", getitem)
    return found


@pytest.mark.parametrize("name", LOADERS)
def test_batches_that_are_passed_over_leave_the_same_training(name):
    """The same batches and the same random numbers in training, at any batch of any epoch. Nothing is said."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_same_after_any_batch(lambda: LOADERS[name](rows()))


@pytest.mark.parametrize("name", WORKERS)
def test_workers_begin_after_the_batches_that_are_passed_over(name):
    """Nothing is said about them either."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_same_after_any_batch(lambda: WORKERS[name](rows()), [(0, 5)])


@pytest.mark.parametrize("name", LOADERS)
def test_no_sample_is_asked_for_that_was_trained_on(name, asked):
    """Accelerate fetches a batch ahead, so it has to fetch the last two batches before the position again."""
    batches = 5
    _, state = train(lambda: LOADERS[name](rows()), stop=(1, batches))
    before = len(asked)
    train(lambda: LOADERS[name](rows()), state=state)
    asked_here, asked[:] = len(asked) - before, []
    train(lambda: LOADERS[name](rows()))
    in_epoch = len(asked) // EPOCHS
    per_batch = {"no batches": 1, "distributed": 2, "own batches": 2, "one of two processes": 2}.get(name, 4)
    again = 2 if name in ("prepared", "one of two processes") else 0

    assert asked_here == in_epoch - (batches - again) * per_batch


@pytest.mark.parametrize("name", LOADERS)
def test_skip_passes_over_the_samples_of_any_data_set(name):
    """Streams of the process are restored, so that random numbers drawn from them within samples are the same."""
    with pytest.warns(
        UserWarning, match=r"passing over \d+ batches without fetching them, as fast_forward='skip' says"
    ):
        assert_same_after_any_batch(lambda: LOADERS[name](Numbers()), [(0, 5), (1, 3)], fast_forward="skip")
    with pytest.warns(UserWarning, match="passing over"):
        assert_same_after_any_batch(lambda: LOADERS[name](Noisy()), [(0, 5), (1, 3)], fast_forward="skip")


def test_skip_names_what_differs():
    """In one line, also where random numbers in workers differ."""
    told = []
    for make in (lambda: LOADERS["shuffled"](Private()), lambda: WORKERS["workers"](Noisy())):
        whole, _ = train(make)
        first, state = train(make, stop=(0, 4))
        with pytest.warns(UserWarning, match="passing over") as met:
            rest, _ = train(make, state=state, fast_forward="skip")
        assert first[0] + rest[0] != whole[0]
        told += [str(each.message) for each in met]

    assert told == [
        "passing over 4 batches without fetching them, as fast_forward='skip' says. If a sample depends on more than "
        f"its index, this differs from an uninterrupted training: {drawn}generators, counters and other state of the "
        "data set, which begin anew"
        for drawn in ("", "random numbers drawn in the workers, and ")
    ]


@pytest.mark.parametrize("fast_forward", ["auto", "fetch"])
@pytest.mark.parametrize("data", [Noisy, Private])
def test_a_data_set_of_the_program_is_fetched_again_by_itself(data, fast_forward):
    """A generator of its own moves no stream of the process, so nobody can see from outside that it is there."""
    cost = (
        r"fetching \d+ batches again to find the position in the training data\. fast_forward='skip' "
        r"\(SPOT_FAST_FORWARD=skip\) does not fetch them, and yields the same batches if a sample depends on its index"
    )
    with pytest.warns(UserWarning, match=cost):
        assert_same_after_any_batch(lambda: LOADERS["shuffled"](data()), [(0, 4)], fast_forward=fast_forward)


def test_fetch_fetches_what_could_be_passed_over(asked):
    """For those who trust nothing but the way that training took."""
    _, state = train(lambda: LOADERS["shuffled"](rows()), stop=(1, 4))
    asked.clear()

    with pytest.warns(UserWarning, match="fetching 4 batches again"):
        train(lambda: LOADERS["shuffled"](rows()), state=state, fast_forward="fetch")

    assert len(asked) == LENGTH


class OwnIterator(DataLoader):
    def __iter__(self):
        return reversed(list(super().__iter__()))


class Doubled(TensorDataset):
    pass


class Lines(IterableDataset):
    def __iter__(self):
        return iter(range(LENGTH))


def own_collate(samples):
    return default_collate(samples)


KNOWN = {
    "range": lambda: DataLoader(range(5)),
    "tensor": lambda: DataLoader(torch.zeros(5)),
    "array": lambda: DataLoader(np.zeros(5)),
    "tensors": lambda: DataLoader(rows(), batch_size=None),
    "subset": lambda: DataLoader(Subset(rows(), [3, 4])),
    "together": lambda: DataLoader(ConcatDataset([rows(), range(3)])),
    "stacked": lambda: DataLoader(StackDataset(one=range(3), two=torch.zeros(3))),
    "prepared": lambda: prepared(DataLoader(rows())),
}
UNKNOWN = {
    "own data set": lambda: DataLoader(Numbers()),
    "subclass": lambda: DataLoader(Doubled(torch.zeros(5))),
    "own tensor": lambda: DataLoader(TensorDataset(torch.zeros(5).as_subclass(type("Own", (torch.Tensor,), {})))),
    "list": lambda: DataLoader([1, 2]),
    "objects": lambda: DataLoader(np.array([1, None], dtype=object)),
    "subset": lambda: DataLoader(Subset(Numbers(), [3, 4])),
    "together": lambda: DataLoader(ConcatDataset([rows(), Numbers()])),
    "stacked": lambda: DataLoader(StackDataset(range(LENGTH), Numbers())),
    "own collate": lambda: DataLoader(rows(), collate_fn=own_collate),
    "own iterator": lambda: OwnIterator(rows()),
    "out of order": lambda: DataLoader(rows(), num_workers=1, in_order=False),
    "stream": lambda: DataLoader(Lines()),
    "no DataLoader": lambda: [1, 2],
    "dealt out": lambda: prepared(0) or DataLoaderDispatcher(rows(), batch_size=2),
}


@pytest.mark.parametrize("name", KNOWN)
def test_classes_are_known_that_depend_on_the_index_alone(name):
    """They are named one by one."""
    assert depends_on_index_alone(KNOWN[name]())


@pytest.mark.parametrize("name", UNKNOWN)
def test_any_other_class_is_unknown(name):
    """A class derived from a known one, too, and one that holds an unknown one."""
    assert not depends_on_index_alone(UNKNOWN[name]())


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("own iterator", "A loader from spot_plugins.data.elastic_loader goes there at once"),
        ("no DataLoader", "A loader from spot_plugins.data.elastic_loader goes there at once"),
        ("stream", "A torchdata StatefulDataLoader over a data set with state_dict() and load_state_dict() goes there"),
    ],
)
def test_a_loader_whose_sampler_does_not_name_the_batches_is_fetched_whatever_the_setting_says(name, advice):
    """And the setting is not recommended there."""
    loader = UNKNOWN[name]()
    position = LoaderPosition(loader, 1)
    position.begin_epoch(0)
    state = position.state_dict(2)
    again = LoaderPosition(loader, 1, fast_forward="skip")
    again.load_state_dict(state)
    again.begin_epoch(0)
    iterator = iter(loader)

    with pytest.warns(UserWarning, match="fetching 2 batches again") as met:
        again.fast_forward(iterator)

    assert f"in the training data. {advice}" in str(met[0].message)
    assert len(list(iterator)) == len(list(loader)) - 2


@pytest.mark.filterwarnings("ignore:the training data has num_samples=8")
@pytest.mark.parametrize("name", ["in order", "own sampler", "prepared"])
def test_a_loader_that_became_shorter_is_refused(name):
    """The sampler has ended before the position."""
    _, state = train(lambda: LOADERS[name](rows()), stop=(0, 5))
    batches = {"in order": 2, "own sampler": 6, "prepared": 2}[name]
    state[0]["at"]["batches"] = 5 if batches < 5 else 7
    data = range(8) if batches < 5 else rows()

    with pytest.raises(ConfigError, match=f"the training loader ended after {batches} batches, but"):
        train(lambda: LOADERS[name](data), state=state)


def test_other_iterators_of_the_loader_are_not_touched():
    """A program may read the training data for something else, before and after the resumed epoch begins."""
    loader = LOADERS["in order"](rows())
    _, state = train(lambda: loader, stop=(0, 4))
    position = LoaderPosition(loader, 1)
    position.load_state_dict(state[0])
    position.begin_epoch(0)
    iterator = iter(loader)
    position.fast_forward(iterator)
    beside = [batch[0].tolist() for batch in loader]

    rest = [batch[0].tolist() for batch in iterator]

    assert (len(beside), beside[0]) == (6, [0.0, 1.0, 2.0, 3.0])
    assert rest == beside[4:]


def test_persistent_workers_that_exist_already_are_not_asked_to_pass_over():
    """Their iterator has the sampler of the time when it was made. They fetch again, and a warning says so."""
    make = lambda: WORKERS["persistent workers"](rows())  # noqa: E731
    _, state = train(make, stop=(0, 3))
    loader = make()
    whole = [batch[0].tolist() for batch in loader]
    position = LoaderPosition(loader, 1)
    position.load_state_dict(state[0])
    position.begin_epoch(0)
    iterator = iter(loader)

    with pytest.warns(UserWarning, match="fetching 3 batches again"):
        position.fast_forward(iterator)

    assert len(list(iterator)) == len(whole) - 3


def test_an_order_that_depends_on_what_training_changes_is_told_here_too():
    """The weights are others than before, so other samples were passed over than were trained on."""
    make = lambda weights: DataLoader(rows(), batch_size=4, sampler=WeightedRandomSampler(weights, LENGTH))  # noqa: E731
    _, state = train(lambda: make(torch.arange(1.0, 24.0)), stop=(0, 3))

    with pytest.warns(UserWarning, match="the batches that were passed over are not those that were trained on"):
        train(lambda: make(torch.arange(1.0, 24.0).flip(0)), state=state)


def test_another_word_is_refused():
    """By the name of the setting."""
    with pytest.raises(ConfigError, match="fast_forward='jump' must be 'auto' or 'fetch' or 'skip'"):
        LoaderPosition([], 1, fast_forward="jump")
