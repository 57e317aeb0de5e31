"""Every source of notices: what it says is right to the second, and no failure of it reaches the training."""

from __future__ import annotations

import json
import logging
import socket
import threading
import time
from contextlib import ExitStack, contextmanager, suppress

import pytest
from hearing import until
from metadata import AwsServer, AzureServer, GcpServer, PageServer
from ports import free_port

from spot_plugins.clock import DRILL_VARIABLE
from spot_plugins.notices import NoticePoller, poller, web
from spot_plugins.notices.aws import AwsSource
from spot_plugins.notices.azure import AzureSource
from spot_plugins.notices.base import MIN_LEFT_S
from spot_plugins.notices.file import FileSource, file_or_page
from spot_plugins.notices.gcp import GcpSource
from spot_plugins.notices.slurm import SlurmSource

GRACE_S = 25.0  # what all of them are told, and told of


class Asked:
    """A source that asks a server, and the server."""

    def __init__(self, server_kind, make):
        self.server_kind = server_kind
        self.make = make

    @contextmanager
    def open(self, tmp_path, **settings):
        with self.server_kind() as server:
            for name, value in settings.items():
                setattr(server, name, value)
            source = self.make(server)
            try:
                yield source, lambda: server.announce(GRACE_S), server
            finally:
                source.close()


class Seen:
    """A source that looks for itself."""

    def __init__(self, make):
        self.make = make

    @contextmanager
    def open(self, tmp_path):
        yield *self.make(tmp_path), None


def file_source(tmp_path):
    path = tmp_path / "notice"
    return FileSource(str(path), 7.0), lambda: path.write_text(json.dumps({"grace_seconds": GRACE_S}))


def slurm_source(tmp_path):
    source = SlurmSource(GRACE_S, end=time.time() + GRACE_S + 0.3)
    return source, lambda: time.sleep(0.3)


ASKED = {
    "aws": Asked(AwsServer, lambda server: AwsSource(server.url)),
    "gcp": Asked(GcpServer, lambda server: GcpSource(GRACE_S, server.address)),
    "azure": Asked(AzureServer, lambda server: AzureSource(server.url, first_answer_s=0.5)),
    "page": Asked(PageServer, lambda server: file_or_page(f"{server.url}/notice", 7.0)),
}
SOURCES = ASKED | {"file": Seen(file_source), "slurm": Seen(slurm_source)}

each_source = pytest.mark.parametrize("name", SOURCES)
each_asked = pytest.mark.parametrize("name", ASKED)
FAULTS = ["malformed", 401, 404, 500, "hang"]


@pytest.fixture(autouse=True)
def a_dead_proxy(monkeypatch):
    """In all of these tests the environment has a proxy, which must not be used."""
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{free_port()}")


@pytest.fixture
def hurried(monkeypatch):
    """All waits are short."""
    monkeypatch.setattr(web, "TIMEOUT_S", 0.2)
    monkeypatch.setattr(poller, "MAX_GAP_S", 0.05)
    monkeypatch.setattr(poller, "MIN_GAP_S", 0.02)


@contextmanager
def watching(*sources):
    """Watch *sources* as a session does. Yields what they announce."""
    announced = []
    watching = NoticePoller(sources, announced.append)
    watching.start()
    try:
        yield announced
    finally:
        watching.close()
        until(lambda: not watch_threads(), "the thread ends")


def watch_threads():
    return [thread for thread in threading.enumerate() if thread.name == "spot-notices"]


def first_announced(source):
    return until(source.poll, "something is announced")


@pytest.fixture
def began():
    """The time at which the test began."""
    return time.monotonic()


def assert_left(announcement, seconds, began, within=1.0):
    """Assert that the deadline is *seconds* after a moment of this test, because a busy machine may take its time."""
    assert began + seconds - within <= announcement.deadline <= time.monotonic() + seconds + within


