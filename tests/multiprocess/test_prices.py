"""``spot prices`` as a real process, which speaks TLS with the services of six providers and a catalogue."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from contextlib import contextmanager

import markets
import pytest
import typer
import yaml
from hearing import DEADLINE_S, until
from markets import MarketServer
from monitoring import promtool
from typer.testing import CliRunner

from spot_plugins.cli.prices import prices as prices_verb

SPOT = [sys.executable, "-m", "spot_plugins.cli", "prices"]
FIGURES = ["--bytes", "80GB", "--upload", "1GB", "--step-seconds", "10", "--restart-seconds", "300"]
ROW = {
    **{"provider": "mine", "region": "here", "gpu": "H100", "gpus": 8, "spot_dollars_per_hour": 12.0},
    "answered_at": "2026-11-29T12:00:00Z",
}


@pytest.fixture
def server(tmp_path):
    with MarketServer(tmp_path) as server:
        yield server


@pytest.fixture
def environ(server, tmp_path):
    """The environment of a user with all keys, whose requests go to the server."""
    left = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    own = {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache"), "COLUMNS": "200"}
    return {**left, **own, **server.environ()}


def prices(*words, environ=None):
    return subprocess.run([*SPOT, *words], capture_output=True, text=True, env=environ, timeout=DEADLINE_S)


def test_the_table_has_the_rows_of_all_providers_the_cheapest_first(environ):
    """Prices per GPU and per machine; what is missing is on the other stream; no key is on either."""
    done = prices("--gpu", "h100", "--count", "8", environ=environ)

    assert done.returncode == 0, done.stderr
    head, *lines = done.stdout.splitlines()
    assert head.split()[0] == "$/GPU-H"
    assert [float(line.split()[0]) for line in lines] == sorted(float(line.split()[0]) for line in lines)
    assert lines[0].split()[:5] == ["1.501", "12.01", "25%", "8x", "H100"]
    assert {line.split()[5] for line in lines} == {*markets.HOSTS} - {"catalogue"} | {"oci"}
    assert [line.split()[5] for line in lines].count("aws") == 3, "without those of the catalogue, which are older"
    assert len(lines) == 9
    assert done.stderr == "spot prices: aws: 1 of 3 regions give no prices: ap-east-1 (AuthFailure)\n"
    assert markets.SECRET not in done.stdout + done.stderr


def test_a_user_without_keys_gets_the_prices_of_the_catalogue(environ):
    """The rows of AWS are those of the list, with its age and source, and the lines still say what a key would give."""
    keyless = {name: value for name, value in environ.items() if name not in markets.KEYS}

    done = prices("--gpu", "h100", "--count", "8", environ=keyless | {"AWS_EC2_METADATA_DISABLED": "true"})

    assert done.returncode == 0, done.stderr
    (aws,) = [line for line in done.stdout.splitlines() if " aws " in line]
    assert " us-east-1 " in aws
    assert " listed " in aws
    assert aws.endswith(markets.CATALOGUE)
    assert "spot prices: aws: no credentials, so its offers are left out" in done.stderr


def test_json_has_a_version_and_the_figures_of_useful_hours(environ, server):
    """One that fails is a note; offers without a rate have no useful price unless one is assumed."""
    server.faults[markets.AZURE] = "429"

    done = prices("--gpu", "h100", "--count", "8", "--json", *FIGURES, environ=environ)

    document = json.loads(done.stdout)
    assert (done.returncode, document["version"]) == (0, 1)
    told = {note["provider"]: note["text"] for note in document["notes"]}
    assert told["azure"] == "the provider answers with status 429, and asks to wait 30 s"
    useful = [offer["dollars_per_useful_gpu_hour"] for offer in document["offers"]]
    known = [price for price in useful if price is not None]
    assert useful == [*sorted(known), *[None] * (len(useful) - len(known))]
    assert {offer["provider"] for offer in document["offers"] if offer["dollars_per_useful_gpu_hour"] is None} == {
        "vast",
        "gcp",
        "oci",
    }
    (cached, *_) = json.loads(
        prices(
            "--gpu", "h100", "--count", "8", "--json", *FIGURES, "--interruptions-per-day", "1", environ=environ
        ).stdout
    )["offers"]
    assert cached["provider"] == "vast"
    assert cached["dollars_per_useful_gpu_hour"] > cached["dollars_per_gpu_hour"]
    assert len(server.asked(markets.VAST)) == 1


@pytest.mark.parametrize(("below", "code"), [("1.51", 0), ("1.50", 1)])
def test_the_exit_code_says_whether_an_offer_is_below(below, code, tmp_path):
    """Below, not at the price."""
    path = tmp_path / "offers.json"
    path.write_text(json.dumps([ROW]))

    assert prices("--gpu", "h100", "--from", str(path), "--below", below).returncode == code


def test_no_offer_and_no_answer_are_told_apart(environ, server, tmp_path):
    """1: there is none; 3: nobody knows."""
    path = tmp_path / "offers.json"
    path.write_text("[]")
    none = prices("--gpu", "h100", "--count", "8", "--from", str(path))
    server.faults.update({host: "503" for hosts in markets.HOSTS.values() for host in hosts})
    unknown = prices("--gpu", "h100", "--below", "9", environ=environ)

    assert (none.returncode, none.stderr) == (1, "spot prices: no offer of 8 H100\n")
    assert unknown.returncode == 3
    assert unknown.stderr.count("the provider answers with status 503") == 7
    assert "Traceback" not in unknown.stderr


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "Missing option"),
        (["--gpu", "h1000"], "h1000 is not one of B300, B200,"),
        (["--gpu", "h100", "--count", "0"], "count"),
        (["--gpu", "h100", "--below", "-1"], "-1.0 must be a number above 0"),
        (["--gpu", "h100", "--upload", "1GB"], "it needs --bytes, the size of a checkpoint"),
        (["--gpu", "h100", "--bytes", "80GB"], "it needs --upload, --step-seconds, --restart-seconds as well"),
        (["--gpu", "h100", *FIGURES, "--bytes", "many"], "many must be a number of bytes above 0, such as 80GB"),
        (["--gpu", "h100", "--watch", "10"], "it needs --below PRICE"),
        (["--gpu", "h100", "--notify", "true"], "it needs --watch SECONDS"),
        (["--gpu", "h100", "--watch", "0", "--below", "2"], "must be a number of seconds above 0"),
        (
            ["--gpu", "h100", "--watch", "1", "--below", "2", "--notify", "no-such-program"],
            "is not a command that can be",
        ),
        (
            ["--gpu", "h100", "--textfile", "/no/such"],
            "/no/such is no directory: give that of node_exporter's textfile",
        ),
        (["--gpu", "h100", "--from", "/no/such/file"], "spot prices: /no/such/file cannot be read: No such file"),
    ],
    ids=str,
)
def test_what_cannot_work_is_refused_at_once(words, says):
    """Exit code 2, with the value and the remedy, before anybody is asked. In this process, to save the time."""
    app = typer.Typer(rich_markup_mode=None)
    app.command()(prices_verb)

    done = CliRunner().invoke(app, words, env={"COLUMNS": "200"})

    assert done.exit_code == 2
    assert says in done.stderr
    assert done.exception is None or isinstance(done.exception, SystemExit)


@contextmanager
def watching(*words, environ, program=SPOT):
    """A process of ``spot prices --watch``, which is killed at the end if it is still there."""
    command = [*program, *words]
    process = subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def test_a_watch_tells_a_webhook_and_ends_at_once_on_a_signal(environ, server, tmp_path):
    """One message while the price stays below, in the middle of many rounds; SIGTERM ends with 143."""
    path = tmp_path / "offers.json"
    path.write_text(json.dumps([ROW]))
    words = f"--gpu h100 --from {path} --watch 0.05 --below 1.9 --notify {server.url}/hook".split()
    with watching(*words, environ=environ) as process:
        lines = [process.stdout.readline() for _ in range(3)]
        until(lambda: server.asked(""), "the webhook is told")
        process.send_signal(signal.SIGTERM)
        code = process.wait(DEADLINE_S)

    assert code == 143
    assert "$1.500 per GPU and hour: 8x H100 at mine, here, spot" in lines[0]
    (request,) = server.asked("")
    message = json.loads(request.body)
    assert (message["version"], message["below"], message["offers"][0]["dollars_per_gpu_hour"]) == (1, 1.9, 1.5)


PATIENT_PROGRAM = """
from spot_plugins.cli import main
from spot_plugins.market import vast
object.__setattr__(vast.PROVIDER, "limit_s", 3600.0)  # so that the answer is not given up before the process ends
main()
"""
PATIENT = [sys.executable, "-c", PATIENT_PROGRAM, "prices"]


def test_a_signal_ends_a_watch_that_waits_for_a_provider(environ, server):
    """In the middle of a request that hangs, SIGINT ends with 130, and the process does not wait for its threads."""
    server.faults[markets.VAST] = "hang"
    words = ["--gpu", "h100", "--watch", "1", "--below", "0.1"]
    with watching(*words, environ=environ, program=PATIENT) as process:
        until(lambda: server.asked(markets.VAST), "the provider is asked")
        process.send_signal(signal.SIGINT)
        code = process.wait(DEADLINE_S)

    assert code == 130


def test_the_verbs_of_a_training_do_not_load_the_market():
    """The process of spot run stays small."""
    script = "import sys, spot_plugins.cli.prices, spot_plugins.cli.run; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert not {"torch", "spot_plugins.market", "urllib.request"} & set(done.stdout.split())


def run(*words):
    """Run the verb in this process."""
    app = typer.Typer(rich_markup_mode=None)
    app.command()(prices_verb)
    return CliRunner().invoke(app, words, env={"COLUMNS": "200"})


def test_a_text_file_has_the_offers_and_the_limit(tmp_path):
    """promtool likes it. The cheapest offer with the same labels counts."""
    path = tmp_path / "offers.json"
    path.write_text(
        json.dumps([ROW, {**ROW, "spot_dollars_per_hour": 20.0}, {**ROW, "provider": "other", "live": True}])
    )
    done = run("--gpu", "h100", "--from", str(path), "--below", "2", "--textfile", str(tmp_path))
    assert done.exit_code == 0, done.output
    page = (tmp_path / "spot-offers-H100.prom").read_text()
    assert promtool("check", "metrics", stdin=page) == (0, "")
    labels = 'gpu="H100",instance="-",kind="spot",provider="{}",region="here"'
    for provider, is_live in (("mine", 0), ("other", 1)):
        assert f"spot_offer_dollars_per_gpu_hour{{{labels.format(provider)}}} 1.5\n" in page
        assert f"spot_offer_available{{{labels.format(provider)}}} {is_live}.0\n" in page
    assert 'spot_offer_limit_dollars_per_gpu_hour{gpu="H100"} 2.0\n' in page


def test_a_text_file_that_cannot_be_written_is_told(tmp_path, monkeypatch):
    """The answer on stdout and the exit code stay."""
    path = tmp_path / "offers.json"
    path.write_text(json.dumps([ROW]))
    (tmp_path / "spot-offers-H100.prom").mkdir()
    words = ["--gpu", "h100", "--from", str(path), "--textfile", str(tmp_path)]
    done = run(*words)
    assert done.exit_code == 0
    assert f"spot prices: --textfile {tmp_path} is not written: " in done.output
    monkeypatch.setattr("spot_plugins.cli.prices.find_spec", lambda name: None)
    done = run(*words)
    assert done.exit_code == 2
    assert "it needs the package prometheus_client: pip install" in done.output


@pytest.mark.parametrize("tool", ["skypilot", "dstack"])
def test_candidates_for_a_tool(tool, environ):
    """Those below the price, in the tool's words, and nothing else on the stream; none below is code 1."""
    given = ["--gpu", "h100", "--count", "8", "--emit", tool]
    done = prices(*given, "--below", "2", environ=environ)
    value = yaml.safe_load(done.stdout)

    assert done.returncode == 0, done.stderr
    if tool == "skypilot":
        assert [each["infra"] for each in value["resources"]["ordered"]] == ["vast", "aws/eu-north-1/eu-north-1a"]
    else:
        assert (value["backends"], value["max_price"]) == (["vastai", "aws"], 14.4)
    none = prices(*given, "--below", "0.5", environ=environ)
    assert (none.returncode, none.stdout) == (1, "")
    assert "spot prices: no offer costs less than $0.5 per GPU and hour\n" in none.stderr


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--emit", "slurm", "--count", "8"], "slurm is not one of skypilot, dstack"),
        (["--emit", "dstack"], "it needs --count, the GPUs in one machine"),
        (["--emit", "dstack", "--count", "8", "--json"], "it excludes --json and --watch"),
    ],
)
def test_candidates_that_cannot_be_written(words, says, environ):
    done = prices("--gpu", "h100", *words, environ=environ)

    assert (done.returncode, done.stdout) == (2, "")
    assert says in " ".join(done.stderr.split())
