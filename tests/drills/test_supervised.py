"""``spot run`` in front of launchers and their ranks: who hears of a notice, what it ends with, and what is left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from exactness import events_of, newest_step, resumed_steps
from hearing import until
from launching import PROGRAMS, exit_codes, launch, launcher, start
from metadata import AwsServer
from ports import free_port
from remains import Remains

GRACE_S = 30
SPOT_RUN = [sys.executable, "-m", "spot_plugins.cli", "run", "--grace-seconds", str(GRACE_S)]
ENDLESS = {"workers": 2, "samples": 1_000_000, "every_steps": 10}


def command_of(name):
    """Return a command that starts a training, and how many ranks it has."""
    match name:
        case "python":
            return [sys.executable, str(PROGRAMS / "launched.py")], 1
        case "accelerate launch, one process":
            launch = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes=1"]
            launch += ["--num_machines=1", "--mixed_precision=no", "--dynamo_backend=no"]
            return [*launch, str(PROGRAMS / "accelerate_train.py")], 1
    return launcher(name), 2


LAUNCHERS = [
    "python",
    "torchrun",
    "accelerate launch, one process",
    pytest.param("accelerate launch", marks=pytest.mark.soak),
    pytest.param("Lightning's own", marks=pytest.mark.soak),
]


@pytest.fixture
def remains():
    remains = Remains()
    yield remains
    remains.kill()


class Supervised:
    """A training behind ``spot run``."""

    def __init__(self, name, folder, remains, *options, environment=(), **settings):
        command, self.ranks = command_of(name)
        self.folder = folder
        settings = {**ENDLESS, "ranks": self.ranks, **settings}
        environment = {**remains.environment, **dict(environment)}
        self.process = start([*SPOT_RUN, *options, "--", *command], folder, settings, environment)

    def events(self, rank, name):
        has_begun = (self.folder / f"events-{rank}.jsonl").exists()
        return events_of(self.folder, rank, name) if has_begun else []

    def resumed(self, rank):
        """Return the steps that *rank* has resumed behind."""
        return [event["step"] for event in self.events(rank, "Resumed")]

    def until_saved(self):
        """Wait until every rank has committed a step."""
        everyone = lambda: all(self.events(rank, "Committed") for rank in range(self.ranks))  # noqa: E731
        try:
            until(lambda: self.process.poll() is not None or everyone(), "all ranks have committed a step")
        except AssertionError as error:
            raise AssertionError(self.printed()) from error
        assert self.process.poll() is None, self.printed()

    def launched(self):
        """Return the process id of the command."""
        (child,) = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return int(child)

    def assert_all_left_with_one_step(self):
        left = [event for rank in range(self.ranks) for event in self.events(rank, "Leaving")]
        assert [event["durable"] for event in left] == [True] * self.ranks, self.printed()
        assert {event["step"] for event in left} == {newest_step(self.folder)}

    def printed(self):
        return (self.folder / "output.txt").read_text()[-5000:]


@pytest.mark.sampled
@pytest.mark.parametrize("name", LAUNCHERS)
def test_a_sigterm_reaches_all_ranks_whatever_is_between(name, remains, tmp_path):
    """
    All ranks commit one step within the grace, no process stays, the code is 143 whatever the launcher's is, and the
    same command goes on behind that step.
    """
    training = Supervised(name, tmp_path, remains)
    training.until_saved()
    training.process.terminate()
    code = training.process.wait(timeout=300)

    assert code == 143, training.printed()
    remains.assert_nothing(within_s=0.5)
    training.assert_all_left_with_one_step()
    assert "Traceback" not in training.printed() or name in ("torchrun", "accelerate launch"), training.printed()

    step = newest_step(tmp_path)
    again = Supervised(name, tmp_path, remains)
    until(lambda: again.process.poll() is not None or all(map(again.resumed, range(again.ranks))), "all have resumed")
    again.process.terminate()
    assert again.process.wait(timeout=300) == 143, again.printed()
    assert [again.resumed(rank) for rank in range(again.ranks)] == [[step]] * again.ranks
    remains.assert_nothing(within_s=0.5)


@pytest.mark.parametrize("name", ["torchrun", pytest.param("accelerate launch, one process", marks=pytest.mark.soak)])
def test_the_ranks_of_a_launcher_that_is_killed_save_and_leave(name, remains, tmp_path):
    """
    They are orphans, which nobody else would end. The launcher failed: its code is the one that counts.
    """
    training = Supervised(name, tmp_path, remains)
    training.until_saved()
    os.kill(training.launched(), signal.SIGKILL)

    assert training.process.wait(timeout=300) == 137, training.printed()
    remains.assert_nothing(within_s=0.5)
    training.assert_all_left_with_one_step()


@pytest.mark.parametrize("name", ["python", pytest.param("torchrun", marks=pytest.mark.soak)])
def test_killing_spot_run_ends_the_ranks_too(name, remains, tmp_path):
    """
    The kernel tells the launcher, which ends its ranks; they commit a step, and nothing stays.
    """
    training = Supervised(name, tmp_path, remains)
    training.until_saved()
    training.process.kill()
    training.process.wait()

    remains.assert_nothing(within_s=GRACE_S + 5)
    training.assert_all_left_with_one_step()


def test_a_notice_that_a_rank_hears_itself_is_no_failure(remains, tmp_path):
    """
    The cloud tells the ranks alone, and torchrun only sees that they ended: 143 all the same, and no restart.
    """
    with AwsServer() as server:
        environment = {"AWS_EC2_METADATA_SERVICE_ENDPOINT": server.url}
        training = Supervised("torchrun", tmp_path, remains, "--max-restarts", "3", environment=environment)
        training.until_saved()
        server.announce(35)
        assert training.process.wait(timeout=300) == 143, training.printed()

    remains.assert_nothing(within_s=0.5)
    training.assert_all_left_with_one_step()
    assert "is started again" not in training.printed()


CRASHES_ONCE = """
import sys
from dataclasses import replace
import lightning_train
from drill_settings import Settings
settings = Settings.decode(sys.argv[1])
if not (settings.path / "crashed").exists():
    (settings.path / "crashed").touch()
    settings = replace(settings, at=["forward", 23], to=[[0, 0]], signal="SIGKILL")
