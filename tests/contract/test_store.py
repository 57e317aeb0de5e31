"""The guarantees of ``spot_plugins.store.base.ObjectStore``, for every object store."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import sys
import threading
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, NamedTuple

import fsspec
import pytest
from clouds import CLIENTS, options_for

from spot_plugins.store import FsspecStore, LocalStore, MemoryStore, ObjectStore, ObstoreStore, open_store
from spot_plugins.testing import FaultProxy

MIB = 1024**2
DEADLINE_S = 300
SPAWN = multiprocessing.get_context("spawn")


class Place(NamedTuple):
    """The place of a store, for any process."""

    url: str
    options: dict[str, Any]
    through: Callable[..., ObjectStore] = open_store

    def open(self) -> ObjectStore:
        return self.through(self.url, self.options)


S3_CLIENTS = [name for name in CLIENTS if name.startswith("s3")]


@pytest.fixture(scope="session")
def buckets():
    """URLs of the buckets of this module, which may be left and entered again, by protocol."""
    return {}


@pytest.fixture
def make_place(request, buckets):
    def make(client):
        protocol, through = CLIENTS[client]
        server = request.getfixturevalue(f"{protocol}_server")
        if protocol not in buckets:
            buckets[protocol] = server.create_bucket("store-contract")
        return Place(f"{buckets[protocol]}/{uuid.uuid4().hex}/run-7", options_for(server), through)

    return make


@pytest.fixture(params=S3_CLIENTS)
def s3_place(request, make_place):
    return make_place(request.param)


@pytest.fixture(params=["local", *CLIENTS])
def place(request, tmp_path, make_place):
    """A place that other processes can open too."""
    if request.param == "local":
        return Place(f"file://{tmp_path}/runs/run-7", {})
    return make_place(request.param)


@pytest.fixture(params=["memory", "local", *CLIENTS])
def store(request, tmp_path, make_place):
    if request.param == "memory":
        return MemoryStore()
    if request.param == "local":
        return LocalStore(str(tmp_path / "runs" / "run-7"))
    return make_place(request.param).open()


def test_each_place_opens_as_its_own_store(tmp_path, s3_place, monkeypatch):
    """
    A URL decides which store is meant; the suite really runs over all of them.
    """
    assert isinstance(open_store(str(tmp_path), {}), LocalStore)
    assert isinstance(open_store("memory://here", {}), MemoryStore)
    assert isinstance(open_store(s3_place.url, s3_place.options), ObstoreStore)
    monkeypatch.setitem(sys.modules, "obstore", None)  # what Python itself does for "not there"
    assert isinstance(open_store(s3_place.url, s3_place.options), FsspecStore)


@pytest.mark.parametrize("data", [b"", b"\0", b"hello", bytes(range(256)) * 1000], ids=len)
def test_what_was_put_comes_back(store, data):
    """
    An object comes back byte for byte, also an empty one.
    """
    store.put("steps/1/blob", data)

    assert store.get("steps/1/blob") == data
    assert list(store.keys("steps/")) == ["steps/1/blob"]


def test_a_large_object_comes_back(store):
    """
    The largest blob of the format, 64 MiB, and one that no power of two divides, are whole.
    """
    for size in (64 * MIB, 64 * MIB + 12345):
        data = os.urandom(MIB) * (size // MIB) + bytes(size % MIB)

        store.put("large", data)

        assert hashlib.sha256(store.get("large")).digest() == hashlib.sha256(data).digest()


@pytest.mark.parametrize("sizes", [(10,), (3,), (2, 0, 5), (1, 1, 100), (0,), ()], ids=str)
@pytest.mark.parametrize("start", [0, 3, 9, 10, 50])
def test_a_range_is_scattered_over_memory(store, start, sizes):
    """
    Pieces of memory are filled one behind the other; what is behind the object's end is not there, and is no failure.
    """
    store.put("steps/range", b"0123456789")
    memory = [bytearray(b"." * size) for size in sizes]

    count = store.get_into("steps/range", start, [memoryview(each) for each in memory])

    expected = b"0123456789"[start : start + sum(sizes)]
    assert count == len(expected)
    assert b"".join(memory) == expected.ljust(sum(sizes), b".")


def test_put_replaces(store):
    """
    A second put takes the place of the first, whichever is longer, and does not list it twice.
    """
    for data in (b"short", b"rather longer than that", b"x"):
        store.put("key", data)

        assert store.get("key") == data
        assert list(store.keys("")) == ["key"]


def test_put_takes_memory_that_is_reused_afterwards(store):
    """
    put() is done with the caller's memory when it returns.
    """
    memory = bytearray(b"first" * 100_000)
    store.put("key", memoryview(memory))
    memory[:] = b"later" * 100_000

    assert store.get("key") == b"first" * 100_000


@pytest.mark.parametrize(
    "view",
    [memoryview(b"abcdefgh")[2:6], memoryview(b"").cast("f"), memoryview(bytes(16)).cast("f"), memoryview(b"")],
    ids=["slice", "empty floats", "floats", "empty"],
)
def test_put_takes_any_contiguous_view(store, view):
    """
    A view of a part of a buffer, or of items larger than a byte, is stored as its bytes.
    """
    store.put("key", view)

    assert store.get("key") == bytes(view)


def test_an_object_that_is_not_there_is_a_key_error(store):
    """
    get() of nothing, of a part of a key, and of what lies below an object is KeyError, not empty bytes.
    """
    store.put("steps/1/blob", b"x")

    for key in ("nothing", "steps", "steps/1", "steps/1/blo", "steps/1/blob/below", "steps/1/blob2"):
        with pytest.raises(KeyError):
            store.get(key)
        for size in (0, 1):
            with pytest.raises(KeyError):
                store.get_into(key, 0, [memoryview(bytearray(size))])


def test_deletion_is_idempotent(store):
    """
    A deleted object is gone at once; deleting it again, or what never was, does nothing.
    """
    store.put("steps/1/a", b"x")
    store.put("steps/1/b", b"y")

    for _ in range(2):
        store.delete("steps/1/a")

        assert list(store.keys("")) == ["steps/1/b"]
    with pytest.raises(KeyError):
        store.get("steps/1/a")
    store.delete("never/was")
    store.delete("steps/1")  # no object, even where it is a directory
    store.delete("steps/1/b/below")
    assert store.get("steps/1/b") == b"y"


def test_a_key_can_be_used_again_after_deletion(store):
    """
    What was deleted, with all that was next to it, can be put again.
    """
    for data in (b"1", b"2"):
        store.put("steps/1/a", data)
        assert store.get("steps/1/a") == data
        store.delete("steps/1/a")
        assert list(store.keys("")) == []


# None of them is a folder of another: what a file system makes of that is no promise.
KEYS = ["a-b/c", "a.b", "a/b", "a/b-c", "a/c/d", "a0", "attempts/000001.json", "b/1", "b/10", "b/2"]


def test_keys_are_in_lexical_order(store):
    """
    Keys come in the order of their characters, in which ``a-b/c`` is before ``a/b``, however they were put.
    """
    for key in reversed(KEYS):
        store.put(key, b"")

    assert list(store.keys("")) == sorted(KEYS)


@pytest.mark.parametrize(
    "prefix", ["", "a", "a/", "a/b", "a-", "att", "b/1", "b/1/", "b/10", "none", "none/", "/", "a//"]
)
def test_keys_takes_any_string_as_prefix(store, prefix):
    """
    A prefix is a string, not a directory: it may end within a name, and it may match nothing.
    """
    for key in KEYS:
        store.put(key, b"")

    assert list(store.keys(prefix)) == sorted(key for key in KEYS if key.startswith(prefix))


def test_objects_are_listed_with_size_and_time(store):
    """
    The keys are those of keys(), and the time is that of the put, to the second.
    """
    before = time.time()
    for number, key in enumerate(KEYS):
        store.put(key, bytes(number))
    after = time.time()

    for prefix in ("", "a/b"):
        found = list(store.objects(prefix))
        wanted = [(key, KEYS.index(key)) for key in sorted(KEYS) if key.startswith(prefix)]
        assert [(each.key, each.num_bytes) for each in found] == wanted
        assert all(before - 2 <= each.modified_at <= after + 2 for each in found)
    assert list(store.objects("none/")) == []


def test_keys_does_not_see_other_runs(s3_place, tmp_path):
    """
    A run whose URL begins with that of another run does not mix with it.
    """
    for near, far in [
        (s3_place.open(), s3_place._replace(url=s3_place.url + "7").open()),
        (LocalStore(str(tmp_path / "run-7")), LocalStore(str(tmp_path / "run-77"))),
    ]:
        far.put("a", b"")

        assert list(near.keys("")) == []
        assert list(far.keys("")) == ["a"]


@pytest.mark.parametrize("others", [("",), ("/", "/steps/")], ids=["object", "folders"])
def test_what_others_put_around_a_run_is_no_key(s3_place, others):
    """
    An object at the run's own URL, and the empty objects by which consoles mark folders, are not listed.
    """
    service = fsspec.filesystem("s3", skip_instance_cache=True, **s3_place.options)
    bucket, _, run = s3_place.url.removeprefix("s3://").partition("/")
    for other in others:
        service.call_s3("put_object", Bucket=bucket, Key=run + other, Body=b"")
    store = s3_place.open()

    assert list(store.keys("")) == []
    assert list(store.keys("steps/")) == []


@pytest.mark.parametrize(
    "key", ["with space", "plus+percent%41", "a=b&c", "~tilde", "UPPER", "[a]*", ".dot", "a:b,c;d@e$!'()"]
)
def test_odd_keys_name_odd_objects(store, key):
    """
    Characters that mean something in URLs or patterns mean nothing in a key.
    """
    store.put(key, key.encode())
    store.put(f"odd/{key}/end", b"below")

    assert store.get(key) == key.encode()
    assert list(store.keys("")) == sorted([key, f"odd/{key}/end"])
    assert list(store.keys(f"odd/{key}")) == [f"odd/{key}/end"]
    store.delete(key)
    assert list(store.keys("")) == [f"odd/{key}/end"]


@pytest.mark.parametrize(
    "key", ["", "/etc/passwd", "../up", "a/../../up", "a//b", "a/", "./a", "a?versionId=1", "a#1", ".spot-tmp/x"]
)
def test_no_key_leads_out_of_the_run(store, key):
    """
    A key that a store could misread, perhaps from a forged manifest, names nothing and writes nothing.
    """
    store.put("a", b"inside")

    with pytest.raises(ValueError, match="cannot name an object"):
        store.put(key, b"x")
    with pytest.raises(ValueError, match="cannot name an object"):
        store.put_if_absent(key, b"x")
    with pytest.raises(KeyError):
        store.get(key)
    store.delete(key)
    assert list(store.keys("")) == ["a"]
    assert store.get("a") == b"inside"


def test_put_if_absent_never_replaces(store):
    """
    It writes where nothing is, and leaves alone what is there, were it the same bytes.
    """
    assert store.put_if_absent("attempts/1", b"mine")
    assert not store.put_if_absent("attempts/1", b"yours")
    assert not store.put_if_absent("attempts/1", b"mine")
    store.put("attempts/2", b"put")
    assert not store.put_if_absent("attempts/2", b"yours")

    assert store.get("attempts/1") == b"mine"
    assert store.get("attempts/2") == b"put"
    store.delete("attempts/1")
    assert store.put_if_absent("attempts/1", b"again")


def test_put_if_absent_has_exactly_one_winner(store):
    """
    Of 16 threads that put the same key at once, one is told True, and its bytes are there.
    """
    for round_number in range(3):
        key = f"attempts/{round_number}"
        barrier = threading.Barrier(16, timeout=DEADLINE_S)

        def claim(writer, key=key, barrier=barrier):
            barrier.wait()
            return store.put_if_absent(key, f"writer {writer}".encode())

        with ThreadPoolExecutor(16) as pool:
            won = list(pool.map(claim, range(16)))

        assert won.count(True) == 1
        assert store.get(key) == f"writer {won.index(True)}".encode()


def test_threads_share_a_store(store):
    """
    Puts, listings and deletions from many threads in the same folders neither fail nor lose anything.
    """

    def work(writer):
        for number in range(10):
            store.put(f"steps/{number}/keep-{writer}", b"keep")
            store.put(f"gone/{number}/{writer}", b"gone")
            assert f"steps/{number}/keep-{writer}" in list(store.keys(f"steps/{number}/"))
            store.delete(f"gone/{number}/{writer}")

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))

    expected = sorted(f"steps/{number}/keep-{writer}" for number in range(10) for writer in range(8))
    assert list(store.keys("")) == expected


def put_and_report(place, key, data, pipe):
    """Body of another process: open the store there, put, and say so."""
    store = place.open()
    pipe.send("ready")
    pipe.recv()
    store.put(key, data)
    pipe.send("done")
    pipe.recv()


def test_another_process_sees_an_object_once_put_returns(place):
    """
    A put in one process is read and listed in another, which had listed and missed it before.
    """
    store = place.open()
    ours, theirs = SPAWN.Pipe()
    process = SPAWN.Process(target=put_and_report, args=(place, "steps/1/a", b"theirs", theirs), daemon=True)
    process.start()
    assert ours.recv() == "ready"
    assert list(store.keys("")) == []
    with pytest.raises(KeyError):
        store.get("steps/1/a")

    ours.send("go")
    assert ours.recv() == "done"

    assert list(store.keys("")) == ["steps/1/a"]
    assert list(store.keys("steps/1/")) == ["steps/1/a"]
    assert store.get("steps/1/a") == b"theirs"
    ours.send("end")
    process.join(DEADLINE_S)
    assert process.exitcode == 0


BIG = 16 * MIB


def put_big(place, key, pipe):
    """Body of the process that dies."""
    store = place.open()
    store.keys("")  # connects, so that what follows is the put alone
    pipe.send("ready")
    pipe.recv()
    store.put(key, b"B" * BIG)


def bytes_below(root):
    total = 0
    for directory, _, names in os.walk(root):
        for name in names:
            with suppress(FileNotFoundError):
                total += os.stat(os.path.join(directory, name)).st_size
    return total


@pytest.fixture(params=["local", *S3_CLIENTS])
def watched(request, tmp_path):
    """A place, and a function that says how many bytes have been written to it, wherever they are now."""
    if request.param == "local":
        yield Place(str(tmp_path), {}), lambda: bytes_below(tmp_path)
        return
    server = request.getfixturevalue("s3_server")
    place = request.getfixturevalue("make_place")(request.param)
    with FaultProxy(server.endpoint_url) as proxy:
        options = server.storage_options(endpoint_url=proxy.endpoint_url)
        yield place._replace(options=options), lambda: proxy.num_forwarded


@pytest.mark.sampled
@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99, 1.0])
@pytest.mark.parametrize("old", [b"A" * 1000, None], ids=["replaces", "creates"])
def test_a_writer_that_is_killed_leaves_no_part_of_an_object(watched, old, share):
    """
    Killed at any moment of a put, the writer leaves what was there before, or all of the new object.
    """
    place, num_written = watched
    store = place.open()
    if old is not None:
        store.put("steps/1/blob", old)
    ours, theirs = SPAWN.Pipe()
    process = SPAWN.Process(target=put_big, args=(place, "steps/1/blob", theirs), daemon=True)
    process.start()
    assert ours.recv() == "ready"
    before = num_written()

    ours.send("go")
    deadline = time.monotonic() + DEADLINE_S
    while num_written() - before < share * BIG:
        assert time.monotonic() < deadline
    process.kill()
    process.join()

    keys = list(store.keys(""))
    found = store.get(*keys) if keys else None
    assert found == old or found == b"B" * BIG, f"{len(found)} bytes"
    assert keys in ([], ["steps/1/blob"])
