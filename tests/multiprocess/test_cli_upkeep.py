"""The verbs that look after a run, as real processes: on a folder, on an S3 server, and while a training writes."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from commands import SPOT, spot
from hearing import DEADLINE_S, Heard, until, until_idle
from servers import S3Server, free_ports
from steps import Holder, assert_whole, numbers, save

from spot_plugins.cli import cp, ls, plan, prices, prune, report, show, watch
from spot_plugins.cli import verify as verify_verb
from spot_plugins.config import SpotConfig
from spot_plugins.events import Committed, Kept
from spot_plugins.format.attempts import claim_attempt
from spot_plugins.format.keys import StepId, blob_key, rank_manifest_key
from spot_plugins.session import SpotSession
from spot_plugins.store import LocalStore, open_store
from spot_plugins.upkeep.verify import verify


def train(url, num_steps):
    """A training of one rank that keeps its first step."""
    weights = torch.zeros(2, 3)
    state = {"parameters": {"weight": weights}, "buffers": {}, "extra": {}}
    with SpotSession(SpotConfig(url=url, every_steps=1, keep_last=9), on_event=(heard := Heard())) as session:
        session.register("model", Holder(state), replicated=("parameters",))
        session.resume()
        for step in range(1, num_steps):
            weights += 0.5
            session.after_step(step)
            heard.wait(Committed, step=step)
            until_idle(session)  # or the next save might be put off
        session.keep(1)
        heard.wait(Kept, step=1)
        session.finish(num_steps)


def cells(line):
    return re.split(r"  +", line.strip())


def test_a_run_in_a_folder_is_looked_after(tmp_path):
    """A run of a real session is listed, shown, compared, verified, copied and pruned. No verb imports torch."""
    url, copy = str(tmp_path / "run"), str(tmp_path / "copy")
    train(url, 3)
    profiled = {"PYTHONPROFILEIMPORTTIME": "1"}

    verified = spot("verify", url, **profiled)
    listed = spot("ls", url)
    tensors = spot("show", url, "--step", "2")
    difference = spot("show", url, "--diff", "1", "2", **profiled)
    copied = spot("cp", url, copy, "--all", **profiled)
    planned = spot("prune", url, "--keep-last", "1", **profiled)
    before = numbers(LocalStore(url))
    pruned = spot("prune", url, "--keep-last", "1", "--delete")

    done = (verified, listed, tensors, difference, copied, planned, pruned)
    assert [each.returncode for each in done] == [0] * 7, [each.stderr for each in done]
    for each in (verified, difference, copied, planned):
        assert not re.search(r"\| +torch$", each.stderr, re.MULTILINE)
    assert re.fullmatch(r"step 3 of attempt 1: good, 2 objects, [\d.]+ k?B\n", verified.stdout)
    rows = [cells(line) for line in listed.stdout.splitlines()]
    assert rows[0] == ["STEP", "ATTEMPT", "AGE", "SIZE", "RANKS", "MARKS", "STATE"]
    assert [(row[0], row[4], row[5], row[6]) for row in rows[1:4]] == [
        ("3", "1/1", "newest", "complete"),
        ("2", "1/1", "-", "complete"),
        ("1", "1/1", "kept by program", "complete"),
    ]
    assert listed.stdout.splitlines()[4].startswith("last verified: step 3 at 20")
    assert ["24 B", "F32", "1", "all", "[2, 3]", "model/parameters/weight"] in map(cells, tensors.stdout.splitlines())
    assert "tensor model/parameters/weight: F32[2, 3], 6 elements differ, by 0.5 at most" in difference.stdout
    assert "value fingerprints/step: 1 -> 2" in difference.stdout
    assert numbers(LocalStore(copy)) == [3, 2, 1]
    assert re.search(r"^step 2 of attempt 1: old, [\d.]+ kB$", planned.stdout, re.MULTILINE)
    assert "can be removed: run it again with --delete" in planned.stdout
    assert before == [3, 2, 1]
    assert "removed step 2 of attempt 1" in pruned.stdout
    assert numbers(LocalStore(url)) == [3, 1]
    assert "there is nothing to remove" in spot("prune", url, "--keep-last", "1").stdout


def test_json_has_a_version(tmp_path):
    """Each verb prints one document."""
    url = str(tmp_path / "run")
    claim_attempt(LocalStore(url), b"{}")
    for step in (1, 2):
        save(step, LocalStore(url), state={"t": torch.tensor([float("nan") if step == 2 else 0.0]), "n": step})
    save(3, LocalStore(url), rank=1, world_size=3)

    words = [
        ["ls", url],
        ["show", url],
        ["show", url, "--step", "1"],
        ["show", url, "--diff", "1", "2"],
        ["verify", url],
        ["prune", url, "--keep-last", "1"],
        ["cp", url, str(tmp_path / "copy")],
    ]
    with ThreadPoolExecutor(2) as pool:
        documents = list(pool.map(lambda each: json.loads(spot(*each, "--json").stdout), words))

    assert [each["version"] for each in documents] == [1] * 7
    listed, _, tensors, difference, verified, pruned, copied = documents
    assert [(each["step"], each["is_committed"], each["missing_ranks"]) for each in listed["steps"]] == [
        (3, False, [0, 2]),
        (2, True, []),
        (1, True, []),
    ]
    assert tensors["parts"] == [{"name": "part", "num_tensors": 1, "num_bytes": 4}]
    assert difference["tensors"][0]["max_abs"] == "nan"
    assert difference["values"] == [{"path": "part/n", "rank": 0, "before": 1, "after": 2}]
    assert verified["steps"][0]["state"] == "good"
    assert [each["step"] for each in pruned["steps"]] == [1]
    assert copied["is_good"]


def test_damage_is_named_with_what_to_do(tmp_path):
    """The code is 1, and the step, the object and the reason are in the sentence."""
    url = str(tmp_path / "run")
    save(1, LocalStore(url))
    save(2, LocalStore(url))
    save(3, LocalStore(url), rank=1, world_size=2)
    key = blob_key(StepId(2, 1), 0, 0)
    (tmp_path / "run" / key).write_bytes(b"x")

    verified, listed = spot("verify", url), spot("ls", url)
    pruned, copied = spot("prune", url, "--keep-last", "1"), spot("cp", url, str(tmp_path / "copy"))

    assert (verified.returncode, listed.returncode, pruned.returncode, copied.returncode) == (1, 0, 1, 1)
    assert f"step 2 of attempt 1: damaged: {key} has 1 bytes instead of" in verified.stdout
    assert "restore the older version of each object, or copy it from another copy of the run" in verified.stderr
    assert f"damaged: {key} has 1 bytes instead of" in listed.stdout
    assert "incomplete: no manifest of rank 0" in listed.stdout
    assert "spot prune: step 2 is not intact" in pruned.stderr
    assert "spot cp: step 2 of attempt 1 is damaged, so it was not copied: " in copied.stderr


def test_names_from_a_bucket_send_no_commands_to_a_terminal(tmp_path):
    """Everybody who can write there can name a tensor."""
    save(1, LocalStore(str(tmp_path)), state={"\x1b[2Jevil": torch.ones(1)})

    shown = spot("show", str(tmp_path), "--step", "1")

    assert "?[2Jevil" in shown.stdout
    assert "\x1b" not in shown.stdout


def test_a_run_in_a_bucket_is_looked_after(s3_server, tmp_path):
    """Each verb once, with the credentials and the endpoint of the environment, between a bucket and a folder."""
    url = f"{s3_server.create_bucket('upkeep')}/run-7"
    environ = {
        "AWS_ACCESS_KEY_ID": S3Server.KEY,
        "AWS_SECRET_ACCESS_KEY": S3Server.SECRET,
        "AWS_ENDPOINT_URL": s3_server.endpoint_url,
    }
    store = open_store(url, s3_server.storage_options())
    claim_attempt(store, b"{}")
    for step in (1, 2, 3):
        save(step, store, keep_last=9)
    folder = str(tmp_path / "folder")

    reader = {**environ, "AWS_ACCESS_KEY_ID": S3Server.READER_KEY}
    refused = spot("prune", url, "--keep-last", "1", "--delete", **reader)
    unnoted = spot("verify", url, **reader)
    done = [
        spot("cp", url, folder, "--all", **environ),
        spot("cp", folder, f"{url}-copy", "--all", **environ),
        spot("cp", url, f"{url}-copy", "--all", **environ),
        spot("verify", f"{url}-copy", "--all", **environ),
        spot("show", url, "--diff", "1", "3", **environ),
        spot("prune", url, "--keep-last", "1", "--delete", **environ),
    ]
    store.delete(rank_manifest_key(StepId(3, 1), 0, 1))
    listed = spot("ls", url, **environ)

    assert [each.returncode for each in done] == [0] * 6, [each.stderr for each in done]
    assert done[2].stdout.count("put 0 objects, 0 B; 2 were there") == 3
    assert numbers(open_store(f"{url}-copy", s3_server.storage_options())) == [3, 2, 1]
    assert "tensor part/both/weight: F32[6, 5], 30 elements differ" in done[4].stdout
    assert (refused.returncode, "Traceback" in refused.stderr) == (1, False)
    assert re.search(r"^spot prune: cannot delete 'steps/.*: no permission; these credentials must be", refused.stderr)
    assert unnoted.returncode == 0
    assert "spot verify: the time of this verification could not be stored: " in unnoted.stderr
    assert "incomplete: no rank has stored its manifest" in listed.stdout
    assert S3Server.SECRET not in "".join(each.stdout + each.stderr for each in (*done, refused, unnoted, listed))


def test_a_server_that_is_away_is_an_error(tmp_path):
    """After five tries, in seconds, with a sentence."""
    (port,) = free_ports(1)
    away = spot(
        "ls",
        "s3://bucket/run",
        AWS_ACCESS_KEY_ID="k",
        AWS_SECRET_ACCESS_KEY="spot-test-secret",
        AWS_ENDPOINT_URL=f"http://127.0.0.1:{port}",
    )

    assert away.returncode == 1
    assert re.match(r"spot ls: cannot list 'steps/': .* \(it may work later\)\n", away.stderr)
    assert "Traceback" not in away.stderr
    assert "secret" not in away.stderr


WRITES = """
import sys, threading
import torch
from steps import Holder
from spot_plugins.config import SpotConfig
from spot_plugins.session import SpotSession