@each_source
def test_it_is_clear_until_there_is_a_notice_and_its_deadline_is_right(name, tmp_path, began):
    """
    Polls find nothing. Then the end is announced, and the deadline is the true one to the second.
    """
    with SOURCES[name].open(tmp_path) as (source, announce, _):
        assert [source.poll() for _ in range(3)] == [None] * 3
        announce()
        announced = first_announced(source)

        assert announced.kind == "hard"
        assert announced.source == name
        assert_left(announced, GRACE_S, began)


@each_source
def test_the_watch_calls_back_once_and_its_thread_ends(name, tmp_path):
    """
    From one thread that is gone after close(), also while a request hangs on purpose.
    """
    with SOURCES[name].open(tmp_path) as (source, announce, _):
        source.every_s = 3600.0
        with watching(source):
            time.sleep(0.1)
            assert len(watch_threads()) == 1
        source.every_s = 0.02
        with watching(source) as announced:
            announce()
            until(lambda: announced, "a notice")
            time.sleep(0.1)
            assert len(announced) == 1


@each_asked
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_no_notice_and_no_noise_and_passes(name, fault, tmp_path, hurried, caplog):
    """
    While the server is ill nothing is announced and at most one line is logged, for developers. Once it is well, a
    notice is seen.
    """
    caplog.set_level(logging.DEBUG, "spot_plugins")
    with ASKED[name].open(tmp_path, fault=fault) as (source, announce, server), watching(source) as announced:
        source.every_s = 0.02
        until(lambda: len(server.requests) >= 6, "it goes on asking")
        assert announced == []
        assert len(caplog.records) == (0 if fault == 404 and name in ("aws", "page") else 1)
        level = logging.WARNING if (fault, name) == ("malformed", "page") else logging.DEBUG  # somebody asked for it
        assert all(record.levelno == level for record in caplog.records)
        server.fault = None
        with server.changed:
            server.changed.notify_all()
        announce()
        until(lambda: announced, "a notice after the fault")


@each_asked
def test_nobody_listens(name, tmp_path, hurried, caplog):
    """
    Connections are refused: one line for developers, no notice, and a request now and then.
    """
    caplog.set_level(logging.DEBUG, "spot_plugins")
    with ASKED[name].open(tmp_path) as (source, _, _):
        pass
    with watching(source) as announced:
        until(lambda: caplog.records, "the failure is logged")
        time.sleep(0.2)
        assert watch_threads()
    assert announced == []
    (record,) = caplog.records
    assert record.levelno == logging.DEBUG


def test_a_source_that_never_answers_is_told_once(tmp_path, hurried, monkeypatch, caplog):
    """Otherwise a container that cannot reach the metadata service would wait for notices that never come."""
    monkeypatch.setattr(poller, "TOLD_AFTER_S", 0.1)
    with ASKED["aws"].open(tmp_path) as (source, _, _):
        pass
    source.every_s = 0.02
    with watching(source):
        until(lambda: caplog.records, "a warning")
        time.sleep(0.2)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage().startswith("aws has not answered for ")
    assert "so its notices do not reach this training: " in record.getMessage()


@pytest.mark.parametrize("name", ["aws", "azure"])
@pytest.mark.parametrize("ahead_s", [3600.0, -3600.0])
def test_a_wrong_clock_does_not_move_the_deadline(name, ahead_s, tmp_path, began):
    """
    The provider's times are by its own clock, which its answers show.
    """
    with ASKED[name].open(tmp_path, ahead_s=ahead_s) as (source, announce, _):
        announce()
        assert_left(first_announced(source), GRACE_S, began, within=2.0)


@pytest.mark.parametrize("name", ["aws", "azure"])
@pytest.mark.parametrize(("ahead_s", "longest"), [(3600.0, True), (-3600.0, False)])
def test_a_wrong_clock_that_cannot_be_seen_is_bounded(name, ahead_s, longest, tmp_path, began):
    """
    Never more than the provider gives, and never too little to try.
    """
    with ASKED[name].open(tmp_path, ahead_s=ahead_s, has_date=False) as (source, announce, _):
        announce()
        expected = {"aws": 120.0, "azure": 30.0}[name] if longest else MIN_LEFT_S
        assert_left(first_announced(source), expected, began)


