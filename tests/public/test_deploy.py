"""
The files of deploy/ fit to this version: settings, options, exit codes, grace periods and paths are those of today.

The head of each file says by which tool it was validated. Those tools are too heavy to be installed for each test.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from importlib.metadata import metadata
from pathlib import Path
from typing import Any

import botocore.session  # type: ignore[import-untyped]
import pytest
import yaml
from botocore.validate import ParamValidator  # type: ignore[import-untyped]
from commands import spot
from monitoring import promtool
from torch.distributed.run import get_args_parser

from spot_plugins.config import SETTINGS, SpotConfig
from spot_plugins.errors import Preempted
from spot_plugins.monitor.outlets import DEFAULT_PORT
from spot_plugins.notices.surroundings import _PROVIDERS

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
TEXTS = {
    str(path.relative_to(DEPLOY)): path.read_text()
    for path in sorted(DEPLOY.rglob("*"))
    if path.is_file() and path.suffix != ".pyc" and path.name != "README.md"
}
YAMLS = [name for name in TEXTS if name.endswith((".yaml", ".yml"))]
SCRIPTS = [name for name in TEXTS if name.endswith((".sh", ".sbatch"))]

PARTS_OF_COMPOSE = {name for name in TEXTS if name.startswith("compose/") and name != "compose/compose.yaml"}
WITHOUT_SETTINGS = PARTS_OF_COMPOSE | {"docker/Dockerfile", "gcp/create.sh", "azure/create.sh"}

VARIABLE = re.compile(r"\bSPOT_[A-Z_]+\b")
# A shell's NAME=value and NAME="${NAME:-value}", YAML's NAME: value and {name: NAME, value: value}, a dict of Python.
ASSIGNED = re.compile(r'\b(SPOT_[A-Z_]+)(?:=|"?: |, value: )"?(?:\$\{\w+:-)?([^\s"${},]+)')
RUN = re.compile(r"\bspot run((?: +[^\s`]+)*?) +-- +([^`&\n]+)")

each_file = pytest.mark.parametrize("name", TEXTS)


def assigned(name: str) -> dict[str, str]:
    """Return the SPOT_* variables that the file *name* sets, its comments included, and their values."""
    return dict(ASSIGNED.findall(TEXTS[name]))


def commands(name: str) -> list[tuple[str, str]]:
    """Return the options of each ``spot run`` in the file *name*, and its command."""
    one_line = re.sub(r"\\\n\s*", "", TEXTS[name])
    listed = re.sub(r"\[(spot, run,[^\]]*)\]", lambda found: re.sub(r'[",\n]+ *', " ", found[1]), one_line)
    return [(" ".join(options.split()), " ".join(command.split())) for options, command in RUN.findall(listed)]


def documents(name: str) -> list[Any]:
    return list(yaml.safe_load_all(TEXTS[name]))


def values_of(tree: Any, key: str) -> list[Any]:
    """Return all values of *key* in *tree*, at any depth."""
    if isinstance(tree, dict):
        return [value for name, value in tree.items() if name == key] + values_of(list(tree.values()), key)
    return [value for each in tree for value in values_of(each, key)] if isinstance(tree, list) else []


@each_file
def test_the_head_says_what_matters(name: str) -> None:
    """Its first lines say what it costs, what a preemption does, and what was run and what could not be."""
    head = TEXTS[name][:2000]
    places = [head.find(word) for word in ("Costs:", "On a preemption:", "Run:", "Not run:")]
    assert -1 not in places
    assert places == sorted(places)
    assert len(TEXTS[name].splitlines()) <= 80


@each_file
def test_it_is_in_the_index_and_in_a_how_to(name: str) -> None:
    index = (DEPLOY / "README.md").read_text()
    assert f"]({name})" in index
    if name not in PARTS_OF_COMPOSE:
        pages = "".join(page.read_text() for page in ROOT.glob("docs/howto/*.md"))
        assert f"`deploy/{name}`" in pages


def test_what_the_pages_name_is_there() -> None:
    """Each `deploy/...` of a page, and each file of the index, exists."""
    pages = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]
    named = {path for page in pages for path in re.findall(r"`(deploy/[\w./]+)`", page.read_text())}
    assert {path for path in named if not (ROOT / path).exists()} == set()
    assert named >= {"deploy/slurm/train.sbatch", "deploy/kubernetes/job.yaml"}
    linked = re.findall(r"\]\(([^)#]+)\)", (DEPLOY / "README.md").read_text())
    assert [path for path in linked if "://" not in path and not (DEPLOY / path).exists()] == []


@each_file
def test_its_variables_are_settings(name: str) -> None:
    """Each SPOT_* variable is that of a setting, and all of them together are settings that can work."""
    settings = {setting.variable: setting for setting in SETTINGS if setting.kind.parse is not None}
    assert set(VARIABLE.findall(TEXTS[name])) <= settings.keys()
    values = assigned(name)
    given = {settings[each].name: settings[each].kind.parse(text) for each, text in values.items()}
    if name in WITHOUT_SETTINGS:
        assert "SPOT_EVERY_SECONDS" not in values
    else:
        assert "SPOT_URL" in VARIABLE.findall(TEXTS[name])
        assert SpotConfig(**{"url": "s3://bucket/run-7", **given}).every_s == "auto"


def test_the_options_of_spot_run_are_taken() -> None:
    """Each ``spot run OPTIONS --`` of a file runs the command after it."""
    found = {options for name in TEXTS for options, _ in commands(name)}
    assert found == {"", "--grace-seconds 110", "--max-restarts 10"}
    for options in found:
        done = spot("run", *options.split(), "--", "echo", "started")
        assert (done.returncode, done.stdout) == (0, "started\n"), done.stderr


def test_the_verbs_exist() -> None:
    verbs = set(re.findall(r"^## spot (\w+)", (ROOT / "docs/reference/cli.md").read_text(), re.MULTILINE))
    assert {verb for text in TEXTS.values() for verb in re.findall(r"`spot (\w+)", text)} <= verbs


@each_file
def test_the_options_of_torchrun_are_taken(name: str) -> None:
    """torchrun's own parser takes its options, with 1 for what a shell or Kubernetes puts in."""
    for _, command in commands(name):
        words = shlex.split(re.sub(r'"?\$(\([^)]*\)|\w+)"?', "1", command))
        if words[0] == "torchrun":
            assert get_args_parser().parse_args(words[1:]).training_script == "train.py"
        else:
            assert words[:2] == ["python", "train.py"]


