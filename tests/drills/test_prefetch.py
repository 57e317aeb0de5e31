"""A restore that begins before the job: what it brings is used, and nothing depends on it."""

from __future__ import annotations

import subprocess
import sys
import uuid
from contextlib import closing
from pathlib import Path

import pytest
import torch
from hearing import Heard
from steps import Holder, assert_same

import spot_plugins
from spot_plugins.config import SpotConfig
from spot_plugins.errors import ConfigError
from spot_plugins.events import Committed, Resumed
from spot_plugins.resume import prefetch
from spot_plugins.session import SpotSession
from spot_plugins.store import LocalStore
from spot_plugins.testing import FaultProxy, run_thread_ranks


@pytest.fixture(scope="session")
def bucket(s3_server):
    return s3_server.create_bucket("prefetch")


@pytest.fixture
def run(bucket, s3_server):
    """The arguments of a run of its own."""
    return {"url": f"{bucket}/{uuid.uuid4().hex}", "storage_options": s3_server.storage_options()}


def state(step):
    generator = torch.Generator().manual_seed(step)
    return {"both": {f"w{number}": torch.randn(3_000_000, generator=generator) for number in range(12)}, "step": step}


def save_on(world_size, run, local_dir, step):
    """Save *step* on so many ranks."""

    def life(ranks):
        heard = Heard()
        config = SpotConfig(every_steps=1, local_dir=str(local_dir), **run)
        with closing(SpotSession(config, ranks=ranks, on_event=[heard])) as session:
            session.register("part", Holder(state(step)), replicated=("both",))
            session.resume()
            session.save(step)
            heard.wait(Committed, step=step)

    run_thread_ranks(world_size, life)


def resume(run, local_dir):
    """Resume on one rank. Return the state and the event."""
    heard = Heard()
    holder = Holder(state(99))
    config = SpotConfig(every_steps=1, local_dir=str(local_dir), **run)
    with closing(SpotSession(config, on_event=[heard])) as session:
        session.register("part", holder, replicated=("both",))
        session.resume()
    (resumed,) = heard.of(Resumed)
    return holder.state, resumed


@pytest.mark.parametrize("world_size", [1, 2])
def test_what_was_brought_is_read_from_the_disk(world_size, run, tmp_path):
    """
    Once it is done the resume reads nothing from the store but manifests, also what other ranks had saved.
    """
    save_on(world_size, run, tmp_path / "first", step=1)
    begun = spot_plugins.prefetch(local_dir=str(tmp_path / "second"), **run)
    begun.join()

    found, resumed = resume(run, tmp_path / "second")

    assert_same(found, state(1))
    assert resumed.from_local_bytes == resumed.num_bytes > 12 * 4 * 3_000_000
    assert begun.num_bytes == pytest.approx(resumed.num_bytes, rel=0.01)


def test_ranks_bring_what_is_theirs(run, tmp_path, monkeypatch):
    """
    Of the blobs of two ranks each rank of a machine brings its own: together all, none twice.
    """
    save_on(2, run, tmp_path / "first", step=1)
    monkeypatch.setenv("WORLD_SIZE", "2")
    brought = {}
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        spot_plugins.prefetch(local_dir=str(tmp_path / rank), **run).join()
        brought[rank] = {Path(key).name for key in LocalStore(str(tmp_path / rank)).keys("steps/")}
    assert all(name.startswith("r00000-") for name in brought["0"])
    assert all(name.startswith("r00001-") for name in brought["1"])
    assert brought["0"]
    assert brought["1"]


def test_a_resume_that_comes_early_reads_the_rest_itself(run, tmp_path):
    """
    It waits for no more than the blobs under way.
    """
    save_on(1, run, tmp_path / "first", step=1)
    begun = spot_plugins.prefetch(local_dir=str(tmp_path / "second"), **run)
    found, _ = resume(run, tmp_path / "second")
    assert not begun.is_alive()
    assert_same(found, state(1))


def test_what_was_brought_is_removed_in_time(run, tmp_path):
    """
    Copies of a job of two ranks do not stay for ever on the disk of a job of one.
    """
    save_on(2, run, tmp_path / "first", step=1)
    local = tmp_path / "second"
    spot_plugins.prefetch(local_dir=str(local), **run).join()
    assert list(local.glob("steps/*1-000001/r00001-*"))
    for step in (2, 3, 4):
        save_on(1, run, local, step)
    assert not list(local.glob("steps/*1-000001/*"))


def test_a_damaged_copy_is_not_used(run, tmp_path):
    """
    What came wrong, or was damaged on the disk, is read from the store.
    """
    save_on(1, run, tmp_path / "first", step=1)
    spot_plugins.prefetch(local_dir=str(tmp_path / "second"), **run).join()
    for path in (tmp_path / "second").glob("steps/*/*.safetensors"):
        path.write_bytes(bytes(path.stat().st_size))
    found, resumed = resume(run, tmp_path / "second")
    assert_same(found, state(1))
    assert resumed.from_local_bytes == 0


