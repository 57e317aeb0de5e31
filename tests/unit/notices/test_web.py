"""Requests to servers that answer slowly for ever."""

from __future__ import annotations

import socket
import threading
import time
from contextlib import closing, suppress

import pytest
from hearing import until

from spot_plugins.notices import web
from spot_plugins.notices.file import file_or_page
from spot_plugins.notices.poller import NoticePoller

HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n"


@pytest.fixture(params=[b"", b"HTTP/1.1 200 OK\r\nX-Long: ", HEAD], ids=["head", "header", "body"])
def drip(request):
    """The URL of a server that begins its answer, and then sends a byte every 50 ms."""
    is_over = threading.Event()
    server = socket.create_server(("127.0.0.1", 0))

    def serve():
        while not is_over.is_set():
            with suppress(OSError), closing(server.accept()[0]) as connection:
                connection.recv(4096)
                connection.sendall(request.param)
                while not is_over.wait(0.05):
                    connection.sendall(b"H")

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.getsockname()[1]}/notice"
    is_over.set()
    server.shutdown(socket.SHUT_RDWR)
    server.close()
    thread.join()


def test_an_answer_has_a_limit_as_a_whole(drip, monkeypatch):
    """A byte now and then does not keep a request alive."""
    monkeypatch.setattr(web, "TIMEOUT_S", 0.5)
    started = time.monotonic()

    with pytest.raises(TimeoutError):
        web.ask(drip)

    assert time.monotonic() - started >= 0.5


def test_a_source_that_drips_does_not_make_the_others_deaf(drip, monkeypatch, tmp_path):
    """The notice of a file is heard beside it."""
    monkeypatch.setattr(web, "TIMEOUT_S", 0.5)
    heard = []
    poller = NoticePoller([file_or_page(drip, 30.0), file_or_page(str(tmp_path / "notice"), 30.0)], heard.append)
    poller.start()
    try:
        (tmp_path / "notice").touch()
        until(lambda: heard, "the file is heard of")
    finally:
        poller.close()

    assert heard[0].source == "file"