def test_each_deployment_runs_spot_run_or_srun() -> None:
    """A file that starts a training starts it so that notices reach it. SageMaker starts the training by itself."""
    started = {name for name in TEXTS if commands(name)}
    assert started == TEXTS.keys() - WITHOUT_SETTINGS - {"aws/sagemaker_spot.py", "compose/compose.yaml"}


@pytest.mark.parametrize("name", YAMLS)
def test_its_grace_period_leaves_two_seconds(name: str) -> None:
    """A process that is killed after N seconds plans with N - 2, and `spot run` with the 110 s that AWS leaves."""
    killed_after = ("terminationGracePeriodSeconds", "stop_grace_period")
    found = [str(each).rstrip("s") for key in killed_after for each in values_of(documents(name), key)]
    for seconds in found:
        assert assigned(name)["SPOT_GRACE_SECONDS"] == str(int(seconds) - 2)
    for options, _ in commands(name):
        if options.startswith("--grace-seconds"):
            assert float(options.split()[1]) == _PROVIDERS["aws"].grace_s
    assert found or name in PARTS_OF_COMPOSE | {"skypilot/train.yaml", "aws/batch.yaml"}


def on_path(folder: Path, **programs: str) -> dict[str, str]:
    """Write each of *programs*, a line of shell, to *folder*, and return an environment that finds them first."""
    for program, line in programs.items():
        (folder / program).write_text(f"#!/bin/sh\n{line}\n")
        (folder / program).chmod(0o755)
    plain = {key: value for key, value in os.environ.items() if not key.startswith("SPOT_")}
    return {**plain, "PATH": f"{folder}:{os.environ['PATH']}"}


