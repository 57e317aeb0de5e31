"""A verification that was interrupted is continued, and damage that came after is found all the same."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
from steps import save

from spot_plugins.cli import verify as command
from spot_plugins.format.attempts import claim_attempt
from spot_plugins.format.keys import StepId, rank_manifest_key
from spot_plugins.format.manifest import RankManifest
from spot_plugins.store import LocalStore
from spot_plugins.upkeep import known_good
from spot_plugins.upkeep import verify as module
from spot_plugins.upkeep.known_good import MAX_AGE_S, SETTLED_S
from spot_plugins.upkeep.verify import verify

RANKS = 3


class CountingStore(LocalStore):
    """Remembers which blobs are read, in any order."""

    def __init__(self, root, read):
        super().__init__(root)
        self._read = read

    def get_into(self, key, start, targets):
        if key.endswith(".safetensors"):
            self._read.append(key)
        return super().get_into(key, start, targets)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache/spot_plugins/verify"


@pytest.fixture
def run(tmp_path):
    """A run of two steps, with one blob of each rank in each, that were put long ago."""
    store = LocalStore(str(tmp_path / "run"))
    claim_attempt(store, b"{}")
    for step in (1, 2):
        for rank in range(RANKS):
            save(step, store, rank=rank, world_size=RANKS)
    let_time_pass(tmp_path / "run", 2 * SETTLED_S)
    return tmp_path / "run"


@pytest.fixture
def read(monkeypatch):
    """The blobs that were read since the list was emptied, each once."""
    found = []
    monkeypatch.setattr(module, "open_run", lambda url, options: CountingStore(url, found))
    return found


def blobs(run):
    return sorted(str(path.relative_to(run)) for path in run.glob("steps/*/*.safetensors"))


def let_time_pass(folder, seconds):
    """Let all files of *folder* be older than they are."""
    for path in folder.rglob("*.*"):
        found = path.stat()
        os.utime(path, (found.st_atime - seconds, found.st_mtime - seconds))


def interrupted(run, num_blobs, **choice):
    """Verify, until the user interrupts it after *num_blobs* blobs."""
    left = [None] * num_blobs

    def report(*_):
        left.pop()
        if not left:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        verify(str(run), report=report, **choice)


@pytest.mark.parametrize("num_blobs", range(1, 2 * RANKS + 1))
def test_what_was_read_before_an_interruption_is_not_read_again(num_blobs, run, read, cache):
    """Wherever it came. A verification that has come to its end is never continued."""
    interrupted(run, num_blobs, every=True)
    read.clear()

    result = verify(str(run), every=True)

    newest_first = [each for step in (2, 1) for each in blobs(run) if f"{step:010}-" in each]
    assert sorted(read) == sorted(newest_first[num_blobs:])
    sizes = [(run / each).stat().st_size for each in newest_first]
    assert result.is_good
    assert sum(each.num_bytes for each in result.steps) == sum(sizes)
    assert sum(each.num_bytes_before for each in result.steps) == sum(sizes[:num_blobs])
    assert not list(cache.iterdir())
    read.clear()
    assert sum(each.num_bytes_before for each in verify(str(run), every=True).steps) == 0
    assert sorted(read) == blobs(run)


def test_the_user_reads_how_much_was_read_before(run, read, capsys):
    """Of each step."""
    interrupted(run, RANKS, every=True)

    command.verify(str(run), every=True)

    newest, older = capsys.readouterr().out.splitlines()
    assert newest.endswith(" of them read before")
    assert "read before" not in older


def flip_last_bit(path):
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("change", ["put", "longer", "gone"])
def test_damage_that_came_after_is_found(change, run, read):
    """Of each blob that was read before: another put with the same size, another size, and none at all."""
    interrupted(run, 2 * RANKS, every=True)
    for each in blobs(run):
        path = run / each
        put_at = path.stat().st_mtime
        if change == "put":
            flip_last_bit(path)
        elif change == "longer":
            path.write_bytes(path.read_bytes() + b"\0")
            os.utime(path, (put_at, put_at))
        else:
            path.unlink()

    result = verify(str(run), every=True)

    assert [len(each.damages) for each in result.steps] == [RANKS, RANKS]


def test_another_manifest_for_a_blob_is_a_reason_to_read_it(run, read):
    """Somebody has signed that it has fewer tensors than when it was read."""
    interrupted(run, 2 * RANKS, every=True)
    key = rank_manifest_key(StepId(2, 1), 1, RANKS)
    manifest = RankManifest.decode((run / key).read_bytes())
    (run / key).write_bytes(replace(manifest, tensors=manifest.tensors[1:]).encode())

    newest = verify(str(run), every=True).steps[0]

    blob = manifest.blobs[0].key
    assert (blob, "has changed since it was written: its hash differs") in [
        (each.key, each.reason) for each in newest.damages
    ]


def test_what_changes_without_a_put_is_found_by_the_next_whole_verification(run, read):
    """A disk may lose a bit. The continued one does not read it again, unless a week has passed; the one after does."""
    interrupted(run, 2 * RANKS, every=True)
    path = run / blobs(run)[0]
    put_at = path.stat().st_mtime_ns
    flip_last_bit(path)
    os.utime(path, ns=(put_at, put_at))

    assert verify(str(run), every=True).is_good
    assert not verify(str(run), every=True).is_good


def test_what_was_read_long_ago_is_read_again(run, read, cache, monkeypatch):
    """After a week. Files that nobody continues are removed."""
    interrupted(run, 2, every=True)
    interrupted(run, 1, step=1)
    read.clear()
    monkeypatch.setattr(known_good, "MAX_AGE_S", 0.0)
    verify(str(run), every=True)

    assert sorted(read) == blobs(run)
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache.parents[1]))
    interrupted(run, 1, step=1)
    let_time_pass(cache, MAX_AGE_S + SETTLED_S)
    verify(str(run), every=True)
    assert not list(cache.iterdir())


def test_what_was_put_just_now_is_read_again(run, read):
    """Another put within the same second would have the same time."""
    let_time_pass(run, -2 * SETTLED_S)
    interrupted(run, 2 * RANKS, every=True)
    read.clear()

    verify(str(run), every=True)

    assert sorted(read) == blobs(run)


def test_another_choice_is_no_continuation(run, read):
    """It begins anew, and leaves the interrupted one alone."""
    interrupted(run, RANKS, every=True)
    assert verify(str(run)).steps[0].num_bytes_before == 0
    assert verify(str(run), 2).steps[0].num_bytes_before == 0

    continued = verify(str(run), every=True)

    assert [each.num_bytes_before == each.num_bytes for each in continued.steps] == [True, False]


def test_a_file_that_a_kill_has_cut_is_read_as_far_as_it_goes(run, read, cache):
    """Other text in the file does no harm, and the next blob gets a line of its own."""
    interrupted(run, RANKS, every=True)
    (file,) = cache.iterdir()
    whole = file.read_bytes()
    for cut in (0, 1, 2, 40, len(whole) // 2, len(whole) - 2, len(whole) - 1):
        file.write_bytes(b'\xff\n{}\n1\n["x"]\n' + whole[:cut])
        interrupted(run, 1, every=True)
        read.clear()

        assert verify(str(run), every=True).is_good
        assert len(read) == 2 * RANKS - whole[:cut].count(b"]") - 1, cut


@pytest.mark.parametrize("trouble", ["file", "home"])
def test_without_a_folder_it_begins_anew(trouble, run, read, tmp_path, monkeypatch):
    """A file is in its place, or there is no home directory."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "none") if trouble == "file" else "")
    (tmp_path / "none").write_text("")
    if trouble == "home":
        monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    interrupted(run, 2, every=True)
    read.clear()

    assert verify(str(run), every=True).is_good
    assert sorted(read) == blobs(run)


def test_nobody_else_may_write_the_file(run, read, cache):
    """Another user who could write it would decide which blobs are not read."""
    interrupted(run, 1, every=True)

    (file,) = cache.iterdir()
    assert (file.stat().st_mode & 0o777, cache.stat().st_mode & 0o777) == (0o600, 0o700)
