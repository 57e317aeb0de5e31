"""Workers of loaders: alive through a signal to the process group, gone at once when the trainer leaves."""

import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from accelerate import Accelerator
from accelerate.data_loader import DataLoaderShard
from torch.utils.data import DataLoader

from spot_plugins.data import elastic_loader, end_shielded_workers, internals, shield_workers, workers
from spot_plugins.data.workers import shield

pytestmark = pytest.mark.long  # starts worker processes

SRC = Path(__file__).parents[3] / "src"
DEADLINE_S = 300


class Groups:
    """Sample i says who loads it: [process, its group]."""

    def __len__(self):
        return 4

    def __getitem__(self, index):
        return [os.getpid(), os.getpgid(0)]


def groups_of(loader):
    return [(int(pid), int(group)) for batch in loader for pid, group in zip(*batch, strict=True)]


def exit_code_of(check):
    """Run *check* in a fork of this process, which ends with 0 if it returns True."""
    child = os.fork()
    if child == 0:
        code = 2
        try:
            code = 0 if check() else 1
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_shielded_workers_have_groups_of_their_own():
    """
    A new loader, and an existing one that was shielded twice; other loaders are as torch makes them.
    """
    late = DataLoader(Groups(), num_workers=2)
    shield_workers(late)
    once = late.worker_init_fn
    shield_workers(late)

    assert late.worker_init_fn is once
    for loader in (elastic_loader(Groups(), batch_size=1, num_workers=2), late):
        assert all(pid == group != os.getpid() for pid, group in groups_of(loader))
    assert {group for _, group in groups_of(DataLoader(Groups(), num_workers=1))} == {os.getpgid(0)}


def test_a_prepared_loader_is_shielded_inside():
    """
    Accelerate hides the real loader; the workers are the real one's.
    """
    loader = Accelerator(cpu=True).prepare(DataLoader(Groups(), num_workers=1))
    shield_workers(loader)

    assert isinstance(loader, DataLoaderShard)
    assert all(pid == group for pid, group in groups_of(loader))


def test_the_users_own_init_function_still_runs():
    """
    With the worker's number, and after a journey by pickle, as to a spawned worker.
    """
    shielded = pickle.loads(pickle.dumps(shield(own_init)))

    def begins():
        shielded(3)
        return (os.environ["WORKER"], os.getpgid(0)) == ("3", os.getpid())

    assert exit_code_of(begins) == 0


def test_under_slurm_a_worker_obeys_its_parent_alone(monkeypatch):
    """
    SLURM signals each process of a step. A worker goes on through that; its parent's SIGTERM ends it with 0, though its
    own code blocks.
    """
    monkeypatch.setenv("SLURM_JOB_ID", "7")

    def worker(ready):
        shield(None)(0)
        ready.send(os.getpid())
        threading.Event().wait()

    def parent_signals():
        here, there = multiprocessing.Pipe()
        process = multiprocessing.get_context("fork").Process(target=worker, args=(there,))
        process.start()
        pid = here.recv()
        for number in ("TERM", "USR1", "TERM"):
            subprocess.run(["kill", f"-{number}", str(pid)], check=True)
        process.join(0.5)
        survived = process.exitcode is None
        os.kill(pid, signal.SIGTERM)
        process.join(DEADLINE_S)
        return survived and process.exitcode == 0

    assert exit_code_of(parent_signals) == 0


def own_init(worker_id):
    os.environ["WORKER"] = str(worker_id)


@pytest.mark.parametrize("loader", [DataLoader(Groups()), [1, 2], iter([])])
def test_a_loader_without_workers_is_left_alone(loader):
    """
    There is nothing to shield.
    """
    shield_workers(loader)

    assert getattr(loader, "worker_init_fn", None) is None


TRAINER = """
import signal, sys, threading
from torch.utils.data import DataLoader, _utils
from spot_plugins.data import elastic_loader, end_shielded_workers

class Samples:
    def __len__(self):
        return 1000
    def __getitem__(self, index):
        if index == 999:
            threading.Event().wait()  # a sample that takes forever
        return index

noticed = threading.Event()
signal.signal(signal.SIGTERM, lambda *_: noticed.set())
loader = {loader}
order = iter(loader)
for _ in range(4):  # both workers have begun
    next(order)
print("training", flush=True)
noticed.wait()  # so that no delay of the test lets the trainer reach the sample that takes forever
for _ in range(50):
    next(order)
print("saved", flush=True)
{leave}
del order
sys.exit(143)
"""
LEAVE = """
lock = order._workers_done_event._cond  # held by a worker that is killed while it asks whether to go on
thread = threading.Thread(target=lock.acquire)
thread.start()
thread.join()
_utils.MP_STATUS_CHECK_INTERVAL = 3600.0  # of torch, which waits that long for a busy worker before it terminates it
end_shielded_workers()
"""