def test_it_never_stands_in_the_way(run, s3_server, tmp_path, monkeypatch):
    """
    An empty run, a store that does not answer, a disk without room: nothing is brought, nothing is raised.
    """
    begun = spot_plugins.prefetch(local_dir=str(tmp_path / "empty"), **run)
    begun.join()
    save_on(1, run, tmp_path / "first", step=1)
    with FaultProxy(s3_server.endpoint_url) as proxy, monkeypatch.context() as patch:
        patch.setattr("spot_plugins.store.retry.FIRST_PAUSE_S", 0.01)
        proxy.refuse()
        options = s3_server.storage_options(endpoint_url=proxy.endpoint_url)
        cut_off = spot_plugins.prefetch(run["url"], local_dir=str(tmp_path / "cut"), storage_options=options)
        cut_off.join()
    monkeypatch.setattr(prefetch, "SPARE_BYTES", 10**18)
    full = spot_plugins.prefetch(local_dir=str(tmp_path / "full"), **run)
    full.join()
    assert begun.num_bytes == cut_off.num_bytes == full.num_bytes == 0
    assert spot_plugins.prefetch(str(tmp_path / "a directory")) is None


def test_a_rank_that_is_no_number_is_refused(run, tmp_path, monkeypatch):
    """
    By name of the variable, at once.
    """
    monkeypatch.setenv("RANK", "first")
    with pytest.raises(ConfigError, match="RANK='first'"):
        spot_plugins.prefetch(local_dir=str(tmp_path), **run)


def test_it_needs_no_torch(run, tmp_path):
    """
    A program may begin with it, before anything heavy is imported.
    """
    save_on(1, run, tmp_path / "first", step=1)
    program = (
        "import sys, spot_plugins\n"
        f"begun = spot_plugins.prefetch({run['url']!r}, local_dir={str(tmp_path / 'second')!r}, "
        f"storage_options={run['storage_options']!r})\n"
        "begun.join()\n"
        "print(begun.num_bytes, 'torch' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    num_bytes, has_torch = done.stdout.split()
    assert int(num_bytes) > 12 * 4 * 3_000_000
    assert has_torch == "False"


ENDING = """
import time
import spot_plugins
from spot_plugins.resume import prefetch
prefetch.NUM_GETS = 1
begun = spot_plugins.prefetch({url!r}, local_dir={local_dir!r}, storage_options={options!r})
while begun.is_alive() and not begun.num_bytes:
    time.sleep(0.01)
raise SystemExit(143)
"""


def test_a_program_that_ends_does_not_wait_for_it(run, s3_server, tmp_path):
    """
    An error of the user's own, or a notice at the very start, is not held up by a download that nobody needs any more.
    The process ends with its own code, while a blob is under way.
    """
    save_on(1, run, tmp_path / "first", step=1)
    with FaultProxy(s3_server.endpoint_url) as proxy:
        proxy.slow(80_000_000)
        options = s3_server.storage_options(endpoint_url=proxy.endpoint_url)
        local_dir = str(tmp_path / "second")
        program = ENDING.format(url=run["url"], local_dir=local_dir, options=options)
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)

    assert (done.returncode, done.stderr) == (143, "")
    num_saved = len(list((tmp_path / "first").glob("steps/*/*.safetensors")))
    assert 1 <= len(list(LocalStore(local_dir).keys(""))) < num_saved


def test_the_directory_need_not_be_there(run, tmp_path):
    """
    A machine that is new has none of its parents either; the disk that counts is the one that it is on.
    """
    save_on(1, run, tmp_path / "first", step=1)
    local_dir = tmp_path / "of" / "a" / "new" / "machine"
    begun = spot_plugins.prefetch(local_dir=str(local_dir), **run)
    begun.join()

    _, resumed = resume(run, local_dir)
    assert resumed.from_local_bytes == resumed.num_bytes == begun.num_bytes


def test_what_is_missing_comes_from_the_environment(run, tmp_path, monkeypatch):
    """
    As for the run itself: else the download would go where nobody looks.
    """
    save_on(1, run, tmp_path / "first", step=1)
    monkeypatch.setenv("SPOT_URL", run["url"])
    monkeypatch.setenv("SPOT_LOCAL_DIR", str(tmp_path / "second"))
    begun = spot_plugins.prefetch(storage_options=run["storage_options"])
    begun.join()

    assert list(LocalStore(str(tmp_path / "second")).keys("steps/"))
    monkeypatch.delenv("SPOT_URL")
    with pytest.raises(ConfigError, match="url is missing"):
        spot_plugins.prefetch()