@each_source
def test_polling_costs_next_to_nothing(name, tmp_path):
    """
    Less than 0.1 % of a core.
    """
    with SOURCES[name].open(tmp_path) as (source, _, _):
        source.poll()
        costs = []
        for _ in range(10):
            started = time.thread_time()
            source.poll()
            costs.append(time.thread_time() - started)
        assert min(costs) / source.every_s < 0.001


def test_a_source_that_hangs_does_not_keep_the_others(tmp_path, hurried):
    """
    One thread asks all of them, and no request of one holds it up for long.
    """
    with ExitStack() as stack:
        opened = {name: stack.enter_context(case.open(tmp_path)) for name, case in SOURCES.items()}
        for name in ("aws", "azure"):
            opened[name][2].fault = "hang"
        for source, _, _ in opened.values():
            source.every_s = 0.02
        announced = stack.enter_context(watching(*(source for source, _, _ in opened.values())))
        for name, (_, announce, _) in opened.items():
            if name not in ("aws", "azure"):
                announce()
        until(lambda: len(announced) >= 4, "the other notices")
        assert {each.source for each in announced} == {"gcp", "page", "file", "slurm"}


# ---------------------------------------------------------------------------------------------------- AWS


def test_aws_renews_its_token(tmp_path):
    """
    401 means that the token is over: a new one is fetched, and the answer is that of the second try.
    """
    with ASKED["aws"].open(tmp_path) as (source, announce, server):
        assert source.poll() is None
        server.expire()
        assert source.poll() is None
        server.expire()
        announce()
        assert source.poll() is not None
        assert sum(path == "/latest/api/token" for path in server.requests) == 3


def test_aws_without_tokens(tmp_path, began):
    """
    A service of version 1 has none, and is asked without.
    """
    with ASKED["aws"].open(tmp_path, has_tokens=False) as (source, announce, _):
        assert source.poll() is None
        announce()
        assert_left(source.poll(), GRACE_S, began)


def test_aws_rebalance_is_soft_and_said_once(tmp_path):
    """
    A recommendation is announced once; a newer one again; the notice that follows is hard.
    """
    with ASKED["aws"].open(tmp_path, rebalance=time.time()) as (source, announce, server):
        first = source.poll()
        assert (first.kind, first.deadline) == ("soft", None)
        assert source.poll() is None
        server.rebalance += 60
        assert source.poll().kind == "soft"
        announce()
        assert source.poll().kind == "hard"


def test_aws_hibernation_begins_at_once(tmp_path, began):
    """
    Its time is not to be relied on.
    """
    with ASKED["aws"].open(tmp_path, action="hibernate") as (source, announce, _):
        announce()
        assert_left(source.poll(), MIN_LEFT_S, began)


def test_aws_is_found_where_the_environment_says(tmp_path, monkeypatch):
    """
    The variable is that of AWS's own clients.
    """
    with AwsServer() as server:
        monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", f"{server.url}/")
        assert AwsSource().poll() is None
        assert server.requests


def test_an_end_that_is_past_leaves_time_to_try(tmp_path, began):
    """
    EC2 leaves the time of a termination that did not come in the metadata.
    """
    with AwsServer() as server:
        server.announce(-600)
        assert_left(AwsSource(server.url).poll(), MIN_LEFT_S, began)


# ---------------------------------------------------------------------------------------------------- GCP


def test_gcp_hears_of_a_change_at_once(tmp_path, hurried):
    """
    Not with its next look, which is an hour away.
    """
    with ASKED["gcp"].open(tmp_path) as (source, announce, server):
        source.every_s = 3600.0
        with watching(source) as announced:
            until(lambda: any("wait_for_change" in path for path in server.requests), "it waits")
            time.sleep(0.2)
            announce()
            until(lambda: announced, "a notice")


