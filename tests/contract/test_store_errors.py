"""Failures of stores, and the words of their errors."""

from __future__ import annotations

import logging
import os
import pickle
import socket
import struct
import subprocess
import sys
import threading
import time
import traceback
import uuid

import fsspec
import pytest
import torch
from botocore.exceptions import ClientError
from fsspec.implementations.local import LocalFileSystem
from sandbox import in_user_namespace

from spot_plugins import SpotConfig, SpotSession, prefetch
from spot_plugins.config import from_environment
from spot_plugins.errors import ConfigError, StoreError
from spot_plugins.locations import is_local
from spot_plugins.store import FsspecStore, LocalStore, MemoryStore, ObstoreStore, check_writable, open_store
from spot_plugins.store.obstore_options import read_options
from spot_plugins.store.redaction import Secrets
from spot_plugins.store.s3fs import s3_options
from spot_plugins.store.store_errors import to_store_error

MIB = 1024**2
DEADLINE_S = 300

OPERATIONS = {
    "put": lambda store: store.put("key", b"data"),
    "put_if_absent": lambda store: store.put_if_absent(f"claim/{uuid.uuid4().hex}", b"data"),
    "get": lambda store: store.get("there"),
    "keys": lambda store: list(store.keys("")),
    "delete": lambda store: store.delete("key"),
}


@pytest.fixture(params=OPERATIONS)
def operation(request):
    return OPERATIONS[request.param]


@pytest.fixture(scope="module", params=[ObstoreStore, FsspecStore])
def client(request):
    """Each way to S3."""
    return request.param


def test_a_hung_service_is_given_up_within_20_s_by_default():
    """
    Without a word about it from the user, connecting and waiting are bounded; the user's own bounds win.
    """
    ours = s3_options({})["config_kwargs"]
    theirs = s3_options({"config_kwargs": {"read_timeout": 100, "max_pool_connections": 50}})["config_kwargs"]

    assert ours["connect_timeout"] + ours["read_timeout"] <= 20
    assert theirs["read_timeout"] == 100
    assert theirs["max_pool_connections"] == 50
    assert theirs["connect_timeout"] == ours["connect_timeout"]
    keys = {"key": "key", "secret": "word"}
    ours, theirs = (
        read_options("s3", "bucket", {**keys, "config_kwargs": config})() for config in ({}, {"read_timeout": 100})
    )
    assert ours.client["connect_timeout"].total_seconds() + ours.read_timeout_s <= 20
    assert theirs.read_timeout_s == 100
    assert theirs.client["connect_timeout"] == ours.client["connect_timeout"]


def test_the_sentence_of_the_service_is_kept():
    """
    Next to the remedy, an error has the service's own sentence, because only this one names a key of KMS, for example.
    """
    sentence = "User is not authorized to perform: kms:GenerateDataKey with key secret-word"
    answer = {"Error": {"Code": "AccessDenied", "Message": sentence}, "ResponseMetadata": {"HTTPStatusCode": 403}}
    secrets = Secrets("s3://bucket/run", {"secret": "secret-word"})

    error = to_store_error("put", "key", ClientError(answer, "PutObject"), secrets)

    assert "must be allowed to put, get, list and delete" in str(error)
    assert "(AccessDenied: User is not authorized to perform: kms:GenerateDataKey with key ***)" in str(error)
    assert not error.retryable


def test_network_trouble_is_named_as_such(client):
    """
    A refused connection, an unknown host and a broken connection do not read like a wrong setting.
    """
    options = {"key": "key", "secret": "word"}
    with socket.create_server(("127.0.0.1", 0)) as breaking:
        thread = threading.Thread(target=lambda: reset_one(breaking))
        thread.start()
        for url, words in [
            ("http://127.0.0.1:9", "cannot connect to the endpoint URL: Connection refused"),
            (
                "http://no-such-host.invalid",
                r"cannot connect to the endpoint URL: (failed to lookup|Name or service not known|.* resolution)",
            ),
            (
                f"http://127.0.0.1:{breaking.getsockname()[1]}",
                r"the connection to the endpoint URL broke: .*(Connection reset|Server disconnected)",
            ),
        ]:
            with pytest.raises(StoreError, match=words) as caught:
                client("s3://bucket/run", {**options, "endpoint_url": url}).put("key", b"data")
            assert caught.value.retryable
        thread.join(DEADLINE_S)


