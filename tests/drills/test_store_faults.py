"""Stores and disks that fail while a training runs: it goes on, is told, and in the end the newest state is stored."""

from __future__ import annotations

import logging
import os
import resource
import subprocess
import threading
import time
import uuid
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest
import torch
from hearing import DEADLINE_S, Heard, pusher_pid, until, until_gone, until_idle
from steps import Holder, assert_same, assert_whole, load, numbers

from spot_plugins.config import SpotConfig
from spot_plugins.errors import ConfigError
from spot_plugins.events import (
    Committed,
    LocalWriteFailed,
    PushFailing,
    SaveAbandoned,
    SaveDeferred,
    Staged,
    WrittenLocally,
)
from spot_plugins.save import layout
from spot_plugins.session import SpotSession
from spot_plugins.store import LocalStore, open_store, retry
from spot_plugins.testing import FaultProxy

NUM_FLOATS = 300_000  # 1.2 MB
QUICK = {"connect_timeout": 1, "read_timeout": 1}
ENDLESS = {"connect_timeout": 600, "read_timeout": 600}
PACE_S = 0.002
S3FS = {"default_fill_cache": False}  # an option that only s3fs knows, so that it is taken
both_clients = pytest.mark.parametrize("client_options", [{}, S3FS], ids=["obstore", "s3fs"])


@pytest.fixture(scope="session")
def bucket(s3_server):
    return s3_server.create_bucket("store-faults")


@pytest.fixture(scope="module")
def proxy(s3_server):
    with FaultProxy(s3_server.endpoint_url) as proxy:
        yield proxy


@pytest.fixture(autouse=True)
def healed(proxy):
    proxy.heal()
    yield
    proxy.heal()  # a pusher that still has work can end


class Training:
    """A session on S3 whose every step has a state of its own."""

    def __init__(self, server, bucket, proxy, local_dir, timeouts=QUICK, client_options=None, **settings):
        self.url = f"{bucket}/{uuid.uuid4().hex}"
        self.store = open_store(self.url, server.storage_options())
        self.heard = Heard()
        self.holder = Holder({"w": torch.zeros(NUM_FLOATS), "step": 0})
        self.config = SpotConfig(
            url=self.url,
            local_dir=str(local_dir),
            storage_options={
                **server.storage_options(endpoint_url=proxy.endpoint_url, **timeouts),
                **(client_options or {}),
            },
            **{"every_steps": 1, **settings},
        )
        self.session = SpotSession(self.config, on_event=[self.heard])
        self.session.register("part", self.holder)
        self.session.resume()
        self.step = 0

    def run(self, num_steps=1):
        """Train so many steps. None of them may wait for the store, which the test's own timeout would show."""
        for _ in range(num_steps):
            self.step += 1
            self.holder.state = {"w": torch.full((NUM_FLOATS,), float(self.step)), "step": self.step}
            self.session.after_step(self.step)
            time.sleep(PACE_S)

    def run_until(self, kind, **fields):
        """Train until an event comes. Return it."""
        deadline = time.monotonic() + DEADLINE_S
        while not (events := self.heard.of(kind, **fields)):
            assert time.monotonic() < deadline, f"no {kind.__name__} among {self.heard.events[-20:]}"
            self.run()
        return events[0]

    def finish(self):
        """End the training, and check that its newest state is what a reader gets."""
        self.session.finish(self.step)
        until_gone(pusher_pid(self.session))  # it prunes behind the last commit
        assert numbers(self.store)[0] == self.step
        assert_whole(self.store)
        assert_same(load(self.store).state["part"], self.holder.state)


@pytest.fixture
def start(s3_server, bucket, proxy, tmp_path):
    started = []

    def start(**settings):
        training = Training(s3_server, bucket, proxy, **{"local_dir": tmp_path / "local", **settings})
        started.append(training.session)
        return training

    yield start
    proxy.heal()
    for session in started:
        session.close()


def num_buffers(pid="self"):
    """Return the number of shared buffers that a process has open or mapped."""
    inodes = {line.split()[4] for line in Path(f"/proc/{pid}/maps").read_text().splitlines() if "memfd:spot-" in line}
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):
            if "memfd:spot-" in os.readlink(fd):
                inodes.add(str(fd.stat().st_ino))
    return len(inodes)


FAULTS = {
    "refuses": lambda proxy: proxy.refuse(),
    "hangs": lambda proxy: proxy.hang(),
    "answers 503": lambda proxy: proxy.fail_with(503),
    "is full": lambda proxy: proxy.fail_with(507),
    "denies access": lambda proxy: proxy.fail_with(403),
}


