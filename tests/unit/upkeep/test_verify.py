"""Each kind of damage is found by spot verify, and what a training prunes meanwhile is none."""

from __future__ import annotations

import json
import shutil
import threading

import pytest
import torch
import typer
from steps import save

from spot_plugins.cli import verify as command
from spot_plugins.errors import ConfigError, IncompatibleCheckpointError, StoreError
from spot_plugins.format.attempts import claim_attempt
from spot_plugins.format.commit import merge_manifests
from spot_plugins.format.keys import StepId, blob_key, frozen_key, merged_manifest_key, rank_manifest_key
from spot_plugins.format.manifest import RankManifest
from spot_plugins.format.retention import prune
from spot_plugins.store import LocalStore
from spot_plugins.upkeep import verify as module
from spot_plugins.upkeep.blobs import Room
from spot_plugins.upkeep.verify import verify

STEP = StepId(2, 1)
BLOB = blob_key(STEP, 1, 0)
MANIFEST = rank_manifest_key(STEP, 1, 2)


@pytest.fixture
def run(tmp_path):
    """A run with two steps of two ranks, and merged copies of the manifests."""
    store = LocalStore(str(tmp_path / "run"))
    claim_attempt(store, b"{}")
    for step in (1, 2):
        for rank in (0, 1):
            save(step, store, rank=rank, world_size=2)
        merge_manifests(store, StepId(step, 1), 2)
    return tmp_path / "run"


def damages(result):
    return [(damage.step_id, damage.key, damage.reason) for each in result.steps for damage in each.damages]


def test_good_steps_leave_a_note_with_the_time(run):
    """By default the newest step is read. A resume and a listing are not disturbed by the note."""
    result = verify(str(run))

    assert [each.step_id for each in result.steps] == [STEP]
    assert result.is_good
    assert result.note_problem is None
    size = sum(path.stat().st_size for path in (run / STEP.prefix).glob("*.safetensors"))
    note = json.loads((run / "verified.json").read_text())
    assert note == {
        "step": 2,
        "attempt": 1,
        "num_steps": 1,
        "num_bytes": size,
        "verified_at": result.verified_at,
    }
    assert [each.step_id.step for each in verify(str(run), every=True).steps] == [2, 1]
    assert json.loads((run / "verified.json").read_text())["num_steps"] == 2
    assert [each.step_id.step for each in verify(str(run), 1).steps] == [1]


def flip_last_bit(path):
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def forge(path):
    """Sign a manifest that names fewer bytes of its tensors than there are."""
    manifest = RankManifest.decode(path.read_bytes())
    path.write_bytes(
        RankManifest(
            step_id=manifest.step_id,
            rank=manifest.rank,
            world_size=manifest.world_size,
            blobs=manifest.blobs,
            tensors=manifest.tensors[1:],
            state=manifest.state,
        ).encode()
    )


