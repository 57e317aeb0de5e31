"""The pusher process: it finishes what was staged whatever becomes of the trainer, and leaves nothing behind."""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import asdict
from pathlib import Path

import psutil
import pytest
import torch
from drill_settings import Settings
from hearing import (
    DEADLINE_S,
    Heard,
    is_zombie,
    kill_pusher_and_successor,
    next_pusher,
    pusher_pid,
    said,
    until,
    until_end_known,
    until_gone,
    until_idle,
)
from launching import exit_codes, launch
from steps import Holder, assert_same, load, numbers, state_of

from spot_plugins.config import SpotConfig
from spot_plugins.events import AttemptStarted, Committed, Resumed, SaveAbandoned, Staged, Superseded, WrittenLocally
from spot_plugins.format.keys import parse_rank_manifest_key
from spot_plugins.push import PushSettings, messages, process
from spot_plugins.push.priority import NICENESS
from spot_plugins.save.buffers import MAX_BUFFERS
from spot_plugins.session import SpotSession
from spot_plugins.store import LocalStore, open_store
from spot_plugins.testing import FaultProxy


@pytest.fixture(scope="session")
def bucket(s3_server):
    return s3_server.create_bucket("pusher-process")


@pytest.fixture
def proxy(s3_server):
    with FaultProxy(s3_server.endpoint_url) as proxy:
        yield proxy


@contextmanager
def session_at(url, state=None, **settings):
    heard = Heard()
    session = SpotSession(SpotConfig(url=str(url), **{"every_steps": 1, **settings}), on_event=[heard])
    holder = state if isinstance(state, Holder) else Holder(state_of(1) if state is None else state)
    session.register("part", holder, replicated=("both",))
    session.open()
    try:
        yield session, heard
    finally:
        session.close()


def parent_of(pid):
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


@pytest.mark.parametrize("death", ["kill", "group", "error", "worker"])
def test_a_trainer_that_dies_right_after_a_save_leaves_it_to_the_pusher(death, s3_server, bucket, proxy, tmp_path):
    """
    Not one byte had reached the store when the trainer died, by a signal to it, to its whole group and to the pusher
    itself, or by an error. The pusher stores and commits the step, then ends; also when a child that the trainer had
    forked lives on.
    """
    url = f"{bucket}/{uuid.uuid4().hex}"
    options = s3_server.storage_options(endpoint_url=proxy.endpoint_url, connect_timeout=600, read_timeout=600)
    config = {"url": url, "every_steps": 1, "storage_options": options, "local_dir": str(tmp_path / "local")}
    settings = Settings(folder=str(tmp_path), config=config, death=death)
    output = tmp_path / "output.txt"
    trainer = launch("dying_trainer", (settings,), environment={}, output=output)
    until(lambda: said(tmp_path / "pusher") or not trainer.is_alive(), "the trainer is ready")
    assert trainer.is_alive(), output.read_text()
    pusher = int(said(tmp_path / "pusher"))
    assert os.getsid(pusher) == os.getpgid(pusher) == pusher
    assert os.getsid(pusher) != os.getsid(trainer.pid)

    proxy.hang()
    (tmp_path / "go").touch()
    assert exit_codes([trainer]) == [1 if death == "error" else -signal.SIGKILL], output.read_text()
    store = open_store(url, s3_server.storage_options())
    assert numbers(store) == []
    assert parent_of(pusher) != trainer.pid

    proxy.heal()
    until(lambda: numbers(store) == [1], "the pusher commits")
    assert_same(load(store).state["part"], state_of(1))
    try:
        until(lambda: not Path(f"/proc/{pusher}/exe").exists() or is_zombie(pusher), "the pusher ends")
    finally:
        (tmp_path / "end").touch()
        if death == "worker":
            until_gone_or_zombie(int(said(tmp_path / "child")))


def until_gone_or_zombie(pid):
    until(lambda: is_zombie(pid), f"process {pid} has ended")


def test_the_pusher_ends_with_its_session_and_leaves_no_zombie(tmp_path):
    """
    With nothing to do it ends when the session is closed; with something, when that is stored. Nobody need wait.
    """
    with session_at(tmp_path / "idle") as (session, _):
        idle = pusher_pid(session)
    with session_at(tmp_path / "busy") as (session, _):
        session.resume()
        session.save(1)
        busy = pusher_pid(session)

    until_gone(idle)
    until_gone(busy)
    assert numbers(LocalStore(str(tmp_path / "busy"))) == [1]


