"""The probe of a store at the start of an attempt."""

from __future__ import annotations

import pytest

from spot_plugins.errors import StoreError
from spot_plugins.store import LocalStore, MemoryStore, probe, put_speed
from spot_plugins.store.probe import SPEED_BYTES


class SmallStore(MemoryStore):
    """A store that takes small objects."""

    def put(self, key, data):
        if len(data) >= SPEED_BYTES:
            raise StoreError("put", key, "it is too large")
        super().put(key, data)


@pytest.fixture(params=[MemoryStore, LocalStore])
def store(request, tmp_path):
    return MemoryStore() if request.param is MemoryStore else LocalStore(str(tmp_path))


def test_the_speed_of_a_put_is_measured_and_nothing_is_left(store):
    probe(store)
    assert put_speed(store) > 0
    assert list(store.keys("")) == []


def test_a_store_that_takes_only_small_objects_has_no_speed_and_can_be_used():
    store = SmallStore()
    probe(store)
    assert put_speed(store) is None