DAMAGES = {
    "flipped bit": (BLOB, flip_last_bit, BLOB, "its hash differs"),
    "truncated": (BLOB, lambda path: path.write_bytes(path.read_bytes()[:100]), BLOB, "has 100 bytes instead of"),
    "longer": (BLOB, lambda path: path.write_bytes(path.read_bytes() + b"\0"), BLOB, "has more bytes instead of"),
    "missing": (BLOB, lambda path: path.unlink(), BLOB, "is gone"),
    "flipped bit in a manifest": (MANIFEST, flip_last_bit, MANIFEST, "is damaged: "),
    "another rank's manifest": (
        MANIFEST,
        lambda path: shutil.copy(path.with_name(path.name.replace("00001", "00000")), path),
        MANIFEST,
        "is the manifest of another step or rank",
    ),
    "forged manifest": (MANIFEST, forge, BLOB, "its hash differs"),
    "flipped bit in the copy": (
        merged_manifest_key(STEP),
        flip_last_bit,
        merged_manifest_key(STEP),
        "is damaged: ",
    ),
    "old copy": (
        merged_manifest_key(STEP),
        lambda path: path.write_bytes(path.read_bytes().splitlines(keepends=True)[0]),
        merged_manifest_key(STEP),
        "is no copy of the manifests of the ranks",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_each_kind_of_damage_is_found(run, damage):
    """With the step, the object and the reason, and without a note. The other step is good."""
    key, change, named, says = DAMAGES[damage]
    change(run / key)

    result = verify(str(run), every=True)

    assert not result.is_good
    assert any(step_id == STEP and key == named and says in reason for step_id, key, reason in damages(result))
    assert result.steps[1].damages == ()
    assert not (run / "verified.json").exists()


def test_a_step_without_the_manifest_of_a_rank_is_not_committed(run):
    """So the newest committed step is another one, and the incomplete one cannot be verified."""
    (run / MANIFEST).unlink()

    assert [each.step_id.step for each in verify(str(run)).steps] == [1]
    with pytest.raises(ConfigError, match="step=2 is not among the committed steps, which are: 1"):
        verify(str(run), 2)


def test_a_newer_format_is_not_called_damage(run):
    """The user has to upgrade."""
    (run / MANIFEST).write_bytes(b'{"format":2}')

    with pytest.raises(IncompatibleCheckpointError, match="format 2 is newer"):
        verify(str(run))


def test_damage_of_a_blob_that_steps_share_is_told_for_each_step(tmp_path):
    """The blob of frozen weights is read once."""
    store = LocalStore(str(tmp_path))
    for step in (1, 2):
        save(step, store)
        manifest = RankManifest.decode(store.get(rank_manifest_key(StepId(step, 1), 0, 1)))
        share(store, manifest)
    (frozen,) = tmp_path.glob("frozen/*")
    good = verify(str(tmp_path), every=True)
    flip_last_bit(frozen)

    bad = verify(str(tmp_path), every=True)

    assert [each.num_bytes for each in good.steps] == [frozen.stat().st_size, 0]
    key = f"frozen/{frozen.name}"
    assert [(step_id.step, found) for step_id, found, _ in damages(bad)] == [(2, key), (1, key)]


def share(store, manifest):
    """Store the only blob of *manifest* under its hash, always with the bytes of step 1."""
    first = RankManifest.decode(store.get(rank_manifest_key(StepId(1, 1), 0, 1)))
    (blob,) = first.blobs
    key = frozen_key(blob.xxh3_128)
    if blob.key != key:
        store.put(key, store.get(blob.key))
    blob = type(blob)(key=key, num_bytes=blob.num_bytes, xxh3_128=blob.xxh3_128)
    tensors, state = first.tensors, manifest.state
    document = RankManifest(step_id=manifest.step_id, rank=0, world_size=1, blobs=(blob,), tensors=tensors, state=state)
    store.put(rank_manifest_key(manifest.step_id, 0, 1), document.encode())


class PruningStore(LocalStore):
    """Lets a training commit a newer step and prune the others before the first blob of a step is read."""

    def __init__(self, root, step, num_times):
        super().__init__(root)
        self._step, self._times, self._lock = step, num_times, threading.Lock()

    def get_into(self, key, start, targets):
        with self._lock:
            if key.endswith("safetensors") and self._times:
                self._times -= 1
                self._step += 1
                save(self._step, LocalStore(self._root), keep_last=1)
        return super().get_into(key, start, targets)


@pytest.mark.parametrize(("num_times", "is_good"), [(1, True), (2, True), (3, False)])
def test_a_step_that_is_pruned_meanwhile_is_gone(tmp_path, monkeypatch, num_times, is_good):
    """The newest step is verified in its place, as often as MAX_TRIES. It is never called damaged."""
    save(1, LocalStore(str(tmp_path)))
    monkeypatch.setattr(module, "open_run", lambda url, options: PruningStore(url, 1, num_times))

    result = verify(str(tmp_path))

    assert damages(result) == []
    assert (result.is_good, result.steps[0].is_gone) == (is_good, not is_good)
    assert result.steps[0].step_id.step == (1 + num_times if is_good else 3)


def test_the_user_reads_that_nothing_was_verified(tmp_path, monkeypatch, capsys):
    """The code is 1, because nobody knows whether the run is intact."""
    save(1, LocalStore(str(tmp_path)))
    monkeypatch.setattr(module, "open_run", lambda url, options: PruningStore(url, 1, 3))

    with pytest.raises(typer.Exit) as ended:
        command.verify(str(tmp_path))

    printed = capsys.readouterr()
    assert ended.value.exit_code == 1
    assert printed.out == "step 3 of attempt 1: gone, a training pruned it meanwhile\n"
    assert "Nothing was verified, because each step was pruned meanwhile. Give a step that is kept." in printed.err


def test_pruning_of_another_step_does_not_disturb(run):
    """What is verified stays."""
    prune(LocalStore(str(run)), 1, keep_last=1, keep_every=None)

    assert verify(str(run), every=True).is_good


class ReadOnlyStore(LocalStore):
    """Refuses puts, as a bucket that these credentials may only read."""

    def put(self, key, data):
        raise StoreError("put", key, "no permission", retryable=False)


def test_a_store_that_may_only_be_read_gets_no_note(run, monkeypatch):
    """The result is good, and says why there is no note."""
    monkeypatch.setattr(module, "open_run", lambda url, options: ReadOnlyStore(url))

    result = verify(str(run))

    assert result.is_good
    assert "no permission" in result.note_problem


def test_one_step_or_all_but_not_both(run):
    """The two arguments contradict each other."""
    with pytest.raises(ConfigError, match="step=1 and all steps cannot both be verified"):
        verify(str(run), 1, every=True)


def test_the_progress_ends_with_all_bytes(run):
    """Each step is reported on its own, blob by blob."""
    heard = []

    verify(str(run), report=lambda *words: heard.append(words))

    assert [each[0] for each in heard] == [2, 2]
    assert heard[-1][1] == heard[-1][2] > heard[0][1] > 0


def test_threads_share_the_room_for_blobs():
    """What fits is taken at the same time, and what never fits is taken alone."""
    room = Room(10)
    order = []
    with room.take(6):
        other = threading.Thread(target=lambda: take(room, order))
        other.start()
        with room.take(4):
            order.append("both")
        order.append("first ends")
    other.join()

    assert order == ["both", "first ends", "alone"]


def take(room, order):
    with room.take(100):
        order.append("alone")


def test_large_rows_are_verified_too(tmp_path):
    """A blob of more than 64 MiB is read after a look at its last byte."""
    store = LocalStore(str(tmp_path))
    save(1, store, state={"both": {"w": torch.zeros(1, 17 * 1024**2)}})
    assert verify(str(tmp_path)).is_good
    (blob,) = tmp_path.glob("steps/*/*.safetensors")
    with blob.open("r+b") as file:
        file.truncate(blob.stat().st_size - 1)

    assert "has less than" in damages(verify(str(tmp_path)))[0][2]
