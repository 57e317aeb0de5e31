"""Each fault of the proxy as a client meets it, and the page that documents it."""

from __future__ import annotations

import http.client
import re
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from hearing import DEADLINE_S, until

from spot_plugins.testing import FaultProxy

PAGE = Path(__file__).parents[3] / "docs/howto/testing.md"
ANSWER = b"x" * 1000


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.server.num_served += 1
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.server.answer)))
        self.end_headers()
        self.wfile.write(self.server.answer)

    def log_message(self, *words):
        pass


def serve(answer=ANSWER):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.answer, server.num_served = answer, 0
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    return server


def end(server):
    server.shutdown()
    server.server_close()


def url_of(server):
    return f"http://127.0.0.1:{server.server_address[1]}"


@pytest.fixture
def server():
    server = serve()
    yield server
    end(server)


@pytest.fixture
def proxy(server):
    with FaultProxy(url_of(server)) as proxy:
        yield proxy


@pytest.fixture
def client(proxy):
    connection = http.client.HTTPConnection(*proxy._listener.getsockname(), timeout=DEADLINE_S)
    yield connection
    connection.close()


def get(client, method="GET"):
    client.request(method, "/key")
    answer = client.getresponse()
    return answer.status, answer.read()


def test_it_passes_everything_on_at_first(server, proxy, client):
    """And counts it, over one connection that stays open."""
    assert [get(client), get(client)] == [(200, ANSWER)] * 2

    assert (server.num_served, proxy.num_requests, proxy.num_open) == (2, 2, 2)
    assert proxy.num_forwarded > 2 * len("GET /key HTTP/1.1")
    assert proxy.num_returned > 2 * len(ANSWER)


def test_a_refusal_meets_open_connections_and_new_ones(server, proxy, client):
    """Until it heals."""
    get(client)
    proxy.refuse()
    for _ in range(2):
        with pytest.raises(OSError, match=r".*"):
            get(client)
        client.close()
    until(lambda: proxy.num_open == 0, "all connections are closed")
    proxy.heal()

    assert get(client) == (200, ANSWER)
    assert server.num_served == 2


def test_what_hangs_is_answered_after_it_heals(server, proxy, client):
    """The request was not lost."""
    proxy.hang()
    client.request("GET", "/key")
    client.sock.settimeout(0.1)
    with pytest.raises(TimeoutError):
        client.sock.recv(1, socket.MSG_PEEK)
    client.sock.settimeout(DEADLINE_S)
    assert server.num_served == 0
    proxy.heal()

    assert client.getresponse().read() == ANSWER


@pytest.mark.parametrize(
    ("protocol", "document"),
    [
        ("s3", b"<Error><Code>SlowDown</Code><Message>less, please</Message></Error>"),
        ("az", b"<Error><Code>SlowDown</Code><Message>less, please</Message></Error>"),
        (
            "gs",
            b'{"error": {"code": 503, "message": "less, please", '
            b'"errors": [{"reason": "SlowDown", "message": "less, please"}]}}',
        ),
    ],
)
def test_it_answers_in_the_form_of_the_service(protocol, document, server, client, proxy):
    """Without asking the server. A HEAD has no document."""
    proxy._protocol = protocol
    proxy.fail_with(503, "SlowDown", "less, please")

    assert get(client) == (503, document)
    assert get(client, "HEAD") == (503, b"")
    assert server.num_served == 0
    proxy.fail_with(404)
    assert get(client)[0] == 404


def test_an_answer_is_cut_after_the_server_has_done_its_work(server, proxy, client):
    """Also if the URL of the server has a name instead of an address."""
    proxy.lead_to(url_of(server).replace("127.0.0.1", "localhost"))
    proxy.cut_answers()

    client.request("GET", "/key")
    with pytest.raises((http.client.HTTPException, OSError)):  # the end of the headers or of the body is missing
        client.getresponse().read()
    assert server.num_served == 1
    assert proxy.num_forwarded > 0


def test_a_connection_is_reset_after_its_bytes(server, proxy, client):
    """In the middle of the request."""
    proxy.reset_after(10)

    with pytest.raises(OSError, match=r".*"):
        get(client)
    until(lambda: proxy.num_open == 0, "all connections are closed")
    assert (proxy.num_forwarded, server.num_served) == (10, 0)


def test_a_slow_way_loses_nothing(proxy, client):
    """An answer in small pieces."""
    proxy.slow(20_000)

    assert get(client) == (200, ANSWER)


def test_new_connections_lead_to_another_server(proxy, client):
    """The old ones stay where they are."""
    other = serve(b"other")
    try:
        get(client)
        proxy.lead_to(url_of(other))
        same = get(client)
        client.close()

        assert same == (200, ANSWER)
        assert get(client) == (200, b"other")
    finally:
        end(other)


def test_a_server_that_is_away_ends_the_connection():
    """The proxy continues."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with FaultProxy(f"http://127.0.0.1:{port}") as proxy:
        for _ in range(2):
            client = http.client.HTTPConnection(*proxy._listener.getsockname(), timeout=DEADLINE_S)
            with pytest.raises(OSError, match=r".*"):
                get(client)
            client.close()


@pytest.mark.parametrize("target", ["https://127.0.0.1:9000", "http://host", "127.0.0.1:9", "http://host:port", ""])
def test_a_target_must_be_a_server_without_tls(target):
    """At once, with the value and an example."""
    with pytest.raises(ValueError, match=r"target='.*' must have a host and a port, as in http://127\.0\.0\.1:9000"):
        FaultProxy(target)


def test_arguments_are_checked_at_once():
    """With the value and what to do."""
    with pytest.raises(ValueError, match="protocol='ftp' is unknown to the proxy: give s3, gs or az"):
        FaultProxy("http://127.0.0.1:9", "ftp")
    proxy = FaultProxy("http://127.0.0.1:9")
    with pytest.raises(ValueError, match="status=299 is no status of HTTP: give one such as 503"):
        proxy.fail_with(299)
    with pytest.raises(ValueError, match=r"bytes_per_s=0 must be 1 or more\. To pass nothing on, call hang\(\)"):
        proxy.slow(0)


def test_the_test_on_the_page_passes(s3_server):
    """As it is printed there."""
    (block,) = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    found = {}
    exec(block, found)

    found["test_an_outage_of_the_store_costs_no_step"](
        f"{s3_server.create_bucket('page')}/run", s3_server.storage_options()
    )


def test_the_page_names_each_fault():
    """A new method of the proxy has its row."""
    methods = {name for name, value in vars(FaultProxy).items() if callable(value) and not name.startswith("_")}
    properties = {name for name, value in vars(FaultProxy).items() if isinstance(value, property)}

    assert methods == set(re.findall(r"^\| `([a-z_]+)\(", PAGE.read_text(), re.MULTILINE))
    assert properties <= set(re.findall(r"`([a-z_]+)`", PAGE.read_text()))