def test_closing_does_not_wait_for_the_store(s3_server, bucket, proxy, tmp_path):
    """
    close() returns while a put hangs for ever, as seen by this test's end; the pusher goes on with it.
    """
    url = f"{bucket}/{uuid.uuid4().hex}"
    options = s3_server.storage_options(endpoint_url=proxy.endpoint_url, connect_timeout=600, read_timeout=600)
    with session_at(url, storage_options=options, local_dir=str(tmp_path)) as (session, heard):
        session.resume()
        pusher = pusher_pid(session)
        proxy.hang()
        session.save(1)
        session.close()
        assert Path(f"/proc/{pusher}").exists()
        assert heard.of(Committed) == []

    proxy.heal()
    until(lambda: numbers(open_store(url, s3_server.storage_options())) == [1], "the pusher commits")
    until_gone(pusher)


def niceness(pid):
    """The nice values of all threads of a process."""
    values = set()
    for thread in Path(f"/proc/{pid}/task").iterdir():
        with suppress(FileNotFoundError):  # it has just ended
            values.add(int((thread / "stat").read_text().rpartition(")")[2].split()[16]))
    return values


def test_the_pusher_steps_back_until_there_is_a_notice(s3_server, bucket, proxy, tmp_path):
    """
    Threads that put run at low priority; after a notice the next ones run at normal priority, and so do those under way
    if the process may raise them. A process that may not can do the former.
    """
    url = f"{bucket}/{uuid.uuid4().hex}"
    options = s3_server.storage_options(endpoint_url=proxy.endpoint_url, connect_timeout=600, read_timeout=600)
    state = {"w": torch.zeros(20_000_000)}
    with session_at(url, state, storage_options=options, local_dir=str(tmp_path)) as (session, heard):
        session.resume()
        pusher = pusher_pid(session)
        proxy.hang()
        session.save(1)
        until(lambda: NICENESS in niceness(pusher), "it puts, at low priority")
        session._opened.pusher.hurry()
        if os.geteuid() == 0:
            until(lambda: NICENESS not in niceness(pusher), "what is under way is raised")
        proxy.heal()
        heard.wait(Committed, step=1)
        until_idle(session)
        proxy.hang()
        session.save(2)
        until(lambda: proxy.num_open, "it puts again")
        heard.wait(WrittenLocally, step=2)  # with low priority, because the store comes first
        until(lambda: NICENESS not in niceness(pusher), "what puts has normal priority")
        proxy.heal()
        heard.wait(Committed, step=2)


def test_a_pusher_that_is_killed_is_replaced_at_once(tmp_path):
    """
    Another process stores the step that it had, though the training calls nothing.
    """
    with session_at(tmp_path) as (session, heard):
        session.resume()
        first = pusher_pid(session)
        os.kill(first, signal.SIGSTOP)
        session.after_step(1)
        os.kill(first, signal.SIGKILL)
        heard.wait(Committed, step=1)
        until_idle(session)
        second = pusher_pid(session)
        session.after_step(2)
        heard.wait(Committed, step=2)
        assert pusher_pid(session) == second

    assert second != first
    assert numbers(LocalStore(str(tmp_path))) == [2, 1]
    assert not heard.of(SaveAbandoned)
    until_gone(first)
    until_gone(second)


def test_a_pusher_whose_successor_is_killed_too_is_replaced_at_the_next_save(tmp_path, caplog):
    """
    What both had is told as abandoned, once; training goes on, and the next save is pushed by a third process.
    """
    with session_at(tmp_path) as (session, heard):
        session.resume()
        first = pusher_pid(session)
        os.kill(first, signal.SIGSTOP)
        session.after_step(1)
        second = kill_pusher_and_successor(session)
        lost = heard.wait(SaveAbandoned, step=1)
        until_idle(session)
        session.after_step(2)
        heard.wait(Committed, step=2)
        third = pusher_pid(session)

    assert lost.reason == "the pusher process ended with code -9"
    assert "step 1 will not be committed: the pusher process ended with code -9" in caplog.text
    assert third not in (first, second)
    assert numbers(LocalStore(str(tmp_path))) == [2]
    assert len(heard.of(SaveAbandoned)) == 1
    for pid in (first, second, third):
        until_gone(pid)


