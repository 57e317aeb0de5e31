"""Each verb that looks after a run, in a folder and in a bucket: sound, damaged, written to, and not to be deleted."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

import botocore.session
import pytest
import torch
from commands import SPOT, spot
from hearing import DEADLINE_S, until
from sandbox import in_user_namespace
from servers import S3Server
from steps import Holder, assert_whole, numbers, save
from stored_models import of_each_host

from spot_plugins.cli import main
from spot_plugins.format.attempts import claim_attempt
from spot_plugins.format.commit import merge_manifests
from spot_plugins.format.keys import VERIFIED_KEY, StepId, blob_key, rank_manifest_key
from spot_plugins.state.registry import Registry
from spot_plugins.store import open_store
from spot_plugins.testing import FaultProxy
from spot_plugins.upkeep.tensors import TensorId, open_step
from spot_plugins.upkeep.verify import verify

NEWEST = StepId(3, 1)
WEIGHT = "model-0/parameters/w"

EXPORTS = {"safetensors": 0, "pt": 0, "hf": 0, "dcp": 0, "lightning": 0, "accelerate": 3}
"""The formats of an export, and the number of lines on what each leaves out of this run."""


@dataclass
class Place:
    """A run of three steps of two ranks, and a place for a copy."""

    url: str
    copy: str
    bucket: str | None

    @property
    def store(self):
        return open_store(self.url)

    def objects(self):
        """Return the bytes of each object of the run, but for the note of a verification."""
        return {key: self.store.get(key) for key in self.store.keys("") if key != VERIFIED_KEY}


@pytest.fixture(params=["folder", "bucket"])
def place(request, tmp_path, monkeypatch):
    if request.param == "folder":
        found = Place(str(tmp_path / "run"), str(tmp_path / "copy"), None)
    else:
        server = request.getfixturevalue("s3_server")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", S3Server.KEY)
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", S3Server.SECRET)
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.endpoint_url)
        bucket = server.create_bucket(f"verbs-{os.urandom(4).hex()}")
        found = Place(f"{bucket}/run", f"{bucket}/copy", bucket.removeprefix("s3://"))
    claim_attempt(found.store, b"{}")
    for step in (1, 2, 3):
        for rank in (0, 1):
            parts = Registry()
            weight = torch.full((64,), float(step))
            parts.add("model-0", Holder({"parameters": {"w": weight}, "buffers": {}, "extra": {}}), ("parameters",))
            parts.add("own", Holder({"rng": torch.full((3,), 10 * step + rank)}))
            for name, state in of_each_host().items():
                parts.add(name, Holder(state))
            save(step, found.store, rank=rank, world_size=2, keep_last=9, parts=parts)
        merge_manifests(found.store, StepId(step, 1), 2)
    return found


def exports_of(url, folder):
    """Return the words of an export in each format, by a name for it. It writes to the format's name in *folder*."""
    (folder / "config").mkdir(exist_ok=True)
    (folder / "config/config.json").write_text("{}")
    config = {"hf": ["--config", str(folder / "config")]}
    return {
        f"export {kind}": ["export", url, str(folder / kind), "--format", kind, *config.get(kind, [])]
        for kind in EXPORTS
    }


def words_of(place, folder):
    """Return the words of each command, by a name for it. Those that may change something come last."""
    url = place.url
    return {
        "ls": ["ls", url],
        "show": ["show", url],
        "show --step": ["show", url, "--step", "3"],
        "show --diff": ["show", url, "--diff", "2", "3"],
        "verify": ["verify", url, "--all"],
        **exports_of(url, folder),
        "cp": ["cp", url, place.copy],
        "prune": ["prune", url, "--keep-last", "2"],
        "prune --delete": ["prune", url, "--keep-last", "2", "--delete"],
    }


def weight_key(store):
    """Return the key of the blob that has the weight in the newest step."""
    ((manifest, piece), *_) = open_step(store, 3).tensors[TensorId(WEIGHT, None)].pieces
    return manifest.blobs[piece.blob].key


def change_byte(store, key, place=-1):
    data = bytearray(store.get(key))
    data[place] ^= 1
    store.put(key, bytes(data))


def change_weight(store):
    key = weight_key(store)
    change_byte(store, key, store.get(key).index(torch.full((9,), 3.0).numpy().tobytes()))  # a rank has some rows