# -------------------------------------------------------------------------------------------------- Azure


def test_azure_waits_long_for_its_first_answer_without_blocking(tmp_path, began):
    """
    It switches the events on. Polls return before it comes, and ask for nothing more.
    """
    with AzureServer() as server:
        server.held = held = threading.Event()
        source = AzureSource(server.url)
        server.announce(GRACE_S)
        assert [source.poll() for _ in range(3)] == [None] * 3
        held.set()
        assert_left(first_announced(source), GRACE_S, began, within=2.0)
        assert sum("scheduledevents" in path for path in server.requests) == 1


@pytest.mark.parametrize(
    "other", [{"names": ("myvm_1", "myvm_2")}, {"event_type": "Freeze"}, {"event_type": "Terminate"}, {"names": ()}]
)
def test_azure_passes_over_what_does_not_concern_it(other, tmp_path):
    """
    Events of other machines of the set, and of other kinds.
    """
    with ASKED["azure"].open(tmp_path, **other) as (source, announce, server):
        announce()
        assert [source.poll() for _ in range(3)] == [None] * 3
        server.names, server.event_type = ("other", "MYVM_0"), "Preempt"
        assert source.poll() is not None


EVENT = "602d9444-d2cd-49c7-8624-8643e7171297"


@pytest.mark.parametrize(
    ("names", "fault", "acknowledged"),
    [
        (("MyVM_0",), None, (EVENT,)),
        (("MyVM_0", "MyVM_1"), None, ()),
        (("MyVM_0",), 400, ()),
        (("MyVM_0",), "hang", ()),
    ],
    ids=str,
)
def test_azure_is_told_that_all_is_saved(names, fault, acknowledged, tmp_path, caplog):
    """
    What concerns this machine alone may begin. A server that refuses, or never answers, does no harm; it costs a
    warning, and is given up.
    """
    heard = []
    with ASKED["azure"].open(tmp_path, names=names) as (source, announce, server):
        watch = NoticePoller([source], heard.append)
        watch.acknowledge()
        watch.start()
        announce()
        until(lambda: heard, "the notice is heard")
        server.fault = fault
        watch.acknowledge()
        watch.close()

        assert server.acknowledged == acknowledged
    assert len(caplog.records) == (fault is not None)
    assert fault is None or "the notice of azure cannot be acknowledged" in caplog.text


def test_azure_an_event_that_has_begun_names_no_time(tmp_path, began):
    """
    Then there is as little time as is planned for.
    """
    with ASKED["azure"].open(tmp_path, started=True) as (source, announce, _):
        announce()
        assert_left(first_announced(source), MIN_LEFT_S, began)


# --------------------------------------------------------------------------------------------------- file


@pytest.mark.parametrize(
    "content", ["", "soon", '{"grace_seconds": "x"}', '{"grace_seconds": NaN}', "[1]", "1" * 400, "[" * 100_000]
)
def test_a_file_with_any_content_is_a_notice(content, tmp_path, began):
    """
    Its grace is that of the settings where it names none.
    """
    source = FileSource(str(tmp_path / "notice"), GRACE_S)
    (tmp_path / "notice").write_text(content)

    assert_left(source.poll(), GRACE_S, began)


def test_a_file_that_is_left_over_is_none(tmp_path, caplog):
    """
    Else a training that is run again would leave at once, for ever. A warning says so; written again it counts.
    """
    (tmp_path / "notice").touch()
    source = FileSource(str(tmp_path / "notice"), GRACE_S)
    assert source.poll() is None
    assert "is there already" in caplog.text

    time.sleep(0.02)
    (tmp_path / "notice").write_text("")
    assert source.poll() is not None


# --------------------------------------------------------------------------------------------------- page