@both_clients
@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_a_store_that_fails_for_a_while_does_not_stop_the_training(fault, start, proxy, client_options):
    """
    While the store fails every step ends, events tell what is behind, overtaken steps are given up, and memory does not
    grow. When it is back the newest state goes up, and nothing half is left visible.
    """
    training = start(client_options=client_options)
    training.run_until(Committed)
    fault(proxy)
    failing = training.run_until(PushFailing)
    abandoned = training.run_until(SaveAbandoned)
    assert "a newer step is staged and the store does not answer" in abandoned.reason
    training.run(20)
    last_while_down = training.step
    assert max(event.step for event in training.heard.of(Committed)) < failing.step
    assert num_buffers() <= 2
    assert num_buffers(pusher_pid(training.session)) <= 2

    proxy.heal()
    until(lambda: training.run() or any(e.step > last_while_down for e in training.heard.of(Committed)), "it goes up")
    training.finish()

    assert failing.num_tries >= 1
    assert failing.reason
    assert abandoned.step >= failing.step
    assert not training.heard.of(Committed, step=abandoned.step)
    assert num_buffers() == 0


@both_clients
def test_training_never_waits_even_when_a_try_hangs_for_ever(start, proxy, client_options):
    """
    Both buffers are held, by a try that hangs and by the step behind it: steps and pauses do not wait for a third one.
    """
    training = start(timeouts=ENDLESS, grace_seconds=3600, client_options=client_options)
    training.run_until(Committed)
    until_idle(training.session)
    proxy.refuse()
    training.run()
    hanging = training.step
    training.heard.wait(PushFailing, step=hanging)
    until(lambda: proxy.num_open == 0, "what was open before is closed")
    proxy.hang()
    until(lambda: proxy.num_open > 0, "the next try hangs")
    training.run(30)
    waiting = training.heard.of(Staged)[-1].step
    with training.session.pause(training.step) as pause:
        pause.check()
    training.run(5)
    assert waiting > hanging
    assert not training.heard.of(SaveAbandoned, step=hanging)
    assert num_buffers() == 2

    proxy.heal()
    for step in (hanging, waiting):
        training.run_until(Committed, step=step)
    training.finish()


def test_a_slow_store_defers_saves_and_gets_the_newest(start, proxy):
    """
    A push takes longer than many steps: saves that are due meanwhile are deferred, each told once, and none piles up.
    """
    training = start()
    training.run_until(Committed)
    until_idle(training.session)
    proxy.slow(400_000)
    training.run(60)
    staged = [event.step for event in training.heard.of(Staged)]
    first, *others = [event for event in training.heard.of(SaveDeferred) if event.step > staged[-1]]
    assert others == []
    assert first.step == staged[-1] + 1

    proxy.heal()
    training.run_until(Committed, step=staged[-1])
    training.finish()
    deferred = [event.num_deferred for event in training.heard.of(SaveDeferred)]
    assert deferred == list(range(1, len(deferred) + 1))


def test_a_store_that_comes_up_late_is_waited_for_when_joining_and_resuming(start, s3_server, bucket, proxy, tmp_path):
    """
    The network of a machine that has just started may be young: a few failed requests do not end the job.
    """
    first = start()
    first.run_until(Committed, step=1)
    first.finish()
    proxy.fail_with(503)
    before = proxy.num_requests

    def heal_later():
        until(lambda: proxy.num_requests >= before + 2, "two requests failed")
        proxy.heal()

    healer = threading.Thread(target=heal_later)
    healer.start()
    session = SpotSession(first.config)
    session.open()
    healer.join()
    session.register("part", first.holder)
    proxy.fail_with(503)
    before = proxy.num_requests
    healer = threading.Thread(target=heal_later)
    healer.start()
    try:
        assert session.resume() == first.step
    finally:
        healer.join()
        session.close()


# The local disk


@contextmanager
def small_disk(folder, num_bytes):
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={num_bytes}", "none", str(folder)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("mounting is not permitted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_the_blobs_of_a_large_state_grow(start, monkeypatch):
    """
    A service takes money for each put, so a session on S3 has fewer and larger blobs for a state of many.
    """
    monkeypatch.setattr(layout, "MAX_BLOB_BYTES", 100_000)
    monkeypatch.setattr(layout, "MAX_SLICE_BYTES", 50_000)
    monkeypatch.setattr(layout, "NUM_LARGE_BLOBS", 2)
    training = start()
    training.run()
    training.heard.wait(Committed, step=training.step)
    sizes = [each.num_bytes for each in training.store.objects("steps/") if each.key.endswith(".safetensors")]
    training.finish()

    assert sum(sizes) > 4 * NUM_FLOATS > 400_000
    assert len(sizes) <= 3


