"""Each fault on a real process, and what is left of it after its end."""

from __future__ import annotations

import math
import random
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from event_logs import write_log
from hearing import DEADLINE_S, until
from steps import load, save

from spot_plugins.clock import DRILL_VARIABLE, wall_time
from spot_plugins.drill import faults
from spot_plugins.drill.faults import (
    Corruption,
    EmptyNotice,
    Freeze,
    HostLoss,
    KillLauncher,
    KillPusher,
    Notice,
    Reboot,
    Signal,
    StoreOutage,
    TwoSignals,
)
from spot_plugins.drill.inner_faults import JUMP_S, ClockJump, FullDisk, ReadOnlyDisk, SlowDisk
from spot_plugins.drill.processes import clear
from spot_plugins.drill.training import Place, Training
from spot_plugins.errors import StoreError
from spot_plugins.eventlog.records import Heartbeat
from spot_plugins.events import Committed
from spot_plugins.format.keys import StepId, attempt_key
from spot_plugins.notices.file import FileSource
from spot_plugins.store import MemoryStore, drilled_disk, open_local


@pytest.fixture
def training(tmp_path):
    """A process that does nothing, in the folder of a drill."""
    place = Place(tmp_path / "place")
    training = Training(place, ["sleep", "95"], tmp_path / "output.txt", None, random.Random(0))
    yield training
    clear(place.folder.path)
    training.wait(DEADLINE_S)


def test_a_store_that_refuses_everything_has_lost_nothing_afterwards(training):
    """While it lasts each put, list and get fails, so nobody takes it for an empty store."""
    store = open_local(str(training.store_link / "run"))
    store.put("steps/a", b"1")
    fault = StoreOutage()

    assert fault.begin(training) == "the store refuses everything for 5 s"
    asked = (lambda: store.put("steps/b", b"2"), lambda: list(store.keys("")), lambda: store.get("steps/a"))
    for ask in asked:
        with pytest.raises(StoreError):
            ask()
    fault.end(training)

    store.put("steps/b", b"3")
    assert {key: store.get(key) for key in store.keys("")} == {"steps/a": b"1", "steps/b": b"3"}


@pytest.fixture
def drilled(training, monkeypatch):
    """Let this process be one of the drill. Return the store and the store of local copies."""
    monkeypatch.setenv(drilled_disk.VARIABLE, str(training.disk_file))
    stores = [open_local(str(training.store_link / "run")), open_local(str(training.local_directory / "run"))]
    for store in stores:
        store.put("steps/a", b"1")
    return stores


@pytest.mark.parametrize(
    ("fault", "reason"),
    [(FullDisk(), "the disk is full"), (ReadOnlyDisk(), "the file system is read-only; choose another directory")],
)
def test_a_disk_refuses_objects_until_it_works_again(training, drilled, fault, reason):
    """Stored objects can be read meanwhile, and none is lost. A full disk lets objects be deleted."""
    fault.begin(training)
    for store in drilled:
        for ask in (store.put, store.put_if_absent):
            with pytest.raises(StoreError) as refused:
                ask("steps/b", b"2")
            assert reason in refused.value.reason
            assert refused.value.reason.endswith(fault.refusal)
        assert {key: store.get(key) for key in store.keys("")} == {"steps/a": b"1"}
        if isinstance(fault, ReadOnlyDisk):
            with pytest.raises(StoreError):
                store.delete("steps/a")
        else:
            store.delete("steps/a")
    fault.end(training)

    for store in drilled:
        store.put("steps/b", b"3")
        store.delete("steps/a")
        assert {key: store.get(key) for key in store.keys("")} == {"steps/b": b"3"}


def test_a_slow_disk_takes_longer(training, drilled, monkeypatch):
    waited = []
    monkeypatch.setattr(drilled_disk.time, "sleep", waited.append)
    SlowDisk().begin(training)
    drilled[0].put("steps/b", b"2")
    assert waited == [drilled_disk.SLOW_S]
    assert drilled[0].get("steps/b") == b"2"
    SlowDisk().end(training)
    drilled[0].put("steps/c", b"3")
    assert waited == [drilled_disk.SLOW_S]


def test_a_disk_has_a_fault_only_for_the_training_of_the_drill(training, drilled, tmp_path, monkeypatch):
    """Neither for another directory of the program, nor for a process that knows of no drill."""
    FullDisk().begin(training)
    open_local(str(tmp_path / "place-of-mine")).put("steps/b", b"2")
    monkeypatch.delenv(drilled_disk.VARIABLE)
    drilled[0].put("steps/b", b"2")