def test_the_graces_of_the_vm_script_are_those_of_the_clouds() -> None:
    start, google, azure = (assigned(name) for name in ("vm/start.sh", "gcp/create.sh", "azure/create.sh"))
    assert float(start["SPOT_GRACE_SECONDS"]) == _PROVIDERS["aws"].grace_s
    assert float(azure["SPOT_GRACE_SECONDS"]) == _PROVIDERS["azure"].grace_s
    assert f'{{"seconds": "{google["SPOT_GRACE_SECONDS"]}"}}' in TEXTS["gcp/create.sh"]
    assert google["SPOT_GRACE_SECONDS"] == "120"


def test_google_gets_the_start_script_whole(tmp_path: Path) -> None:
    """The request is JSON, and its startup script is vm/start.sh, with all its quotes and dollars."""
    environment = on_path(tmp_path, curl="cat", gcloud="true") | {"PROJECT": "project", "ZONE": "zone"}
    done = subprocess.run(["bash", DEPLOY / "gcp/create.sh"], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    template = json.loads(done.stdout)["properties"]
    assert template["metadata"]["items"] == [{"key": "startup-script", "value": TEXTS["vm/start.sh"]}]
    assert template["scheduling"]["provisioningModel"] == "SPOT"


def test_all_take_the_exit_code_for_a_preemption() -> None:
    code = Preempted.EXIT_CODE
    for name in ("kubernetes/job.yaml", "kubernetes/jobset.yaml", "kubernetes/trainjob.yaml"):
        assert [rule["values"] for rule in values_of(documents(name), "onExitCodes")] == [[code]]
    assert values_of(documents("skypilot/train.yaml"), "recover_on_exit_codes") == [[code]]
    assert {"onExitCode": str(code), "action": "RETRY"} in values_of(documents("aws/batch.yaml"), "evaluateOnExit")[0]
    assert f'"$code" = {code}' in TEXTS["slurm/train.sbatch"]


@pytest.mark.parametrize(("num_tasks", "ranks"), [("4", ["2 0 4", "3 1 4"]), ("1", ["", ""])])
def test_the_ranks_under_slurm_find_each_other(num_tasks: str, ranks: list[str], tmp_path: Path) -> None:
    """
    torch's variables are set for each of several tasks, and words with spaces arrive whole. A task that is alone needs
    no others, so it does not matter whether the name of its node can be resolved.
    """
    srun = 'for SLURM_PROCID in 2 3; do export SLURM_PROCID SLURM_LOCALID=$((SLURM_PROCID - 2)); "$@" || exit; done'
    environment = on_path(tmp_path, srun=srun, scontrol='[ "$3" = "node[7-8]" ] && printf "node7\nnode8\n"')
    environment |= {"SPOT_URL": "s3://bucket/run", "SLURM_JOB_ID": "123456", "SLURM_NTASKS": num_tasks}
    environment["SLURM_JOB_NODELIST"] = "node[7-8]"
    program = 'echo $RANK $LOCAL_RANK $WORLD_SIZE: "$MASTER_ADDR $MASTER_PORT $1"'
    command = ["bash", DEPLOY / "slurm/train.sbatch", "bash", "-c", program, "training", "two words"]

    done = subprocess.run(command, env=environment, capture_output=True, text=True)

    printed = [f"{rank}: node7 23456 two words" for rank in ranks]
    assert (done.returncode, done.stdout.splitlines()) == (0, printed), done.stderr


def test_skypilot_knows_the_keys_of_job_recovery() -> None:
    """SkyPilot takes others in silence."""
    (recovery,) = values_of(documents("skypilot/train.yaml"), "job_recovery")
    assert recovery.keys() <= {"strategy", "max_restarts_on_errors", "recover_on_exit_codes"}
    assert recovery["strategy"] in {"FAILOVER", "EAGER_NEXT_REGION"}


def test_batch_takes_the_job_definition() -> None:
    """botocore's model of the request has every key, type and required field."""
    model = botocore.session.Session().get_service_model("batch")
    shape = model.operation_model("RegisterJobDefinition").input_shape
    (definition,) = documents("aws/batch.yaml")
    assert ParamValidator().validate(definition, shape).generate_report() == ""


def test_compose_mounts_what_is_there() -> None:
    """Each file that is mounted exists, where the others look for it, and Prometheus reads the training's page."""
    (compose,) = documents("compose/compose.yaml")
    services = compose["services"]
    mounts = {
        target: source
        for service in services.values()
        for source, target, *_ in (volume.split(":") for volume in service["volumes"])
    }
    for target, source in mounts.items():
        assert source in compose["volumes"] or (DEPLOY / "compose" / source).is_file(), target
    (prometheus,) = documents("compose/prometheus.yml")
    assert prometheus["rule_files"] == [next(each for each in mounts if each.endswith("alerts.yaml"))]
    assert values_of(prometheus, "targets") == [[f"trainer:{DEFAULT_PORT}"]]
    (dashboards,) = documents("compose/grafana/dashboards.yaml")
    assert f"{dashboards['providers'][0]['options']['path']}/spot.json" in mounts
    assert f"0.0.0.0:{DEFAULT_PORT}" in TEXTS["compose/compose.yaml"]
    (datasources,) = documents("compose/grafana/datasource.yaml")
    assert "//prometheus:9090" in datasources["datasources"][0]["url"]
    assert {"prometheus", "trainer"} <= services.keys()

    code, printed = promtool("check", "config", "--syntax-only", DEPLOY / "compose/prometheus.yml")
    assert code == 0, printed


def test_the_image_starts_spot_run() -> None:
    lines = dict(re.findall(r"^([A-Z]+) (.+)$", TEXTS["docker/Dockerfile"], re.MULTILINE))
    assert json.loads(lines["ENTRYPOINT"]) == ["spot", "run", "--"]
    assert json.loads(lines["CMD"]) == ["python", "train.py"]
    extras = {
        extra
        for text in TEXTS.values()
        for names in re.findall(r'install.*"\S*\[([\w,]+)\]"', text)
        for extra in names.split(",")
    }
    assert "cli" in extras
    assert extras <= set(metadata("spot_plugins").get_all("Provides-Extra") or [])


@pytest.mark.parametrize("name", SCRIPTS)
def test_bash_reads_the_script(name: str) -> None:
    done = subprocess.run(["bash", "-n", DEPLOY / name], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


PROGRAM = """
from spot_plugins.config import from_environment
config = from_environment()
print(config.local_dir, config.local_dir_survives, config.every_s, config.grace_s, flush=True)
"""
"""The training of the start scripts: it reads its settings, as every host does."""


@pytest.mark.parametrize(
    ("name", "output", "grace_s"), [("vast/onstart.sh", "train.log", 30.0), ("runpod/start.sh", None, 5.0)]
)
def test_a_start_script_starts_the_training(name: str, output: str | None, grace_s: float, tmp_path: Path) -> None:
    """The file as it is runs train.py with settings that can work."""
    (tmp_path / "train.py").write_text(PROGRAM)
    python = shlex.quote(sys.executable)
    environment = on_path(tmp_path, spot=f'exec {python} -m spot_plugins.cli "$@"', python=f'exec {python} "$@"')
    environment["WORKSPACE"] = str(tmp_path)

    done = subprocess.run(["bash", DEPLOY / name], env=environment, capture_output=True, text=True)

    printed = done.stdout if output is None else (tmp_path / output).read_text()
    assert (done.returncode, printed) == (0, f"/workspace/spot True auto {grace_s}\n"), done.stderr