def test_a_pusher_that_is_killed_while_it_puts_is_replaced(s3_server, bucket, proxy, tmp_path):
    """
    Of two steps that it had, one with a put under way, the newer one is stored by another process; the older one is
    told as abandoned. After a notice that process has normal priority, too.
    """
    url = f"{bucket}/{uuid.uuid4().hex}"
    options = s3_server.storage_options(endpoint_url=proxy.endpoint_url, connect_timeout=600, read_timeout=600)
    state = {"w": torch.zeros(2_000_000)}
    with session_at(url, state, storage_options=options, local_dir=str(tmp_path)) as (session, heard):
        session.resume()
        first = pusher_pid(session)
        proxy.hang()
        session.save(1)
        heard.wait(WrittenLocally, step=1)
        until(lambda: proxy.num_open, "it puts")
        session.save(2)
        session._opened.pusher.hurry()
        os.kill(first, signal.SIGKILL)
        assert "code -9" in heard.wait(SaveAbandoned, step=1).reason
        heard.wait(Staged, step=2)
        second = next_pusher(session, first)
        proxy.heal()
        heard.wait(Committed, step=2)
        assert numbers(open_store(url, s3_server.storage_options())) == [2]
        until_idle(session)
        proxy.slow(1_000_000)
        before = proxy.num_forwarded
        session.save(3)
        until(lambda: proxy.num_forwarded > before + 100_000, "the other one puts")
        heard.wait(WrittenLocally, step=3)  # with low priority, because the store comes first
        until(lambda: NICENESS not in niceness(second), "what puts has normal priority")
        proxy.heal()
        heard.wait(Committed, step=3)

    assert len(heard.of(SaveAbandoned)) == 1


def test_a_pusher_that_is_killed_after_its_session_is_closed_is_not_replaced(tmp_path):
    """
    The memory of what it had is closed by then, and nobody would end another process.
    """
    with session_at(tmp_path) as (session, heard):
        session.resume()
        pid = pusher_pid(session)
        os.kill(pid, signal.SIGSTOP)
        session.save(1)
        session.close()
        os.kill(pid, signal.SIGKILL)
        until_gone(pid)
        until(lambda: not [t for t in threading.enumerate() if t.name == "spot-pusher"], "its end is noticed")

        assert pusher_pid(session) == pid
        assert not heard.of(Committed)
    assert numbers(LocalStore(str(tmp_path))) == []


def test_a_pusher_that_died_unnoticed_costs_nothing(tmp_path):
    """
    It died between two saves, and the next one comes at once, before anybody has noticed: that step is committed, and
    is not told as abandoned before.
    """
    with session_at(tmp_path) as (session, heard):
        session.resume()
        for step in range(1, 9):
            with suppress(ProcessLookupError):
                os.kill(pusher_pid(session), signal.SIGKILL)
            session.after_step(step)
            until(
                lambda step=step: heard.of(Committed, step=step) or heard.of(SaveAbandoned, step=step), "it is decided"
            )
            until_idle(session)
        session.save(9)
        heard.wait(Committed, step=9)

    for step in range(1, 10):
        assert len(heard.of(Committed, step=step)) + len(heard.of(SaveAbandoned, step=step)) == 1, step


def test_a_pusher_that_cannot_be_started_does_not_end_the_training(tmp_path, monkeypatch):
    """
    A machine without room for another process: the save is told as abandoned, and a later one is stored.
    """
    with session_at(tmp_path) as (session, heard):
        session.resume()
        with monkeypatch.context() as patch:
            patch.setattr(subprocess, "Popen", refuse)
            os.kill(pusher := pusher_pid(session), signal.SIGKILL)
            until_end_known(session, pusher)
            session.after_step(1)
        assert "the pusher process does not start" in heard.wait(SaveAbandoned, step=1).reason
        session.after_step(2)
        heard.wait(Committed, step=2)

    assert numbers(LocalStore(str(tmp_path))) == [2]


