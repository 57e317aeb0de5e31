"""The runner on commands without torch, which end too late, too early, or not at all."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from hearing import until

from spot_plugins.drill import processes, runner
from spot_plugins.drill.faults import EmptyNotice, HostLoss, KillLauncher, KillRank, Notice, Signal, StoreOutage
from spot_plugins.drill.plan import Planned
from spot_plugins.drill.processes import Processes, clear
from spot_plugins.drill.runner import Options, Runner
from spot_plugins.drill.verdict import judge
from spot_plugins.errors import ConfigError

# The part of a training that a drill sees: it makes its rank known, claims an attempt, and leaves local copies and
# fingerprints. No pusher process writes the latter to the disk.
STAND_IN = """
import os, signal, time
from spot_plugins.fingerprints.record import KINDS, StepRecord
from spot_plugins.fingerprints.ring import Ring, RingId
from spot_plugins.launch.drilled import Rank, drilled

is_control = drilled().folder.path.name == "control"
launcher = os.getppid()

def begin(name="run", start=None):
    folder = drilled().folder
    claims = folder.run(name) / "attempts"
    claims.mkdir(parents=True, exist_ok=True)
    attempt = len(list(claims.iterdir())) + 1
    (claims / f"{attempt:06d}.json").touch()
    folder.local(name).mkdir(parents=True, exist_ok=True)
    (folder.local(name) / f"copy-{attempt}").touch()
    folder.write_rank(Rank(pid=os.getpid(), rank=0, attempt=attempt, run=name, start=start))
    return Ring(str(folder.local(name) / "fingerprints"), RingId(attempt, 0, 1), str(folder.live(name)))

def train(ring, num_steps, step_s=0.02, first=1):
    for step in range(first, num_steps + 1):
        write(ring, step, step)
        time.sleep(step_s)

def write(ring, step, data):
    ring.write(step, StepRecord(step, bytes(8), (data,) + (step,) * (len(KINDS) - 1)).encode())

def train_until_fault(num_steps):
    ring = begin()
    train(ring, num_steps - 1)
    wait_for_fault()
    write(ring, num_steps, num_steps)

# The first start of the rehearsal waits here until it is killed, or until its launcher is. The drill may have been
# paused for longer than all the steps take.
def wait_for_fault():
    while not is_control and len(drilled().folder.ranks()) == 1 and os.getppid() == launcher:
        time.sleep(0.02)