def test_a_fault_of_the_disk_has_hit_once_a_step_was_to_be_written(training, drilled):
    """A log that is put meanwhile is no step. The next fault begins anew."""
    fault = FullDisk()
    fault.begin(training)
    assert not fault.has_hit(training)
    for key, has_hit in (("events/1.jsonl", False), ("steps/b", True)):
        with pytest.raises(StoreError):
            drilled[0].put(key, b"2")
        assert fault.has_hit(training) == has_hit
    fault.end(training)
    SlowDisk().begin(training)
    assert not SlowDisk().has_hit(training)


def test_the_clock_of_the_training_alone_jumps_forward_and_back(training, monkeypatch):
    """By hours. At the next start it is right again."""
    fault, right = ClockJump(), wall_time()
    assert fault.begin(training) == "the wall clock is 6 h ahead"
    assert wall_time() == pytest.approx(right, abs=DEADLINE_S)
    environ = Path(f"/proc/{training.command}/environ").read_bytes().split(b"\0")
    assert f"{DRILL_VARIABLE}={training.clock_file}".encode() in environ
    monkeypatch.setenv(DRILL_VARIABLE, str(training.clock_file))
    assert wall_time() == pytest.approx(right + JUMP_S, abs=DEADLINE_S)
    fault.end(training)
    assert wall_time() == pytest.approx(right - JUMP_S, abs=DEADLINE_S)
    place = training._place
    Training(place, ["true"], place.folder.path / "output", None, random.Random(0)).wait(DEADLINE_S)
    assert wall_time() == pytest.approx(right, abs=DEADLINE_S)


def test_a_jump_has_hit_once_the_log_has_a_step_that_was_stored_at_a_time_ahead(tmp_path):
    """Neither a step of the jump before counts, nor one at the right time, nor another record."""
    fault, target = ClockJump(), SimpleNamespace(store=MemoryStore(), clock_file=tmp_path / "clock")
    target.store.put(attempt_key(1), b"{}")
    before = time.monotonic()
    fault.begin(target)
    began = time.monotonic()
    ahead = wall_time() - began + JUMP_S
    stored = Committed(step=5, num_bytes=1, push_s=1.0)
    for at, offset, entry, has_hit in (
        (before - 1.0, ahead, stored, False),
        (began, ahead - JUMP_S, stored, False),
        (began, ahead, Heartbeat(step=5), False),
        (began, ahead, stored, True),
    ):
        write_log(target.store, 1, [(at, entry)], offset=offset)
        assert fault.has_hit(target) == has_hit


def test_processes_stand_still_and_continue(training):
    def state():
        return Path(f"/proc/{training.command}/stat").read_text().rpartition(")")[2].split()[0]

    fault = Freeze(lasts_s=3)
    until(lambda: state() == "S" and training._place.processes.pids(), "the command runs")
    assert fault.begin(training) == "all processes stand still for 3 s"
    until(lambda: state() == "T", "it stands still")
    fault.end(training)
    until(lambda: state() == "S", "it continues")


def test_a_notice_is_one_that_a_training_understands(training):
    """The file appears whole, with the seconds that are left."""
    source = FileSource(str(training.notice_file), grace_s=99)
    training.notice_s = 12.0
    before = time.monotonic()
    assert Notice().begin(training) == "a notice that the machine is taken in 12 s"
    announced = source.poll()
    assert announced is not None
    assert before + 11 < announced.deadline <= time.monotonic() + 12


def test_a_notice_after_which_nobody_takes_the_machine_is_the_same_notice(training):
    source = FileSource(str(training.notice_file), grace_s=99)
    training.notice_s = 12.0
    assert EmptyNotice().begin(training) == "a notice that the machine is taken in 12 s, and nobody takes it"
    assert source.poll() is not None


class Command:
    """A command that gets signals, and ends so many seconds after the first."""

    command, grace_s = 77, 30.0

    def __init__(self, seed, ends_after_s=math.inf):
        self.random = random.Random(seed)
        self.got = []
        self._ends_after_s = ends_after_s

    def kill(self, pid, number):
        assert pid == self.command
        self.got.append(number)

    def wait(self, timeout_s):
        self.got.append(timeout_s)
        return timeout_s >= self._ends_after_s


@pytest.fixture
def command(monkeypatch):
    def make(*arguments):
        made = Command(*arguments)
        monkeypatch.setattr(faults.os, "kill", made.kill)
        return made

    return make


def test_a_second_signal_comes_soon_after_the_first(command):
    """Both kinds are drawn, at times of up to three seconds."""
    drawn = []
    for seed in range(30):
        target = command(seed)
        told = TwoSignals().begin(target)
        first, after_s, second = target.got
        assert first == signal.SIGTERM
        assert told == f"SIGTERM to the command, and {second.name} {after_s:.1f} s later"
        drawn.append((second, after_s))
    assert {second for second, _ in drawn} == {signal.SIGTERM, signal.SIGINT}
    assert 0 <= min(after_s for _, after_s in drawn) < 0.05
    assert 1.0 < max(after_s for _, after_s in drawn) <= 3.0


