"""Checkpoints that an earlier version has stored: they are read, and the same state is stored in the same bytes."""

from __future__ import annotations

import json
import shutil

import pytest
from golden.hosts import two_processes
from golden.make import DATA, installed
from golden.programs import PROGRAMS
from golden.training import EPOCHS, STEPS_PER_EPOCH, STORED
from xxhash import xxh3_128_hexdigest

from spot_plugins.format.manifest import canonical_json

NAMES_A_LIFE = ("run.json", "attempts/", "events/", ".spot-tmp/")
"""
The objects that hold times, the name of a host and the version of this package. They differ by their nature. The pusher
process writes the event log until it ends, which may be after the training.
"""

NEW_PARTS = {"fingerprints", "program"}
"""Parts that the earlier version did not have. They are state alone, without tensors, so no blob differs by them."""

NEW_IN_LOOPS = {"attributes", "gradients"}
"""Keys that the earlier version did not have in the part ``loops``. They are there only if a program has such state."""

OF_THE_HOSTS = ("loops", "callbacks", "metrics", "optimizer", "scheduler", "precision")
"""The beginnings of the names of parts whose state torch or Lightning lays out. Another version may add a key."""


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_stored_run_continues_as_if_nothing_had_been(name, tmp_path):
    """
    After the resume all of the state is what the program had at that step, and each later step is the same, to the end.
    """
    shutil.copytree(DATA / name, tmp_path / "run")

    resumed = PROGRAMS[name](f"file://{tmp_path}/run", False)

    uninterrupted = PROGRAMS[name](None, False)
    assert [records[0].step for records in resumed] == [STORED] * len(resumed)
    assert [len(records) for records in uninterrupted] == [EPOCHS * STEPS_PER_EPOCH + 1] * len(resumed)
    assert resumed == [records[STORED:] for records in uninterrupted]


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_same_state_is_stored_in_the_same_bytes(name, tmp_path):
    """
    Manifests and blobs have the keys and the bytes of those that the earlier version stored, new parts apart.

    With other versions of the hosts only what this package decides is compared: no more than that can be promised.
    """
    PROGRAMS[name](f"file://{tmp_path}/run", True)

    found = {key: without_new_parts(key, data) for key, data in stored(tmp_path / "run").items()}
    golden = stored(DATA / name)
    if installed() == json.loads((DATA / "written_with.json").read_bytes()):
        assert found.keys() == golden.keys()
        assert [key for key, data in golden.items() if found[key] != data] == []
    assert decided_here(found) == decided_here(golden)


@pytest.mark.soak
def test_a_run_of_one_rank_continues_on_two(tmp_path):
    """
    Values that were logged with ``sync_dist=True`` are synchronized from then on.
    """
    shutil.copytree(DATA / "lightning", tmp_path / "run")

    resumed = two_processes("lightning", f"file://{tmp_path}/run", False)

    assert [records[0].step for records in resumed] == [STORED] * 2


def stored(folder):
    """Return the objects of a run that hold its state."""
    objects = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return {key: data for key, data in objects.items() if not key.startswith(NAMES_A_LIFE)}


def without_new_parts(key, data):
    """Return the object as it was before there were :data:`NEW_PARTS` and :data:`NEW_IN_LOOPS`."""
    if not key.endswith(".json"):
        return data
    manifests = [json.loads(line) for line in data.splitlines()]
    for manifest in manifests:
        state = manifest["state"]
        assert state.keys() >= NEW_PARTS
        manifest["state"] = without(state, NEW_PARTS)
        if "loops" in state:
            manifest["state"]["loops"] = without(state["loops"], NEW_IN_LOOPS)
        del manifest["xxh3_128"]
        manifest["xxh3_128"] = xxh3_128_hexdigest(canonical_json(manifest))
    return b"".join(canonical_json(manifest) for manifest in manifests)


def without(state, names):
    """Return *state*, as it is stored, without the keys *names*."""
    keys = sorted(state.keys() - {"$order"})
    kept = [keys[index] for index in state.get("$order", range(len(keys))) if keys[index] not in names]
    rest = {key: state[key] for key in kept}
    if kept != sorted(kept):
        rest["$order"] = [sorted(kept).index(key) for key in kept]
    return rest


def decided_here(objects):
    """Return the names, boxes and hashes of all tensors, and the state, but nothing that a host has laid out."""
    manifests = [
        json.loads(line) for key in sorted(objects) if key.endswith(".json") for line in objects[key].splitlines()
    ]
    return [
        {
            "keys": sorted(manifest),
            "tensors": sorted(
                tuple(str(tensor[key]) for key in sorted(tensor) if key not in ("blob", "start", "stop"))
                for tensor in manifest["tensors"]
                if not tensor["name"].startswith(OF_THE_HOSTS)
            ),
            "state": {
                part: {} if part.startswith(OF_THE_HOSTS) else state for part, state in manifest["state"].items()
            },
        }
        for manifest in manifests
    ]
