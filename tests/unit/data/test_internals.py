"""A torch or a torchdata that lacks a private name is refused by that name."""

from __future__ import annotations

import pytest
import torch.utils.data
from torchdata.stateful_dataloader import StatefulDataLoader

from spot_plugins.data import LoaderPosition, internals
from spot_plugins.errors import ConfigError


def test_the_installed_versions_have_everything():
    """The checks pass where our other tests pass."""
    internals.check_torch()
    internals.check_stateful(StatefulDataLoader(range(2)))


def test_a_missing_function_of_torch_is_named(monkeypatch):
    """With the version to install."""
    monkeypatch.delattr(torch.utils.data._utils, "_set_python_exit_flag")

    with pytest.raises(ConfigError, match=r"torch=.* has no torch\.utils\.data\._utils\._set_python_exit_flag.*2\.13"):
        internals.check_torch()


def test_a_missing_attribute_of_torchdata_is_named_when_a_position_is_made():
    """Its early iterator could not be dropped, and the first epoch would have a wrong order."""

    class Own(StatefulDataLoader):
        """A loader of the user's, derived from torchdata's."""

    loader = Own(range(2))
    del loader._initial_iter_for_state_dict

    with pytest.raises(ConfigError, match=r"torchdata=0\.11.* has no Own\._initial_iter_for_state_dict"):
        LoaderPosition(loader, 1)


def test_a_loader_of_another_library_needs_no_private_name():
    """Any object with state_dict and load_state_dict will do."""

    class Foreign:
        def state_dict(self):
            return {}

    internals.check_stateful(Foreign())


def test_a_package_that_is_not_installed_has_an_unknown_version():
    """The error is built all the same: the package may be installed under another name."""
    words = internals.Library(package="no-such-package", checked="1.*").missing("Thing._part")

    assert words.startswith("no-such-package=unknown has no Thing._part,")


class Step:
    """A step of a Hugging Face stream, with the steps below it."""

    def __init__(self, *, ex_iterable=None, ex_iterables=None):
        self.ex_iterable = ex_iterable
        self.ex_iterables = ex_iterables


class BufferShuffledExamplesIterable(Step):
    """The step that Hugging Face's shuffle(buffer_size=...) adds."""


class Streamed:
    """A Hugging Face stream."""

    def __init__(self, step):
        self._ex_iterable = step


class Shard:
    """The loader that Accelerate makes of a stream on several ranks."""

    def __init__(self, dataset):
        self.dataset = dataset


@pytest.mark.parametrize(
    ("dataset", "expected"),
    [
        (None, False),
        ([1, 2], False),
        (Streamed(Step(ex_iterable=Step())), False),
        (Streamed(BufferShuffledExamplesIterable()), True),
        (Streamed(Step(ex_iterable=Step(ex_iterables=[Step(), BufferShuffledExamplesIterable()]))), True),
        (Shard(Streamed(Step(ex_iterable=BufferShuffledExamplesIterable()))), True),
    ],
)
def test_a_shuffle_buffer_is_found_below_other_steps(dataset, expected):
    """Interleaved, mapped, limited, or shared out by Accelerate."""
    assert internals.has_shuffle_buffer(dataset) == expected