CONDITIONS = {
    "sound": lambda store: None,
    "damaged byte": change_weight,
    "damaged manifest": lambda store: change_byte(store, rank_manifest_key(NEWEST, 1, 2)),
    "missing blob": lambda store: store.delete(weight_key(store)),
    "missing manifest": lambda store: store.delete(rank_manifest_key(NEWEST, 1, 2)),
}

HASH = "has changed since it was written: its hash differs"


def exports(expected):
    """Return what an export prints, for each format."""
    return {f"export {kind}": expected for kind in EXPORTS}


# What each command prints, after its code if that is not 0.
EXPECTED = {
    "sound": {
        "ls": "complete",
        "show": "3  ",
        "show --step": WEIGHT,
        "show --diff": "64 elements differ, by 1 at most",
        "verify": "step 3 of attempt 1: good, 4 objects",
        **exports("wrote 1 tensors of step 3 to"),
        "cp": "step 3 of attempt 1: put",
        "prune": "can be removed: run it again with --delete",
        "prune --delete": "removed step 1 of attempt 1",
    },
}
KEEPS_OLDER = "Nothing is removed, because an older step may be needed"
EXPECTED["damaged byte"] = {
    **EXPECTED["sound"],
    "prune --delete": (1, KEEPS_OLDER),
    "show --diff": (1, HASH),
    "verify": (1, HASH),
    **exports((1, HASH)),
    "cp": (1, f"spot cp: step 3 of attempt 1 is damaged, so it was not copied: {NEWEST.prefix}"),
}
EXPECTED["missing blob"] = {
    **EXPECTED["sound"],
    "ls": "damaged: steps/",
    "show --diff": (1, "is gone"),
    "verify": (1, "is gone"),
    **exports((1, "is gone")),
    "cp": (1, "is gone"),
    "prune": (1, "spot prune: step 3 is not intact: steps/"),
    "prune --delete": (1, KEEPS_OLDER),
}
EXPECTED["damaged manifest"] = {
    **EXPECTED["sound"],
    "prune --delete": (1, KEEPS_OLDER),
    "show --step": (1, "rank-00001-of-00002.json is damaged: "),
    "show --diff": (1, "rank-00001-of-00002.json is damaged: "),
    "verify": (1, "rank-00001-of-00002.json is damaged: "),
    "cp": (1, "rank-00001-of-00002.json is damaged: "),
}
EXPECTED["missing manifest"] = {
    **EXPECTED["sound"],
    "ls": "incomplete: no manifest of rank 1",
    "show": "2  ",
    "show --step": (2, "step=3 is not among the committed steps, which are: 2, 1"),
    "show --diff": (2, "step=3 is not among the committed steps, which are: 2, 1"),
    "verify": "step 2 of attempt 1: good",
    **exports("wrote 1 tensors of step 2 to"),
    "cp": "step 2 of attempt 1: put",
    "prune": "there is nothing to remove",
    "prune --delete": "there is nothing to remove",
}
GOOD_STEPS = {
    "sound": [3, 2],
    "damaged byte": [2, 1],
    "missing blob": [2, 1],
    "damaged manifest": [2, 1],
    "missing manifest": [2, 1],
}
"""The steps that are left in the end, and good."""


def assert_told(name, done, expected):
    """Fail unless the process has ended with its code, its words, and one sentence for an error."""
    code, text = expected if isinstance(expected, tuple) else (0, expected)
    told = f"{name}: {done}"
    assert done.returncode == code, told
    assert text in done.stdout + done.stderr, told
    assert "Traceback" not in done.stderr, told
    assert S3Server.SECRET not in done.stdout + done.stderr, told
    assert len(done.stderr.splitlines()) == (1 if code else EXPORTS.get(name.removeprefix("export "), 0)), told


@pytest.fixture
def here(monkeypatch, capsys):
    """Return a verb's result as :func:`commands.spot` does, from this process, which has imported all that it needs."""

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["spot", *words])
        with pytest.raises(SystemExit) as ended:
            main()
        printed = capsys.readouterr()
        return subprocess.CompletedProcess(words, ended.value.code or 0, printed.out, printed.err)

    return run