def test_the_launcher_alone_is_killed(command):
    target = command(0)
    assert KillLauncher().begin(target) == "SIGKILL to the launcher, and to none of its ranks"
    assert target.got == [signal.SIGKILL]


def test_a_second_signal_comes_before_the_machine_is_taken(command):
    target = command(0)
    target.grace_s = 0.1
    TwoSignals(second=signal.SIGINT).begin(target)
    assert target.got[1] <= 0.05
    assert target.got[2] == signal.SIGINT


def test_a_command_that_has_ended_gets_no_second_signal(command):
    """The drill does not say that it got one."""
    target = command(0, 0.0)
    told = TwoSignals().begin(target)
    assert told.startswith("SIGTERM to the command, which had ended before a second signal ")
    assert len(target.got) == 2


class Lost:
    """A training with a store of its own, whose processes are killed."""

    def __init__(self, seed, steps):
        self.random = random.Random(seed)
        self.store = MemoryStore()
        self.got = []
        for step in steps:
            save(step, self.store)
        self.before = {key: self.store.get(key) for key in self.store.keys("")}

    def signal_all(self, number):
        self.got.append(number)

    @property
    def changed(self):
        return {key for key, data in self.before.items() if self.store.get(key) != data}


def test_one_object_of_the_newest_step_changes():
    """Its size does not. Blobs and manifests are drawn, and a reader takes the step before."""
    drawn = set()
    for seed in range(12):
        target = Lost(seed, [1, 2, 3])
        told = Corruption().begin(target)
        [key] = target.changed
        assert told == f"SIGKILL to all processes, the local copies removed, and {key} changed in the store"
        assert key.startswith(StepId(3, 1).prefix)
        assert len(target.store.get(key)) == len(target.before[key])
        assert target.got == [signal.SIGKILL]
        assert load(target.store).step_id == StepId(2, 1)
        drawn.add(key.rpartition("/")[2])
    assert drawn == {"r00000-b0000.safetensors", "rank-00000-of-00001.json"}


@pytest.mark.parametrize("steps", [[], [1]])
def test_nothing_is_damaged_before_there_is_a_step_to_fall_back_on(steps):
    """And nothing is killed, so that it can come later."""
    target = Lost(0, steps)
    with pytest.raises(LookupError):
        Corruption().begin(target)
    assert target.got == []
    assert target.changed == set()


def test_a_host_that_is_lost_takes_its_local_disk_along(training):
    """After the end of its processes, so that the drill has read what was on the disk."""
    (training.local_directory / "run").mkdir(parents=True)
    until(lambda: training._place.processes.pids(), "the command runs")
    assert HostLoss().begin(training) == "SIGKILL to all processes, and the local copies removed"
    assert training.wait(DEADLINE_S)
    assert training.exit_code() == -signal.SIGKILL
    assert training.local_directory.exists()
    HostLoss().end(training)
    assert not training.local_directory.exists()


def test_a_reboot_ends_all_processes_and_keeps_the_local_disk(training):
    """So that the next start may resume from local copies."""
    (training.local_directory / "run").mkdir(parents=True)
    until(lambda: training._place.processes.pids(), "the command runs")
    assert Reboot().begin(training) == "SIGKILL to all processes, and the local copies kept"
    assert training.wait(DEADLINE_S)
    Reboot().end(training)
    assert training.exit_code() == -signal.SIGKILL
    assert (training.local_directory / "run").exists()


def test_only_a_pusher_is_killed(tmp_path):
    """The command runs on. Without a pusher process there is nothing to kill, as the drill has to know."""
    program = tmp_path / "program"
    program.write_text("(exec -a spot_plugins.push.worker sleep 95) &\nwait\nsleep 94\n")
    place = Place(tmp_path / "place")
    training = Training(place, ["bash", str(program)], tmp_path / "output.txt", None, random.Random(0))
    try:
        until(lambda: training.pushers, "the pusher runs")
        assert KillPusher().begin(training) == "SIGKILL to a pusher process"
        until(lambda: not training.pushers, "the pusher is gone")
        assert training.exit_code() is None
        with pytest.raises(LookupError):
            KillPusher().begin(training)
    finally:
        clear(place.folder.path)
        training.wait(DEADLINE_S)


@pytest.fixture
def in_background():
    """Ignore what a shell lets its background jobs ignore."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGHUP)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_a_signal_goes_to_the_command_alone(in_background, training):
    """It has its usual effect, however the drill was started."""
    assert Signal(number=signal.SIGINT).begin(training) == "SIGINT to the command"
    assert training.wait(DEADLINE_S)
    assert training.exit_code() == -signal.SIGINT
