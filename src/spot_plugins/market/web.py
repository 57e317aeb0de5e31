"""HTTP requests to providers: limited in time and size, checked certificates, the user's proxy, and no redirects."""

from __future__ import annotations

import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection, InvalidURL
from socket import socket
from typing import Any, Final

from .. import __version__
from ..notices.web import TimedSocket
from .base import ProviderError

MAX_BYTES: Final = 16 * 1024**2
"""Largest answer that is read. The interruption rates of AWS and a page of Google's price list take several MB."""

_MAX_ERROR_BYTES: Final = 64 * 1024


class StatusError(ProviderError):
    """
    The provider answered, and refused.

    Attributes:
        body: Beginning of the provider's own words. They may repeat a key, so they are never shown.
    """

    def __init__(self, status: int, retry_after: str | None, body: bytes) -> None:
        is_number = (retry_after or "").isdecimal() and len(retry_after or "") < 7
        told = f", and asks to wait {retry_after} s" if is_number else ""
        if 300 <= status < 400:
            told = ", which leads to another address. It is not followed"
        super().__init__(f"the provider answers with status {status}{told}")
        self.body = body


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Follows no redirect, because the request may carry a key."""

    def redirect_request(self, *_: Any) -> None:
        return None


class _Timed(urllib.request.HTTPHandler, urllib.request.HTTPSHandler):
    """Connections whose whole answer, from the first byte of the head, has to arrive by a deadline."""

    def __init__(self, until: float) -> None:
        super().__init__()
        self._until = until

    def http_open(self, req: urllib.request.Request) -> HTTPResponse:
        return self.do_open(self._connection(HTTPConnection), req)

    def https_open(self, req: urllib.request.Request) -> HTTPResponse:
        # Made for each request, so that the certificates of SSL_CERT_FILE count.
        return self.do_open(self._connection(HTTPSConnection, context=ssl.create_default_context()), req)

    def _connection(self, kind: Callable[..., HTTPConnection], **settings: Any) -> Callable[..., HTTPConnection]:
        def timed_response(sock: socket, **arguments: Any) -> HTTPResponse:
            timed: Any = TimedSocket(sock, self._until)
            return HTTPResponse(timed, **arguments)

        def connect(host: str, **arguments: Any) -> HTTPConnection:
            connection = kind(host, **settings, **arguments)
            connection.response_class = timed_response  # type: ignore[assignment]
            return connection

        return connect


def fetch(
    url: str,
    until: float,
    *,
    headers: Mapping[str, str] | None = None,
    body: bytes | None = None,
) -> bytes:
    """
    Return the body of the answer to a GET, or to a POST if there is a *body*.

    Args:
        url: The address. It must not contain a key, because messages and rows show it.
        until: Monotonic time at which the whole answer has to be there.
        headers: More headers, such as the key.
        body: The body of a POST.

    Raises:
        StatusError: The status is not one of success, 200 to 299.
        ProviderError: There is no answer in time, it is too large or cut off, or the connection fails.
    """
    named = {"User-Agent": f"spot_plugins/{__version__}", **(headers or {})}
    opener = urllib.request.build_opener(_NoRedirect, _Timed(until))
    try:
        request = urllib.request.Request(url, data=body, headers=named)
        if (left_s := until - time.monotonic()) <= 0:
            raise TimeoutError
        with opener.open(request, timeout=left_s) as response:
            answer: bytes = response.read(MAX_BYTES + 1)
            is_cut = bool(getattr(response, "length", 0)) and len(answer) <= MAX_BYTES
    except urllib.error.HTTPError as error:
        with error:
            raise StatusError(error.code, error.headers.get("Retry-After"), _beginning(error)) from None
    except (InvalidURL, ValueError):
        raise ProviderError("the address cannot be used") from None  # the error of the library shows the whole address
    except (OSError, HTTPException) as error:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        if isinstance(reason, TimeoutError):
            raise ProviderError("the answer does not come in time") from None
        raise ProviderError(f"the connection fails: {reason or type(reason).__name__}") from None
    if len(answer) > MAX_BYTES:
        raise ProviderError(f"the answer is larger than {MAX_BYTES // 1024**2} MiB")
    if is_cut:
        raise ProviderError("the answer is cut off")
    return answer


def _beginning(error: urllib.error.HTTPError) -> bytes:
    try:
        return error.read(_MAX_ERROR_BYTES)
    except (OSError, HTTPException):
        return b""