"""


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "drill"
    folder.mkdir()
    yield folder
    clear(folder)


def stand_in(program):
    return [sys.executable, "-c", STAND_IN + program]


def run(command, folder, *faults, **options):
    """Run a drill, check that nothing of it is left, and return its facts."""
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [*sys.path, os.environ.get("PYTHONPATH")]))
    told = []
    facts = Runner(command, Options(faults=faults or (Signal(),), **options), folder, told.append).run()
    assert told[0] == "the control: the training, left alone"
    assert Processes(folder).pids() == set()
    return facts


def broken(facts):
    return {each.name.rpartition(": ")[2]: each.text for each in judge(facts).promises if not each.is_kept}


def test_a_command_that_does_nothing_is_killed(folder, monkeypatch):
    """A training that hangs is none that one waits for."""
    monkeypatch.setattr(runner, "CONTROL_STALL_S", 0.3)
    facts = run(["sleep", "100"], folder)
    assert broken(facts) == {"the control comes to its end": "no step was done for 0 s, so everything was killed"}


def test_a_training_that_hangs_later_is_killed(folder, monkeypatch):
    """After a resume, for example. The limit is ten times the longest wait of the control."""
    monkeypatch.setattr(runner, "LEAST_STALL_S", 0.1)
    monkeypatch.setattr(runner, "STALL_FACTOR", 2)
    program = "train(begin(), 100 if is_control else 1)\ntime.sleep(0 if is_control else 100)"
    facts = run(stand_in(program), folder)
    assert "no step was done for " in broken(facts)["the rehearsal comes to its end"]


def test_processes_that_remain_are_named_and_killed(folder, monkeypatch):
    """Those whose launcher has left them alone."""
    monkeypatch.setattr(runner, "ORPHAN_S", 0.3)
    facts = run(["sh", "-c", "sleep 98 & exit 0"], folder)
    assert "(sleep 98) still ran 0 s after the command" in broken(facts)["the control comes to its end"]


def test_a_pusher_has_more_time_but_not_for_ever(folder, monkeypatch):
    """It stores what the training has left it."""
    monkeypatch.setattr(runner, "ORPHAN_S", 0.0)
    monkeypatch.setattr(runner, "PUSHER_S", 0.5)
    pusher = "import time; time.sleep(97)  # spot_plugins.push.worker"
    facts = run(["sh", "-c", f"{sys.executable} -c '{pusher}' & sleep 0.2"], folder)
    assert "a pusher process still ran 0 s after the command" in broken(facts)["the control comes to its end"]


class LongOutage(StoreOutage):
    """An outage that lasts beyond the step at which the next fault is planned."""

    def has_hit(self, target):
        return target.last_step() >= 5


def test_a_training_may_show_that_it_continues_before_the_next_fault(folder, monkeypatch):
    """Else a training that is killed right after an outage would not have survived the outage."""
    plan = [Planned(LongOutage(lasts_s=0.0), 3), Planned(KillRank(), 4)]
    monkeypatch.setattr(runner, "plan_of", lambda *_: plan)
    program = "ring = begin()\ntrain(ring, 60, 0.02 if is_control or drilled().folder.ranks()[1:] else 0.3)"
    facts = run(stand_in(program), folder)
    outage, kill = facts.rehearsal.lives[0].injected
    assert kill.step > outage.end.step
    assert "training continues" not in broken(facts)


def test_a_start_that_resumes_does_a_step_before_the_next_fault(folder, monkeypatch):
    """
    Its file begins with the step of the checkpoint, which may be later than the one at which the fault is planned.

    Without a step of its own it would be killed while it loads, and be told that it has trained nothing.
    """
    monkeypatch.setattr(runner, "plan_of", lambda *_: [Planned(KillRank(), 3), Planned(KillRank(), 4)])
    program = """
ring, start = begin(), len(drilled().folder.ranks())
if start == 2:
    write(ring, 30, 30)  # of the checkpoint
    time.sleep(1.0)
    train(ring, 1_000_000, first=31)  # until it is killed
train(ring, 60)
wait_for_fault()
"""
    facts = run(stand_in(program), folder)
    [injected] = facts.rehearsal.lives[1].injected
    assert injected.step > 30


def launcher_of(program, folder):
    """Return the command of a launcher whose rank is *program*, and whose end its rank does not notice."""
    script = folder.parent / "launcher.sh"
    script.write_text('"$@" &\nwait $!\n')
    return ["bash", str(script), *stand_in(program)]


def test_ranks_without_a_launcher_have_the_grace_period_however_long(folder, monkeypatch):
    """Longer than a pusher process may need after its rank. Then they are no orphans."""
    monkeypatch.setattr(runner, "check_launcher", lambda command: None)
    monkeypatch.setattr(runner, "PUSHER_S", 0.0)
    monkeypatch.setattr(runner, "ORPHAN_S", 0.0)
    program = "train_until_fault(150)"
    facts = run(launcher_of(program, folder), folder, KillLauncher(), grace_s=300.0, seed=1)
    (first, *_) = facts.rehearsal.lives
    assert first.ending is not None
    assert first.problems == []
    assert first.exit_code == -9


def test_ranks_that_train_to_their_end_without_a_launcher_are_told(folder, monkeypatch):
    """Though they are gone within the grace period. Nobody would have ended them."""
    monkeypatch.setattr(runner, "check_launcher", lambda command: None)
    program = "train_until_fault(150)\ntime.sleep(0 if is_control else 2.5)"
    facts = run(launcher_of(program, folder), folder, KillLauncher(), grace_s=300.0, seed=1)
    assert broken(facts)["all processes end in time"] == (
        "without their launcher the ranks trained on, to their end at step 150"
    )


def test_a_pusher_that_is_just_ending_is_no_orphan(monkeypatch):
    """It has no command line any more, so that it cannot be told from a rank."""
    for words, is_one in ((b"", False), (b"python\0-m\0spot_plugins.push.worker", False), (b"python\0train.py", True)):
        monkeypatch.setattr(processes, "command_of", lambda pid, words=words: words)
        assert processes.is_other(1) == is_one


@pytest.mark.parametrize("fault", [Signal(), Notice()])
def test_a_training_that_does_not_leave_is_killed(fault, folder, monkeypatch):
    """The time at which the machine would be taken."""
    monkeypatch.setattr(runner, "LEAST_NOTICE_S", 0.2)
    program = "signal.signal(signal.SIGTERM, signal.SIG_IGN)\ntrain_until_fault(120)"
    facts = run(stand_in(program), folder, fault, grace_s=0.2)
    (first, *_) = facts.rehearsal.lives
    assert first.exit_code is None
    assert first.reached_step < 120
    assert "the training had not ended " in broken(facts)["all processes end in time"]
    assert "no session has received it" in broken(facts)["the training learns of it"]


@pytest.mark.parametrize("durable", [True, False])
def test_a_training_that_is_killed_on_its_way_out_has_left_if_all_ranks_have_stored_their_shares(
    durable, folder, monkeypatch
):
    """The machine is taken at its time, and nothing is lost by that. The share of one rank is no step."""
    monkeypatch.setattr(runner, "LEAST_NOTICE_S", 0.2)
    program = f"""
