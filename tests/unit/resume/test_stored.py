"""A step that a training prunes while it is read is gone, and not damaged."""

from __future__ import annotations

import pytest
import torch
from steps import Holder, save

from spot_plugins import export_weights
from spot_plugins.errors import CorruptCheckpointError, SpotError
from spot_plugins.format.retention import prune
from spot_plugins.resume import stored
from spot_plugins.resume.stored import stored_steps
from spot_plugins.state.registry import Registry
from spot_plugins.store import LocalStore
from spot_plugins.upkeep.compare import compare
from spot_plugins.upkeep.tensors import step_tensors


def save_model(step, root):
    parts = Registry()
    state = {"parameters": {"w": torch.full((3,), float(step))}, "buffers": {}, "extra": {}}
    parts.add("model", Holder(state), ("parameters",))
    save(step, LocalStore(root), keep_last=9, parts=parts)


class PruningStore(LocalStore):
    """Prunes all steps but the newest, and commits one more, before it reads the first object with *ending*."""

    def __init__(self, root, ending):
        super().__init__(root)
        self._ending = ending

    def get_into(self, key, start, targets):
        if self._ending is not None and key.endswith(self._ending):
            self._ending = None
            save_model(3, self._root)
            prune(LocalStore(self._root), 3, keep_last=1, keep_every=None)
        return super().get_into(key, start, targets)


READS = {
    "export": lambda url: export_weights(url, f"{url}.safetensors"),
    "compare": lambda url: compare(url, 1, 2),
    "tensors": lambda url: step_tensors(url, 2),
}


@pytest.mark.parametrize(
    ("read", "ending"),
    [("export", ".safetensors"), ("export", ".json"), ("compare", ".safetensors"), ("tensors", ".json")],
)
def test_a_step_that_is_pruned_meanwhile_is_not_called_damaged(read, ending, tmp_path, monkeypatch):
    """Its manifest or its bytes may be gone first. A step that lost the same object and was not pruned is damaged."""
    url = str(tmp_path / "run")
    for step in (1, 2):
        save_model(step, url)
    monkeypatch.setattr(stored, "open_store", lambda url, options: PruningStore(url, ending))

    with pytest.raises(SpotError, match=r"^step [12] was pruned while it was read\. Run it again, or give"):
        READS[read](url)

    monkeypatch.undo()
    assert [each.name for each in tmp_path.iterdir()] == ["run"]
    save_model(4, url)
    if ending == ".safetensors":
        for path in (tmp_path / "run").glob("steps/*/*.safetensors"):
            path.unlink()
        with pytest.raises(CorruptCheckpointError, match="is gone"):
            export_weights(url, str(tmp_path / "out"))


def test_the_list_leaves_out_what_is_pruned_meanwhile(tmp_path, monkeypatch):
    """A step whose manifest is damaged has no size, and stays in the list."""
    url = str(tmp_path)
    for step in (1, 2):
        save_model(step, url)
    monkeypatch.setattr(stored, "open_store", lambda url, options: PruningStore(url, ".json"))
    pruned = stored_steps(url)
    monkeypatch.undo()
    (manifest,) = tmp_path.glob("steps/*/rank-*.json")
    manifest.write_text("x")

    assert pruned == []
    assert [(each.step, each.num_bytes) for each in stored_steps(url)] == [(3, None)]
