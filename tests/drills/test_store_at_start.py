"""A store that is not there yet, or for one rank only: waited for, or refused at once, and never in silence."""

from __future__ import annotations

import json
import logging
import os
import signal
import threading
import uuid
from contextlib import suppress

import psutil
import pytest
from hearing import Heard, said, until
from launching import exit_codes, launch_ranks, printed
from metadata import AwsServer
from servers import S3Server
from steps import Holder, numbers, state_of

from spot_plugins.config import SpotConfig
from spot_plugins.errors import ConfigError, StoreError
from spot_plugins.events import Committed, PushFailing
from spot_plugins.session import SpotSession
from spot_plugins.store import open_store, retry
from spot_plugins.testing import FaultProxy

S3FS = {"default_fill_cache": False}  # an option that only s3fs knows, so that it is taken
both_clients = pytest.mark.parametrize("client_options", [{}, S3FS], ids=["obstore", "s3fs"])
WAITS = "waiting for the store, at most"


@pytest.fixture(scope="session")
def bucket(s3_server):
    return s3_server.create_bucket("store-at-start")


@pytest.fixture
def proxy(s3_server):
    with FaultProxy(s3_server.endpoint_url) as proxy:
        yield proxy


@pytest.fixture
def url(bucket):
    return f"{bucket}/{uuid.uuid4().hex}"


