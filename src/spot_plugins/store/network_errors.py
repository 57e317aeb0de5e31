"""Failures of the network, named from the errors of aiohttp, under which s3fs, gcsfs and adlfs send their requests."""

from __future__ import annotations

import errno
import os
import sys
from types import ModuleType

from .service_answers import chain


def network_text(error: BaseException) -> str | None:
    """Return the network failure that *error* or one of its causes reports. None if it reports another failure."""
    aiohttp = sys.modules.get("aiohttp")
    for link in chain(error):
        if any(each.__name__ == "TimeoutError" for each in type(link).__mro__):  # in Python 3.10 there are two
            return f"timeout: {str(link) or 'no answer'}"
        if aiohttp is not None and (text := _aiohttp_text(aiohttp, link)) is not None:
            return text
        if isinstance(link, ConnectionError):
            return f"the connection to the endpoint URL broke: {link}"
    return None


def _aiohttp_text(aiohttp: ModuleType, error: BaseException) -> str | None:
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return f"the certificate of {error.host}:{error.port} is not trusted: {error.certificate_error}"
    if isinstance(error, aiohttp.ClientConnectorError):
        cause = error.os_error
        reason = os.strerror(cause.errno) if (cause.errno or 0) > 0 else cause.strerror  # an error of DNS is negative
        return f"cannot connect to the endpoint URL: {reason or cause} at {error.host}:{error.port}"
    if getattr(error, "errno", None) == errno.ETIMEDOUT:
        return "timeout: the service took no byte for a while"  # see socket_factory()
    if isinstance(error, (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError)):
        return f"the connection to the endpoint URL broke: {error or type(error).__name__}"
    return None
