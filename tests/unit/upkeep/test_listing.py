"""What spot ls says of each step: committed, incomplete, damaged, kept, newest."""

from __future__ import annotations

import pytest
from steps import save

from spot_plugins.errors import ConfigError
from spot_plugins.format.attempts import claim_attempt
from spot_plugins.format.keys import StepId, blob_key, keep_key, merged_manifest_key, rank_manifest_key
from spot_plugins.store import LocalStore
from spot_plugins.upkeep.listing import MAX_NAMED_RANKS, list_run


@pytest.fixture
def store(tmp_path):
    found = LocalStore(str(tmp_path))
    claim_attempt(found, b"{}")
    return found


def listed(tmp_path):
    return {each.step: each for each in list_run(str(tmp_path)).steps}


def test_a_committed_step_has_its_size_and_its_marks(store, tmp_path):
    """The newest is marked, and whoever keeps another one is named. Sizes are those of the blobs."""
    save(1, store)
    save(2, store)
    store.put(keep_key(StepId(1, 1), "program"), b"{}")

    found = listed(tmp_path)

    assert list(found) == [2, 1]
    assert [(each.is_newest, each.kept_by) for each in found.values()] == [(True, ()), (False, ("program",))]
    blob = (tmp_path / blob_key(StepId(2, 1), 0, 0)).stat()
    assert found[2].num_bytes == blob.st_size
    assert found[2].is_committed
    assert found[2].defect is None
    manifest = (tmp_path / rank_manifest_key(StepId(2, 1), 0, 1)).stat()
    assert found[2].modified_at == pytest.approx(max(manifest.st_mtime, blob.st_mtime))


def test_an_incomplete_step_names_the_rank_that_is_missing(store, tmp_path):
    """One rank of three has not stored its manifest, and of a later step nobody has."""
    save(1, store)
    for rank in (0, 2):
        save(2, store, rank=rank, world_size=3)
    store.put(blob_key(StepId(3, 1), 0, 0), b"12345")

    found = listed(tmp_path)

    assert (found[2].is_committed, found[2].missing_ranks, found[2].num_ranks, found[2].world_size) == (
        False,
        (1,),
        2,
        3,
    )
    assert (found[3].is_committed, found[3].world_size, found[3].num_bytes) == (False, None, 5)
    assert [step for step, each in found.items() if each.is_newest] == [1]


def test_a_forged_number_of_ranks_takes_no_memory(store, tmp_path):
    """A name can speak of any number of ranks. Only the first few that are missing are named."""
    store.put(rank_manifest_key(StepId(1, 1), 0, 10**15), b"")

    found = listed(tmp_path)

    assert found[1].missing_ranks == tuple(range(1, MAX_NAMED_RANKS + 1))


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda path, key: (path / key).unlink(), "is gone"),
        (lambda path, key: (path / key).write_bytes(b"123"), "has 3 bytes instead of"),
    ],
)
def test_a_blob_that_is_missing_or_cut_is_a_defect(store, tmp_path, damage, says):
    """The listing has the sizes, so no byte of a blob is read to see it."""
    save(1, store)
    key = blob_key(StepId(1, 1), 0, 0)
    damage(tmp_path, key)

    assert f"{key} {says}" in listed(tmp_path)[1].defect


@pytest.mark.parametrize(
    ("content", "says"), [(b"{}", "is damaged: "), (b'{"format":2}', "format 2 is newer than 1")], ids=["junk", "newer"]
)
def test_a_manifest_that_cannot_be_read_is_a_defect(store, tmp_path, content, says):
    """The other steps are listed all the same."""
    save(1, store)
    save(2, store)
    (tmp_path / rank_manifest_key(StepId(2, 1), 0, 1)).write_bytes(content)
    (tmp_path / merged_manifest_key(StepId(2, 1))).unlink(missing_ok=True)

    found = listed(tmp_path)

    assert says in found[2].defect
    assert found[1].defect is None


def test_what_else_lies_there_is_not_looked_at(store, tmp_path):
    """A run may be in a folder that has others, and a link to itself."""
    save(1, store)
    (tmp_path / "loop").symlink_to(tmp_path)

    assert list(listed(tmp_path)) == [1]


def test_a_place_without_a_run_is_a_mistake(tmp_path):
    """An empty folder and one with other files hold no run."""
    (tmp_path / "notes.txt").write_text("x")

    with pytest.raises(ConfigError, match="there is no run at this directory"):
        list_run(str(tmp_path))
