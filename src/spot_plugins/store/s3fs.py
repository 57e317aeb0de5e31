"""S3 through s3fs: limited waits, no hidden retries, one request per object."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from typing import Any, ClassVar, Final

from .base import ObjectInfo
from .fsspec_client import FsspecClient, listed
from .http_limits import LARGEST_OBJECT_BYTES, limits, prepare_session
from .redaction import Secrets

_KEY_IN_SIGNATURE: Final = re.compile(r"Credential=([^/]+)/")


class S3Client(FsspecClient):
    """S3 through s3fs."""

    # s3fs puts an object in one request if it is smaller than twice the chunk size and than 5 GiB.
    # A multipart upload must not happen, because it stays in the bucket, invisible and billed, if its writer is killed.
    put_options: ClassVar[Mapping[str, Any]] = {"chunksize": LARGEST_OBJECT_BYTES // 2}

    # No concurrent ranges, because they may come from two versions of the object.
    get_options: ClassVar[Mapping[str, Any]] = {"max_concurrency": 1}

    def open(self, url: str, options: Mapping[str, Any]) -> tuple[Any, str]:
        """As :meth:`FsspecClient.open`."""
        return super().open(url, s3_options(options))

    def prepare(self, file_system: Any, options: Mapping[str, Any], secrets: Secrets) -> None:
        """As :meth:`FsspecClient.prepare`."""
        file_system.retries = 1  # for the reasons given in s3_options()
        if file_system.session is None:
            from aiobotocore.session import AioSession  # type: ignore[import-untyped]
            from botocore.handlers import add_expect_header  # type: ignore[import-untyped]

            session = AioSession(**file_system.kwargs)
            # This header asks for "100 Continue", and aiohttp waits for it without a timeout.
            session.unregister("before-call.s3", add_expect_header)
            session.register("before-send.s3", lambda request, **_: _learn(request.headers, secrets))
            file_system.session = session

    def find(self, file_system: Any, root: str, prefix: str) -> list[ObjectInfo]:
        """As :meth:`FsspecClient.find`."""
        return listed(file_system.find(root, prefix=prefix, detail=True))


def s3_options(storage_options: Mapping[str, Any]) -> dict[str, Any]:
    """
    Return *storage_options* with timeouts added and retries switched off.

    A request to a server that hangs is given up after at most 20 s, at whatever moment the server begins to hang.
    Values in ``config_kwargs``, such as ``connect_timeout`` and ``read_timeout`` in seconds, are kept.
    """
    given = dict(storage_options.get("config_kwargs") or {})
    connect_s, read_s = limits(given, "connect_timeout", "read_timeout")
    config: dict[str, Any] = {
        # 5 tries of botocore for each of the 5 tries of s3fs would be 25 timeouts. And if the answer to a conditional
        # put gets lost, a retry finds the object of the first try, and reports that another writer has won.
        "retries": {"total_max_attempts": 1},
        **given,
        "connect_timeout": connect_s,
        "read_timeout": read_s,
    }
    return {**storage_options, "config_kwargs": {"http_session_cls": _session_class(read_s), **config}}


@cache
def _session_class(read_s: float | None) -> type:
    """Return a class of HTTP sessions for aiobotocore that keep *read_s*, and send each request once."""
    from aiobotocore.httpsession import AIOHTTPSession  # type: ignore[import-untyped]

    class Session(AIOHTTPSession):  # type: ignore[misc]
        async def _get_session(self, proxy_url: str | None) -> Any:
            session = await super()._get_session(proxy_url)
            prepare_session(session, read_s)
            return session

    return Session


def _learn(headers: Mapping[str, Any], secrets: Secrets) -> None:
    """Add the credentials in *headers* to *secrets*: they may come from a profile, and a server may repeat them."""
    for name, value in headers.items():
        text = value.decode("latin-1") if isinstance(value, bytes) else str(value)
        if name.lower() == "x-amz-security-token":
            secrets.add(text)
        elif match := _KEY_IN_SIGNATURE.search(text):
            secrets.add(match[1])