from event_logs import write_log
from spot_plugins.events import Leaving
from spot_plugins.store import LocalStore

signal.signal(signal.SIGTERM, signal.SIG_IGN)
attempt = 1 + len(drilled().folder.ranks())
for rank, durable in enumerate((True, {durable})):
    leaving = Leaving(step=1, durable=durable, left_s=1.0)
    write_log(LocalStore(str(drilled().folder.run("run"))), attempt, [(1.0, leaving)], rank=rank, world_size=2)
train_until_fault(120)
"""
    facts = run(stand_in(program), folder, Notice(), grace_s=0.2)
    assert facts.rehearsal.lives[0].exit_code is None
    assert ("all processes end in time" in broken(facts)) == (not durable)


def test_a_launcher_that_does_not_see_the_end_of_its_rank_is_killed(folder, monkeypatch):
    """A scheduler would wait for it, and the machine would be paid for."""
    monkeypatch.setattr(runner, "LEAVE_S", 0.4)
    launcher = ["sh", "-c", '"$@" && exit 0; sleep 94', "sh"]
    facts = run([*launcher, *stand_in("train_until_fault(150)")], folder, KillRank())
    assert facts.rehearsal.lives[0].exit_code is None
    assert broken(facts)["all processes end in time"] == "the command hung for 0 s after SIGKILL to rank 0"


@pytest.mark.soak
def test_a_training_that_waits_to_be_taken_is_told(folder, monkeypatch):
    """After a notice that nobody follows up, it would be paid for and do nothing."""
    monkeypatch.setattr(runner, "LEAST_NOTICE_S", 0.2)
    monkeypatch.setattr(runner, "LEAVE_S", 1.0)
    facts = run(stand_in("train_until_fault(120)"), folder, EmptyNotice(), grace_s=0.2)
    assert facts.rehearsal.lives[0].exit_code is None
    assert broken(facts)["all processes end in time"].startswith("the command hung for 3 s after a notice")


def test_an_exit_code_of_0_is_no_way_to_leave(folder):
    """No scheduler would start the training again."""
    program = "signal.signal(signal.SIGTERM, lambda *_: os._exit(0))\ntrain_until_fault(150)"
    facts = run(stand_in(program), folder)
    assert broken(facts)["the exit code says so"] == (
        "it ended with code 0, and not 143. A scheduler would not start it again"
    )
    assert broken(facts)["the next start resumes"].startswith("the next start trained nothing: it ended with code 0")


def test_a_fault_that_comes_too_late_is_told(folder):
    """A drill that rehearsed nothing must not look like a good one."""
    program = "train(begin(), 150 if is_control else 20)"
    facts = run(stand_in(program), folder, HostLoss())
    assert broken(facts)["all faults are injected"].startswith("not injected, because the training was over before")
    assert broken(facts)["the rehearsal comes to its end"] == "it ended after step 20, and the control after step 150"


def test_the_local_copies_are_gone_after_the_loss_of_a_host(folder):
    """All processes are killed before, and the steps are known all the same."""
    facts = run(stand_in("train_until_fault(150)"), folder, HostLoss())
    (life, *_) = facts.rehearsal.lives
    assert life.exit_code == -9
    assert life.ending.step <= life.reached_step < 150
    [left] = (folder / "rehearsal" / "local" / "run").iterdir()
    assert left.name == "copy-2", "that of the second start alone"


def test_a_start_that_is_killed_before_the_store_knows_of_it_has_resumed(folder):
    """Its pusher process dies with it, before the event log of the run says where it has continued."""
    program = """
