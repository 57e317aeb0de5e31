"""An epoch that is fetched again is compared with its first time, and several loaders may be begun at once."""

import copy
import random
import warnings

import pytest
import torch
from torch.utils.data import BatchSampler, DataLoader, Dataset, Sampler, WeightedRandomSampler

from spot_plugins.data import LoaderPosition

OTHER = "fetched again are not those that were trained on"


class Noisy(Dataset):
    def __len__(self):
        return 24

    def __getitem__(self, index):
        return torch.tensor([index, torch.rand(()).item()])


class Hard(Sampler):
    """Draws by weights, which training may change."""

    def __init__(self, weights):
        self.weights = weights

    def __len__(self):
        return 24

    def __iter__(self):
        return iter(torch.multinomial(self.weights, 24, replacement=True).tolist())


class Runs(Sampler):
    """A batch sampler of somebody's own, which draws when its iterator is made."""

    def __init__(self, weights):
        self.weights = weights

    def __iter__(self):
        starts = torch.multinomial(self.weights[:6], 6).tolist()
        return iter([list(range(4 * start, 4 * start + 4)) for start in starts])


class Names(Dataset):
    def __len__(self):
        return 24

    def __getitem__(self, name):
        return int(name[1])


class Named(Hard):
    def __iter__(self):
        return (("sample", index) for index in super().__iter__())


LOADERS = {
    "sampler": lambda weights: DataLoader(Noisy(), batch_size=4, sampler=Hard(weights)),
    "no batches": lambda weights: DataLoader(Noisy(), batch_size=None, sampler=Hard(weights)),
    "workers": lambda weights: DataLoader(Noisy(), batch_size=4, sampler=Hard(weights), num_workers=2),
    "weighted": lambda weights: DataLoader(Noisy(), batch_size=4, sampler=WeightedRandomSampler(weights, 24)),
    "batch sampler": lambda weights: DataLoader(Noisy(), batch_sampler=Runs(weights)),
    "nested": lambda weights: DataLoader(Noisy(), batch_sampler=BatchSampler(Hard(weights), 4, drop_last=False)),
    "keys": lambda weights: DataLoader(Names(), batch_size=4, sampler=Named(weights)),
}


def interrupted(loader):
    """Return the position after three batches."""
    torch.manual_seed(1)
    position = LoaderPosition(loader, 1)
    position.begin_epoch(0)
    iterator = iter(loader)
    position.fast_forward(iterator)
    for _ in range(3):
        next(iterator)
    return position.state_dict(3)


def resume(loader, state):
    """Bring *loader* to its position and on by a batch. Return the warnings."""
    position = LoaderPosition(loader, 1)
    position.load_state_dict(state)
    with warnings.catch_warnings(record=True) as met:
        warnings.simplefilter("always")
        position.begin_epoch(0)
        iterator = iter(loader)
        position.fast_forward(iterator)
        next(iterator)
    return [str(each.message) for each in met]


@pytest.mark.parametrize("name", LOADERS)
def test_an_order_that_depends_on_what_training_changes_is_told(name):
    """If the weights are those of before, nothing is said, also where samples draw other numbers."""
    weights = torch.arange(1.0, 25.0)
    state = interrupted(LOADERS[name](weights.clone()))
    torch.manual_seed(2)

    same = resume(LOADERS[name](weights.clone()), state)
    other = resume(LOADERS[name](weights.flip(0)), state)

    assert [line for line in same if OTHER in line] == []
    assert len([line for line in other if OTHER in line]) == 1


def test_an_order_by_seed_and_epoch_is_not_recorded():
    """The position of an ordinary loader is stored as it always was."""
    loader = DataLoader(Noisy(), batch_size=4, shuffle=True)

    state = interrupted(loader)

    assert "order" not in state["at"]
    assert type(loader.batch_sampler) is BatchSampler


def test_a_position_from_before_orders_were_recorded_is_restored():
    """It has none to compare with."""
    loader = LOADERS["sampler"](torch.ones(24))
    state = interrupted(loader)
    del state["at"]["order"]

    assert [line for line in resume(LOADERS["sampler"](torch.ones(24)), state) if OTHER in line] == []


def test_iterators_beside_the_pass_of_the_position_are_not_recorded():
    """A program may read the training data in between, for example to measure its accuracy."""
    weights = torch.arange(1.0, 25.0)
    loader = LOADERS["sampler"](weights)
    torch.manual_seed(1)
    position = LoaderPosition(loader, 1)
    position.begin_epoch(0)
    iterator = iter(loader)
    next(iterator)
    before = position.state_dict(1)

    assert len(list(loader)) == 6

    assert position.state_dict(1) == before or position.state_dict(1)["at"]["order"] == before["at"]["order"]


def test_the_recorded_sampler_is_used_as_the_one_that_it_records():
    """Programs and hosts look at the samplers of a loader, change and copy them."""
    loader = LOADERS["nested"](torch.ones(24))
    sampler = loader.batch_sampler
    LoaderPosition(loader, 1)
    LoaderPosition(loader, 1)

    loader.batch_sampler.drop_last = True
    twin = copy.deepcopy(loader)

    assert sampler.drop_last
    assert (len(loader), loader.batch_sampler.batch_size, loader.batch_sampler.sampler) == (6, 4, sampler.sampler)
    assert len(list(twin)) == 6


class FromStream(Sampler):
    """Draws from the stream of the process, as samplers of users do."""

    def __len__(self):
        return 24

    def __iter__(self):
        return iter(random.sample(range(24), 24))


def all_begun_first(state=None, num_batches=3):
    """Begin the epoch of two loaders, then make their iterators, then bring these to their positions."""
    loaders = [DataLoader(Noisy(), batch_size=4, sampler=FromStream()) for _ in range(2)]
    positions = [LoaderPosition(loader, 1) for loader in loaders]
    if state is not None:
        random.setstate(state["python"])
        for position, at in zip(positions, state["positions"], strict=True):
            position.load_state_dict(at)
    for position in positions:
        position.begin_epoch(0)
    iterators = [iter(loader) for loader in loaders]
    for position, iterator in zip(positions, iterators, strict=True):
        position.fast_forward(iterator)
    rows = []
    for number, batches in enumerate(zip(*iterators, strict=True), start=1):
        rows.append([batch[:, 0].tolist() for batch in batches] + [random.random()])
        if number == num_batches:
            break
    return rows, {
        "python": random.getstate(),
        "positions": [position.state_dict(num_batches) for position in positions],
    }


@pytest.mark.filterwarnings("ignore:fetching 3 batches again")
def test_all_loaders_may_begin_before_the_first_is_brought_to_its_position():
    """Each epoch is fetched with the streams of its begin, and the training continues with its own."""
    random.seed(7)
    control, _ = all_begun_first(num_batches=6)

    random.seed(7)
    first, state = all_begun_first()
    random.seed(99)
    rest, _ = all_begun_first(state)

    assert [*first, *rest] == control