ended = threading.Event()
threading.Thread(target=lambda: (sys.stdin.read(), ended.set()), daemon=True).start()
weight = torch.zeros(200_000)
with SpotSession(SpotConfig(url=sys.argv[1], every_steps=1, keep_last=2)) as session:
    session.register("model", Holder({"parameters": {"w": weight}}), replicated=("parameters",))
    session.resume()
    step = 0
    while not ended.wait(0.02):
        step += 1
        weight += 1
        session.after_step(step)
    session.finish(step + 1)
"""


def test_a_training_may_write_meanwhile(tmp_path):
    """Its steps come and go while the verbs read. None is called damaged, and none is lost."""
    url, copy = str(tmp_path / "run"), str(tmp_path / "copy")
    training = subprocess.Popen([sys.executable, "-c", WRITES, url], stdin=subprocess.PIPE)
    try:
        until(lambda: Path(url, "steps").is_dir() and len(numbers(LocalStore(url))) > 1, "it saves steps", training)
        words = [["verify", url], ["verify", url, "--all"], ["ls", url], ["cp", url, copy]]
        words.append(["prune", url, "--keep-last", "1", "--delete"])
        with ThreadPoolExecutor() as pool:
            done = list(pool.map(lambda each: spot(*each), words))
        training.communicate(timeout=DEADLINE_S)
    finally:
        training.kill()
        training.wait()
        training.stdin.close()

    assert training.returncode == 0
    for each in done:
        assert "damaged" not in each.stdout + each.stderr
        assert "not intact" not in each.stderr
        assert "Traceback" not in each.stderr
        assert each.returncode == 0 or "pruned" in each.stderr
    for place in (url, copy):
        assert_whole(LocalStore(place))
        assert not any(step.damages for step in verify(place, every=True).steps)


def test_progress_is_shown_on_a_terminal_alone(tmp_path):
    """A log gets no lines that are drawn again and again."""
    url = str(tmp_path)
    save(1, LocalStore(url))
    leader, follower = pty.openpty()

    subprocess.run([*SPOT, "verify", url], check=True, stderr=follower, stdout=subprocess.DEVNULL)
    os.close(follower)
    drawn = os.read(leader, 1000)
    os.close(leader)

    assert b"verifying step 1: " in drawn
    assert spot("verify", url).stderr == ""


def test_the_shell_completes_verbs():
    """Typer writes the script for each shell; this is what the script calls."""
    done = spot(_SPOT_COMPLETE="complete_bash", COMP_WORDS="spot ver", COMP_CWORD="1")

    assert done.stdout.split() == ["verify"]


@pytest.mark.parametrize("verb", [ls.ls, show.show, verify_verb.verify, prune.prune, cp.cp])
def test_the_help_has_an_example(verb):
    """It can be copied and changed."""
    assert f"Example: spot {verb.__name__} s3://bucket/run-7" in verb.__doc__


@pytest.mark.parametrize("verb", [plan.plan, prices.prices, report.report, watch.watch])
def test_the_help_of_figures_and_prices_has_an_example_and_exit_codes(verb):
    """A script decides by the code."""
    assert re.search(rf"Example: spot {verb.__name__} \S", verb.__doc__)
    assert "The exit code is " in verb.__doc__
