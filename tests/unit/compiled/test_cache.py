"""The compiled code of a rank: which archive is loaded, which ones stay, and what is told if that fails."""

from __future__ import annotations

import itertools
import logging
import threading

import pytest
import torch
import xxhash
from hearing import until

from spot_plugins.compiled import CompileCache, cache, internals
from spot_plugins.compiled.archive import Compiled
from spot_plugins.compiled.surroundings import surroundings
from spot_plugins.config import SpotConfig
from spot_plugins.errors import ConfigError, Preempted, StoreError
from spot_plugins.events import Committed, NoticeReceived
from spot_plugins.format.keys import CompiledKey, parse_compiled_key
from spot_plugins.session import SpotSession
from spot_plugins.store import LocalStore, MemoryStore

ATTEMPT = 7
COMMITTED = Committed(step=1, num_bytes=0, push_s=0.0)
NOTICE = NoticeReceived(source="SIGTERM", grace_s=30.0)

needs_api = pytest.mark.skipif(not internals.is_possible(), reason="torch 2.6 cannot save what it has compiled")
pytestmark = needs_api


def key_of(data, rank=0, attempt=1, made_for=None):
    return CompiledKey(rank, attempt, made_for or surroundings(), xxhash.xxh3_128_hexdigest(data))


def stored(store):
    return sorted(filter(None, map(parse_compiled_key, store.keys("compile-cache/"))))


@pytest.fixture
def loaded(monkeypatch):
    """Return the archives that reach torch, as a list."""
    found = []
    monkeypatch.setattr(internals, "load", lambda compiled: found.append(compiled) or frozenset(["a"]))
    return found


@pytest.fixture
def compiled(monkeypatch):
    """Return a list. What is appended was compiled since the last look: its names."""
    waiting = []

    def take_new():
        return (Compiled(b"".join(map(str.encode, waiting[-1])), {}), frozenset(waiting.pop())) if waiting else None

    monkeypatch.setattr(internals, "take_new", take_new)
    return waiting


@pytest.fixture
def open_cache(compiled):
    """Return a function that opens the cache of a rank. Its thread has ended after the test."""
    opened = []

    def open_it(store, rank=0):
        opened.append(CompileCache())
        opened[-1].open(store, rank, ATTEMPT)
        return opened[-1]

    yield open_it
    for each in opened:
        each.close()
    until(lambda: "spot-compiled" not in [each.name for each in threading.enumerate()], "the threads end")


def load(opened):
    opened.load(lambda seconds: opened._is_got.wait(seconds))


def test_the_newest_archive_for_this_machine_is_loaded(open_cache, loaded):
    """
    Neither an older one, nor that of another rank, nor one for other software or hardware.
    """
    store = MemoryStore()
    archives = [Compiled(b"%d" % number, {}).encode() for number in range(4)]
    for archive, place in zip(
        archives, [{"attempt": 5}, {"attempt": 6}, {"rank": 1, "attempt": 6}, {"made_for": "0" * 16}], strict=True
    ):
        store.put(key_of(archive, **place).key, archive)

    load(open_cache(store))

    assert [each.artifacts for each in loaded] == [b"1"]


def test_code_for_another_machine_is_not_even_read(open_cache, loaded):
    class Counting(MemoryStore):
        num_reads = 0

        def get_into(self, key, start, targets):
            self.num_reads += 1
            return super().get_into(key, start, targets)

    store = Counting()
    archive = Compiled(b"other", {}).encode()
    store.put(key_of(archive, made_for="0" * 16).key, archive)

    load(open_cache(store))

    assert (loaded, store.num_reads) == ([], 0)


def refused(folder):
    """A file in the place of the folder, so that nothing below it can be read or written."""
    store = LocalStore(str(folder))
    store.put("compile-cache", b"")
    return store


def damaged(folder):
    store = MemoryStore()
    archive = Compiled(b"whole", {}).encode()
    store.put(key_of(archive).key, archive[:-1])
    return store


def no_archive(folder):
    store = MemoryStore()
    store.put(key_of(b"junk").key, b"junk")
    return store


@pytest.mark.parametrize(
    ("broken", "reason"), [(damaged, "its hash differs"), (no_archive, "not a zip file")], ids=["damaged", "no archive"]
)
def test_a_bad_archive_is_told_and_replaced(broken, reason, open_cache, loaded, compiled, tmp_path, caplog):
    store = broken(tmp_path)
    opened = open_cache(store)

    load(opened)
    compiled.append(["new"])
    opened.on_event(COMMITTED)
    until(lambda: [each.attempt for each in stored(store)] == [ATTEMPT], "it is replaced")

    told = [each.getMessage() for each in caplog.records if each.levelno == logging.WARNING]
    assert loaded == []
    assert len(told) == 1
    assert told[0].startswith("no compiled code of an earlier attempt is loaded, so it is compiled again: ")
    assert reason in told[0]


def test_a_store_that_refuses_is_told_once_for_each_way(open_cache, compiled, tmp_path, caplog):
    class Refusing(MemoryStore):
        def keys(self, prefix):
            raise StoreError("list", prefix, "no permission", False)

        def put(self, key, data):
            raise StoreError("put", key, "no permission", False)

    opened = open_cache(Refusing())

    load(opened)
    compiled.extend([["b"], ["a"]])
    for _ in compiled:
        opened.on_event(COMMITTED)
    until(lambda: "is not kept" in caplog.text, "the refusal is told")

    told = [each.getMessage() for each in caplog.records if each.levelno == logging.WARNING]
    assert [text.partition(": ")[0] for text in told] == [
        "no compiled code of an earlier attempt is loaded, so it is compiled again",
        "what is compiled is not kept for the next attempt",
    ]