# In a bucket each client costs half a second.
@pytest.mark.parametrize(
    ("place", "condition"),
    [
        *(("folder", condition) for condition in CONDITIONS),
        ("bucket", "damaged byte"),
        *(pytest.param("bucket", each, marks=pytest.mark.soak) for each in CONDITIONS if each != "damaged byte"),
    ],
    indirect=["place"],
)
def test_each_verb_says_what_is_wrong_and_loses_nothing(condition, place, here, tmp_path):
    """With its code and one sentence. Only a pruning of a sound run removes something, and nothing is half written."""
    CONDITIONS[condition](place.store)
    before = place.objects()

    for name, words in words_of(place, tmp_path).items():
        assert_told(name, here(*words), EXPECTED[condition][name])
        if name != "prune --delete":
            assert place.objects() == before, name

    is_copied = not isinstance(EXPECTED[condition]["cp"], tuple)
    assert bool(numbers(open_store(place.copy))) == is_copied
    assert not is_copied or verify(place.copy).is_good
    for kind in EXPORTS:
        assert (tmp_path / kind).exists() == (not isinstance(EXPECTED[condition][f"export {kind}"], tuple)), kind
    assert not list(tmp_path.glob("*.tmp"))
    good = [each.step_id.step for each in verify(place.url, every=True).steps if not each.damages]
    assert good == GOOD_STEPS[condition]


def forbid_to_delete(place):
    """Return the variables with which a process may read and put, but not delete."""
    if place.bucket is None:
        for path in Path(place.url).glob("steps/*"):
            path.chmod(0o555)
        return {}
    resources = [f"arn:aws:s3:::{place.bucket}", f"arn:aws:s3:::{place.bucket}/*"]
    allow = {"Effect": "Allow", "Principal": "*", "Action": ["s3:*"], "Resource": resources}
    deny = {**allow, "Effect": "Deny", "Action": ["s3:DeleteObject"], "Resource": resources[1:]}
    client = botocore.session.get_session().create_client(
        "s3", endpoint_url=os.environ["AWS_ENDPOINT_URL"], region_name="us-east-1"
    )
    with closing(client):
        policy = json.dumps({"Version": "2012-10-17", "Statement": [allow, deny]})
        client.put_bucket_policy(Bucket=place.bucket, Policy=policy)
    return {"AWS_ACCESS_KEY_ID": S3Server.READER_KEY}


def confined(place, *words, **environ):
    """Run a verb as a process whose user may not delete."""
    command = [*SPOT, *words] if place.bucket is not None else in_user_namespace([*SPOT, *words])
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environ})


@pytest.mark.parametrize("place", ["bucket", pytest.param("folder", marks=pytest.mark.soak)], indirect=True)
def test_a_pruning_without_permission_to_delete_removes_nothing(place):
    """It says which object, and why. The list of what can be removed needs no permission."""
    environ = forbid_to_delete(place)
    before = place.objects()

    planned = confined(place, "prune", place.url, "--keep-last", "1", **environ)
    refused = confined(place, "prune", place.url, "--keep-last", "1", "--delete", **environ)

    assert_told("prune", planned, "can be removed: run it again with --delete")
    assert refused.returncode == 1
    assert refused.stderr.startswith("spot prune: cannot delete 'steps/0000000001-000001/rank-0000")
    assert ": no permission; " in refused.stderr
    assert len(refused.stderr.splitlines()) == 1
    assert place.objects() == before


@pytest.mark.soak
def test_no_other_verb_needs_permission_to_delete(place, tmp_path):
    """As real processes. A verification stores its note, and a copy has all that it has."""
    environ = forbid_to_delete(place)
    before = place.objects()
    for name, words in words_of(place, tmp_path).items():
        if name != "prune --delete":
            assert_told(name, confined(place, *words, **environ), EXPECTED["sound"][name])

    assert place.objects() == before
    assert place.store.get(VERIFIED_KEY)
    assert all((tmp_path / kind).exists() for kind in EXPORTS)
    assert verify(place.copy).is_good


KILLED = """
import os, signal, sys, time
from pathlib import Path
from spot_plugins.cli import main
from spot_plugins.upkeep import known_good, verify

known_good.SETTLED_S = 0.0
key, cache = sys.argv.pop(1), Path(os.environ["XDG_CACHE_HOME"])
read_blob = verify.read_blob

def read(store, named):
    if named.blob.key == key:
        while sum(each.read_bytes().count(b"]") for each in cache.rglob("*.jsonl")) < 3:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGKILL)
    return read_blob(store, named)

verify.read_blob = read
main()
"""


