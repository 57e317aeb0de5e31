"""
Preempt a real fine-tuning, resume it, and compare it with one that was left alone. Run it with ``make demo``.

Starts SeaweedFS, a real S3 server, and two trainings of accelerate_lora_finetune.py beside each other. One is left
alone. The other gets a SIGTERM in the middle of its second epoch, as a cloud sends it before it takes a machine, and
in the third epoch a SIGKILL, which nobody can answer. After each it is started again by the same command, on what
counts as a new machine: the local disk of the old one is gone. In the end both must be equal, bit for bit.

Needs a few minutes on two cores, and no network. Everything is left in demo-output/, with a picture and the page of
``spot report``. Exit code 0 means that the trainings are equal.
"""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fsspec
import matplotlib
import safetensors.numpy
from matplotlib import pyplot

RECIPE = Path(__file__).with_name("accelerate_lora_finetune.py")
WORK = Path(__file__).resolve().parents[1] / "demo-output"
STORAGE = WORK / "storage"  # of the server, and the local disks; removed at the end

EPOCHS = 3
STEPS_PER_EPOCH = 32
BATCH_SIZE = 16
EVERY_STEPS = 10
SIGTERM_AT = 44  # in the middle of the second epoch
SIGKILL_AT = 79  # in the middle of the third ...
SIGKILL_BEHIND = 6  # ... and so many steps behind the last commit, so that there is something to lose
NUM_STEPS = EPOCHS * STEPS_PER_EPOCH
POLL_S = 0.05
LIMIT_S = 900
LIGHT, DARK, LOST, GREY = "#9ecae1", "#08519c", "#e6550d", "#636363"

started_at = time.monotonic()


def say(text: str) -> None:
    print(f"{time.monotonic() - started_at:6.1f} s  {text}", flush=True)


