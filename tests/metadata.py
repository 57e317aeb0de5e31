"""
Metadata servers of clouds, on real sockets: what they answer is what the clouds document.

Each is a context manager. ``server.url`` is its base; ``announce(in_s)`` makes it say that the machine will be taken.
"""

from __future__ import annotations

import json
import threading
import time
from contextlib import suppress
from datetime import datetime, timezone
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit


class MetadataServer:
    """A server that is well until it is told otherwise."""

    fault = None
    """``hang``: no answer; ``malformed``: 200, but not what was asked for; a number: that status."""
    ahead_s = 0.0
    """By how much the provider's clock is ahead of this machine's."""
    has_date = True
    """True if answers have a ``Date``."""

    def __init__(self):
        self.requests = []
        self.changed = threading.Condition()
        self.closed = False

    def __enter__(self):
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"site": self}))
        self._server.daemon_threads = True
        self.address = f"127.0.0.1:{self._server.server_port}"
        self.url = f"http://{self.address}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_):
        self.closed = True
        with self.changed:
            self.changed.notify_all()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def announce(self, in_s):
        with self.changed:
            self.end = time.time() + in_s + self.ahead_s
            self.changed.notify_all()

    end = None

    def wait_for_change(self):
        with self.changed:
            before = self.end
            self.changed.wait_for(lambda: self.closed or self.end != before)

    def answer(self, method, path, query, headers):
        """Return status and body."""
        raise NotImplementedError


class AwsServer(MetadataServer):
    """The instance metadata service, version 2: nothing without a token, and tokens expire."""

    rebalance = None
    action = "terminate"
    has_tokens = True
    token = 0
    keys = None
    """Access key and secret of the machine's role. None: it has no role."""

    def expire(self):
        self.token += 1

    def answer(self, method, path, query, headers):
        if path == "/latest/api/token":
            if not self.has_tokens:
                return 404, ""
            if method != "PUT" or not 1 <= int(headers["X-aws-ec2-metadata-token-ttl-seconds"]) <= 21600:
                return 400, ""
            return 200, f"token-{self.token}"
        if self.has_tokens and headers["X-aws-ec2-metadata-token"] != f"token-{self.token}":
            return 401, ""
        if path == "/latest/meta-data/spot/instance-action" and self.end is not None:
            return 200, json.dumps({"action": self.action, "time": iso(self.end)})
        if path == "/latest/meta-data/events/recommendations/rebalance" and self.rebalance is not None:
            return 200, json.dumps({"noticeTime": iso(self.rebalance)})
        if path == "/latest/meta-data/iam/security-credentials/" and self.keys is not None:
            return 200, "role"
        if path == "/latest/meta-data/iam/security-credentials/role" and self.keys is not None:
            names = {"AccessKeyId": self.keys[0], "SecretAccessKey": self.keys[1], "Token": ""}
            return 200, json.dumps({"Code": "Success", **names, "Expiration": iso(time.time() + 6 * 3600)})
        return 404, "<?xml version='1.0'?><html>Not Found</html>"


class GcpServer(MetadataServer):
    """The metadata server: ``wait_for_change`` hangs until the value changes."""

    def answer(self, method, path, query, headers):
        if headers["Metadata-Flavor"] != "Google":
            return 403, ""
        if path != "/computeMetadata/v1/instance/preempted":
            return 404, ""
        if query.get("wait_for_change") == ["true"]:
            self.wait_for_change()
        return 200, "FALSE" if self.end is None else "TRUE"


class AzureServer(MetadataServer):
    """Scheduled Events. The first answer may take long, and other machines' events are seen too."""

    names = ("MyVM_0",)
    event_type = "Preempt"
    held = None
    """An event, until which the first answer is held."""
    started = False
    acknowledged = ()

    def answer(self, method, path, query, headers):
        if headers["Metadata"] != "true" or "api-version" not in query:
            return 400, json.dumps({"error": "Bad request"})
        if path == "/metadata/instance/compute/name":
            return 200, "myvm_0"
        if path != "/metadata/scheduledevents":
            return 404, ""
        if method == "POST":
            started = [each["EventId"] for each in json.loads(headers.body)["StartRequests"]]
            self.acknowledged = (*self.acknowledged, *started)
            return 200, ""
        held, self.held = self.held, None
        if held is not None:
            held.wait()
        event = {
            "EventId": "602d9444-d2cd-49c7-8624-8643e7171297",
            "EventType": self.event_type,
            "ResourceType": "VirtualMachine",
            "Resources": list(self.names),
            "EventStatus": "Started" if self.started else "Scheduled",
            "NotBefore": "" if self.started or self.end is None else formatdate(self.end, usegmt=True),
            "Description": "Virtual machine is being evicted",
            "EventSource": "Platform",
            "DurationInSeconds": -1,
        }
        events = [] if self.end is None else [event]
        return 200, json.dumps({"DocumentIncarnation": 1 + len(events), "Events": events})


class PageServer(MetadataServer):
    """Somebody's own page: 404 until there is a notice."""

    def answer(self, method, path, query, headers):
        if path != "/notice" or self.end is None:
            return 404, ""
        return 200, json.dumps({"grace_seconds": self.end - time.time()})


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    site: MetadataServer

    def do_GET(self):
        parts = urlsplit(self.path)
        self.headers.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.site.requests.append(self.path)
        match self.site.fault:
            case "hang":
                self.site.wait_for_change()
                return
            case "malformed":
                status, body = 200, '{"action": "terminate", "time": "2017-09-'
            case int(number):
                status, body = number, "<html>an error</html>"
            case _:
                status, body = self.site.answer(self.command, parts.path, parse_qs(parts.query), self.headers)
        self.send_response_only(status)
        if self.site.has_date:
            self.send_header("Date", formatdate(time.time() + self.site.ahead_s, usegmt=True))
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())

    do_PUT = do_POST = do_GET  # noqa: N815 - their names are the protocol's

    def log_message(self, *_):
        pass

    def handle(self):
        with suppress(OSError):  # the client is gone
            super().handle()


def iso(seconds):
    return datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