def test_a_full_local_disk_is_told_and_cleaned_up(start, tmp_path, monkeypatch):
    """
    Two copies fit and a third does not: an event says that the disk is full, the step is committed from memory, no
    half copy stays behind, and the next step fits again.
    """
    monkeypatch.setattr(layout, "MAX_BLOB_BYTES", 300_000)  # some blobs of the third copy still fit
    with small_disk(tmp_path / "disk", 3_000_000) as disk:
        training = start(local_dir=disk / "copies")
        for _ in range(2):
            training.run()
            training.heard.wait(Committed, step=training.step)
            until_idle(training.session)
        assert [event.step for event in training.heard.of(WrittenLocally)] == [1, 2]
        training.run()
        failed = training.heard.wait(LocalWriteFailed, step=3)
        training.heard.wait(Committed, step=3)
        until_idle(training.session)

        assert "the disk is full" in failed.reason
        assert str(disk) in failed.reason
        left = {key.split("/")[1] for key in LocalStore(str(disk / "copies")).keys("steps/")}
        assert left == {"0000000002-000001"}
        assert os.listdir(disk / "copies" / ".spot-tmp") == []

        training.run()
        training.heard.wait(WrittenLocally, step=4)
        training.finish()


def test_a_local_disk_that_takes_no_more_bytes_does_not_stop_pushes(start):
    """
    The same where nobody may mount a disk: the pusher may write no file that is as long as a blob.
    """
    training = start()
    resource.prlimit(pusher_pid(training.session), resource.RLIMIT_FSIZE, (100_000, 100_000))
    training.run()
    training.heard.wait(LocalWriteFailed, step=1)
    training.finish()

    assert training.heard.of(WrittenLocally) == []


def test_an_unusable_local_dir_is_told_with_every_save(start, tmp_path):
    """
    A directory that cannot be made: a clear event for each step, and each is committed from memory.
    """
    (tmp_path / "file").write_text("not a directory")
    training = start(local_dir=tmp_path / "file" / "copies")
    for step in (1, 2):
        training.run()
        failed = training.heard.wait(LocalWriteFailed, step=step)
        training.heard.wait(Committed, step=step)
        until_idle(training.session)
        assert "a part of the path is a file, not a directory" in failed.reason
    training.finish()


# Settings that cannot work


def children():
    return {child.pid for child in psutil.Process().children()}


@both_clients
@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"secret": "wrong-secret"}, "rejects these credentials"),
        ({"key": "wrong-key"}, "rejects these credentials"),
        ({"url": "s3://no-such-bucket-here/run"}, "the bucket does not exist; create it"),
        ({"url": "s3://"}, "names no bucket"),
        ({"url": "s4://bucket/run"}, "unknown scheme 's4'"),
        ({"url": "{file}/run"}, "is a file, not a directory"),
        ({"url": "file://{file}/run"}, "is a file, not a directory"),
        ({"url": "file://host/run"}, "write three slashes"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_a_store_that_cannot_work_fails_before_anything_starts(
    settings, says, client_options, s3_server, bucket, tmp_path, monkeypatch
):
    """
    The session is refused with a message that says what to do; its pusher process ends, and no secret is told.
    """
    monkeypatch.setattr(retry, "SETTLING_S", 0.1)
    file = tmp_path / "file"
    file.write_text("")
    keys = dict(settings)
    url = keys.pop("url", f"{bucket}/run").format(file=file)
    options = {**s3_server.storage_options(**keys), **client_options} if url.startswith("s3") else {}
    before = children()

    with pytest.raises(ConfigError) as caught:
        SpotSession(SpotConfig(url=url, every_steps=1, storage_options=options)).open()

    assert says in str(caught.value)
    assert not any(str(value) in str(caught.value) for name, value in options.items() if name in ("key", "secret"))
    until(lambda: children() <= before, "the pusher process has ended")


@both_clients
def test_no_secret_leaves_the_process(start, s3_server, proxy, caplog, client_options):
    """
    Credentials are in no event, log line, stored object, printed setting, command line or environment, also when the
    store refuses them.
    """
    caplog.set_level(logging.DEBUG, logger="spot_plugins")
    training = start(client_options=client_options)
    training.run_until(Committed)
    for status in (403, 503):
        proxy.fail_with(status)
        training.heard.events.clear()
        training.run_until(PushFailing)
    proxy.refuse()
    training.run(3)
    proxy.heal()
    pusher = Path(f"/proc/{pusher_pid(training.session)}")
    places = {
        "command line": (pusher / "cmdline").read_text(),
        "environment": (pusher / "environ").read_text(),
        "settings": repr(training.config),
    }
    training.finish()
    places["events"] = repr(training.heard.events)
    places["log"] = caplog.text
    places["store"] = b"".join(
        training.store.get(key) for key in training.store.keys("") if key.endswith("json")
    ).decode()

    for name, text in places.items():
        assert text, name
        assert s3_server.KEY not in text, name
        assert s3_server.SECRET not in text, name