# ---------------------------------------------------------------------------------------------- the S3 server
@contextmanager
def s3_server() -> Iterator[dict[str, str]]:
    """Run SeaweedFS on free ports of this machine, and yield the environment variables to reach it."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(10)]
        ports = [each.getsockname()[1] for each in sockets]
    names = [f"{name}.port{kind}" for kind in ("", ".grpc") for name in ("s3", "master", "volume", "filer", "admin")]
    identity = {
        "name": "demo",
        "credentials": [{"accessKey": "demo", "secretKey": "demo-secret"}],
        "actions": ["Admin", "Read", "Write", "List"],
    }
    config = STORAGE / "s3.json"
    config.write_text(json.dumps({"identities": [identity]}))
    (STORAGE / "s3").mkdir()
    flags = ["-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-dir={STORAGE}/s3", f"-s3.config={config}"]
    flags += [f"-{name}={port}" for name, port in zip(names, ports, strict=True)]
    flags += ["-s3.port.iceberg=0", "-s3.port.lance=0", "-webdav=false", "-admin.ui=false", "-master.telemetry=false"]
    flags += [f"-filer.localSocket={STORAGE}/filer.sock"]
    process = subprocess.Popen(
        [Path(sys.executable).with_name("weed"), f"-logdir={STORAGE}", "mini", *flags],
        env={"HOME": str(STORAGE), "PATH": os.defpath},
        stdin=subprocess.DEVNULL,
        stdout=(WORK / "s3-server.log").open("wb"),
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    access = {
        "AWS_ACCESS_KEY_ID": "demo",
        "AWS_SECRET_ACCESS_KEY": "demo-secret",
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{ports[0]}",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    try:
        while True:
            if process.poll() is not None or time.monotonic() - started_at > 60:
                raise SystemExit(f"SeaweedFS did not start: see {WORK}/s3-server.log")
            with suppress(OSError):
                connection = http.client.HTTPConnection("127.0.0.1", ports[0], timeout=1)
                connection.request("GET", "/")
                connection.getresponse()
                break
            time.sleep(POLL_S)
        yield access
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for port in ports:  # it leaves these where nobody can tell it not to
            for path in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):
                path.unlink(missing_ok=True)


# ------------------------------------------------------------------------------------------------ the trainings
@dataclass
class Row:
    """One trained step, as the recipe logged it."""

    step: int
    loss: str
    samples: str
    life: int
    at: float


@dataclass
class Kill:
    """The end of a life, and how the next one went on."""

    how: str
    step: int
    sent_at: float
    gone_at: float
    resumed: dict[str, Any] = field(default_factory=dict)
    next_step_at: float = 0.0


@dataclass
class Run:
    """One training, over all its process lives; what it wrote so far."""

    name: str
    is_told: bool
    life: int = 0
    process: subprocess.Popen[bytes] | None = None
    rows: list[Row] = field(default_factory=list)
    events: list[dict[str, Any]] = field(default_factory=list)
    kills: list[Kill] = field(default_factory=list)

    @property
    def step(self) -> int:
        return self.rows[-1].step if self.rows else 0

    @property
    def committed(self) -> int:
        return max((event["step"] for event in self.events if event["event"] == "Committed"), default=0)

    @property
    def trained_s(self) -> float:
        return self.rows[-1].at - self.rows[0].at

    @property
    def out(self) -> Path:
        return WORK / self.name / "adapters"

    def start(self) -> None:
        """Run the recipe, always with the same command. Each life finds an empty local disk: a new machine."""
        self.life += 1
        (WORK / self.name).mkdir(exist_ok=True)
        files = {name: WORK / self.name / name for name in ("log.csv", "events.jsonl", "output.txt")}
        command = [sys.executable, RECIPE, "--url", f"s3://demo/{self.name}", "--out", self.out]
        command += ["--epochs", EPOCHS, "--samples", STEPS_PER_EPOCH * BATCH_SIZE, "--batch-size", BATCH_SIZE]
        command += ["--every-steps", EVERY_STEPS, "--csv", files["log.csv"], "--events", files["events.jsonl"]]
        disk = STORAGE / f"{self.name}-machine-{self.life}"
        self.process = subprocess.Popen(
            [str(word) for word in command],
            env={**os.environ, "SPOT_LOCAL_DIR": str(disk)},
            stdin=subprocess.DEVNULL,
            stdout=files["output.txt"].open("ab"),
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        say(f"{self.name}: started" + (" again, on a new machine" if self.life > 1 else ""))

    def kill(self, number: signal.Signals, expect: int) -> None:
        """Send a signal and wait for the end."""
        assert self.process is not None
        self.process.send_signal(number)
        kill = Kill(number.name, self.step, time.monotonic(), 0.0)
        say(f"{self.name}: {number.name} sent at step {self.step}, {self.committed} is committed")
        wait_until(lambda: self.process.poll() is not None)
        kill.step, kill.gone_at = self.step, time.monotonic()
        self.kills.append(kill)
        say(f"{self.name}: gone after step {self.step}, exit code {self.process.returncode}")
        if self.process.returncode != expect:
            raise SystemExit(f"exit code {expect} was expected: see {WORK / self.name}/output.txt")

    def read(self) -> None:
        """Take in what was written since the last time, and tell about it."""
        for line in self._new_lines("log.csv", len(self.rows)):
            step, loss, samples = line.split(",")
            self.rows.append(Row(int(step), loss, samples, self.life, time.monotonic()))
            if len(self.kills) == self.life - 1 and self.kills and not self.kills[-1].next_step_at:
                self.kills[-1].next_step_at = time.monotonic()
            if self.step % STEPS_PER_EPOCH == 0:
                say(f"{self.name}: epoch {self.step // STEPS_PER_EPOCH} of {EPOCHS} is done, loss {float(loss):.2f}")
        for line in self._new_lines("events.jsonl", len(self.events)):
            event = json.loads(line)
            self.events.append(event)
            if event["event"] == "Resumed":
                self.kills[-1].resumed = event
            if self.is_told:
                self._tell(event)

    def _tell(self, event: dict[str, Any]) -> None:
        match event["event"]:
            case "Committed":
                say(f"{self.name}: step {event['step']} committed, {event['num_bytes'] / 1e6:.0f} MB")
            case "Leaving":
                say(f"{self.name}: leaves with {event['left_s']:.1f} s of its grace left")
            case "Resumed":
                say(f"{self.name}: resumed from step {event['step']}, loaded in {event['load_s']:.1f} s")
            case "PushFailing" | "SaveAbandoned" | "CheckpointRejected":
                say(f"{self.name}: {event}")

    def _new_lines(self, name: str, num_known: int) -> list[str]:
        path = WORK / self.name / name
        text = path.read_text() if path.exists() else ""
        return text[: text.rfind("\n") + 1].splitlines()[num_known:]


runs: list[Run] = []


def wait_until(condition: Callable[[], bool]) -> None:
    """Read what the trainings write until *condition* holds. One that fails meanwhile ends the demo."""
    while True:
        ended = condition()
        for run in runs:
            run.read()
        if ended:
            return
        codes = [run.process.poll() for run in runs]
        for run, code in zip(runs, codes, strict=True):
            if code not in (None, 0, 143, -signal.SIGKILL):
                raise SystemExit(f"{run.name} failed:\n{(WORK / run.name / 'output.txt').read_text()[-3000:]}")
        if None not in codes and not condition():
            raise SystemExit(f"the trainings ended with {codes} before they could be interrupted: see {WORK}")
        if time.monotonic() - started_at > LIMIT_S:
            raise SystemExit(f"not done after {LIMIT_S} s: see {WORK}")
        time.sleep(POLL_S)


def end_all() -> None:
    """Kill what this demo has started."""
    for pid in started():
        with suppress(OSError):
            os.kill(pid, signal.SIGKILL)


def started() -> list[int]:
    """Return the processes of this demo: also the pushers, which have sessions of their own and outlive trainers."""
    mark, found = f"SPOT_DEMO={os.getpid()}".encode(), []
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if mark in (entry / "environ").read_bytes().split(b"\0"):
                found.append(int(entry.name))
    return found


# ------------------------------------------------------------------------------------------------- the verdict
def final_checkpoint(run: Run) -> dict[str, Any]:
    """Return what the last manifest in the bucket says of the state: hashes of tensors, and all the rest."""
    files = fsspec.filesystem("s3")
    manifest = json.loads(files.cat(max(files.glob(f"demo/{run.name}/steps/*/rank-00000-of-00001.json"))))
    state = manifest["state"]
    # The epoch of now is one more if the step was saved at the end of the training and not behind its last batch.
    state["position"].pop("epoch")
    return {"blobs": [blob["xxh3_128"] for blob in manifest["blobs"]], "state": state, "tensors": manifest["tensors"]}


def judge(plain: Run, preempted: Run) -> dict[str, bool]:
    """Compare the two trainings; each line of the answer should be True."""
    seen: list[dict[int, set[tuple[str, str]]]] = []
    for run in (plain, preempted):
        by_step: dict[int, set[tuple[str, str]]] = {}
        for row in run.rows:
            by_step.setdefault(row.step, set()).add((row.loss, row.samples))
        seen.append(by_step)
    weights = [safetensors.numpy.load_file(run.out / "adapter_model.safetensors") for run in (plain, preempted)]
    same_bytes = weights[0].keys() == weights[1].keys() and all(
        weights[0][name].tobytes() == weights[1][name].tobytes() for name in weights[0]
    )
    every_step = set(range(1, NUM_STEPS + 1))
    return {
        f"both trained on all {NUM_STEPS} steps": seen[0].keys() == every_step == seen[1].keys(),
        "loss curves equal, all digits, steps trained twice included": seen[0] == seen[1],
        "final weights equal, bit for bit": same_bytes,
        "last checkpoints equal: optimizer, schedule, random numbers, position in the data": final_checkpoint(plain)
        == final_checkpoint(preempted),
    }


def print_report(plain: Run, preempted: Run, verdict: dict[str, bool]) -> None:
    table: list[tuple[str, Callable[[Kill], str]]] = [
        ("", lambda kill: kill.how),
        ("trained up to step", lambda kill: f"{kill.step}"),
        ("resumed from step", lambda kill: f"{kill.resumed['step']}"),
        ("steps lost", lambda kill: f"{kill.step - kill.resumed['step']}"),
        ("that step: to stage it", lambda kill: seconds(preempted, kill, "Staged", "stall_s")),
        ("           from there to durable", lambda kill: seconds(preempted, kill, "Committed", "push_s")),
        ("           to load it", lambda kill: f"{kill.resumed['load_s']:.2f} s"),
        ("from the signal to the exit", lambda kill: f"{kill.gone_at - kill.sent_at:.1f} s"),
        ("from the new start to a new step", lambda kill: f"{kill.next_step_at - kill.gone_at:.1f} s"),
    ]
    print()
    for title, cell in table:
        print(f"{title:34}" + "".join(f"{cell(kill):>11}" for kill in preempted.kills))
    saves = [event for event in plain.events if event["event"] == "Staged" and event["trigger"] == "steps"]
    stalls = [event["stall_s"] for event in saves]
    print(
        f"\nperiodic saves of the run left alone: {len(saves)} of {saves[-1]['num_bytes'] / 1e6:.0f} MB, median stall "
        f"{1000 * statistics.median(stalls):.0f} ms,\nall of them {100 * sum(stalls) / plain.trained_s:.1f} % of the "
        f"{plain.trained_s:.0f} s that it trained\n"
    )
    for question, answer in verdict.items():
        print(f"  {'yes' if answer else 'NO '}  {question}")


def write_page(run: Run) -> Path:
    """Keep the event log of *run*, and let ``spot report`` make a page of it. Return the page."""
    log = WORK / run.name / "run" / "events"
    deadline = time.monotonic() + 60
    while started() and time.monotonic() < deadline:
        time.sleep(POLL_S)  # a pusher stores the end of the log
    fsspec.filesystem("s3").get(f"demo/{run.name}/events/", f"{log}/", recursive=True)
    page = WORK / "report.html"
    spot = Path(sys.executable).with_name("spot")
    subprocess.run([spot, "report", log.parent, "--html", page], check=True, stdout=subprocess.DEVNULL)
    return page


def seconds(run: Run, kill: Kill, kind: str, name: str) -> str:
    """Return how long it took with the checkpoint that the life behind *kill* went on from."""
    found = [event for event in run.events if event["event"] == kind and event["step"] == kill.resumed["step"]]
    return f"{found[-1][name]:.2f} s" if found else "after it"  # a pusher that outlived its trainer told nobody


# ------------------------------------------------------------------------------------------------- the picture
def draw(plain: Run, preempted: Run, equal: bool, path: Path) -> None:
    """Draw both loss curves on top of each other, and below them how both trainings went on in time."""
    matplotlib.use("Agg")
    pyplot.rcParams.update({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False})
    figure, (above, below) = pyplot.subplots(2, 1, figsize=(9.6, 7.2), height_ratios=(5, 4), layout="constrained")
    figure.suptitle(
        "Preempted, killed, resumed: "
        + ("the same weights, bit for bit, as when left alone" if equal else "NOT the weights of the run left alone"),
        fontweight="bold",
        fontsize=13,
    )
    draw_losses(plain, preempted, above)
    draw_progress(plain, preempted, below)
    figure.savefig(path, dpi=150)


def draw_losses(plain: Run, preempted: Run, axes: Any) -> None:
    def line(rows: list[Row], **style: Any) -> None:
        axes.plot([row.step for row in rows], [float(row.loss) for row in rows], **style)

    lost_steps = {step for kill in preempted.kills for step in range(kill.resumed["step"] + 1, kill.step + 1)}
    line(plain.rows, color=LIGHT, lw=6, label="left alone")
    line([*{row.step: row for row in preempted.rows}.values()], color=DARK, lw=1.5, label="preempted")
    twice = [row for row in preempted.rows if row.step in lost_steps]
    ring = {"marker": "o", "markerfacecolor": "white", "markeredgecolor": LOST, "markeredgewidth": 1.5}
    line(twice, linestyle="none", label="trained twice, the same both times", **ring)
    top = max(float(row.loss) for row in plain.rows)
    for kill in preempted.kills:
        num_lost = kill.step - kill.resumed["step"]
        axes.axvspan(kill.resumed["step"] + 0.5, kill.step + 0.5, color=LOST, alpha=0.12, lw=0)
        axes.axvline(kill.step + 0.5, color=LOST, linestyle="--", lw=1.2)
        fate = f"{num_lost} steps lost" if num_lost else "saved in time, nothing lost"
        axes.annotate(
            f"{kill.how} at step {kill.step}\n{fate}",
            (kill.step + 0.5, top),
            xytext=(-5, 0),
            textcoords="offset points",
            ha="right",
            va="top",
            color=LOST,
        )
    axes.set(xlabel="optimizer step", ylabel="training loss", xlim=(0, NUM_STEPS + 1))
    axes.legend(frameon=False, loc="lower left")


def draw_progress(plain: Run, preempted: Run, axes: Any) -> None:
    begin = min(plain.rows[0].at, preempted.rows[0].at)

    def line(rows: list[Row], **style: Any) -> None:
        axes.plot([row.at - begin for row in rows], [row.step for row in rows], **style)

    lives = [[row for row in preempted.rows if row.life == life + 1] for life in range(preempted.life)]
    line(plain.rows, color=LIGHT, lw=6)
    for rows in lives:
        line(rows, color=DARK, lw=1.5)
    for kill, before, after in zip(preempted.kills, lives, lives[1:], strict=False):
        line([row for row in before if row.step > kill.resumed["step"]], color=LOST, lw=3)
        axes.axvspan(before[-1].at - begin, after[0].at - begin, color=GREY, alpha=0.12, lw=0)
        axes.annotate(
            f"{kill.how}\nnext step after {after[0].at - before[-1].at:.0f} s,\n"
            f"{kill.resumed['load_s']:.1f} s of it loading",
            ((before[-1].at + after[0].at) / 2 - begin, 2),
            ha="center",
            va="bottom",
            color=GREY,
            fontsize=9,
        )
    at = {(row.step, row.life): row.at - begin for row in preempted.rows}
    life, commits = 0, []
    for event in preempted.events:
        life += event["event"] == "AttemptStarted"
        if event["event"] == "Committed":
            commits.append((at[event["step"], life], event["step"]))
    axes.plot(*zip(*commits, strict=True), "o", color=DARK, markersize=5, label="step committed to S3")
    axes.plot([], [], color=LOST, lw=3, label="lost, trained again")
    axes.set(xlabel="seconds since the first step", ylabel="optimizer step", ylim=(0, NUM_STEPS + 4))
    axes.set_xlim(left=0)
    axes.legend(frameon=False, loc="upper left")


def main() -> int:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    shutil.rmtree(WORK, ignore_errors=True)
    STORAGE.mkdir(parents=True)
    set_environment()
    try:
        with s3_server() as access:
            os.environ.update(access)
            fsspec.filesystem("s3").mkdir("demo")
            say(f"an S3 server runs; now two trainings of {NUM_STEPS} steps each, a few minutes")
            return train_and_compare()
    except KeyboardInterrupt:
        return 130
    finally:
        end_all()
        shutil.rmtree(STORAGE, ignore_errors=True)


def set_environment() -> None:
    """Make the environment, which the trainings inherit, the same everywhere."""
    for name in [name for name in os.environ if name.startswith(("AWS_", "SPOT_"))]:
        del os.environ[name]
    os.environ["SPOT_DEMO"] = str(os.getpid())  # end_all() knows by it what is ours
    os.environ["NO_PROXY"] = "127.0.0.1"
    os.environ["ACCELERATE_USE_CPU"] = "true"  # some kernels of GPUs never give the same bits twice
    # Nor do CPUs with another number of threads. Two trainings share the machine, so half of it each.
    os.environ["OMP_NUM_THREADS"] = str(max(1, min(4, (os.cpu_count() or 2) // 2)))


def train_and_compare() -> int:
    plain, preempted = Run("left-alone", is_told=False), Run("preempted", is_told=True)
    runs.extend((plain, preempted))
    for run in runs:
        run.start()

    wait_until(lambda: preempted.step >= SIGTERM_AT)
    preempted.kill(signal.SIGTERM, expect=143)
    preempted.start()
    wait_until(lambda: preempted.step >= SIGKILL_AT and preempted.step - preempted.committed >= SIGKILL_BEHIND)
    preempted.kill(signal.SIGKILL, expect=-signal.SIGKILL)
    preempted.start()
    wait_until(lambda: all(run.process.poll() is not None for run in runs))
    for run in runs:
        if run.process.returncode != 0:
            raise SystemExit(f"{run.name} ended with code {run.process.returncode}: see {WORK / run.name}/output.txt")
    if not all(kill.resumed for kill in preempted.kills):
        raise SystemExit(f"a new life began anew instead of resuming: see {WORK}/preempted/output.txt")

    verdict = judge(plain, preempted)
    print_report(plain, preempted, verdict)
    draw(plain, preempted, all(verdict.values()), WORK / "timeline.png")
    print(f"\npicture: {WORK / 'timeline.png'}\nreport:  {write_page(preempted)}")
    return 0 if all(verdict.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