@pytest.fixture
def credentials(tmp_path, monkeypatch):
    """A credentials file, which is all that names a key. It is written by calling this with a key."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))

    def write(key):
        text = f"[default]\naws_access_key_id={key}\naws_secret_access_key={S3Server.SECRET}\n"
        (tmp_path / "credentials").write_text(text)

    return write


class Healer(threading.Thread):
    """Calls *heal* once the session has said that it waits."""

    def __init__(self, caplog, heal):
        super().__init__()
        self._caplog = caplog
        self._heal = heal
        self._before = self.num_lines()

    def num_lines(self):
        return sum(WAITS in record.getMessage() for record in self._caplog.records)

    def run(self):
        until(lambda: self.num_lines() > self._before, "the session says that it waits")
        self._heal()

    def __enter__(self):
        self.start()

    def __exit__(self, *_):
        self.join()


def session_at(url, heard=None, **settings):
    session = SpotSession(SpotConfig(url=url, every_steps=1, **settings), on_event=[heard or Heard()])
    session.register("part", Holder(state_of(1)))
    return session


TROUBLES = {
    "refuses": lambda proxy: proxy.refuse(),
    "answers 429": lambda proxy: proxy.fail_with(429),
    "answers 503": lambda proxy: proxy.fail_with(503),
    "the clock is wrong": lambda proxy: proxy.fail_with(403, "RequestTimeTooSkewed"),
    "the key is not known yet": lambda proxy: proxy.fail_with(403, "InvalidAccessKeyId"),
    "the role is not known yet": lambda proxy: proxy.fail_with(403, "AccessDenied"),
}


@both_clients
@pytest.mark.sampled
@pytest.mark.parametrize("trouble", TROUBLES.values(), ids=TROUBLES)
def test_trouble_that_passes_is_waited_for_and_said_at_the_start_and_in_the_resume(
    trouble, client_options, s3_server, url, proxy, caplog
):
    """
    The first try fails in the pusher process, and again in the resume. Each is a line with the service's own words.
    """
    options = {**s3_server.storage_options(endpoint_url=proxy.endpoint_url), **client_options}
    session = session_at(url, storage_options=options)
    try:
        for begin in (session.open, session.resume):
            trouble(proxy)
            with Healer(caplog, proxy.heal):
                begin()
        session.after_step(1)
        session.finish(1)
    finally:
        session.close()

    assert all(record.levelno == logging.WARNING for record in caplog.records if WAITS in record.getMessage())
    assert numbers(open_store(url, s3_server.storage_options())) == [1]


def test_a_key_that_the_service_learns_of_late_is_waited_for(url, proxy, credentials, caplog):
    """The same with a service that checks keys, and with a client that has been refused."""
    credentials("new-key")
    with S3Server("new-key") as knows:
        knows.create_bucket(url.split("/")[2])
        session = session_at(url, storage_options={"endpoint_url": proxy.endpoint_url})
        try:
            with Healer(caplog, lambda: proxy.lead_to(knows.endpoint_url)):
                session.open()
        finally:
            session.close()

    assert "rejects these credentials" in caplog.text


@both_clients
def test_a_metadata_service_that_answers_late_is_waited_for(
    client_options, url, proxy, monkeypatch, tmp_path, caplog, credentials
):
    """No credentials are found at first, because the service of a new machine does not answer yet."""
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "no-config"))
    with AwsServer() as metadata:
        metadata.keys = S3Server.KEY, S3Server.SECRET
        metadata.fault = 404
        monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", metadata.url)
        session = session_at(url, storage_options={"endpoint_url": proxy.endpoint_url, **client_options})
        try:
            with Healer(caplog, lambda: setattr(metadata, "fault", None)):
                session.open()
            session.resume()
        finally:
            session.close()

    assert session.attempt == 1


@both_clients
def test_keys_that_are_renewed_in_the_file_are_read_again(client_options, s3_server, url, proxy, credentials):
    """The service refuses the old key from the middle of the training on. The pusher process reads the file again."""
    credentials(s3_server.KEY)
    heard = Heard()
    session = session_at(url, heard, storage_options={"endpoint_url": proxy.endpoint_url, **client_options})
    with S3Server("renewed-key") as after, session:
        after.create_bucket(url.split("/")[2])
        session.resume()
        session.after_step(1)
        heard.wait(Committed, step=1)
        proxy.lead_to(after.endpoint_url)
        proxy.refuse()
        until(lambda: proxy.num_open == 0, "no connection to the old service is left")
        proxy.heal()
        session.save(2)
        heard.wait(PushFailing, step=2)
        credentials("renewed-key")
        heard.wait(Committed, step=2)
        session.finish(2)

        assert numbers(open_store(url, after.storage_options(key="renewed-key"))) == [2]


def test_a_pusher_process_that_dies_while_it_proves_is_replaced(s3_server, url, proxy, caplog):
    """The proof is made again, by the process that will write."""
    proxy.hang()
    before = {child.pid for child in psutil.Process().children()}
    session = session_at(url, storage_options=s3_server.storage_options(endpoint_url=proxy.endpoint_url))

    def kill():
        until(lambda: proxy.num_open > 0, "the process has asked the store")
        (pusher,) = {child.pid for child in psutil.Process().children()} - before
        os.kill(pusher, signal.SIGKILL)
        proxy.heal()

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        session.open()
    finally:
        killer.join()
        session.close()

    assert "the pusher process ended while it proved the store" in caplog.text


@pytest.mark.parametrize(
    ("trouble", "error", "says"),
    [
        (lambda proxy: proxy.fail_with(403, "SignatureDoesNotMatch"), ConfigError, "Forbidden, says the proxy"),
        (lambda proxy: proxy.fail_with(403, "AccessDenied"), ConfigError, "Forbidden, says the proxy"),
        (lambda proxy: proxy.fail_with(404, "NoSuchBucket"), ConfigError, "the bucket does not exist; create it"),
        (lambda proxy: proxy.refuse(), StoreError, "endpoint"),
    ],
    ids=["wrong secret", "access denied", "no bucket", "refuses"],
)
def test_trouble_that_does_not_pass_is_an_error_with_the_services_sentence(
    trouble, error, says, s3_server, url, proxy, monkeypatch
):
    """Some refusals are final at once, and some after the patience."""
    monkeypatch.setattr(retry, "PATIENCE_S", 1.0)
    monkeypatch.setattr(retry, "SETTLING_S", 1.0)
    trouble(proxy)

    with pytest.raises(error, match=says):
        session_at(url, storage_options=s3_server.storage_options(endpoint_url=proxy.endpoint_url)).open()


# Two ranks


@pytest.fixture
def start(s3_server, url, proxy, tmp_path):
    """Start two ranks, of which the second one reaches the store through *proxy*."""
    started = []

    def start(go=True, **settings):
        config = {"url": url, "every_steps": 1, "storage_options": s3_server.storage_options()}
        if go:
            (tmp_path / "go").touch()
        ranks = launch_ranks(
            "start_train",
            tmp_path,
            {
                "ranks": 2,
                "endpoints": [s3_server.endpoint_url, proxy.endpoint_url],
                "config": {**config, "local_dir": str(tmp_path / "local")},
                **settings,
            },
        )
        started.extend(ranks)
        return ranks

    yield start
    proxy.heal()
    exit_codes(started, 0)


def until_all(name, folder, ranks):
    until(lambda: all((folder / f"{name}-{rank}").exists() for rank in range(2)) or not all_alive(ranks), name)
    assert all_alive(ranks), printed(folder, 2)


def all_alive(ranks):
    return all(each.is_alive() for each in ranks)


@pytest.mark.parametrize("fault", [FaultProxy.refuse, lambda proxy: proxy.fail_with(403, "SignatureDoesNotMatch")])
def test_a_store_that_one_rank_cannot_use_is_refused_for_all(fault, start, proxy, tmp_path):
    """Every rank ends with the same error, which names the rank and the cause. Nothing was trained."""
    fault(proxy)
    ranks = start(patience_s=1.0)
    assert exit_codes(ranks) == [1, 1]

    for text in printed(tmp_path, 2):
        assert "rank 1: " in text
        assert "spot_plugins.errors." in text
    assert not (tmp_path / "open-0").exists()


def test_an_end_that_one_rank_cannot_store_is_an_error_on_all(start, proxy, tmp_path, s3_server, url):
    """
    The store is lost on rank 1 in the middle of the training. Rank 0, whose shares are stored, says meanwhile that
    rank 1 is missing, and names it in the end.
    """
    ranks = start(patience_s=3.0)
    store = open_store(url, s3_server.storage_options())
    until(lambda: numbers(store) == [1] or not all_alive(ranks), "step 1 is visible")
    proxy.refuse()
    (tmp_path / "more").touch()
    assert exit_codes(ranks) == [1, 1], printed(tmp_path, 2)

    for text in printed(tmp_path, 2):
        assert "CommitError: step 3 is not known to be committed: rank 1: the end of the training is not stored" in text
    assert numbers(store) == [1]
    events = [json.loads(line) for line in (tmp_path / "events-0.jsonl").read_text().splitlines()]
    counted = [each for each in events if each["event"] == "SharesCounted" and each["step"] == 2]
    assert [(each["missing_ranks"], each["visible_step"]) for each in counted] == [([1], 1)]


def test_a_notice_in_the_wait_for_the_store_is_obeyed_at_once(start, proxy, tmp_path):
    """Rank 1 waits, and rank 0 waits for rank 1. Both leave with the code of a preemption."""
    proxy.refuse()
    ranks = start()
    until(lambda: WAITS in said(tmp_path / "output-1.txt"), "rank 1 says that it waits")
    os.kill(ranks[1].pid, signal.SIGTERM)
    assert exit_codes(ranks, 20) == [143, 143]
    assert "SIGTERM: leaving at once, because training has not begun" in printed(tmp_path, 2)[1]


def test_a_notice_while_another_rank_waits_is_obeyed_at_once(start, proxy, tmp_path):
    """The rank that has a notice is the one that only waits for the other. That one goes on waiting, with its limit."""
    proxy.refuse()
    ranks = start()
    until(lambda: WAITS in said(tmp_path / "output-1.txt"), "rank 1 says that it waits")
    os.kill(ranks[0].pid, signal.SIGTERM)
    assert exit_codes(ranks[:1], 20) == [143]
    os.kill(ranks[1].pid, signal.SIGTERM)
    assert exit_codes(ranks[1:], 20) == [143]


def test_a_notice_in_the_wait_of_a_resume_is_obeyed_at_once(start, proxy, tmp_path, s3_server):
    """The store was proven, and is lost before anything is read. Rank 1 waits for rank 0, which waits for the store."""
    ranks = start(go=False, endpoints=[proxy.endpoint_url, s3_server.endpoint_url])
    until_all("open", tmp_path, ranks)
    proxy.refuse()
    (tmp_path / "go").touch()
    until(lambda: WAITS in said(tmp_path / "output-0.txt"), "rank 0 says that it waits")
    for each in ranks:
        with suppress(ProcessLookupError):  # the notice of the first one has reached this one, too
            os.kill(each.pid, signal.SIGTERM)
    assert exit_codes(ranks, 20) == [143, 143], printed(tmp_path, 2)