@pytest.mark.soak
def test_a_verification_that_is_killed_is_continued(place, tmp_path, monkeypatch):
    """The next one asks the store for the rest alone, and says so. The one after asks for all."""
    sizes = [len(place.store.get(blob_key(StepId(step, 1), rank, 0))) for step, rank in ((3, 0), (3, 1), (2, 0))]
    with ExitStack() as stack:
        proxy = None
        if place.bucket is not None:
            proxy = stack.enter_context(FaultProxy(os.environ["AWS_ENDPOINT_URL"]))
            monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint_url)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

        def run(key):
            before = (proxy.num_requests, proxy.num_returned) if proxy else (0, 0)
            words = [sys.executable, "-c", KILLED, key, "verify", place.url, "--all", "--json"]
            done = subprocess.run(words, capture_output=True, text=True, timeout=DEADLINE_S)
            return done, (proxy.num_requests - before[0], proxy.num_returned - before[1]) if proxy else before

        killed, _ = run(blob_key(StepId(2, 1), 1, 0))  # the fourth
        continued, rest = run("none")
        whole, everything = run("none")

    assert killed.returncode == -signal.SIGKILL, killed
    steps = json.loads(continued.stdout)["steps"]
    assert [each["num_bytes_before"] for each in steps] == [sum(sizes[:2]), sizes[2], 0]
    assert [each["num_bytes_before"] for each in json.loads(whole.stdout)["steps"]] == [0, 0, 0]
    if proxy is not None:
        assert everything[0] - rest[0] == 3
        assert everything[1] - rest[1] > sum(sizes)


WRITES = """
import sys, threading
import torch
from steps import Holder
from stored_models import of_each_host
from spot_plugins.config import SpotConfig
from spot_plugins.session import SpotSession

ended = threading.Event()
threading.Thread(target=lambda: (sys.stdin.read(), ended.set()), daemon=True).start()
state = {"parameters": {"w": torch.zeros(200_000)}, "buffers": {}, "extra": {}}
with SpotSession(SpotConfig(url=sys.argv[1], every_steps=1, keep_last=2)) as session:
    session.register("model-0", Holder(state), replicated=("parameters",))
    for name, part in of_each_host().items():
        session.register(name, Holder(part))
    step = session.resume() or 0
    while not ended.wait(0.02):
        step += 1
        state["parameters"]["w"] += 1
        session.after_step(step)
    session.finish(step + 1)
"""


@pytest.mark.soak
def test_each_verb_while_a_training_writes(place, tmp_path):
    """Steps come and go. None is called damaged, none is half read, and the training loses nothing."""
    url = f"{place.url}-written"
    words = {
        "ls": ["ls", url],
        "show": ["show", url],
        "verify": ["verify", url],
        "verify --all": ["verify", url, "--all"],
        "cp": ["cp", url, place.copy],
        "cp --all": ["cp", url, place.copy, "--all"],
        "prune --delete": ["prune", url, "--keep-last", "1", "--delete"],
    }
    training = subprocess.Popen([sys.executable, "-c", WRITES, url], stdin=subprocess.PIPE)
    try:
        until(lambda: len(numbers(open_store(url))) > 1, "it saves steps", training)
        for number in range(3):
            newest, older = numbers(open_store(url))[:2]
            words["show --step"] = ["show", url, "--step", str(newest)]
            words["show --diff"] = ["show", url, "--diff", str(older), str(newest)]
            (folder := tmp_path / str(number)).mkdir()
            for name, each in {**words, **exports_of(url, folder)}.items():
                done = spot(*each)
                told = f"{name}: {done}"
                assert "damaged" not in done.stdout + done.stderr, told
                assert "not intact" not in done.stderr, told
                assert "Traceback" not in done.stderr, told
                lines = done.stderr.splitlines()
                assert all(line.startswith((f"spot {each[0]}: ", "Nothing was verified")) for line in lines), told
                gone = "pruned" in done.stderr or "is not among the committed steps" in done.stderr
                assert done.returncode == 0 or gone, told
                assert not name.startswith("export") or Path(each[2]).exists() == (done.returncode == 0), told
                assert training.poll() is None
        training.communicate(timeout=DEADLINE_S)
    finally:
        training.kill()
        training.wait()
        training.stdin.close()

    assert training.returncode == 0
    assert not list(tmp_path.glob("*/*.tmp"))
    for each in (url, place.copy):
        assert_whole(open_store(each))
        assert not any(step.damages for step in verify(each, every=True).steps)
