"""The command line, as real processes: what each verb refuses, what it costs to start, and what it writes."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from datetime import datetime, timedelta
from pathlib import Path

import pytest
import torch
from commands import SPOT, spot
from hearing import Heard, until
from safetensors.torch import load_file
from sandbox import without
from steps import Holder

from spot_plugins.config import SpotConfig
from spot_plugins.events import Kept
from spot_plugins.notices.file import FileSource
from spot_plugins.session import SpotSession


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["run"], 2, "Missing argument"),
        (["run", "--grace-seconds", "0", "true"], 2, "must be a number of seconds above 0"),
        (["run", "--grace-seconds", "inf", "true"], 2, "must be a number of seconds above 0"),
        (["run", "--grace-seconds", "soon", "true"], 2, " valid "),
        (["run", "--max-restarts", "-1", "true"], 2, "max-restarts"),
        (["run", "--", "no-such-program"], 127, "no-such-program is not found"),
        (["run", "--", __file__], 126, "test_cli.py cannot be executed: Permission denied"),
        (["drill"], 2, "Missing argument"),
        (["drill", "--faults", "sigterm,fire", "true"], 2, "faults=sigterm,fire: 'fire' is no fault. Give some of"),
        (["drill", "--ranks", "2,none", "true"], 2, "2,none must be numbers from 1 on, with commas between them"),
        (["drill", "--grace", "0", "true"], 2, "must be a number of seconds above 0"),
        (["drill", "--kills", "0", "true"], 2, "kills"),
        (["drill", "--html", "/no/such/folder/page", "true"], 2, "/no/such/folder/page cannot be written"),
        (["drill", "--", "no-such-program"], 2, "spot drill: no-such-program cannot be started: No such file"),
        (["notice"], 2, "Missing argument"),
        (["notice", "http://host/notice"], 2, "only its server can change it"),
        (["notice", "/no/such/folder/notice"], 2, "No such file or directory"),
        (["notice", "x", "--grace-seconds", "-5"], 2, "above 0"),
        (["show"], 2, "Missing argument"),
        (["show", "/no/such/run"], 2, "spot show: there is no committed step at this directory"),
        (["show", "nonsense://key:secret@bucket/run"], 2, "unknown scheme 'nonsense'"),
        (["show", "/no", "--step", "1", "--diff", "1", "2"], 2, "--step and --diff cannot both be given"),
        (["show", "/no", "--diff", "1"], 2, "requires 2 arguments"),
        (["ls", "/no/such/run"], 2, "spot ls: there is no run at this directory"),
        (["ls", "nonsense://key:secret@bucket/run"], 2, "unknown scheme 'nonsense'"),
        (["verify", "/no/such/run"], 2, "spot verify: there is no committed step at this directory"),
        (["prune", "/no/such/run"], 2, "keep-last"),
        (["prune", "/no/such/run", "--keep-last", "0"], 2, "keep-last"),
        (["prune", "/no/such/run", "--keep-last", "1"], 2, "spot prune: there is no run at this directory"),
        (["cp", "/no/such/run"], 2, "Missing argument"),
        (["cp", "/no/such/run", "/no/such/copy"], 2, "spot cp: there is no run at this directory"),
        (["cp", "/no/such/run", "nonsense://key:secret@bucket/run"], 2, "there is no run at this directory"),
        (["export", "/no/such/run"], 2, "Missing argument"),
        (["export", "/no/such/run", "out"], 2, "spot export: there is no committed step at this directory"),
        (["export", "/no", "out", "--format", "hf"], 2, "--format hf needs --config: a folder with config.json, or"),
        (
            ["export", "/no", "out", "--config", "x"],
            2,
            "--config belongs to --format hf, and the format is safetensors",
        ),
        (["export", "/no", "out", "--format", "lightning", "--part", "x"], 2, "--part and --module do not belong to"),
        (
            ["export", "/no", "out", "--format", "accelerate", "--module", "x"],
            2,
            "do not belong to --format accelerate",
        ),
        (["plan"], 2, "spot plan: something is missing: give exactly one of params, bytes"),
        (["plan", "--bytes", "8GB", "--rate-per-day", "8%", "--grace", "nan"], 2, "grace=nan must be a finite number"),
        (["plan", "--bytes", "8GB", "--run", "nonsense://key:secret@bucket/run"], 2, "unknown scheme 'nonsense'"),
        (
            ["plan", "--bytes", "8GB", "--rate-per-day", "8%", "--next"],
            2,
            "next says nothing without run: give the URL",
        ),
        (
            ["plan", "--bytes", "8GB", "--rate-per-day", "8%", "--measure", "x", "--upload-gbps", "1"],
            2,
            "measure='x' and upload_gbps exclude each other",
        ),
        (["report"], 2, "Missing argument"),
        (["report", "/no/such/run"], 2, "spot report: no attempt of a run is at this directory"),
        (["report", "x", "--text", "--json"], 2, "give one of --text, --json and --html FILE"),
        (["report", "x", "--spot-price", "-1"], 2, "must be a price of one GPU for one hour, 0 or more"),
        (["watch"], 2, "Missing argument"),
        (["watch", "/no/such/run"], 2, "spot watch: no attempt of a run is at this directory"),
        (["watch", "x", "--every", "0"], 2, "must be a number of seconds above 0"),
        (["watch", "x", "--spot-price", "nan"], 2, "must be a price of one GPU for one hour, 0 or more"),
        (["fly"], 2, "fly"),
    ],
    ids=str,
)
def test_what_cannot_work_is_refused_at_once(words, code, says):
    """
    With the value and what is wrong with it; codes are those of shells.
    """
    done = spot(*words)

    assert done.returncode == code
    assert says in done.stderr
    assert "secret" not in done.stderr
    assert "Traceback" not in done.stderr


def test_a_script_that_names_no_interpreter_is_refused(tmp_path):
    """
    A shell would run it; the kernel does not. The user reads why, and no traceback.
    """
    script = tmp_path / "train.sh"
    script.write_text("python train.py")
    script.chmod(0o755)

    done = spot("run", "--", str(script))

    assert (done.returncode, done.stderr) == (126, f"spot run: {script} cannot be executed: Exec format error\n")


def test_a_failure_of_its_own_is_not_taken_for_the_commands(tmp_path):
    """
    A container whose file systems are all read-only has no place for the roster. The command is not to blame.
    """
    script = "import errno, tempfile; from spot_plugins.cli import main\n"
    script += "def refuse(): raise FileNotFoundError(errno.ENOENT, 'No usable temporary directory found')\n"
    script += "tempfile._get_default_tempdir = refuse; main()"
    done = subprocess.run([sys.executable, "-c", script, "run", "--", "true"], capture_output=True, text=True)

    assert (done.returncode, done.stderr) == (125, "spot run: [Errno 2] No usable temporary directory found\n")


def test_a_sandbox_in_which_it_cannot_work_is_not_taken_for_the_commands(tmp_path):
    """
    The kernel refuses to let it adopt orphans.
    """
    done = subprocess.run(without("prctl", [*SPOT, "run", "true"], first_argument=36), capture_output=True, text=True)

    told = (
        "spot run: [Errno 1] the kernel does not let this process adopt orphans. Start the command without spot run\n"
    )
    assert (done.returncode, done.stderr) == (125, told)


def test_without_typer_it_says_what_to_install(tmp_path):
    """
    The package alone has no command line; its name is there all the same.
    """
    (tmp_path / "typer.py").write_text("raise ImportError('not here')")

    done = spot("run", "true", PYTHONPATH=str(tmp_path))

    assert done.returncode == 1
    assert "pip install 'spot_plugins[cli]'" in done.stderr


def test_it_starts_without_torch():
    """
    An init process must not cost a container hundreds of megabytes and seconds.
    """
    script = "import sys, spot_plugins.cli.run; sys.exit('torch' in sys.modules or 'fsspec' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", script]).returncode == 0


@pytest.mark.parametrize(
    ("command", "code"),
    [("exit 0", 0), ("exit 7", 7), ("kill -KILL $$", 137), ("kill -TERM $$", 143), ("sleep 0.1; exit 3", 3)],
)
def test_the_code_is_that_of_the_command(command, code):
    """
    128 + n if signal n ended it, as shells have it.
    """
    assert spot("run", "sh", "-c", command).returncode == code


LEAVES = "from spot_plugins.launch import roster; roster.join(); roster.leave()"
JOINS = "from spot_plugins.launch import roster; roster.join()"


@pytest.mark.parametrize(
    ("script", "code"),
    [
        (f"{sys.executable} -c '{LEAVES}'; exit 1", 143),
        (f"{sys.executable} -c '{LEAVES}'; sleep 1 & exit 1", 143),
        (f"{sys.executable} -c '{LEAVES}'; exit 0", 143),
        (f"{sys.executable} -c '{LEAVES}'; {sys.executable} -c '{JOINS}'; exit 0", 0),
        (f"{sys.executable} -c '{LEAVES}'; {sys.executable} -c '{JOINS}'; exit 7", 7),
        (f"{sys.executable} -c '{JOINS}'; exit 1", 1),
        (f"({sys.executable} -c '{JOINS}; import time; time.sleep(2)'; {sys.executable} -c '{LEAVES}') & exit 1", 1),
    ],
    ids=[
        "its launcher fails",
        "and leaves a helper behind",
        "its launcher hides it",
        "started again, which ends well",
        "started again, which fails",
        "nobody has left",
        "an orphan leaves afterwards",
    ],
)
def test_a_rank_that_has_left_by_itself_makes_it_a_preemption(script, code):
    """
    Whatever the launcher makes of it, and whoever outlives the launcher; but not if the ranks were started again.
    """
    assert spot("run", "--grace-seconds", "5", "sh", "-c", script).returncode == code


def test_no_restart_after_a_rank_has_left_by_itself():
    """
    Also where something that the launcher has left behind has to be told to end.
    """
    done = spot("run", "--max-restarts", "1", "sh", "-c", f"{sys.executable} -c '{LEAVES}'; sleep 1 & exit 1")

    assert done.returncode == 143
    assert "the command ended with 1. 1 of its processes still run: they save and leave" in done.stderr
    assert "is started again" not in done.stderr


def test_a_launcher_is_ended_once_a_rank_has_left_because_its_machine_will_be_taken():
    """
    torchrun would otherwise start the rank again and again, on the same machine.
    """
    leaves = LEAVES.replace("leave()", "leave(machine_ends=True)")
    done = spot("run", "--grace-seconds", "5", "sh", "-c", f"{sys.executable} -c '{leaves}'; exec sleep 600")

    assert done.returncode == 143
    assert "a rank left because this machine will be taken" in done.stderr


def test_children_that_whoever_started_it_ignores_are_waited_for():
    """
    A process that inherits an ignored SIGCHLD never learns how its children have ended, and would wait for ever.
    """
    words = [*SPOT, "run", "sh", "-c", "exit 3"]
    script = f"import os, signal, sys; signal.signal(signal.SIGCHLD, signal.SIG_IGN); os.execv(sys.executable, {words})"

    assert subprocess.run([sys.executable, "-c", script], timeout=300).returncode == 3


def test_a_launcher_that_ends_well_on_a_notice_hides_no_preemption(tmp_path):
    """
    Scripts trap SIGTERM and exit with 0, before the rank that spot run tells has left.
    """
    rank = tmp_path / "rank.py"
    rank.write_text(
        "import signal, sys, time\nfrom spot_plugins.launch import roster\n"
        "signal.signal(signal.SIGTERM, lambda *_: (time.sleep(1), roster.leave(), sys.exit(143)))\n"
        f"roster.join()\nopen({str(tmp_path / 'begun')!r}, 'w').close()\nsignal.pause()\n"
    )
    script = f"trap 'exit 0' TERM; {sys.executable} {rank} & wait"
    process = subprocess.Popen([*SPOT, "run", "--grace-seconds", "9", "bash", "-c", script], stderr=subprocess.PIPE)
    until((tmp_path / "begun").exists, "the rank has joined")
    process.terminate()

    printed = process.communicate(timeout=300)[1].decode()
    assert process.returncode == 143, printed
    assert "spot run: SIGTERM: the ranks save and leave, within 9 s\n" in printed


def test_what_ignores_the_notice_is_killed_when_the_grace_is_over(tmp_path):
    """
    Also a grandchild that nobody waits for; neither earlier, nor much later.
    """
    script = f"trap '' TERM; (trap '' TERM; sleep 61) & echo $! > {tmp_path}/pid; sleep 62; sleep 63"
    process = subprocess.Popen([*SPOT, "run", "--grace-seconds", "2", "sh", "-c", script])
    until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text().strip(), "it runs")
    started = time.monotonic()
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGTERM)

    assert process.wait(timeout=300) == 143
    assert time.monotonic() - started >= 1.9
    assert not Path(f"/proc/{(tmp_path / 'pid').read_text().strip()}").exists()


def test_a_process_that_may_not_be_signaled_is_named_once():
    """
    A program that changes its user is such a process. The kernel refuses here all signals that spot run sends.
    """
    words = [*SPOT, "run", "--grace-seconds", "0.1", "sh", "-c", "echo begun; read line; sleep 1"]
    pipes = dict.fromkeys(["stdin", "stdout", "stderr"], subprocess.PIPE)
    process = subprocess.Popen(without("kill", words), text=True, **pipes)
    assert process.stdout.readline() == "begun\n"
    process.terminate()
    assert process.stderr.readline() == "spot run: SIGTERM: the ranks save and leave, within 0.1 s\n"
    named = process.stderr.readline()
    printed = process.communicate("\n")[1]  # it looks about ten times meanwhile

    assert re.fullmatch(r"spot run: process \d+ belongs to another user, so it gets no signal\n", named)
    assert named not in printed


def test_a_signal_that_nohup_ignores_stays_ignored(tmp_path):
    """
    A terminal that closes is no notice for what was started to survive it.
    """
    script = f"signal.signal(signal.SIGHUP, signal.SIG_IGN); os.execv(sys.executable, {[*SPOT, 'run', 'sleep', '1']!r})"
    process = subprocess.Popen([sys.executable, "-c", f"import os, signal, sys; {script}"])
    until(lambda: b"sleep" in Path(f"/proc/{process.pid}/cmdline").read_bytes(), "spot run has begun")
    until(lambda: Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text(), "the command runs")
    process.send_signal(signal.SIGHUP)

    assert process.wait(timeout=300) == 0


def test_a_session_plans_for_no_more_than_spot_run_gives():
    """
    A grace that the training's code names does not move the moment at which spot run kills.
    """
    look = "from spot_plugins.config import SpotConfig; from spot_plugins.notices import look_around; "
    look += "found = look_around(SpotConfig(url='x', every_steps=1, grace_seconds=110)); "
    look += "print(found.signal_grace_s, found.advice)"

    done = spot("run", "--grace-seconds", "45", "--", sys.executable, "-c", look)

    assert done.stdout.startswith("45.0 ")
    assert "spot run --grace-seconds 110" in done.stdout


@pytest.mark.parametrize("place", ["argument", "variable"])
@pytest.mark.parametrize("grace_s", [None, 25.0])
def test_a_notice_is_one_for_whoever_watches_the_file(grace_s, place, tmp_path):
    """
    Written whole; a second one counts for a training that began in between.
    """
    file = tmp_path / "notice"
    option = [] if grace_s is None else ["--grace-seconds", str(grace_s)]
    for _ in range(2):
        source = FileSource(str(file), 60.0)
        assert source.poll() is None
        where = {"words": [str(file)]} if place == "argument" else {"words": [], "SPOT_NOTICE_FILE": str(file)}
        before = time.monotonic()
        done = spot("notice", *where.pop("words"), *option, **where)
        assert (done.returncode, done.stdout) == (0, f"wrote {file}\n"), done.stderr

        left_s = grace_s or 60.0
        assert before + left_s <= source.poll().deadline <= time.monotonic() + left_s
    assert json.loads(file.read_text()) == ({} if grace_s is None else {"grace_seconds": grace_s})
    assert list(tmp_path.iterdir()) == [file]


def test_a_run_is_shown_and_its_weights_are_exported(tmp_path):
    """
    The steps come as a table, the weights as a file with the names of the model. Neither command imports torch.
    """
    url, out = str(tmp_path / "run"), tmp_path / "weights.safetensors"
    state = {"parameters": {"weight": torch.ones(2, 3)}, "buffers": {}, "extra": {"version": 3}}
    with SpotSession(SpotConfig(url=url, every_steps=1), on_event=(heard := Heard())) as session:
        session.register("model", Holder(state), replicated=("parameters",))
        session.resume()
        session.after_step(1)
        session.keep(1)
        heard.wait(Kept, step=1)
        session.finish(2)

    shown = spot("show", url)
    exported = spot("export", url, str(out), "--kept", PYTHONPROFILEIMPORTTIME="1")
    again = spot("export", url, str(out), "--step", "2")
    missing = spot("export", url, str(tmp_path / "other"), "--step", "9")
    of_torch = spot("export", url, str(tmp_path / "weights.pt"), "--format", "pt", "--step", "1")
    torch_again = spot("export", url, str(tmp_path / "weights.pt"), "--format", "pt")
    (tmp_path / "config.json").write_text("{}")
    folder = str(tmp_path / "folder")
    words = ("export", url, folder, "--format", "hf", "--config", str(tmp_path), "--json")
    of_hugging_face = spot(*words, PYTHONPROFILEIMPORTTIME="1")

    rows = [line.split() for line in shown.stdout.splitlines()]
    assert (shown.returncode, rows[0]) == (0, ["STEP", "ATTEMPT", "RANKS", "MB", "KEPT", "STARTED"])
    assert [(row[0], row[1], row[2], row[4]) for row in rows[1:]] == [("2", "1", "1", "-"), ("1", "1", "1", "program")]
    assert (exported.returncode, exported.stdout) == (0, f"wrote 1 tensors of step 1 to {out}\n")
    assert "spot export: version is no tensor, so it is left out\n" in exported.stderr
    assert not re.search(r"\| +torch$", exported.stderr, re.MULTILINE)
    assert torch.equal(load_file(out)["weight"], torch.ones(2, 3))
    assert (again.returncode, "exists already" in again.stderr) == (2, True)
    assert (missing.returncode, "which are: 2, 1" in missing.stderr) == (2, True)
    assert (of_torch.returncode, of_torch.stdout) == (0, f"wrote 1 tensors of step 1 to {tmp_path / 'weights.pt'}\n")
    loaded = torch.load(tmp_path / "weights.pt", weights_only=True)
    assert list(loaded) == ["weight"]
    assert torch.equal(loaded["weight"], torch.ones(2, 3))
    assert (torch_again.returncode, "exists already" in torch_again.stderr) == (2, True)
    assert of_hugging_face.returncode == 0
    assert not re.search(r"\| +(torch|transformers)$", of_hugging_face.stderr, re.MULTILINE)
    figures = {"num_tensors": 1, "num_bytes": 24, "notes": ["version is no tensor, so it is left out"]}
    told = {"version": 1, "step": 2, "attempt": 1, "format": "hf", "out": folder, **figures}
    assert json.loads(of_hugging_face.stdout) == told
    assert list(tmp_path.glob("*.tmp")) == []


def test_a_plan_is_printed_without_torch(tmp_path):
    """
    As a page and as JSON with the same figures, by measured speeds, with nothing left at the URL. No torch is imported.
    """
    words = [
        "plan",
        "--params",
        "7B",
        "--gpus",
        "8",
        "--rate-per-month",
        "20%",
        "--grace",
        "120",
        "--train-hours",
        "20",
    ]
    page = spot(*words, PYTHONPROFILEIMPORTTIME="1")
    measured = spot(*words, "--measure", str(tmp_path / "run"), "--json")

    assert page.returncode == 0
    assert page.stdout.startswith("Plan for 8 GPUs on 1 node\n")
    assert "Recommendation: undecided, because without prices" in page.stdout
    assert "per GPU hour. No price is built in" in page.stdout
    assert not re.search(r"\| +torch$", page.stderr, re.MULTILINE)
    document = json.loads(measured.stdout)
    assert (measured.returncode, measured.stderr, document["version"]) == (0, "", 1)
    assert document["inputs"]["upload_bytes_per_s"]["basis"].startswith("measured: ")
    assert document["inputs"]["disk_bytes_per_s"]["basis"].startswith("measured: ")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_the_next_machines_are_printed_for_a_launcher(tmp_path):
    """
    One word for a shell, or one line of JSON, from the attempts that the store of the run has.
    """
    url = str(tmp_path / "run")
    with SpotSession(SpotConfig(url=url, every_steps=1)) as session:
        session.register("model", Holder({"parameters": {"weight": torch.ones(2)}}), replicated=("parameters",))
        session.resume()
        session.finish(1)
    (path,) = (tmp_path / "run/attempts").iterdir()
    claim = json.loads(path.read_text())
    an_hour_ago = datetime.fromisoformat(claim["started_at"]) - timedelta(hours=1)
    path.write_text(json.dumps({**claim, "started_at": an_hour_ago.isoformat()}))
    words = ["plan", "--bytes", "1GB", "--run", url, "--spot-price", "1", "--on-demand-price", "3", "--next"]

    word, document = spot(*words), spot(*words, "--json")

    assert (word.returncode, word.stdout) == (0, "spot\n")
    assert word.stderr.startswith("spot plan: spot, because the run's own: 1 preemption of the job in")
    found = json.loads(document.stdout)
    assert (found["version"], found["next"]) == (1, "spot")
    assert "the run's own: 1 preemption of the job in" in found["reason"]
