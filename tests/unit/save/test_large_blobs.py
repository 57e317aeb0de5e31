"""The size of blobs, which grows with the state of a rank where a service takes money for each put."""

from __future__ import annotations

from contextlib import closing

import pytest
import torch
from steps import Holder, InlinePusher, ThreadRank

from spot_plugins.events import EventBus
from spot_plugins.push import PushSettings
from spot_plugins.ranks import MemoryBoard
from spot_plugins.save import Saver
from spot_plugins.save import layout as layouts
from spot_plugins.save.layout import LARGE_BLOB_BYTES, MAX_BLOB_BYTES, MAX_SLICE_BYTES, plan_layout
from spot_plugins.state import ModelPart
from spot_plugins.state.live_tensor import LiveTensor
from spot_plugins.state.registry import Registry
from spot_plugins.store import MemoryStore, RenewedStore, open_store

MIB = 1024**2


def state_of(num_bytes):
    """Tensors of 96 MiB that take no memory."""
    tensor = torch.zeros(1).expand(96, MIB // 4)
    return {f"weight-{number:04d}": LiveTensor(tensor) for number in range(num_bytes // (96 * MIB))}


def sizes_of(num_bytes, *, grows=True):
    layout = plan_layout(state_of(num_bytes), 0, grows=grows)
    assert layout.num_bytes >= num_bytes // (96 * MIB) * 96 * MIB
    return [size for _, size in layout.blobs]


def test_a_small_state_is_stored_as_ever():
    """Up to 512 MiB, all bytes of all blobs and manifests are the same."""
    assert plan_layout(state_of(480 * MIB), 0, grows=True) == plan_layout(state_of(480 * MIB), 0)


@pytest.mark.parametrize("num_bytes", [576 * MIB, 1024 * MIB, 4032 * MIB, 7680 * MIB])
def test_a_large_state_has_as_many_blobs_as_are_put_at_a_time(num_bytes):
    """So all are on their way at once, and none is much larger than the others."""
    sizes = sizes_of(num_bytes)
    assert 7 <= len(sizes) <= 8
    assert max(sizes) <= num_bytes // 8 + 2 * MAX_SLICE_BYTES


def test_no_blob_is_larger_than_1_gib():
    """A put that fails is repeated from its start."""
    sizes = sizes_of(20_160 * MIB)
    assert MAX_BLOB_BYTES < max(sizes) <= LARGE_BLOB_BYTES
    assert len(sizes) == 20


def test_blobs_do_not_grow_unless_that_is_asked_for():
    """A client that cuts or copies large objects gains nothing."""
    assert max(sizes_of(4032 * MIB, grows=False)) <= MAX_BLOB_BYTES


def test_frozen_blobs_do_not_grow(monkeypatch):
    """Their names are their hashes, so that larger ones would be stored once more."""
    monkeypatch.setattr(layouts, "MAX_BLOB_BYTES", 8192)
    monkeypatch.setattr(layouts, "MAX_SLICE_BYTES", 4096)
    monkeypatch.setattr(layouts, "NUM_LARGE_BLOBS", 2)
    model = torch.nn.Sequential(*(torch.nn.Linear(32, 32, bias=False) for _ in range(24)))
    for layer in model[:12]:
        layer.requires_grad_(False)
    parts = Registry()
    parts.add("model", ModelPart(model))
    parts.add("other", Holder({"buffer": torch.zeros(12 * 1024)}))
    store = MemoryStore()
    settings = PushSettings(
        url="", storage_options={}, local_dir=None, rank=0, world_size=1, attempt=1, keep_last=1, keep_every=None
    )
    ranks = ThreadRank(0, 1, MemoryBoard())
    with closing(Saver(parts, ranks, InlinePusher(settings, store), EventBus(), grows_blobs=True)) as saver:
        saver.save(1, "explicit", deadline=0.0)

    sizes = {each.key: each.num_bytes for each in store.objects("") if each.key.endswith(".safetensors")}
    frozen = [size for key, size in sizes.items() if key.startswith("frozen/")]
    assert len(frozen) > 2
    assert max(frozen) <= 8192
    assert max(size for key, size in sizes.items() if key.startswith("steps/")) > 8192


@pytest.mark.parametrize(
    ("url", "options", "takes"),
    [
        ("s3://bucket/run", {}, True),
        ("s3://bucket/run", {"use_listings_cache": False, "requester_pays": True}, False),  # which s3fs alone has
        ("file:///tmp/run", {}, False),
    ],
)
def test_only_obstore_takes_large_puts(url, options, takes):
    """s3fs cuts them into parts, and a directory has no price for a file."""
    assert RenewedStore(lambda: open_store(url, options)).takes_large_puts is takes
