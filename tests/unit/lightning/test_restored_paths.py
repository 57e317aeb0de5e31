"""Paths in the state of ModelCheckpoint that somebody has changed in the store."""

from __future__ import annotations

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from spot_plugins.lightning.restored_paths import believed, is_below


@pytest.mark.parametrize("folder", ["/runs/best", "/runs/best/", "s3://bucket/best", "s3://bucket/best/"])
@pytest.mark.parametrize("rest", ["epoch=1-step=2.ckpt", "deep/er/last-v1.ckpt", "a..b.ckpt", "..c"])
def test_what_lightning_writes_is_believed(folder, rest):
    """Its paths are the directory and a name, which may have folders."""
    assert is_below(f"{folder.rstrip('/')}/{rest}", folder)


@pytest.mark.parametrize(
    "path",
    [
        "/runs/best",
        "/runs/best/",
        "/runs/bester/x.ckpt",
        "/runs/best/../victim",
        "/runs/best/x/../../victim",
        "/runs/best/..",
        "/runs/best/./x",
        "/runs/best//etc",
        "/runs/best/x\0",
        "/runs/best/x::file:///victim",
        "/victim",
        "victim",
        "s3://bucket/victim",
        "simplecache::/runs/best/x",
        "file:///runs/best/x",
        b"/runs/best/x",
        7,
        None,
        ["/runs/best/x"],
    ],
)
def test_what_leads_elsewhere_is_not_believed(path):
    assert not is_below(path, "/runs/best")


def test_the_worst_of_the_best_is_one_of_them():
    """Lightning looks up the score of the worst one, and deletes it next."""
    callback = ModelCheckpoint("/runs/best", monitor="score", mode="max", save_top_k=3)
    best = {"/runs/best/1": torch.tensor(1.0), "/runs/best/2": torch.tensor(2.0)}
    state = {"dirpath": "/runs/best", "best_k_models": best, "best_model_path": "/runs/best/2", "last_model_path": ""}

    with pytest.warns(
        UserWarning,
        match=r"ModelCheckpoint: paths in the restored state are not below .* are dropped.*'/runs/best/../victim'",
    ):
        kept = believed(callback, {**state, "kth_best_model_path": "/runs/best/../victim"}, ["/runs/best"])

    assert kept == {**state, "kth_best_model_path": "/runs/best/1"}
