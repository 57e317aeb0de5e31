"""The event log of trainings that are killed, told to leave and resumed, as real processes, and the report on it."""

from __future__ import annotations

import os
import signal
import subprocess
import time

import pytest
from event_logs import SPOT, agrees, recount
from hearing import Heard, until, until_gone, until_pushers_end
from launching import exit_codes, launch_ranks, printed
from servers import S3Server
from steps import Holder, numbers, state_of

from spot_plugins.config import SpotConfig
from spot_plugins.eventlog.reading import read_event_log
from spot_plugins.eventlog.records import Heartbeat, TrainerGone
from spot_plugins.events import Committed
from spot_plugins.monitor.figures import Prices, report_of
from spot_plugins.session import SpotSession
from spot_plugins.store import LocalStore, open_store


def life(folder, number, **settings):
    """Start one life of the training."""
    return launch_ranks("recorded_train", folder / str(number), {"config": {"url": str(folder / "run")}, **settings})


def pids_of(folder, number, ranks):
    """Wait until all ranks stand still. Return the ids of trainer and pusher of each."""
    files = [folder / str(number) / f"pids-{rank}" for rank in range(ranks)]
    until(lambda: all(file.exists() for file in files), "all ranks stand still")
    return [tuple(map(int, file.read_text().split())) for file in files]


def heartbeats(store, attempt):
    """Return the steps of the heartbeats of rank 0 that are in the store."""
    return {
        record.entry.step
        for rank in read_event_log(store).ranks
        if (rank.attempt, rank.rank) == (attempt, 0)
        for record in rank.records
        if isinstance(record.entry, Heartbeat)
    }


@pytest.mark.parametrize(("ranks", "kills_pusher"), [(1, False), (2, True)], ids=["trainer", "machine"])
def test_losses_of_a_kill_and_of_a_notice(ranks, kills_pusher, tmp_path):
    """
    Attempt 1 stores step 8 and is killed at step 12, so 4 steps are lost. If the trainer alone is killed, its pusher
    knows that from a heartbeat that it has kept. If the machine is gone, a heartbeat in the store says so. Attempt 2
    gets SIGTERM on one rank, and loses nothing. Attempt 3 finishes.
    """
    store = LocalStore(str(tmp_path / "run"))
    death = "machine" if kills_pusher else "trainer"
    processes = life(tmp_path, 1, ranks=ranks, stop_in=12, goes_on=False, death=death)
    pids = pids_of(tmp_path, 1, ranks)
    if kills_pusher:
        until(lambda: 12 in heartbeats(store, 1), "a heartbeat in the store tells step 12")
    else:
        assert heartbeats(store, 1) == set()
    if kills_pusher:
        for trainer, _ in pids:
            os.kill(trainer, signal.SIGSTOP)  # or it might start another pusher, before it is killed itself
        for _, pusher in pids:
            os.kill(pusher, signal.SIGKILL)
    for trainer, _ in pids:
        os.kill(trainer, signal.SIGKILL)
    assert exit_codes(processes) == [-signal.SIGKILL] * ranks
    for _, pusher in pids:
        until_gone(pusher)

    processes = life(tmp_path, 2, ranks=ranks, stop_in=20, goes_on=False)
    pids = pids_of(tmp_path, 2, ranks)
    os.kill(pids[-1][0], signal.SIGTERM)
    assert exit_codes(processes) == [143] * ranks, printed(tmp_path / "2", ranks)
    for _, pusher in pids:
        until_gone(pusher)
    left_at = numbers(store)[0]
    assert left_at > 20

    processes = life(tmp_path, 3, ranks=ranks, stop_in=left_at + 5)
    assert exit_codes(processes) == [0] * ranks, printed(tmp_path / "3", ranks)
    until(lambda: "finished" in {each.how for each in report(store).attempts}, "the end is put")

    found = report(store)
    assert [each.how for each in found.attempts] == ["killed", "left", "finished"]
    assert [each.lost_steps for each in found.attempts] == [4, 0, 0]
    assert [(each.start_step, each.reached_step) for each in found.attempts] == [
        (0, 12),
        (8, left_at),
        (left_at, left_at + 5),
    ]
    assert [source for _, source in found.attempts[1].notices] == ["SIGTERM"]
    assert all(each.world_size == ranks for each in found.attempts)
    gone = [any(isinstance(r.entry, TrainerGone) for r in rank.records) for rank in read_event_log(store).ranks[:ranks]]
    assert gone == [not kills_pusher] * ranks
    agrees(tmp_path / "run", recount({key: store.get(key) for key in store.keys("events/")}))


def report(store):
    return report_of("run", read_event_log(store), Prices(), time.time())


@pytest.fixture
def url(s3_server):
    return f"{s3_server.create_bucket('event-log')}/run"


def train(url, heard, options=None, num_steps=3, **settings):
    """A training of a few steps, each of which is saved, in this process."""
    config = SpotConfig(url=url, storage_options=options or {}, every_steps=10**6, **settings)
    with SpotSession(config, on_event=heard) as session:
        holder = Holder(state_of(0))
        session.register("part", holder, replicated=("both",))
        session.resume()
        for step in range(1, num_steps + 1):
            holder.state = state_of(step)
            session.after_step(step)
            session.save(step)
            heard.wait(Committed, step=step)
        pusher = session._opened.pusher.pid
        session.finish(num_steps)
    until_gone(pusher)


def test_a_log_in_a_bucket(s3_server, url, tmp_path):
    """On S3: the log has no key and no secret, `spot report` reads it, and the local directory has a copy."""
    options = s3_server.storage_options()
    train(url, Heard(), options, local_dir=str(tmp_path / "local"))
    store = open_store(url, options)
    objects = {key: store.get(key) for key in store.keys("events/")}
    assert list(objects) == ["events/000001-00000-000000.jsonl"]
    assert S3Server.SECRET.encode() not in b"".join(objects.values())
    assert {key: LocalStore(str(tmp_path / "local")).get(key) for key in objects} == objects
    environment = {
        "AWS_ACCESS_KEY_ID": S3Server.KEY,
        "AWS_SECRET_ACCESS_KEY": S3Server.SECRET,
        "AWS_ENDPOINT_URL": s3_server.endpoint_url,
    }
    page = tmp_path / "report.html"
    subprocess.run([*SPOT, "report", url, "--html", str(page)], env={**os.environ, **environment}, check=True)
    assert "3 steps that were kept" in page.read_text()


def test_a_store_that_refuses_the_log_alone(tmp_path, caplog):
    """The training finishes and its steps are stored. One line says what is lost, and so does `spot report`."""
    run = tmp_path / "run"
    run.mkdir()
    (run / "events").write_text("in the way")
    heard = Heard()
    train(str(run), heard)
    until_pushers_end()  # a commit is told before the old steps are removed
    assert numbers(LocalStore(str(run))) == [3, 2]
    assert caplog.text.count("the store takes no event log, so a report will lack this attempt") == 1

    output = subprocess.run([*SPOT, "report", str(run)], capture_output=True, text=True, cwd=tmp_path)
    assert output.returncode == 2
    assert "this run has no event log, though it has had 1 attempts" in output.stderr
    assert not (tmp_path / "report.html").exists()