@pytest.mark.parametrize("num_sent", [0, 5], ids=["nothing", "half a head"])
@pytest.mark.parametrize("code", [errno.ENOBUFS, errno.ENOMEM, errno.ETOOMANYREFS])
def test_a_pusher_that_lives_and_cannot_be_sent_to_is_replaced(code, num_sent, tmp_path, monkeypatch, caplog):
    """
    A refusal of the kernel is not taken for the death of the process. The step goes to another one.
    """
    with session_at(tmp_path) as (session, heard):
        session.resume()
        first = pusher_pid(session)
        send = socket.send_fds
        failures = [OSError(code, os.strerror(code))]

        def send_fds(sock, parts, fds):
            if not failures or not fds:  # not a record of the event log
                return send(sock, parts, fds)
            sock.sendall(parts[0][:num_sent])
            raise failures.pop()

        monkeypatch.setattr(socket, "send_fds", send_fds)
        session.after_step(1)
        heard.wait(Committed, step=1)
        until_idle(session)
        session.after_step(2)
        heard.wait(Committed, step=2)
        assert pusher_pid(session) != first

    assert f"the pusher process cannot be reached, so another one takes over: [Errno {code}]" in caplog.text
    assert numbers(LocalStore(str(tmp_path))) == [2, 1]
    assert not heard.of(SaveAbandoned)
    until_gone(first)


def test_a_pusher_that_reads_nothing_is_replaced(tmp_path, monkeypatch):
    """
    A message that does not fit into the socket is not waited for without a limit.
    """
    monkeypatch.setattr(messages, "SEND_S", 1.0)
    state = {**state_of(1), "text": "x" * 4_000_000}
    with session_at(tmp_path, state) as (session, heard):
        session.resume()
        first = pusher_pid(session)
        os.kill(first, signal.SIGSTOP)
        session.after_step(1)
        heard.wait(Committed, step=1)
        assert pusher_pid(session) != first

    assert numbers(LocalStore(str(tmp_path))) == [1]
    until_gone(first)


