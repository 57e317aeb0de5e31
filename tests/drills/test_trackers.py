"""
The trackers of a Trainer continue one run after a kill and after a notice, and have each step once.

Real trackers in real processes. They are in no extra of this package, because tensorboard changes the default logger of
Lightning. `make legs LEGS=trackers` installs them beside it.
"""

from __future__ import annotations

import json
import os
import struct
import sys

import pytest
import trainer_lives
from exactness import assert_same_training, resumed_steps
from hearing import DEADLINE_S
from launching import PROGRAMS, exit_codes, launch_ranks, start

pytestmark = pytest.mark.soak

TIMES = ("runtime", "per_second", "preparation_time")
"""Ends of the names of what a log has and no two trainings have in common."""

LIVES = [(["batch", 7], "SIGKILL", -9), (["val", 6], "SIGTERM", 143), (None, None, 0)]
"""
A kill in the seventh step, when the fourth one is saved and logged, and its evaluation too. Then a notice in the second
evaluation, that of the eighth step, in a process that has repeated the first one. The last process ends the training.
"""


def train(folder, tracker, lives, **settings):
    """Train in *folder* by *lives*, in processes that end as those of a user do."""
    folder.mkdir(exist_ok=True)
    arguments = {"report_to": [tracker], "logging_steps": 1, "eval_strategy": "steps", "eval_steps": 4}
    settings = {"samples": 21, "batch": 2, "epochs": 2, "every_steps": 4, "trainer": arguments} | settings
    places = {"WANDB_MODE": "offline", "WANDB_DIR": str(folder), **mlflow_in(folder)}
    for at, signal, code in lives:
        interrupted = settings | {"at": at, "signal": signal}
        if tracker == "tensorboard":
            codes = exit_codes(launch_ranks("trainer_train", folder, interrupted))
        else:  # at the end of its Python, it logs what it still has
            command = [sys.executable, str(PROGRAMS / "trainer_train.py")]
            codes = [start(command, folder, interrupted, places).wait(DEADLINE_S)]
        assert set(codes) == {code}, [path.read_text()[-3000:] for path in folder.glob("output*.txt")]


def without_own(curves):
    """Return *curves* without those that differ in any two trainings."""
    return {name: curve for name, curve in curves.items() if not name.endswith(TIMES) and "spot/" not in name}


def assert_continued(tmp_path, tracker, curves, resumed=(4, 8), **settings):
    """Check that the only run of an interrupted training has the *curves* of one that was left alone. Return these."""
    alone, interrupted = tmp_path / "alone", tmp_path / "interrupted"
    train(alone, tracker, LIVES[-1:], **settings)
    train(interrupted, tracker, LIVES, **settings)

    assert resumed_steps(interrupted, 0) == [*resumed]
    assert_same_training(interrupted, alone, settings.get("ranks", 1))
    expected = without_own(curves(alone))
    [loss] = (curve for name, curve in expected.items() if name in ("loss", "train/loss"))
    assert [step for step, _ in loss] == list(range(1, 23))
    assert without_own(curves(interrupted)) == expected
    return expected