start = [0, 148, 149][len(drilled().folder.ranks())]
ring = begin(start=start)
if start == 148:
    train(ring, 1_000_000, first=start)  # until it is killed
is_last = is_control or start == 149
train(ring, 150 if is_last else 148, first=start + 1)
time.sleep(0 if is_last else 100)
"""
    facts = run(stand_in(program), folder, HostLoss(), num_faults=2)
    assert [each.log.start_step for each in facts.rehearsal.lives] == [0, 148, 149], broken(facts)


def test_a_rank_that_is_killed_is_drawn_by_the_seed(folder):
    """Of the ranks that run."""
    facts = run(stand_in("train_until_fault(150)"), folder, KillRank())
    assert facts.rehearsal.lives[0].ending.told == "SIGKILL to rank 0"
    assert facts.rehearsal.lives[0].exit_code == -9


def test_a_training_without_a_step_is_told(folder):
    """Its run is finished, or its loader is empty."""
    facts = run(stand_in("begin()"), folder)
    assert broken(facts) == {"the control comes to its end": "no step was done, so there is nothing to interrupt"}


def test_a_launcher_is_looked_for_before_anything_runs(folder):
    """Otherwise the control would be run for nothing."""
    with pytest.raises(ConfigError, match="no launcher that could be killed"):
        Runner(["no-such-program"], Options(faults=(Signal(), KillLauncher())), folder, print).run()


def test_a_command_with_several_runs_is_refused(folder):
    with pytest.raises(ConfigError, match="the command trains 2 runs, each at a URL of its own: give a command that"):
        run(stand_in("begin('other')\ntrain(begin(), 10)"), folder)


def test_steps_that_differ_are_told_with_their_start(folder):
    """A training that begins anew has trained the same steps; one with another order has not."""
    program = """
ring = begin()
train(ring, 79)
wait_for_fault()
write(ring, 80, 80 if is_control else 9)
train(ring, 150, first=81)
"""
    facts = run(stand_in(program), folder, KillRank(), seed=1)
    assert facts.rehearsal.lives[0].ending.step < 80, "choose another seed"
    text = broken(facts)["every step is made of the same as in the control"]
    assert text.startswith(
        "step 80, rank 0: the position in the training data is another one, in start 2. The position"
    )


def test_the_drill_of_a_process_that_dies_ends_its_training(folder):
    """The kernel sends a SIGTERM to the command, so that no training outlives its drill."""
    program = f"""
import sys
from pathlib import Path
from spot_plugins.drill.runner import Options, Runner
Runner(["sleep", "96"], Options(), Path({str(folder)!r}), print).run()
"""
    parent = os.spawnlp(os.P_NOWAIT, sys.executable, sys.executable, "-c", program)
    until(lambda: Processes(folder).pids(), "the command runs")
    os.kill(parent, 9)
    os.waitpid(parent, 0)
    until(lambda: not Processes(folder).pids(), "the command ends")
    assert Path(folder).exists()