def test_the_pusher_reads_relative_paths_as_the_trainer_does(s3_server, bucket, tmp_path, monkeypatch):
    """
    A credentials file by a path that is relative to the directory of the training. The pusher process itself proves
    the store at the start. A random.py in that directory is not Python's for it. A later process reads the same file,
    although the program is in another directory by then.
    """
    options = dict(s3_server.storage_options())
    key, secret = options.pop("key"), options.pop("secret")
    (tmp_path / "credentials").write_text(f"[default]\naws_access_key_id={key}\naws_secret_access_key={secret}\n")
    (tmp_path / "random.py").write_text("raise ImportError('not this one')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "credentials")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    url = f"{bucket}/{uuid.uuid4().hex}"

    with session_at(url, storage_options=options) as (session, heard):
        session.resume()
        session.after_step(1)
        heard.wait(Committed, step=1)
        (tmp_path / "elsewhere").mkdir()
        monkeypatch.chdir(tmp_path / "elsewhere")
        os.kill(pusher := pusher_pid(session), signal.SIGKILL)
        until_end_known(session, pusher)
        session.save(2)
        heard.wait(Committed, step=2)

    assert numbers(open_store(url, s3_server.storage_options())) == [2, 1]


def test_a_subscriber_that_blocks_does_not_hold_up_the_end(tmp_path, monkeypatch, caplog):
    """
    The session closes after a limit, and says who is to blame.
    """
    monkeypatch.setattr(process, "DEAF_S", 0.2)
    is_over = threading.Event()
    session = SpotSession(SpotConfig(url=str(tmp_path), every_steps=1), on_event=[_block_on_commit(is_over)])
    session.register("part", Holder(state_of(1)))
    with session:
        session.resume()
        session.after_step(1)
        until(lambda: session._opened.pusher.has_ended(1), "step 1 is committed")
    is_over.set()

    assert "a subscriber has not returned" in caplog.text


def _block_on_commit(is_over):
    def on_event(event):
        if isinstance(event, Committed):
            is_over.wait(DEADLINE_S)

    return on_event


def refuse(*args, **kwargs):
    raise BlockingIOError(11, "Resource temporarily unavailable")


def test_an_older_attempt_commits_nothing_once_a_newer_has_started(tmp_path):
    """
    Two sessions of one run: from the moment the second one begins, the first one's pusher writes no manifest. It says
    so, and its training goes on.
    """
    store = LocalStore(str(tmp_path))
    with session_at(tmp_path) as (old, old_heard), session_at(tmp_path) as (new, new_heard):
        assert (old.attempt, new.attempt) == (1, 2)
        old.resume()
        new.resume()
        old.after_step(1)
        superseded = old_heard.wait(Superseded)
        assert "another process" in old_heard.wait(SaveAbandoned, step=1).reason
        old.after_step(2)
        new.after_step(1)
        new_heard.wait(Committed, step=1)
        old.finish(3)

    assert superseded == Superseded(attempt=1, newest=2)
    manifests = [found for found in map(parse_rank_manifest_key, store.keys("")) if found]
    assert [found.step_id for found in manifests] == [(1, 2)]


def test_the_pusher_is_small(tmp_path):
    """
    It loads no torch, and needs nothing of /dev/shm, which is tiny in containers; nor does the trainer for its buffers.
    """
    before = set(os.listdir("/dev/shm"))
    with session_at(tmp_path, {"w": torch.zeros(1_000_000)}) as (session, heard):
        session.resume()
        session.save(1)
        heard.wait(Committed)
        maps = Path(f"/proc/{pusher_pid(session)}/maps").read_text()
        own_maps = Path("/proc/self/maps").read_text()

        assert "memfd:spot-" in maps
        assert "torch" not in maps
        assert "/dev/shm" not in maps
        assert not any("spot" in line and "/dev/shm" in line for line in own_maps.splitlines())
        assert {name for name in set(os.listdir("/dev/shm")) - before if "spot" in name} == set()


@pytest.mark.parametrize(
    ("client_options", "most_bytes"), [({}, 80e6), ({"default_fill_cache": False}, 120e6)], ids=["obstore", "s3fs"]
)
def test_the_pusher_needs_little_memory(client_options, most_bytes, s3_server, bucket, tmp_path):
    """
    What it has for itself alone, once it has pushed to S3, leaves the machine to training, eight times per node.
    """
    url = f"{bucket}/{uuid.uuid4().hex}"
    options = {**s3_server.storage_options(), **client_options}
    with session_at(url, {"w": torch.zeros(20_000_000)}, storage_options=options, local_dir=str(tmp_path)) as (
        session,
        heard,
    ):
        session.resume()
        session.save(1)
        heard.wait(Committed, step=1)

        assert psutil.Process(pusher_pid(session)).memory_full_info().uss < most_bytes


def num_fds(pid="self"):
    return len(os.listdir(f"/proc/{pid}/fd"))


def buffers_and_others(pid="self"):
    """Return the number of a process' descriptors that are of shared buffers, and of those that are not."""
    links = []
    for fd in os.listdir(f"/proc/{pid}/fd"):
        with suppress(FileNotFoundError):  # of the listing itself
            links.append(os.readlink(f"/proc/{pid}/fd/{fd}"))
    num_buffers = sum("memfd:spot-" in link for link in links)
    return num_buffers, len(links) - num_buffers


def test_many_saves_leave_no_descriptor_open(tmp_path):
    """
    A hundred saves, of states that grow now and then, so that buffers are replaced: neither process has more open than
    after the first ones, but for a second buffer, which is made when a save comes while the first is being pushed.
    """
    holder = Holder({"w": torch.zeros(1000)})
    with session_at(tmp_path, holder) as (session, heard):
        session.resume()
        ours, theirs = [], []
        for step in range(1, 101):
            if step % 20 == 0:
                holder.state = {"w": torch.zeros(20_000 * step)}
            session.save(step)
            if step % 10 == 0:
                until_idle(session)
                ours.append(buffers_and_others())
                theirs.append(buffers_and_others(pusher_pid(session)))
        heard.wait(Committed, step=100)

    assert len(heard.of(Committed)) == 100
    for counts, per_buffer in ((ours, 2), (theirs, 2)):  # a mapping in Python holds a descriptor of its own
        assert max(num_buffers for num_buffers, _ in counts) <= per_buffer * MAX_BUFFERS
        assert max(others for _, others in counts[1:]) <= counts[1][1] + 1, "a transient one of somebody else at most"


@contextmanager
def forked_worker():
    """A process that inherits everything and touches nothing, as a worker of a data loader does."""
    worker = multiprocessing.get_context("fork").Process(target=signal.pause, daemon=True)
    worker.start()
    try:
        yield
    finally:
        worker.kill()
        worker.join()
        worker.close()


@contextmanager
def memory_of(session):
    """Return a function that returns the bytes of the buffer of *session*, whoever has it open or mapped."""
    (buffer,) = session._opened.saver._buffers.active.buffers
    fd = os.dup(buffer.fd)
    try:
        yield lambda: os.fstat(fd).st_blocks * 512
    finally:
        os.close(fd)


def test_a_forked_worker_keeps_no_memory_that_was_dropped(tmp_path):
    """
    A buffer that is replaced is freed once the pusher process has let go of it, and one that was never pushed at once.
    The last one is freed when its step is stored, and not while the pusher still reads it.
    """
    holder = Holder({"w": torch.ones(200_000)})
    with ExitStack() as stack:
        with session_at(tmp_path, holder) as (session, heard):
            session.resume()
            for step in (1, 2):
                if step == 1:
                    session.save(1)
                    heard.wait(Committed, step=1)
                else:  # another buffer, which no process knows
                    session._opened.saver._buffers.active.make(600_000)
                    session._opened.saver.wait_copied(time.monotonic() + 60)
                until_idle(session)
                memory = stack.enter_context(memory_of(session))
                stack.enter_context(forked_worker())
                assert memory() >= 600_000
                session._opened.saver._buffers.active.drop(session._opened.saver._buffers.active.buffers[0])
                until(lambda memory=memory: memory() == 0, f"buffer {step} is freed")
            session.save(2)
            heard.wait(Committed, step=2)
            until_idle(session)
            memory = stack.enter_context(memory_of(session))
            stack.enter_context(forked_worker())
            pusher = pusher_pid(session)
            os.kill(pusher, signal.SIGSTOP)
            holder.state = {"w": torch.full((200_000,), 3.0)}
            session.save(3)
            heard.wait(Staged, step=3)
        assert memory() >= 800_000
        os.kill(pusher, signal.SIGCONT)
        until_gone(pusher)
        assert memory() == 0
    assert_same(load(LocalStore(str(tmp_path))).state["part"], holder.state)


def test_sessions_one_after_another_leave_nothing(tmp_path):
    """
    A notebook that opens many sessions in one process: each resumes from the one before, and all descriptors, threads
    and processes are gone in the end.
    """
    before, pids, earlier = num_fds(), [], set(threading.enumerate())
    for life in range(1, 4):
        with session_at(tmp_path) as (session, heard):
            session.handle_signals()
            assert session.resume() == (life - 1 or None)
            pids.append(pusher_pid(session))
            session.finish(life)
        assert heard.of(AttemptStarted) == [AttemptStarted(attempt=life, world_size=1)]
        assert len(heard.of(Resumed)) == (life > 1)

    for pid in pids:
        until_gone(pid)
    assert num_fds() <= before
    until(
        lambda: not {each for each in threading.enumerate() if each.name.startswith("spot-")} - earlier, "threads end"
    )
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_bug_in_the_pusher_leaves_no_process_that_waits_for_ever(tmp_path):
    """
    A message that it does not understand ends it, as it would any process; it does not hang half alive.
    """
    ours, theirs = socket.socketpair()
    settings = PushSettings(
        url=str(tmp_path),
        storage_options={},
        local_dir=None,
        rank=0,
        world_size=1,
        attempt=1,
        keep_last=1,
        keep_every=None,
    )
    with closing(ours), closing(theirs):
        pusher = subprocess.Popen(
            [sys.executable, "-c", process._PROGRAM, str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            stderr=subprocess.DEVNULL,
        )
        channel = messages.Channel(ours)
        channel.send(asdict(settings))
        channel.send({"nobody": "says this"})
        try:
            assert pusher.wait(DEADLINE_S) == 1
        finally:
            with suppress(ProcessLookupError):
                pusher.kill()
            pusher.wait()