lightning_train.main(settings)
"""


def test_a_command_that_fails_is_run_again_as_often_as_was_asked(remains, tmp_path):
    """
    The second life resumes from what the first one saved, and ends well.
    """
    settings = {"samples": 83, "every_steps": 5}
    command = [*SPOT_RUN, "--max-restarts", "1", "--", sys.executable, "-c", CRASHES_ONCE]
    process = start(command, tmp_path, settings, remains.environment)

    assert process.wait(timeout=300) == 0, (tmp_path / "output.txt").read_text()[-3000:]
    remains.assert_nothing(within_s=0.5)
    assert (
        "the command ended with 137 and is started again, 0 restarts are left" in (tmp_path / "output.txt").read_text()
    )
    [step] = resumed_steps(tmp_path, 0)
    assert step >= 5


def may_make_namespaces():
    command = ["unshare", "--pid", "--fork", "--mount-proc", "true"]
    try:
        return subprocess.run(command, capture_output=True).returncode == 0
    except OSError:
        return False


@pytest.mark.skipif(not may_make_namespaces(), reason="this user may not make a PID namespace")
@pytest.mark.parametrize("before", [SPOT_RUN, []], ids=["spot run", "python itself"])
def test_process_1_of_a_container_leaves_on_a_sigterm(before, remains, tmp_path):
    """
    The kernel drops signals to process 1 that it has no handler for. Alone, python has that of the session; behind
    ``spot run`` a shell that passes nothing on does no harm.
    """
    train = [sys.executable, str(PROGRAMS / "launched.py")]
    behind_a_shell = ["--", "sh", "-c", '"$@"; exit $?', "sh", *train]
    command = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child", *before]
    process = start([*command, *(behind_a_shell if before else train)], tmp_path, ENDLESS, remains.environment)
    begun = lambda: (tmp_path / "events-0.jsonl").exists() and events_of(tmp_path, 0, "Committed")  # noqa: E731
    until(lambda: process.poll() is not None or begun(), "it trains")
    (first,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(first), signal.SIGTERM)

    assert process.wait(timeout=300) == 143, (tmp_path / "output.txt").read_text()[-3000:]
    [leaving] = events_of(tmp_path, 0, "Leaving")
    assert leaving["durable"]
    assert leaving["step"] == newest_step(tmp_path)


def test_a_command_that_waits_for_a_lost_rendezvous_is_killed(tmp_path):
    """Its ranks have ended, and it does not obey a SIGTERM."""
    output = tmp_path / "output"
    process = launch("lost_rendezvous", (port := free_port(),), environment={}, output=output)

    assert exit_codes([process]) == [137]
    assert "the rank has ended" in output.read_text()
    told = f"no rank runs, and nobody has answered at the rendezvous 127.0.0.1:{port} for 1 s"
    assert told in output.read_text()
    assert "The command waits for it without a limit, so it is killed" in output.read_text()
