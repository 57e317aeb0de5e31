"""Events are values: frozen, complete, and the same on both sides of the pusher's socket."""

from __future__ import annotations

import dataclasses
import typing

import pytest

from spot_plugins import events
from spot_plugins.push import messages

KINDS = typing.get_args(events.Event)


def example(kind):
    values = {
        "tuple[str, ...]": ("aws", "slurm"),
        "tuple[int, ...]": (1, 3),
        "int": 3,
        "float | None": 2.5,
        "float": 1.5,
        "str": "because",
        "bool": True,
        "int | None": 4,
    }
    return kind(**{field.name: values[field.type] for field in dataclasses.fields(kind)})


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_an_event_cannot_be_changed_by_one_of_its_hooks(kind):
    """
    Every event is frozen and compares by value, so many hooks can share it.
    """
    event = example(kind)

    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(event, dataclasses.fields(kind)[0].name, 0)
    assert event == example(kind)
    assert hash(event) == hash(example(kind))


def test_the_union_has_all_kinds():
    """
    Who matches on events finds every kind in the union.
    """
    defined = {kind for kind in vars(events).values() if isinstance(kind, type) and dataclasses.is_dataclass(kind)}

    assert set(KINDS) == defined


@pytest.mark.parametrize("kind", messages._PUSHER_EVENTS, ids=lambda kind: kind.__name__)
def test_what_the_pusher_tells_arrives_as_it_was(kind):
    """
    Each event of the pusher process is the same value in the training process.
    """
    assert messages.decode_event(messages.encode_event(example(kind))) == example(kind)
