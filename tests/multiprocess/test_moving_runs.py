"""Trainings that have begun without this package, or on other ranks, and that continue in a run of it."""

from __future__ import annotations

import pickle
import shutil

import pytest
from golden.training import plain
from launching import exit_codes, launch
from ports import free_port
from safetensors.torch import load_file

from spot_plugins import export_weights
from spot_plugins.export.accelerate_folder import export_accelerate
from spot_plugins.export.lightning_file import export_lightning

pytestmark = pytest.mark.sampled

OLD = {"accelerate": "old-state", "lightning": "old.ckpt", "transformers": "old-output/checkpoint-500"}
"""The old file or folder of each host, as the page calls it."""

EXPORTS = {"accelerate": export_accelerate, "lightning": export_lightning}


def train(host, folder, url, world_size, *, is_new):
    """Train on real processes, and return the state of each at the end."""
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(world_size)}
    ranks = [
        launch(
            "moving_ranks",
            (host, str(folder), url, is_new, rank, world_size),
            environment={**shared, "NODE_RANK": "0", "RANK": str(rank), "LOCAL_RANK": str(rank)},
            output=folder / f"output-{rank}",
        )
        for rank in range(world_size)
    ]
    codes = exit_codes(ranks)
    assert codes == [0] * world_size, [(folder / f"output-{rank}").read_text()[-3000:] for rank in range(world_size)]
    return [pickle.loads((folder / f"state-{rank}").read_bytes()) for rank in range(world_size)]


def begin(host, folder, source, world_size):
    """Train the first epoch on *world_size* ranks, and leave the old file in *folder*. Return the state at the end."""
    folder.mkdir()
    old = folder / OLD[host]
    if source == "spot export":
        state = train(host, folder, str(folder / "run"), world_size, is_new=True)
        EXPORTS[host](str(folder / "run"), old)
    else:
        state = train(host, folder, None, world_size, is_new=True)
        saved = folder / ("old-output/checkpoint-4" if host == "transformers" else "saved")
        saved.rename(old)
    return state


CASES = [
    (host, source, saved_by, world_size)
    for host in OLD
    for source in ("the library", "spot export")
    for saved_by in (1, 2)
    for world_size in (1, 2)
    if source == "the library" or host in EXPORTS
]


@pytest.mark.parametrize(
    ("host", "source", "saved_by", "world_size"),
    CASES,
    ids=[f"{host} by {source} on {saved_by}, then on {world}" for host, source, saved_by, world in CASES],
)
def test_a_training_that_has_begun_continues_in_a_run(host, source, saved_by, world_size, tmp_path):
    """
    It ends bit for bit like a training that begins with the same file and knows nothing of this package.

    The last step of the run has it, too, and a program that is started again has it from there.
    """
    begun = begin(host, tmp_path / "begun", source, saved_by)
    folders = [tmp_path / name for name in ("alone", "moved")]
    for folder in folders:
        shutil.copytree(tmp_path / "begun", folder)
    alone, moved = folders
    url = str(tmp_path / "new-run")

    wanted = train(host, alone, None, world_size, is_new=False)
    found = train(host, moved, url, world_size, is_new=False)

    assert found == wanted
    assert found[0][0] != begun[0][0]
    again = train(host, moved, url, world_size, is_new=False)
    assert again == wanted
    export_weights(url, tmp_path / "weights")
    states, _ = wanted[0]
    assert plain(dict(sorted(load_file(tmp_path / "weights").items()))) == states[0]