class Page:
    """A server that gives *head* and *body* to whoever asks, and closes the connection."""

    def __init__(self, head, body):
        self._answer = b"\r\n".join([b"HTTP/1.1 200 OK", *head, b"", body])

    def __enter__(self):
        self._server = socket.create_server(("127.0.0.1", 0))
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()
        return f"http://127.0.0.1:{self._server.getsockname()[1]}/notice"

    def __exit__(self, *_):
        self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        self._thread.join()

    def _serve(self):
        with suppress(OSError):
            while True:
                with self._server.accept()[0] as connection:
                    connection.recv(4096)
                    connection.sendall(self._answer)


@pytest.mark.parametrize(
    ("head", "body"),
    [
        ([b"Content-Length: 0"], b""),
        ([b"Content-Length: 1"], b"\n"),
        ([], b'{"grace_seconds": 7}'),
        ([], b'{"grace_seconds": 7.0, "from": "us"}'),
        ([b"Connection: close", b"Content-Length: 100020"], b'{"grace_seconds": 7' + b" " * 100_000 + b"}"),
    ],
    ids=range(5),
)
def test_a_page_that_is_a_notice(head, body, began):
    """Also from a server that closes the connection, as it was asked to, and sends the end of its answer later."""
    with Page(head, body) as url:
        assert_left(file_or_page(url, 7.0).poll(), MIN_LEFT_S, began)


@pytest.mark.parametrize(
    ("head", "body", "heard"),
    [
        ([], b'{"portal": "please log in"}', "please log in"),
        ([], b"<html>Welcome to our network", "Welcome"),
        ([], b'{"grace_seconds": "soon"}', "soon"),
        ([], b'{"grace_seconds": true}', "true"),
        ([], b'{"grace_seconds": 1' + b"0" * 400 + b"}", "1000"),
        ([], b"[" * 100_000, "[[["),
        ([], b"[]", "[]"),
        ([], b"30", "30"),
        ([], b"", "b''"),
        ([b"Content-Length: 30"], b"", "b''"),
        ([b"Transfer-Encoding: chunked"], b"0\r\n\r\n", "b''"),
    ],
    ids=range(11),
)
def test_a_page_that_is_none(head, body, heard, caplog):
    """A captive portal, a proxy, an answer that was cut off. One warning says what was heard."""
    with Page(head, body) as url:
        source = file_or_page(url, 7.0)
        assert [source.poll(), source.poll()] == [None, None]

    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert heard in caplog.text
    assert "the page of notice_file answers " in caplog.text


# -------------------------------------------------------------------------------------------------- SLURM


@pytest.mark.parametrize("end", ["", "never", str(int(time.time()) - 5), str(int(time.time()) + 86400)], ids=range(4))
def test_slurm_without_an_end_that_is_near(end, monkeypatch):
    """
    No end, none that can be read, one of an earlier job, one far away: all is clear.
    """
    monkeypatch.setenv("SLURM_JOB_END_TIME", end)
    assert SlurmSource(GRACE_S).poll() is None


@pytest.mark.parametrize("jump_s", [21600, -21600])
def test_a_clock_that_is_set_does_not_move_the_end_of_a_job(jump_s, tmp_path, monkeypatch, began):
    """
    Neither does a training leave hours early, nor does it miss the end.
    """
    clock = tmp_path / "clock"
    monkeypatch.setenv(DRILL_VARIABLE, str(clock))
    far, near = (SlurmSource(GRACE_S, end=time.time() + left_s) for left_s in (7200, 20))
    clock.write_text(str(jump_s))
    assert far.poll() is None
    assert_left(near.poll(), 20, began, within=1.1)


def test_slurm_with_an_end_that_is_near(monkeypatch, began):
    """
    The deadline is the end of the job.
    """
    monkeypatch.setenv("SLURM_JOB_END_TIME", str(int(time.time()) + 20))
    assert_left(SlurmSource(GRACE_S).poll(), 20, began, within=1.1)
