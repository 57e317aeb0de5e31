"""Google Cloud Storage through gcsfs: limited waits, no hidden retries, one request per object."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from datetime import timedelta, timezone
from functools import cache, partial
from io import BytesIO
from typing import Any, ClassVar, Final

from ..clock import SystemClock
from .base import ObjectInfo
from .fsspec_client import FsspecClient, listed
from .http_limits import CONNECT_TIMEOUT_S, LARGEST_OBJECT_BYTES, READ_TIMEOUT_S, prepare_session
from .redaction import Secrets
from .service_answers import NoCredentialsError, ServiceError

_RENEWED_BEFORE: Final = timedelta(minutes=6)  # gcsfs renews 5 minutes before the end, without a time limit
_NO_CREDENTIALS: Final = (
    "Unable to locate credentials; give token in storage_options, or GOOGLE_APPLICATION_CREDENTIALS"
)


class GoogleClient(FsspecClient):
    """
    Google Cloud Storage through gcsfs.

    The class that gcsfs registers is not used. Before its first request to a bucket it asks for the kind of the bucket,
    over gRPC and for up to a minute. And a bucket of the zonal kind shows the beginning of an object during its put.
    """

    put_options: ClassVar[Mapping[str, Any]] = {"chunksize": LARGEST_OBJECT_BYTES}

    def __init__(self) -> None:
        self._renewal = threading.Lock()

    def open(self, url: str, options: Mapping[str, Any]) -> tuple[Any, str]:
        """As :meth:`FsspecClient.open`."""
        from aiohttp import ClientTimeout
        from gcsfs.core import GCSFileSystem

        read_s = _read_timeout_s(options)
        connect_s = CONNECT_TIMEOUT_S if read_s is None else min(CONNECT_TIMEOUT_S, read_s)
        changed = {
            "requests_timeout": ClientTimeout(sock_connect=connect_s, sock_read=read_s),
            "session_kwargs": {"response_class": _answer_class(), **(options.get("session_kwargs") or {})},
            "skip_instance_cache": True,
        }
        return GCSFileSystem(**{**options, **changed}), GCSFileSystem._strip_protocol(url)

    def prepare(self, file_system: Any, options: Mapping[str, Any], secrets: Secrets) -> None:
        """As :meth:`FsspecClient.prepare`."""
        from fsspec.asyn import sync

        if options.get("token") is None and file_system.credentials.credentials is None and file_system.on_google:
            raise NoCredentialsError(_NO_CREDENTIALS)  # gcsfs would ask anonymously from now on
        # Without its decorator, which repeats a request up to 6 times, and logs errors that may hold secrets.
        file_system._request = partial(_request, type(file_system)._request.__wrapped__, file_system)
        sync(file_system.loop, file_system._set_session)
        prepare_session(file_system.session, _read_timeout_s(options))

    def renew(self, file_system: Any, secrets: Secrets) -> None:
        """As :meth:`FsspecClient.renew`. gcsfs itself would block the thread of all requests, for up to 120 s."""
        credentials = file_system.credentials.credentials
        if credentials is None:
            return
        with self._renewal:
            if not _is_valid(credentials):
                import requests
                from google.auth.transport.requests import Request

                with requests.Session() as session:
                    credentials.refresh(partial(Request(session), timeout=READ_TIMEOUT_S))
            secrets.add(credentials.token)

    def find(self, file_system: Any, root: str, prefix: str) -> list[ObjectInfo]:
        """As :meth:`FsspecClient.find`."""
        return listed(file_system.find(root, prefix=prefix, detail=True))


def _request(request: Callable[..., Any], file_system: Any, *args: Any, data: Any = None, **kwargs: Any) -> Any:
    """Call *request* with *data* as a file, because aiohttp hands bytes to the kernel without a pause in between."""
    # wait: until the client gives up the request; it fails, and is tried again
    return request(file_system, *args, data=BytesIO(data) if isinstance(data, bytes) else data, **kwargs)


def _read_timeout_s(options: Mapping[str, Any]) -> float | None:
    """Return the seconds in which no byte moves, after which a request is given up. gcsfs bounds the whole request."""
    value: float | None = options.get("requests_timeout", READ_TIMEOUT_S)
    return value


def _is_valid(credentials: Any) -> bool:
    """Return whether *credentials* can be sent without being renewed."""
    expiry = credentials.expiry
    if not credentials.valid or expiry is None:
        return bool(credentials.valid)
    return bool(expiry.replace(tzinfo=timezone.utc) - SystemClock().utc() > _RENEWED_BEFORE)


@cache
def _answer_class() -> type:
    """Return a class of answers that raises each error of the service, because gcsfs drops code and message of some."""
    from aiohttp import ClientResponse

    class Answer(ClientResponse):
        async def read(self) -> bytes:
            body = await super().read()
            if self.status >= 400:
                raise _service_error(self.status, body)
            return body

    return Answer


def _service_error(status: int, body: bytes) -> ServiceError:
    """Return the error of an answer with *status*, whose *body* is a document of JSON or a sentence."""
    text = body.decode("utf-8", "replace").strip()
    code, message = "", "" if text.startswith("<") else text
    try:
        error = json.loads(text)["error"]
        code, message = error["errors"][0]["reason"], error["message"]
    except (ValueError, LookupError, TypeError):
        pass  # not a document of this form
    if status == 404 and "bucket" in message and "not exist" in message:
        code = "NoSuchBucket"
    return ServiceError(str(code), str(message), status)