def tensorboard_curves(folder):
    """Return what TensorBoard shows of the only run in *folder*: a list of steps and values by name."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    [run] = (folder / "output/runs").iterdir()
    shown = EventAccumulator(str(run), size_guidance={"scalars": 0})
    shown.Reload()
    return {name: [(each.step, each.value) for each in shown.Scalars(name)] for name in shown.Tags()["scalars"]}


def test_tensorboard(tmp_path):
    """All is in one folder. If it was lost with its disk, another process writes it whole."""
    pytest.importorskip("tensorboard")
    expected = assert_continued(tmp_path, "tensorboard", tensorboard_curves)
    lost = tmp_path / "lost"
    train(lost, "tensorboard", LIVES[:1], output="lost")
    train(lost, "tensorboard", LIVES[2:])

    assert without_own(tensorboard_curves(lost)) == expected
    assert os.listdir(lost / "output/runs") == os.listdir(lost / "lost/runs"), "it has the same name"


def test_two_ranks(tmp_path):
    """One of them logs, and continues its folder. A rank sees half of an evaluation, so the notice is in the third."""
    pytest.importorskip("tensorboard")
    assert_continued(tmp_path, "tensorboard", tensorboard_curves, resumed=(4, 12), ranks=2, samples=41)


def wandb_records(path):
    """Yield the records of a file of W&B, which is a log of LevelDB: blocks, and in them pieces of records."""
    from wandb.proto.wandb_internal_pb2 import Record

    block, at, record = 32768, 7, b""
    content = path.read_bytes()
    while at + 7 <= len(content):
        if block - at % block < 7:
            at += block - at % block
            continue
        _, length, kind = struct.unpack_from("<IHB", content, at)
        record += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last piece
            yield Record.FromString(record)
            record = b""


def wandb_rows(folder):
    """Return the rows of the only run in *folder* by their numbers. Each process has written a file of its own."""
    rows, runs = {}, set()
    for path in sorted(folder.glob("wandb/offline-run-*/run-*.wandb")):
        for record in wandb_records(path):
            if record.HasField("run"):
                runs.add(record.run.run_id)
            if record.HasField("history"):
                row = {item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}
                number, row = row["_step"], without_own(row) | {"_timestamp": None}
                assert rows.setdefault(number, row) == row, "the same number, the same row"
    assert len(runs) == 1
    return rows


def test_wandb(tmp_path):
    """
    All is in one run. A step that is trained again has the same row numbers.

    W&B writes in blocks, so the process that is killed may take the rows of the first four steps with it.
    """
    pytest.importorskip("wandb")
    alone, interrupted = tmp_path / "alone", tmp_path / "interrupted"
    train(alone, "wandb", LIVES[-1:])
    train(interrupted, "wandb", LIVES)

    assert resumed_steps(interrupted, 0) == [4, 8]
    assert_same_training(interrupted, alone, 1)
    expected, rows = wandb_rows(alone), wandb_rows(interrupted)
    assert [row["train/global_step"] for row in expected.values() if "train/loss" in row] == list(range(1, 23))
    assert rows == {number: expected[number] for number in rows}
    assert expected.keys() - rows.keys() <= {0, 1, 2, 3}


def mlflow_in(folder):
    return {"MLFLOW_TRACKING_URI": f"file://{folder}/mlflow", "MLFLOW_ALLOW_FILE_STORE": "true"}


def mlflow_curves(folder):
    """Return what the only run in *folder* has: steps and values by name. The trainer logs an epoch twice in a step."""
    from mlflow import MlflowClient

    client = MlflowClient(f"file://{folder}/mlflow")
    [run] = client.search_runs(["0"])
    assert run.info.status == "FINISHED"
    curves = {
        name: [(each.step, each.value) for each in client.get_metric_history(run.info.run_id, name)]
        for name in run.data.metrics
    }
    return {name: sorted(set(curve) if name == "epoch" else curve) for name, curve in curves.items()}


def test_mlflow(tmp_path, monkeypatch):
    """There is one run."""
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    assert_continued(tmp_path, "mlflow", mlflow_curves)


def test_a_run_that_is_lost(tmp_path, monkeypatch):
    """The runs of MLflow were on the disk of another machine. A warning has both runs, and the training continues."""
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    for name, interrupt in (("first", trainer_lives.Interrupt("notice", "train", 5)), ("second", None)):
        mlflow.set_tracking_uri(f"file://{tmp_path}/{name}")
        life = trainer_lives.Life(str(tmp_path / "run"), tmp_path / "output", interrupt, report_to=["mlflow"])
        if interrupt is None:
            with pytest.warns(
                UserWarning,
                match="report_to='mlflow': this process logs to run .* and not to run .*, because .*not found",
            ):
                life.run()
        else:
            life.run()
            mlflow.end_run()

    assert life.spot.resumed_from == 5
    assert life.trainer.state.global_step == 22
    [run] = mlflow.MlflowClient().search_runs(["0"])
    assert run.data.metrics["loss"] > 0


def test_a_run_that_the_program_begins(tmp_path, monkeypatch):
    """It counts more than the one of before."""
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "disabled")
    for name, interrupt in (("first", trainer_lives.Interrupt("notice", "train", 5)), ("second", None)):
        with wandb.init(id=name):
            life = trainer_lives.Life(str(tmp_path / "run"), tmp_path / "output", interrupt, report_to=["wandb"])
            if interrupt is None:
                expected = "logs to run second and not to run first, because the program has begun it"
                with pytest.warns(UserWarning, match=expected):
                    life.run()
            else:
                life.run()

    assert life.spot.resumed_from == 5
