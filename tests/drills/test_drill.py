"""``spot drill`` on real trainings: it passes those without a mistake, and finds mistakes that are planted."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import pytest
from commands import SPOT, spot
from hearing import DEADLINE_S
from launching import PROGRAMS, module_path

from spot_plugins.drill.inner_faults import JUMP_S
from spot_plugins.errors import ConfigError
from spot_plugins.testing import (
    ClockJump,
    Corruption,
    EmptyNotice,
    Freeze,
    FullDisk,
    HostLoss,
    KillLauncher,
    KillPusher,
    KillRank,
    Notice,
    ReadOnlyDisk,
    Reboot,
    Signal,
    SlowDisk,
    StoreOutage,
    TwoSignals,
    drill,
)

EXAMPLES = Path(__file__).parents[2] / "examples"
PLANTED = str(PROGRAMS / "planted.py")
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone"]

pytestmark = [pytest.mark.timeout(600), pytest.mark.usefixtures("environment")]


@pytest.fixture
def environment(monkeypatch, tmp_path):
    """The environment of a user, whose temporary folder is one of the test."""
    for name in [name for name in os.environ if name.startswith("SPOT_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PYTHONPATH", module_path())
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    monkeypatch.setattr(tempfile, "tempdir", None)  # which Python keeps
    (tmp_path / "temporary").mkdir()


def planted(mistake, *words):
    return [sys.executable, PLANTED, mistake, *map(str, words)]


def texts(verdict):
    """Return what every promise says, as one text, because pytest shortens a list in the message of a failed test."""
    return "\n".join(f"{'kept' if each.is_kept else 'BROKEN'} {each.name}: {each.text}" for each in verdict.promises)


def drills_left(folder):
    """Return the folders of drills, and the processes that know one of them."""
    mark = f"SPOT_PLUGINS_DRILL={folder}".encode()
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            found += [path.name] if mark in (path / "environ").read_bytes() else []
        except OSError:
            continue
    return [*found, *folder.glob("spot-drill-*")]


def test_a_training_without_a_mistake_keeps_all_promises(tmp_path):
    """With the figures of each fault, as JSON, as a page and for CI. Nothing is left behind."""
    page, junit = tmp_path / "drill.html", tmp_path / "drill.xml"
    words = [
        "--faults",
        "sigterm,sigkill,store-outage,pause",
        "--seed",
        "3",
        "--json",
        "--html",
        page,
        "--junit",
        junit,
    ]
    done = spot("drill", *map(str, words), "--", *planted("none", 200))

    assert done.returncode == 0, done.stderr + done.stdout
    document = json.loads(done.stdout)
    assert document["version"] == 1
    assert document["is_kept"]
    assert document["first_broken"] is None
    faults = document["faults"]
    assert [each["fault"] for each in faults] == ["sigterm", "sigkill", "store-outage", "pause"]
    assert [each["exit_code"] for each in faults] == [143, -signal.SIGKILL, None, None]
    term, kill, *survived = faults
    assert term["lost_steps"] == 0
    assert term["resumed_from"] == term["step"]
    assert kill["committed"] <= kill["resumed_from"] <= kill["step"]
    assert all(each["next_step_s"] is not None for each in faults)
    assert all(each["resumed_from"] is None for each in survived)
    assert all(each[name] is not None for each in (term, kill) for name in ("save_s", "durable_s", "load_s"))
    assert [each["exit_code"] for each in document["starts"]] == [143, -signal.SIGKILL, 0]

    suite = ElementTree.parse(junit).getroot()
    assert [case.get("name") for case in suite] == [each["name"] for each in document["promises"]]
    assert suite.get("failures") == "0"
    assert page.read_text().count("<svg") == 4, "a bar for the control, and one for each start"
    assert "<script" not in page.read_text()
    assert drills_left(tmp_path / "temporary") == []


def test_a_generator_that_is_not_registered_is_found(tmp_path):
    """By the weights of the first step that draws from it, and at the end. The words of the guard name it."""
    done = spot("drill", "--faults", "sigkill", "--junit", str(tmp_path / "drill.xml"), "--", *planted("generator"))

    assert done.returncode == 1, done.stderr + done.stdout
    assert "rank 0: the weights at its end are other ones, in start 2. The weights differ." in done.stdout
    assert "BROKEN  the state at the end is that of the control: model/parameters/0.bias differs" in done.stdout
    assert "random generator Generator `noise`" in done.stdout
    assert "what each start printed is in " in done.stderr
    [folder] = drills_left(tmp_path / "temporary")
    assert sorted(path.name for path in folder.iterdir()) == ["control-1.txt", "rehearsal-1.txt", "rehearsal-2.txt"]
    assert ElementTree.parse(tmp_path / "drill.xml").getroot().get("failures") == "2"


def test_the_samples_of_the_first_step_that_differs_are_named():
    """For a loop that leaves a batch out when it continues."""
    verdict = drill(planted("left out", 60), [KillRank()])

    [broken] = [each for each in verdict.promises if each.name.startswith("every step") and not each.is_kept]
    found = re.match(
        r"step (\d+), rank 0: the position in the training data is another one: "
        r"it trained (\d+) of epoch (\d) instead of (\d+) of epoch (\d), in start 2\. ",
        broken.text,
    )
    assert found is not None, texts(verdict)
    step, *places = map(int, found.groups())
    assert places == [step % 30, step // 30, (step - 1) % 30, (step - 1) // 30], "30 batches make an epoch"


def test_a_swallowed_sigterm_is_found():
    """Though the training comes to its end, and nothing is lost."""
    verdict = drill(planted("swallow", 60), [Signal()], grace_seconds=30)

    assert verdict.first_broken is not None, texts(verdict)
    assert verdict.first_broken.name.endswith("the training learns of it"), texts(verdict)
    assert "no session has received it" in verdict.first_broken.text


def test_a_training_that_saves_nothing_more_in_silence_is_found():
    """After a full disk it trains on and ends with code 0, and all that it has done since is lost."""
    verdict = drill(planted("give up", 60), [FullDisk()])

    assert verdict.first_broken is not None, texts(verdict)
    assert verdict.first_broken.name.endswith("steps are stored again"), texts(verdict)
    assert "none of a later step in the " in verdict.first_broken.text
    assert [each.exit_code for each in verdict.facts.rehearsal.lives] == [0]


def test_nothing_is_left_after_ctrl_c(tmp_path):
    """The drill ends its trainings, their pushers and their files."""
    process = subprocess.Popen([*SPOT, "drill", "--", *planted("none", 100_000)], stderr=subprocess.PIPE, text=True)
    folder = tmp_path / "temporary"
    deadline = time.monotonic() + 300
    while not list(folder.glob("spot-drill-*/control/ranks/*.json")):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    assert process.wait(DEADLINE_S) == 128 + signal.SIGINT
    process.stderr.close()
    assert drills_left(folder) == []


@pytest.mark.parametrize(
    ("program", "says"),
    [
        ("raise SystemExit(3)", "it ended with code 3 after step 0, and printed nothing"),
        ("raise ValueError('no data here')", "it ended with code 1 after step 0: ValueError: no data here"),
        ("pass", "no session of spot_plugins was opened, so there is nothing to interrupt"),
    ],
)
def test_a_program_that_cannot_be_drilled_is_told_why(program, says):
    """Nothing is interrupted, and the exit code is 1."""
    done = spot("drill", "--", sys.executable, "-c", program)
    assert done.returncode == 1
    assert f"A promise was broken. the control comes to its end: {says}" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("command", "ranks", "says"),
    [
        (["no-such-program"], (), "no-such-program cannot be started: No such file"),
        (["python", "train.py"], (2, 1), "ranks=2: the number of processes can only be changed for torchrun"),
    ],
)
def test_a_command_that_cannot_be_started_is_refused(command, ranks, says):
    """Before anything runs."""
    with pytest.raises(ConfigError, match=says):
        drill(command, [Signal()], ranks=ranks)


@pytest.mark.soak
@pytest.mark.parametrize("mistake", ["position", "scheduler", "sampler", "epoch start"])
def test_a_planted_mistake_is_found(mistake):
    """A loader without a position, a scheduler that nobody restores, a sampler or a hook with a counter of its own."""
    verdict = drill(planted(mistake, 100), [Signal(), KillRank()])
    assert not verdict.is_kept, texts(verdict)
    assert verdict.first_broken.name.startswith("every step is made of the same"), texts(verdict)


@pytest.mark.soak
def test_a_refusal_of_the_host_is_shown():
    """A scheduler that is prepared after the resume would not be restored."""
    verdict = drill(planted("late scheduler", 60), [Signal()])
    assert verdict.first_broken is not None, texts(verdict)
    assert verdict.first_broken.text.endswith("so they are neither restored nor saved. Prepare everything before")


@pytest.mark.soak
def test_a_training_survives_its_pusher_and_a_reboot():
    """It continues with a new pusher process, and resumes from what was stored or kept."""
    verdict = drill(planted("none", 200), [KillPusher(), Reboot(), KillPusher()])
    assert verdict.is_kept, texts(verdict)
    assert [each.exit_code for each in verdict.facts.rehearsal.lives] == [-signal.SIGKILL, 0], texts(verdict)


@pytest.mark.soak
@pytest.mark.parametrize("host", ["none", "accelerate", "lightning"])
def test_a_training_survives_a_sick_disk(host):
    """It continues meanwhile, says what the disk refuses, and stores steps afterwards."""
    verdict = drill(planted(host, 300), [FullDisk(), ReadOnlyDisk(), SlowDisk()])
    assert verdict.is_kept, texts(verdict)
    promises = [each.name.rpartition(": ")[2] for each in verdict.promises if each.name.startswith("disk-")]
    told = ["training continues", "the training says so", "steps are stored again"]
    assert promises == [*told, *told, told[0], told[2]], texts(verdict)
    assert [each.exit_code for each in verdict.facts.rehearsal.lives] == [0], texts(verdict)


@pytest.mark.soak
def test_ranks_of_torchrun_survive_a_sick_disk():
    """Between a kill and a signal."""
    command = [*TORCHRUN, "--nproc-per-node", "2", *planted("none", 300)[1:]]
    verdict = drill(command, [FullDisk(), KillRank(rank=1), ReadOnlyDisk(), Signal()])
    assert verdict.is_kept, texts(verdict)


@pytest.mark.soak
@pytest.mark.parametrize("launcher", [[], [*TORCHRUN, "--nproc-per-node", "2"]], ids=["python", "torchrun"])
def test_a_training_survives_jumps_of_the_clock(launcher):
    """It saves at each time, obeys a notice at a wrong one, and the next start is at the right one again."""
    faults = [ClockJump(), Notice(), ClockJump(), KillRank()]
    verdict = drill([*launcher, *planted("none", 600)[1 if launcher else 0 :]], faults)
    assert verdict.is_kept, texts(verdict)
    jumps_s = [each.log.jumped_s for each in verdict.facts.rehearsal.lives]
    assert jumps_s == pytest.approx([2 * JUMP_S, 2 * JUMP_S, 0.0], abs=DEADLINE_S), texts(verdict)


@pytest.mark.soak
@pytest.mark.parametrize("launcher", [[], [*TORCHRUN, "--nproc-per-node", "2"]], ids=["python", "torchrun"])
def test_a_second_signal_costs_nothing(launcher):
    """Whichever it is, and at whichever moment of leaving it comes."""
    faults = [TwoSignals(second=number) for number in (signal.SIGTERM, signal.SIGINT)] * 2
    verdict = drill([*launcher, *planted("none", 300)[1 if launcher else 0 :]], faults)
    assert verdict.is_kept, texts(verdict)
    told = [each.ending.told for each in verdict.facts.rehearsal.lives[:-1]]
    assert any("and SIG" in each for each in told), told


@pytest.mark.soak
def test_a_training_leaves_after_a_notice_though_nobody_takes_the_machine():
    """It has to, because the notice may be true. Its exit code lets a scheduler start it again."""
    verdict = drill(planted("none", 400), [EmptyNotice()], seed=1)  # which draws an early step
    assert verdict.is_kept, texts(verdict)
    assert [each.exit_code for each in verdict.facts.rehearsal.lives] == [143, 0], texts(verdict)


@pytest.mark.soak
def test_damage_in_the_store_costs_the_newest_step_alone():
    """Whichever object it is, the next start says so and resumes from the step before."""
    verdict = drill(planted("none", 300), [Corruption()] * 3, seed=1)
    assert verdict.is_kept, texts(verdict)
    seen = [each.text for each in verdict.promises if each.name.endswith("the damaged step is not used")]
    assert len(seen) == 3, texts(verdict)
    lives = verdict.facts.rehearsal.lives
    for life, following in pairwise(lives):
        assert following.log.start_step == life.ending.committed < life.ending.damaged, texts(verdict)


@pytest.mark.soak
@pytest.mark.parametrize("supervised", [True, False], ids=["spot run", "torchrun alone"])
def test_ranks_end_without_their_launcher(supervised):
    """If spot run is before it. Those that train on are told."""
    command = [*TORCHRUN, "--nproc-per-node", "2", *planted("none", 400)[1:]]
    if supervised:
        verdict = drill([*SPOT, "run", "--", *command], [KillLauncher()], max_steps=150)
        assert verdict.is_kept, texts(verdict)
    else:
        verdict = drill(command, [KillLauncher()], grace_seconds=1, seed=1)  # which draws an early step
        assert not verdict.is_kept, texts(verdict)
        assert "s after the command" in verdict.first_broken.text, texts(verdict)


@pytest.mark.soak
@pytest.mark.parametrize("host", ["accelerate", "lightning", "stream"])
def test_a_training_of_each_host_keeps_all_promises(host):
    """Also if it is shortened, and each fault comes twice."""
    verdict = drill(planted(host, 1000), [Signal(), KillRank(), HostLoss()] * 2, max_steps=150)
    assert verdict.is_kept, texts(verdict)
    assert {each.reached_step for each in verdict.facts.control.lives} == {150}


@pytest.mark.soak
def test_torchrun_keeps_all_promises():
    """With two ranks, one of which is killed, and with a notice of a cloud."""
    command = [*TORCHRUN, "--nproc-per-node", "2", *planted("none", 150)[1:]]
    faults = [Signal(), KillRank(rank=1), KillRank(rank=0), Notice(), HostLoss(), StoreOutage(), Freeze()]
    verdict = drill(command, faults)
    assert verdict.is_kept, texts(verdict)


@pytest.mark.soak
@pytest.mark.parametrize("training", ["none", "elastic"])
def test_another_number_of_ranks(training):
    """The launcher is started with each number in turn. States are compared as far as they can be."""
    command = [*TORCHRUN, "--nproc-per-node", "2", *planted(training, 150)[1:]]
    verdict = drill(command, [Signal(), HostLoss()], ranks=[2, 1, 2])
    assert verdict.is_kept, texts(verdict)
    assert "The weights differ by " in verdict.promises[-1].text, texts(verdict)
    worlds = [{ring_id.world_size for ring_id in life.records} for life in verdict.facts.rehearsal.lives]
    assert worlds == [{2}, {1}, {2}]


RECIPES = ["lightning_finetune.py", "accelerate_lora_finetune.py", "trainer_lora_finetune.py"]


@pytest.mark.soak
@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_keeps_all_promises(recipe, tmp_path, monkeypatch):
    """As it is, with all faults."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    smallest = ["--batch-size", "4", "--max-tokens", "8", "--epochs", "2", "--every-steps", "20", "--samples", "480"]
    command = [sys.executable, str(EXAMPLES / recipe), "--url", f"file://{tmp_path}/never", *smallest]
    verdict = drill(command, [Signal(), KillRank(), Notice(), HostLoss(), StoreOutage(), Freeze()])
    assert verdict.is_kept, texts(verdict)
    assert not (tmp_path / "never").exists()


@pytest.mark.soak
def test_the_recipe_for_torchrun_keeps_all_promises(tmp_path):
    recipe = [
        str(EXAMPLES / "torchrun_fsdp2.py"),
        "--url",
        f"file://{tmp_path}/never",
        "--width",
        "16",
        "--block",
        "16",
    ]
    verdict = drill([*TORCHRUN, "--nproc-per-node", "2", *recipe], [Signal(), KillRank(), HostLoss()])
    assert verdict.is_kept, texts(verdict)