def processes_of_session(session):
    """All processes of *session* that are alive, zombies not counted."""
    alive = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if int(fields[3]) == session and fields[0] != "Z":
                alive.add(int(entry.name))
    return alive


@pytest.fixture
def start():
    """
    Start a trainer in a process group of its own, as torchrun does, and wait until it trains.

    Nothing of it is left after the test.
    """
    trainers = []

    def start(loader):
        trainer = subprocess.Popen(
            [sys.executable, "-c", TRAINER.format(loader=loader, leave=LEAVE)],
            env={**os.environ, "PYTHONPATH": str(SRC)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        trainers.append(trainer)
        assert trainer.stdout.readline() == "training\n", trainer.stderr.read()
        return trainer

    yield start
    for trainer in trainers:
        for pid in processes_of_session(trainer.pid):
            os.kill(pid, signal.SIGKILL)
        trainer.communicate(timeout=DEADLINE_S)


def test_a_group_signal_spares_the_workers_and_leaving_waits_for_none_of_them(start):
    """
    Fifty batches after SIGTERM to the whole group, the trainer is gone: with a worker busy forever, and a lock that
    nobody will ever release.
    """
    trainer = start("elastic_loader(Samples(), batch_size=2, num_workers=2, shuffle=False, prefetch_factor=499)")
    os.killpg(trainer.pid, signal.SIGTERM)
    assert trainer.stdout.readline() == "saved\n", trainer.stderr.read()
    _, complaints = trainer.communicate(timeout=DEADLINE_S)

    assert (trainer.returncode, complaints) == (143, "")
    assert processes_of_session(trainer.pid) == set()


def test_without_the_shield_the_same_signal_ends_the_training(start):
    """
    Why there is a shield: torch's loader raises as soon as its worker is gone.
    """
    trainer = start("DataLoader(Samples(), batch_size=2, num_workers=2)")
    os.killpg(trainer.pid, signal.SIGTERM)
    said, complaints = trainer.communicate(timeout=DEADLINE_S)

    assert "Error" in complaints  # which one depends on what the loader was doing
    assert (said, trainer.returncode) == ("", 1)


def in_group_of_its_own(ready):
    os.setpgid(0, 0)
    ready.set()
    threading.Event().wait()


def in_session_of_its_own(ready):
    os.setsid()
    ready.set()
    threading.Event().wait()


def in_group_of_the_trainer(ready):
    ready.set()
    threading.Event().wait()


def those_alive_after_leaving():
    """Start a daemon process of each sort, leave, and return which of them are there then."""
    started = []
    for sort in (in_group_of_its_own, in_session_of_its_own, in_group_of_the_trainer):
        ready = multiprocessing.Event()
        started.append(multiprocessing.Process(target=sort, args=(ready,), daemon=True))
        started[-1].start()
        assert ready.wait(DEADLINE_S)
    end_shielded_workers()
    started[0].join(DEADLINE_S)
    for process in started[1:]:
        process.join(0.2)  # if it was killed, it needs a moment to go
    alive = [process.is_alive() for process in started]
    for process in started:
        process.kill()
    return alive


def test_leaving_ends_workers_and_nothing_else():
    """
    A child in a session of its own is there to outlive the trainer; one in the trainer's group is not shielded.
    """
    assert exit_code_of(lambda: those_alive_after_leaving() == [False, True, True]) == 0


def test_a_handler_that_comes_back_finds_no_killed_worker(monkeypatch):
    """
    Lightning puts back torch's handler of SIGCHLD while the process leaves, and the workers are gone by then.

    The exception of that handler would take the place of the exit code.
    """

    monkeypatch.setattr(workers, "forget_workers", internals.forget_workers)  # without the help of conftest.py

    def leave():
        order = iter(elastic_loader(Groups(), batch_size=1, num_workers=1))
        next(order)  # the worker has its shield
        handler = signal.getsignal(signal.SIGCHLD)
        end_shielded_workers()
        signal.signal(signal.SIGCHLD, handler)
        [worker] = order._workers
        os.waitid(os.P_PID, worker.pid, os.WEXITED | os.WNOWAIT)  # as the handler looks: nobody has taken its exit code
        signal.raise_signal(signal.SIGCHLD)
        return callable(handler)

    assert exit_code_of(leave) == 0


def test_leaving_works_from_any_thread():
    """
    Training may run beside the main thread, which alone can change signal handlers.
    """

    def leave():
        thread = threading.Thread(target=end_shielded_workers)
        thread.start()
        thread.join()
        return not failures

    failures = []
    threading.excepthook = failures.append
    try:
        assert exit_code_of(leave) == 0
    finally:
        threading.excepthook = threading.__excepthook__