def test_a_missing_file_of_authorities_is_no_missing_object(client, operation):
    """
    Else a resume would take a wrong path for a run without checkpoints.
    """
    options = {"key": "key", "secret": "word", "endpoint_url": "https://127.0.0.1:9"}
    store = client("s3://bucket/run", {**options, "client_kwargs": {"verify": "/no/such/file"}})

    with pytest.raises(StoreError, match="No such file"):
        operation(store)


def reset_one(listener):
    """Accept one connection, read the beginning of its request, and reset the connection."""
    connection = listener.accept()[0]
    connection.recv(1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def test_a_failed_listing_is_named_with_a_plain_verb():
    """
    An error about keys() reads "cannot list".
    """
    for client in (ObstoreStore, FsspecStore):
        store = client("s3://bucket/run", {"key": "key", "secret": "word", "endpoint_url": "http://127.0.0.1:9"})

        with pytest.raises(StoreError, match=r"^cannot list 'steps/'"):
            store.keys("steps/")


def test_check_writable_passes_where_all_is_well(tmp_path):
    """
    A usable store passes, and keeps nothing of the check.
    """
    for each in (MemoryStore(), LocalStore(str(tmp_path / "run"))):
        before = list(each.keys(""))

        check_writable(each)

        assert list(each.keys("")) == before
    assert not (tmp_path / "run" / "probe").exists()


class StaleStore(MemoryStore):
    """Lists what was there a moment ago."""

    def keys(self, prefix):
        return iter(())


def test_check_writable_refuses_stale_listings():
    """
    A service that does not list what was just put cannot keep the promises.
    """
    with pytest.raises(ConfigError, match=r"had other content, right after it was put.*read-after-write"):
        check_writable(StaleStore())


SECRET = "hunter2/very+secret"
USER_URL = "http://mallory:hunter2@127.0.0.1:9/"


# For either client.
SECRET_OPTIONS = [
    ("s3://bucket/run", {"key": SECRET, "secret": SECRET, "endpoint_url": "http://127.0.0.1:9"}),
    ("s3://bucket/run", {"key": "key", "secret": SECRET, "endpoint_url": USER_URL}),
    ("s3://bucket/run", {"key": "key", "secret": SECRET, "client_kwargs": {"endpoint_url": f"not a url {SECRET}"}}),
    ("s3://bucket/run", {"key": "key", "secret": SECRET, "endpoint_url": "http://ho st:9"}),
    ("s3://bucket/run", {"key": "key", "secret": SECRET, "endpoint_url": "http://h:9", "profile": SECRET}),
]
# For the file systems of fsspec alone.
MORE_SECRET_OPTIONS = [
    ("s3://mallory:hunter2@bucket/run", {"key": "key", "secret": SECRET, "endpoint_url": USER_URL}),
    ("s3://bucket/run", {"key": SECRET, "username": SECRET}),
    ("s3://bucket/run", {"no_such_option": SECRET}),
    ("ftp://mallory:hunter2@127.0.0.1:9/run", {}),
    ("http://127.0.0.1:9/run?sig=hunter2", {"token": SECRET}),
]


@pytest.mark.parametrize(
    ("through", "url", "options"),
    [(FsspecStore, *each) for each in SECRET_OPTIONS + MORE_SECRET_OPTIONS]
    + [(ObstoreStore, *each) for each in SECRET_OPTIONS],
)
def test_nothing_that_is_printed_holds_a_secret(operation, through, url, options):
    """
    Neither message, nor fields, nor traceback of an error, nor the store itself, shows credentials.
    """
    store = through(url, options)

    with pytest.raises(StoreError) as caught:
        operation(store)

    error = caught.value
    copy = pickle.loads(pickle.dumps(error))
    printed = [repr(store), repr(vars(copy)), "".join(traceback.format_exception(error))]
    for text in printed:
        # The source lines of this test, which a traceback quotes, name no secret.
        assert "hunter2" not in text


@pytest.mark.parametrize(
    ("text", "hidden"),
    [
        (f"key {SECRET} is wrong", "key *** is wrong"),
        ("path hunter2%2Fvery%2Bsecret/x", "path ***/x"),
        ("at ftp://a:b@host/x", "at ftp://***@host/x"),
        ("GET 'https://host/x?X-Amz-Signature=1&b=2' failed", "GET 'https://host/x?***' failed"),
        ("user mallory, password swordfish", "user ***, password ***"),
        ("http://127.0.0.1:8333 in eu-west-1", "http://127.0.0.1:8333 in eu-west-1"),
    ],
)
def test_secrets_are_hidden_wherever_they_stand(text, hidden):
    """
    Values of options, however deep and however spelled, and users and queries in any URL, are replaced.
    """
    options = {
        "client_kwargs": {"verify": [SECRET], "endpoint_url": "http://127.0.0.1:8333", "region_name": "eu-west-1"},
        "anon": False,
    }

    assert Secrets("ftp://mallory:swordfish@host/run", options).hide(text) == hidden


def test_opening_asks_nothing_of_the_service(client):
    """
    A store is made without a word on the network: the service may be away at that time.
    """
    store = client("s3://bucket/run", {"key": "key", "secret": "word", "endpoint_url": "http://127.0.0.1:9"})

    assert repr(store) == f"{client.__name__}('s3://bucket/run')"
    with pytest.raises(StoreError):
        store.put("key", b"")


@pytest.mark.parametrize(
    ("url", "said"),
    [
        (
            "nope://bucket/run",
            r"url='nope://bucket/run' has the unknown scheme 'nope': give one such as s3://bucket/run",
        ),
        ("s3://", r"url='s3://' names no bucket: give one, as in s3://bucket/run"),
        ("s3:/bucket/run", r"url='s3:/bucket/run' is not a path, and as a URL it lacks a slash .*s3://bucket/run"),
        ("s3:bucket/run", r"lacks a slash after 's3:': give one such as s3://bucket/run"),
        ("file:/data/run", r"lacks a slash after 'file:'"),
        ("C:/data/run", r"lacks a slash after 'C:'"),
        (r"d:\data\run", r"lacks a slash after 'd:'"),
        ("$HOME/run", r"holds \$HOME, which was not expanded"),
        ("/data/${USER}/run", r"holds \$\{USER\}, which was not expanded"),
        ("s3://bucket/$RUN", r"holds \$RUN, which was not expanded"),
        ("s3://bucket/{run}/7", r"holds \{run\}, which was not expanded: let the shell or an f-string"),
        ("/data/$(date)/run", r"holds \$\(date\), which was not expanded"),
        (" s3://bucket/run", r"url=' s3://bucket/run' begins or ends with white space: remove it"),
        ("s3://bucket/run\n", r"begins or ends with white space"),
        ("~nobody-of-this-name/run", r"a user who is unknown here: give the whole path"),
        ("file://data/run", r"url='file://data/run' names a host.*three slashes, as in file:///data/run"),
        ("simplecache::s3://bucket/run", r"chains file systems.*give a URL with one"),
        ("nope://mallory:hunter2@host/run", r"url='nope://\*\*\*@host/run'"),
    ],
)
def test_a_url_that_cannot_work_is_refused_with_advice(url, said):
    """
    The message names the setting, its value and what to write instead.
    """
    with pytest.raises(ConfigError, match=said) as caught:
        open_store(url)

    assert "hunter2" not in str(caught.value)


MISTAKEN = ("s3:/bucket/run", "s3:bucket/run", "$HOME/run", "{run}/7", "run ", "~nobody-of-this-name/run")


@pytest.mark.parametrize(
    ("setting", "path"),
    [("url", path) for path in MISTAKEN]
    + [(setting, path) for setting in ("local_dir", "notice_file") for path in MISTAKEN if ":" not in path],
)
def test_a_path_that_is_most_likely_a_mistake_makes_no_folder(setting, path, tmp_path, monkeypatch):
    """
    It is refused where it is written. A colon is allowed in a path that cannot be taken for a URL.
    """
    monkeypatch.chdir(tmp_path)
    settings = {"url": str(tmp_path / "run"), "every_steps": 1, setting: path}

    with pytest.raises(ConfigError, match=rf"^{setting}="):
        SpotConfig(**settings)

    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("path", MISTAKEN)
def test_a_prefetch_refuses_the_same_urls(path, tmp_path, monkeypatch):
    """
    A mistake is told before torch is imported.
    """
    monkeypatch.chdir(tmp_path)

    with pytest.raises(ConfigError, match=r"^url="):
        prefetch(path)


def test_a_tilde_is_the_home_directory(tmp_path, monkeypatch):
    """
    No setting with a path makes a folder that is named ~. A variable holds it unexpanded as well.
    """
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SPOT_URL", "~/run")
    monkeypatch.setenv("SPOT_NOTICE_FILE", "~/notice")
    monkeypatch.setenv("SPOT_LOCAL_DIR", "~/local")

    with SpotSession(from_environment(every_steps=1)) as session:
        session.register("counter", torch.nn.Linear(1, 1))
        session.resume()
        session.after_step(1)
        session.finish(1)

    assert {path.name for path in home.iterdir()} == {"run", "local"}
    assert {path.name for path in tmp_path.iterdir()} == {"home"}


@pytest.mark.parametrize(
    ("url", "package", "remedy"),
    [
        ("gs://bucket/run", "gcsfs", 'pip install "spot_plugins[gcs]"'),
        ("gcs://bucket/run", "gcsfs", 'pip install "spot_plugins[gcs]"'),
        ("abfs://container/run", "adlfs", 'pip install "spot_plugins[azure]"'),
        ("az://container/run", "adlfs", 'pip install "spot_plugins[azure]"'),
        ("sftp://host/run", "paramiko", "paramiko"),
    ],
)
def test_a_missing_package_is_named_with_its_remedy(url, package, remedy, monkeypatch):
    """
    A known scheme whose package is not installed says what to install.
    """
    monkeypatch.setitem(sys.modules, "obstore", None)
    monkeypatch.setitem(sys.modules, package, None)  # what Python itself does for "not there"
    known = sys.modules["fsspec.registry"]._registry
    monkeypatch.delitem(known, url.partition(":")[0], raising=False)  # of an earlier test

    with pytest.raises(ConfigError) as caught:
        open_store(url)

    assert repr(url) in str(caught.value)
    assert remedy in str(caught.value)
    assert "that is not installed: " in str(caught.value)


def test_local_urls_are_told_from_others():
    """
    A plain path, file:// and local:// are directories of this machine, and open as such.
    """
    for url in ("/data/run", "data/run", "~/run", "file:///data/run", "local:///data/run"):
        assert is_local(url)
        assert isinstance(open_store(url), LocalStore)
    for url in ("s3://bucket/run", "memory://run"):
        assert not is_local(url)
    assert repr(open_store("file:///data/run")) == "LocalStore('/data/run')"
    assert repr(open_store("run")) == f"LocalStore({os.path.abspath('run')!r})"
    assert repr(open_store("./a:b")) == f"LocalStore({os.path.abspath('a:b')!r})"
    assert repr(open_store("~/run")) == f"LocalStore({os.path.expanduser('~/run')!r})"


def test_memory_is_shared_by_name():
    """
    All who open one memory URL in a process see the same objects, and those of another see others.
    """
    open_store("memory://one").put("key", b"data")

    assert open_store("memory://one/").get("key") == b"data"
    assert list(open_store("memory://other").keys("")) == []


def test_a_directory_costs_no_import_of_a_service():
    """
    A pusher that writes to a directory loads neither fsspec nor a client library, nor torch.
    """
    program = (
        "import sys; from spot_plugins.store import *; list(open_store('file:///nowhere/run').keys(''));"
        "print({'fsspec', 's3fs', 'obstore', 'botocore', 'aiohttp', 'asyncio', 'torch'} & set(sys.modules))"
    )

    assert run_python(program) == "set()\n"


def test_a_file_system_that_writes_in_place_can_be_used_with_a_warning(tmp_path, caplog):
    """
    Any file system of fsspec can hold a run; what it does not promise is said.
    """
    with caplog.at_level(logging.WARNING):
        assert isinstance(open_store("ftp://127.0.0.1:9/run"), FsspecStore)
    assert "not known to show objects whole" in caplog.text

    store = FsspecStore(f"file://{tmp_path}/runs/run-7")
    store.put("steps/1/a", memoryview(b"data"))
    store.put("steps/2", b"")

    assert store.get("steps/1/a") == b"data"
    assert list(store.keys("")) == ["steps/1/a", "steps/2"]
    assert list(store.keys("steps/1")) == ["steps/1/a"]
    assert list(store.keys("none/")) == []
    store.delete("steps/1/a")
    store.delete("steps/1/a")
    with pytest.raises(KeyError):
        store.get("steps/1/a")
    with pytest.raises(StoreError, match=r"file.*:// has no put-if-absent") as caught:
        store.put_if_absent("attempts/1", b"mine")
    assert not caught.value.retryable


class CachingFileSystem(LocalFileSystem):
    """Remembers its listings, as the clients of many services do."""

    protocol = "caching"

    def ls(self, path, detail=False, **kwargs):
        path = self._strip_protocol(path)
        if path not in self.dircache:
            self.dircache[path] = super().ls(path, detail=True)
        return self.dircache.get(path, super().ls(path, detail=True))


def test_listings_are_never_remembered(tmp_path):
    """
    A listing shows what another process has put since the last one, whatever the file system remembers.
    """
    fsspec.register_implementation("caching", CachingFileSystem, clobber=True)
    ours, theirs = (FsspecStore(f"caching://{tmp_path}") for _ in range(2))
    ours.put("first", b"")
    assert list(ours.keys("")) == ["first"]

    theirs.put("second", b"")

    assert list(ours.keys("")) == ["first", "second"]


def test_a_directory_below_a_file_is_a_wrong_setting(tmp_path):
    """
    A place where no directory can be is refused before training, with the reason.
    """
    (tmp_path / "file").write_bytes(b"")

    with pytest.raises(ConfigError, match=rf"LocalStore\('{tmp_path}/file/run'\).*is a file, not a directory"):
        check_writable(open_store(f"{tmp_path}/file/run"))
    with pytest.raises(ConfigError, match="cannot be made; choose another"):
        check_writable(open_store("/proc/run"))


def test_an_object_in_the_way_of_a_folder_is_an_error(tmp_path):
    """
    Where files cannot do what objects can, nothing is lost and the error says what is in the way.
    """
    store = LocalStore(str(tmp_path))
    store.put("a", b"object")

    for put in (store.put, store.put_if_absent):
        with pytest.raises(StoreError, match="is a file, not a directory") as caught:
            put("a/b", b"below")
        assert not caught.value.retryable
    assert store.get("a") == b"object"
    assert list(store.keys("")) == ["a"]


def test_a_file_system_without_hard_links_has_no_put_if_absent(tmp_path, monkeypatch):
    """
    On FAT and some network mounts put_if_absent says that it cannot be had, and writes nothing.
    """

    def link(source, target):
        raise PermissionError(1, "Operation not permitted")  # what link(2) says there

    monkeypatch.setattr(os, "link", link)
    store = LocalStore(str(tmp_path))

    told = f"the file system at {tmp_path} has no put-if-absent, because it has no hard links"
    with pytest.raises(StoreError, match=told) as caught:
        store.put_if_absent("attempts/1", b"mine")

    assert not caught.value.retryable
    assert list(store.keys("")) == []


@pytest.mark.parametrize("operation", ["put", "put_if_absent"])
def test_bytes_are_on_the_disk_before_their_name(tmp_path, monkeypatch, operation):
    """
    Even when the power goes, an object that has its name has its bytes, and one that was put has its name.
    """
    calls = []

    def record(name):
        original = getattr(os, name)

        def call(*args):
            calls.append(name)
            return original(*args)

        monkeypatch.setattr(os, name, call)

    store = LocalStore(str(tmp_path))
    store.put("steps/1/first", b"")  # makes the directories
    for name in ("write", "fsync", "replace", "link"):
        record(name)

    getattr(store, operation)("steps/1/second", b"data")

    assert calls == ["write", "fsync", "replace" if operation == "put" else "link", "fsync"]


def test_what_killed_writers_left_is_removed_later(tmp_path):
    """
    Unfinished files of long ago go with the first put; those that may still be written stay; none is listed.
    """
    unfinished = tmp_path / ".spot-tmp"
    unfinished.mkdir()
    for name, age_s in (("old", 2 * 3600), ("new", 60)):
        (unfinished / name).write_bytes(b"half")
        os.utime(unfinished / name, (time.time() - age_s,) * 2)
    store = LocalStore(str(tmp_path))
    assert list(store.keys("")) == []

    store.put("key", b"data")

    assert [path.name for path in unfinished.iterdir()] == ["new"]
    assert list(store.keys("")) == ["key"]


def test_deletion_leaves_no_empty_directories(tmp_path):
    """
    Pruned checkpoints leave nothing to list, but the directory of the run stays.
    """
    store = LocalStore(str(tmp_path / "run"))
    store.put("steps/1/deep/a", b"")
    store.put("steps/2/b", b"")

    store.delete("steps/1/deep/a")
    assert not (tmp_path / "run" / "steps" / "1").exists()
    store.delete("steps/2/b")

    assert not (tmp_path / "run" / "steps").exists()
    assert (tmp_path / "run").is_dir()


FULL_DISK = """
import os, subprocess, sys
from spot_plugins import SpotConfig, SpotSession, prefetch
from spot_plugins.config import from_environment
from spot_plugins.errors import ConfigError, StoreError
from spot_plugins.store import LocalStore, check_writable
root = sys.argv[1]
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", root], check=True)
store = LocalStore(root)
store.put("old", b"old")
def show(operation, *args):
    try:
        operation(*args)
    except (StoreError, ConfigError) as error:
        print(type(error).__name__, getattr(error, "retryable", ""), error)
show(store.put, "new", bytes(1024**2))
print(list(store.keys("")), os.listdir(os.path.join(root, ".spot-tmp")), store.get("old"))
subprocess.run(["mount", "-o", "remount,ro", root], check=True)
show(store.put, "new", b"")
show(store.delete, "old")
show(check_writable, store)
print(store.get("old"))
"""


def test_a_full_and_a_read_only_disk_say_so(tmp_path):
    """
    A full disk may have room later, a read-only one will not; what was stored stays readable.
    """
    lines = in_namespace(FULL_DISK, tmp_path, "--map-root-user", "--mount")

    assert lines[0].startswith(f"StoreError True cannot put 'new': the disk is full, at {tmp_path}")
    assert lines[1] == "['old'] [] b'old'"
    assert lines[2].startswith("StoreError False cannot put 'new': the file system is read-only; choose another")
    assert lines[3].startswith("StoreError False cannot delete 'old': the file system is read-only")
    assert lines[4].startswith("ConfigError")
    assert "the file system is read-only; choose another directory" in lines[4]
    assert lines[5] == "b'old'"


NO_PERMISSION = """
import sys
from spot_plugins.errors import ConfigError
from spot_plugins.store import LocalStore, check_writable
try:
    check_writable(LocalStore(sys.argv[1]))
except ConfigError as error:
    print(error)
"""


def test_a_directory_without_write_permission_says_so(tmp_path):
    """
    No permission is a wrong setting, and says what to do about it.
    """
    tmp_path.chmod(0o555)

    # In a user namespace of its own even root is bound by permissions.
    (line,) = in_namespace(NO_PERMISSION, tmp_path)

    assert "no permission; choose another directory or have its owner allow it" in line
    assert str(tmp_path) in line


def in_namespace(program, root, *flags):
    """Run *program* with *root* as its argument in a user namespace. Return the lines that it printed."""
    return run_python(program, str(root), wrapper=in_user_namespace([], *flags)).splitlines()


def run_python(program, *args, wrapper=()):
    command = [*wrapper, sys.executable, "-c", program, *args]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run(
        command, env=environment, stdout=subprocess.PIPE, text=True, check=True, timeout=DEADLINE_S
    ).stdout


class NoteTakingFileSystem(LocalFileSystem):
    """Keeps its listings in a place of its own, which nobody can switch off."""

    protocol = "noting"

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.dircache = {}


def test_a_file_system_that_keeps_old_listings_is_refused(tmp_path):
    """Another process would not see the steps of this one."""
    fsspec.register_implementation("noting", NoteTakingFileSystem, clobber=True)
    with pytest.raises(ConfigError, match="NoteTakingFileSystem keeps old listings, so new checkpoints stay unseen"):
        FsspecStore(f"noting://{tmp_path}").put("first", b"")