def test_a_real_folder_that_takes_nothing(open_cache, compiled, tmp_path, caplog):
    opened = open_cache(refused(tmp_path))

    load(opened)
    compiled.append(["a"])
    opened.on_event(COMMITTED)

    until(lambda: "what is compiled is not kept for the next attempt" in caplog.text, "the refusal is told")


def test_only_what_is_new_is_kept(open_cache, loaded, compiled):
    """
    A restart that finds all it needs puts nothing. One that compiles something replaces the archive.
    """
    store = MemoryStore()
    archive = Compiled(b"a", {}).encode()
    store.put(key_of(archive).key, archive)
    opened = open_cache(store)
    load(opened)

    compiled.append(["a"])  # loaded has this name
    opened.on_event(COMMITTED)
    until(lambda: not compiled, "it looks")
    assert stored(store) == [key_of(archive)]

    compiled.append(["a", "b"])
    opened.on_event(COMMITTED)
    until(lambda: [each.attempt for each in stored(store)] == [ATTEMPT], "the new archive replaces the old one")
    assert Compiled.decode(store.get(stored(store)[0].key)).artifacts == b"ab"


def test_a_few_archives_for_other_machines_stay(open_cache, compiled):
    """
    Those of the newest attempts. Archives of other ranks, and those of a later attempt, are left alone.
    """
    store = MemoryStore()
    others = [key_of(b"", attempt=attempt, made_for=f"{attempt:016x}") for attempt in range(1, 7)]
    left_alone = [key_of(b"", rank=1), key_of(b"", attempt=ATTEMPT + 1)]
    for each in [*others, *left_alone, key_of(b"old")]:
        store.put(each.key, b"")
    opened = open_cache(store)

    compiled.append(["a"])
    opened.on_event(COMMITTED)

    kept = [*others[-(cache.MOST - 1) :], *left_alone]
    until(lambda: {each for each in stored(store) if each.attempt != ATTEMPT} == {*kept}, "the old ones are removed")
    assert [each.surroundings for each in stored(store) if each.attempt == ATTEMPT] == [surroundings()]


def test_nothing_is_kept_after_a_notice(open_cache, compiled):
    """
    The last step needs the way to the store.
    """
    store = MemoryStore()
    opened = open_cache(store)
    load(opened)

    opened.on_event(NOTICE)
    compiled.append(["a"])
    opened.on_event(COMMITTED)
    until(lambda: "spot-compiled" not in [each.name for each in threading.enumerate()], "the thread ends")

    assert stored(store) == []


def test_an_archive_that_is_too_large_is_not_kept(open_cache, compiled, monkeypatch, caplog):
    monkeypatch.setattr(cache, "MAX_BYTES", 10)
    store = MemoryStore()
    opened = open_cache(store)

    compiled.append(["a"])
    opened.on_event(COMMITTED)

    until(lambda: "bytes, more than 10" in caplog.text, "it is told")
    assert stored(store) == []


class HangingStore(MemoryStore):
    """Answers no listing until it is let go."""

    def __init__(self):
        super().__init__()
        self.go = threading.Event()

    def keys(self, prefix):
        assert self.go.wait(300)
        return super().keys(prefix)


@pytest.fixture
def hanging():
    store = HangingStore()
    yield store
    store.go.set()


def test_training_begins_without_a_store_that_hangs(open_cache, hanging, monkeypatch, caplog):
    monkeypatch.setattr(cache, "LOAD_S", 0.0)
    waits = itertools.count()

    open_cache(hanging).load(lambda seconds: next(waits))

    assert "the store has not sent it within 0 s" in caplog.text
    hanging.go.set()


def test_a_notice_ends_the_wait(open_cache, hanging):
    def leave(seconds):
        raise Preempted(None)

    with pytest.raises(Preempted):
        open_cache(hanging).load(leave)
    hanging.go.set()


def test_a_torch_that_cannot_save_is_refused_at_once(tmp_path, monkeypatch):
    monkeypatch.delattr(torch.compiler, "save_cache_artifacts")
    config = SpotConfig(url=str(tmp_path), every_steps=1, compile_cache=True)

    with pytest.raises(ConfigError, match=r"compile_cache=True needs torch 2\.7 or newer, and torch .* is installed"):
        SpotSession(config).open()

    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("is_on", [True, False])
def test_a_session_uses_it_only_if_the_setting_is_on(is_on, tmp_path, loaded, monkeypatch):
    archive = Compiled(b"kept", {}).encode()
    store = LocalStore(str(tmp_path))
    store.put(key_of(archive).key, archive)
    monkeypatch.setattr(internals, "take_new", lambda: (Compiled(b"new", {}), frozenset(["b"])))
    config = SpotConfig(url=str(tmp_path), every_steps=1, notice_sources=(), **{"compile_cache": True} if is_on else {})
    model = torch.nn.Linear(1, 1)

    with SpotSession(config) as session:
        session.register_model(model, [torch.optim.SGD(model.parameters())])
        session.resume()
        session.after_step(1)
        if is_on:
            until(lambda: len(stored(store)) == 1 and stored(store) != [key_of(archive)], "the new archive")
        session.finish(1)

    assert bool(loaded) == is_on
    assert is_on or stored(store) == [key_of(archive)]
