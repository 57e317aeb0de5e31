"""The surroundings of a process, their notices, and the effect of a launcher; nothing of it asks the network."""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys

import pytest

from spot_plugins.config import SpotConfig
from spot_plugins.launch.launcher import Launcher, elastic_timeout_s
from spot_plugins.notices import look_around

AZURE = {"sys_vendor": "Microsoft Corporation", "chassis_asset_tag": "7783-7084-3265-9085-8269-3286-77"}
AWS = {"sys_vendor": "Amazon EC2", "product_name": "g5.xlarge"}
GCP = {"sys_vendor": "Google", "product_name": "Google Compute Engine"}
EKS = {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """To look around must not open a connection."""

    def refuse(*_):
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture
def look(tmp_path):
    """Look around on a machine with the given variables and firmware."""

    def look(environ=(), firmware=(), *, launcher="", launcher_pid=7, config_file=False, **settings):
        for name, value in dict(firmware).items():
            (tmp_path / name).write_text(f"{value}\n")
        resources = tmp_path / "resourceconfig.json"
        if config_file:
            resources.touch()
        config = SpotConfig(url="x", every_steps=1, **settings)
        return look_around(
            config,
            environ=dict(environ),
            dmi=tmp_path,
            sagemaker_config=resources,
            launcher=Launcher(launcher_pid, launcher.split()),
        )

    return look


@pytest.mark.parametrize(
    ("environ", "firmware", "providers", "sources", "grace_s", "limited_by"),
    [
        ({}, {}, (), (), 30, "grace_seconds"),
        ({}, {"sys_vendor": "QEMU", "product_name": "Standard PC"}, (), (), 30, "grace_seconds"),
        ({}, AWS, ("aws",), ("aws",), 110, "aws"),
        ({}, GCP, ("gcp",), ("gcp",), 30, "grace_seconds"),
        ({}, AZURE, ("azure",), ("azure",), 25, "azure"),
        ({}, {"sys_vendor": "Microsoft Corporation"}, (), (), 30, "grace_seconds"),
        (EKS, AWS, ("kubernetes", "aws"), ("aws",), 30, "grace_seconds"),
        ({"SLURM_JOB_ID": "7"}, {}, ("slurm",), ("slurm",), 30, "grace_seconds"),
        ({"SLURM_JOB_END_TIME": "7"}, AZURE, ("slurm", "azure"), ("slurm", "azure"), 25, "azure"),
        ({"SKYPILOT_TASK_ID": "a"}, AWS, ("skypilot", "aws"), ("aws",), 30, "grace_seconds"),
        ({"DSTACK_RUN_ID": "a"}, {}, ("dstack",), (), 30, "grace_seconds"),
        ({"SM_TRAINING_ENV": "{}"}, AWS, ("sagemaker",), (), 0, "sagemaker"),
        ({"CLOUD_ML_JOB_ID": "7"}, GCP, ("vertex",), (), 0, "vertex"),
        ({"RUNPOD_POD_ID": "a"}, AWS, ("runpod",), (), 0, "runpod"),
        ({"VAST_CONTAINERLABEL": "C.38250"}, GCP, ("vast",), (), 0, "vast"),
        ({"CONTAINER_ID": "38250", "CONTAINER_API_KEY": "k"}, {}, ("vast",), (), 0, "vast"),
        ({"CONTAINER_ID": "38250"}, {}, (), (), 30, "grace_seconds"),
        ({"TRAINING_JOB_NAME": "a"}, {}, (), (), 30, "grace_seconds"),
        ({"AWS_EC2_METADATA_SERVICE_ENDPOINT": "http://x"}, {}, ("aws",), ("aws",), 110, "aws"),
        ({"AWS_EC2_METADATA_SERVICE_ENDPOINT": "http://x"}, AWS, ("aws",), ("aws",), 110, "aws"),
        ({"GCE_METADATA_HOST": "x"}, {}, ("gcp",), ("gcp",), 30, "grace_seconds"),
    ],
)
def test_all_that_matches_is_found(look, environ, firmware, providers, sources, grace_s, limited_by):
    """
    Providers, whom to ask, how much time to plan for, and what limits it.
    """
    found = look(environ, firmware)

    assert (found.providers, found.sources) == (providers, sources)
    assert (found.grace_s, found.limited_by) == (grace_s, limited_by)


def test_sagemaker_by_its_file(look):
    """
    A job's name alone says nothing, with the file of resources it does.
    """
    assert look({"TRAINING_JOB_NAME": "a"}, config_file=True).providers == ("sagemaker",)


@pytest.mark.parametrize("given", [(), ("gcp", "slurm")])
def test_sources_that_are_given_are_those(look, given):
    """
    What is found is still told, but not asked.
    """
    found = look({}, AWS, notice_sources=given)

    assert (found.providers, found.sources) == (("aws",), given)


def test_no_notice_is_said_aloud(look, caplog):
    """
    Where only periodic saves help, a warning says so.
    """
    found = look({"VAST_CONTAINERLABEL": "C.1"})
    found.warn()

    assert found.summary(()) is None

    assert "vast gives no usable notice, so only periodic saves" in caplog.text
    assert caplog.records[0].levelno == logging.WARNING


def test_what_was_found_is_said(look):
    """
    Providers, who is asked, the time to plan for and what limits it.
    """
    assert (
        look(EKS, AWS).summary(("aws", "file"))
        == "runs on kubernetes, aws. Notices come from SIGTERM, aws, file. The grace period is 30 s (grace_seconds)"
    )


@pytest.mark.parametrize("settings", [{"notice_file": "/notice"}, {"notice_sources": ("aws",)}])
def test_whoever_is_told_by_others_has_their_notice(look, settings):
    """
    A place that gives no notice of its own does not take away that of a source of the user's.
    """
    found = look({"VAST_CONTAINERLABEL": "C.1"}, **settings)

    assert (found.providers, found.grace_s, found.limited_by) == (("vast",), 30, "grace_seconds")


ELASTIC = {"TORCHELASTIC_RUN_ID": "none"}


@pytest.mark.parametrize(
    ("environ", "command", "timeout_s"),
    [
        ({"PET_SHUTDOWN_TIMEOUT": "9"}, "python train.py", None),
        (ELASTIC, "torchrun train.py", 30),
        (ELASTIC | {"TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "4"}, "torchrun train.py", 4),
        (ELASTIC | {"TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "9", "PET_SHUTDOWN_TIMEOUT": "3"}, "torchrun train.py", 3),
        (ELASTIC | {"PET_SHUTDOWN_TIMEOUT": "3"}, "torchrun --shutdown-timeout 5 train.py", 5),
        (ELASTIC, "torchrun --shutdown_timeout=120 train.py", 120),
        (ELASTIC | {"PET_SHUTDOWN_TIMEOUT": "soon"}, "torchrun train.py --shutdown-timeout", 30),
    ],
)
def test_the_timeout_of_the_elastic_launcher(environ, command, timeout_s):
    """
    Flag before ``PET_`` before ``TORCH_ELASTIC_`` before 30 s, as torch reads them.
    """
    assert elastic_timeout_s(environ, Launcher(7, command.split())) == timeout_s


@pytest.mark.parametrize(("flags", "timeout_s"), [([], 30.0), (["--shutdown-timeout", "7"], 7.0)])
def test_the_flag_is_read_from_the_real_parent(flags, timeout_s):
    """
    It is not in the environment of what torchrun starts, but in torchrun's own command line.
    """
    child = "import os; from spot_plugins.launch.launcher import *; print(elastic_timeout_s(os.environ, parent()))"
    parent = "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1]], check=True)"
    environ = {**os.environ, **ELASTIC, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", parent, child, *flags], env=environ, capture_output=True, text=True, check=True
    )

    assert float(done.stdout) == timeout_s


def test_a_launcher_that_kills_too_early_is_told_of(look, caplog):
    """
    With what to set; and no more is planned for than it gives.
    """
    found = look(ELASTIC, grace_seconds=120, launcher="torchrun train.py")
    found.warn()

    assert (found.grace_s, found.limited_by, found.signal_grace_s) == (30, "the launcher's timeout", 30)
    (warning,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert "--shutdown-timeout 120" in warning.getMessage()
    assert "TORCH_ELASTIC_SHUTDOWN_TIMEOUT=120" in warning.getMessage()


@pytest.mark.parametrize("grace_s", [20, 30])
def test_a_launcher_that_waits_long_enough_is_not(look, caplog, grace_s):
    """
    The default grace and torchrun's default timeout are the same.
    """
    found = look(ELASTIC, grace_seconds=grace_s)
    found.warn()

    assert found.signal_grace_s == grace_s
    assert not [record for record in caplog.records if record.levelno == logging.WARNING]


@pytest.mark.parametrize(
    ("environ", "is_said"),
    [
        ({"TORCHELASTIC_MAX_RESTARTS": "3", "TORCHELASTIC_USE_AGENT_STORE": "True"}, True),
        ({"TORCHELASTIC_MAX_RESTARTS": "3", "TORCHELASTIC_USE_AGENT_STORE": "False"}, False),
        ({"TORCHELASTIC_MAX_RESTARTS": "0", "TORCHELASTIC_USE_AGENT_STORE": "True"}, False),
    ],
)
def test_a_torchrun_whose_restarts_cannot_work_is_told_of(environ, is_said, look, caplog):
    """
    Its ranks share one store over all their lives; seen with torch 2.13, see test_agents.py.
    """
    look(environ).warn()
    assert ("Start torchrun with --standalone or --rdzv-backend c10d" in caplog.text) == is_said


@pytest.mark.parametrize(
    ("launcher", "pid", "environ", "says"),
    [
        ("/env/bin/python /env/bin/accelerate launch train.py", 7, {}, "spot run -- accelerate launch"),
        ("python3 -m accelerate.commands.launch --cpu train.py", 7, {}, "spot run -- accelerate launch"),
        ("/env/bin/python /env/bin/accelerate-launch --cpu train.py", 7, {}, "spot run -- accelerate launch"),
        ("python -u -X dev -m accelerate.commands.launch train.py", 7, {}, "spot run -- accelerate launch"),
        ("python -m accelerate.commands.accelerate_cli launch train.py", 7, {}, "spot run -- accelerate launch"),
        ("/env/bin/python /env/bin/accelerate launch train.py", 7, ELASTIC, None),
        ("/env/bin/python /env/bin/accelerate launch train.py", 7, {"SPOT_ROSTER": "/tmp/x"}, None),
        ("sh -c python", 1, {}, "exec"),
        (
            "/bin/bash /start.sh",
            1,
            {},
            "process 1 of this container is bash, which does not forward SIGTERM. Begin the last",
        ),
        ("/bin/bash /start.sh", 7, {}, None),
        ("/sbin/init", 1, {}, None),
        ("", 1, {}, None),
        ("python prepare.py accelerate launch", 7, {}, None),
        ("python -m prepare accelerate launch", 7, {}, None),
        ("python /env/bin/accelerate test", 7, {}, None),
        ("python -u", 7, {}, None),
    ],
)
def test_a_launcher_that_passes_nothing_on_is_told_of(launcher, pid, environ, says, look, caplog):
    """
    Once, with what to start it with; not where the launcher passes signals on, nor behind ``spot run``.
    """
    look(environ, launcher=launcher, launcher_pid=pid).warn()

    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == (says is not None)
    assert says is None or says in warnings[0]


BEHIND_SPOT_RUN = {"SPOT_ROSTER": "/tmp/x", "SPOT_RUN_GRACE_SECONDS": "45"}


@pytest.mark.parametrize(
    ("environ", "timeout_s", "says"),
    [
        (BEHIND_SPOT_RUN, 45, "grace_seconds=110, but spot run kills its processes 45 s after a SIGTERM"),
        (BEHIND_SPOT_RUN | ELASTIC | {"TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "45"}, 45, "spot run --grace-seconds 110"),
        (BEHIND_SPOT_RUN | ELASTIC | {"TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "20"}, 20, "only 20 s will be used"),
        (BEHIND_SPOT_RUN | {"SPOT_RUN_GRACE_SECONDS": "110"}, 110, None),
        (BEHIND_SPOT_RUN | ELASTIC | {"SPOT_RUN_GRACE_SECONDS": "110"}, 30, "torchrun with --shutdown-timeout 110"),
    ],
)
def test_spot_run_kills_too(environ, timeout_s, says, look, caplog):
    """
    The shorter of its grace and the elastic launcher's timeout is planned for, and the warning names what to change
    first: spot run's grace, of which torchrun's timeout is made.
    """
    found = look(environ, grace_seconds=110, launcher="torchrun train.py")
    found.warn()

    assert found.signal_grace_s == timeout_s
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == (says is not None)
    assert says is None or says in warnings[0]
