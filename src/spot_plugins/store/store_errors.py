"""Errors of every client library as :exc:`StoreError`, without secrets."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final, NamedTuple
from urllib.parse import quote

from ..errors import ConfigError, StoreError
from .obstore_errors import obstore_answer, obstore_text
from .settling import may_settle

_REJECTED: Final = "the service rejects these credentials; give valid ones in storage_options or the environment"
_NO_BUCKET: Final = "the bucket does not exist; create it, or correct the URL"
_REASONS: Final[dict[str, str]] = {
    "NoSuchBucket": _NO_BUCKET,
    "RequestTimeTooSkewed": "the clock of this machine is wrong; set it, for example with NTP",
    "ContainerNotFound": _NO_BUCKET,
    "AccessDenied": "no permission; these credentials must be allowed to put, get, list and delete",
    "InvalidAccessKeyId": _REJECTED,
    "SignatureDoesNotMatch": _REJECTED,
    "ExpiredToken": _REJECTED,
    "InvalidToken": _REJECTED,
    "AuthenticationFailed": _REJECTED,
    "AuthorizationFailure": _REJECTED,
}
"""Cause and remedy of error codes of S3 and Azure. The service's own sentence follows them."""

_PASSING_CODES: Final = frozenset(
    {"RequestTimeout", "BadDigest", "IncompleteBody", "XAmzContentSHA256Mismatch", "RequestTimeTooSkewed"}
)
"""
Codes of S3 for requests that the network damaged, or that the clock of a new machine dates wrong. A retry may succeed,
although their HTTP status is that of a bad request.
"""


_PASSING_STATUSES: Final = frozenset({408, 409, 429})

_PERMANENT_TYPES: Final = (
    PermissionError,
    FileNotFoundError,
    NotADirectoryError,
    IsADirectoryError,
    ImportError,
    NotImplementedError,
    TypeError,
    ValueError,
)

# Names instead of classes, because their packages may not be installed.
_PERMANENT_NAMES: Final = frozenset(
    {
        "NoCredentialsError",
        "PartialCredentialsError",
        "ParamValidationError",
        "ProfileNotFound",
        "InvalidPathError",
        "NotSupportedError",
        "UnknownConfigurationKeyError",
    }
)

_NOT_SECRET: Final = frozenset({"endpoint_url", "region_name", "addressing_style", "signature_version"})
_SHORTEST_SECRET: Final = 4
_USER_IN_URL = re.compile(r"://([^/\s'\"]*)@")
_QUERY_IN_URL = re.compile(r"(://[^\s'\"?]*)\?[^\s'\"]*")  # because the query of a signed URL contains the signature


class Secrets:
    """
    Words that must never be printed: values of storage options, and users and queries of URLs.

    Only a file system knows which of its options are secret. Therefore all of them are hidden, except a few known ones.
    """

    def __init__(self, url: str, storage_options: Mapping[str, Any]) -> None:
        words = {*_users(url), *_strings(storage_options)}
        words |= {quote(word, safe="") for word in words}
        # Longest first, because one word may contain another.
        self._words = sorted((word for word in words if len(word) >= _SHORTEST_SECRET), key=len, reverse=True)

    def hide(self, text: str) -> str:
        """Return *text* with every secret replaced by ``***``."""
        for word in self._words:
            text = text.replace(word, "***")
        return _QUERY_IN_URL.sub(r"\1?***", _USER_IN_URL.sub("://***@", text))


def error_code(error: BaseException) -> str | None:
    """Return the error code of the service's answer, for example ``NoSuchBucket``. None if it did not answer."""
    answer = _answer(error)
    return None if answer is None else answer.code


def to_store_error(operation: str, key: str, error: BaseException, secrets: Secrets) -> StoreError:
    """
    Return *error*, which a client library raised, as a :exc:`StoreError`.

    It can be retried, unless its type or the answer of the service shows that the next try will fail as well.
    """
    answer = _answer(error)
    if answer is None:
        text = obstore_text(error) or (f"{type(error).__name__}: {error}" if str(error) else type(error).__name__)
        passing = not _is_permanent(error)
        return StoreError(operation, key, secrets.hide(text), passing, not passing and may_settle(error, None))
    code, message, status = answer
    if code in _REASONS:
        reason = f"{_REASONS[code]} ({code}{f': {message}' if message else ''})"
    else:
        reason = f"{message} ({f'{code}, ' if code else ''}HTTP status {status})"
    passing = code in _PASSING_CODES or status in _PASSING_STATUSES or (status >= 500 and status != 501)
    return StoreError(operation, key, secrets.hide(reason), passing, not passing and may_settle(error, answer))


def http_status(error: BaseException) -> int | None:
    """Return the HTTP status of the service's answer. None if it did not answer."""
    answer = _answer(error)
    return None if answer is None else answer.status


@contextmanager
def as_store_errors(operation: str, key: str, secrets: Secrets) -> Iterator[None]:
    """Raise every error of the ``with`` block as a :exc:`StoreError` without *secrets*, but a :exc:`ConfigError`."""
    try:
        yield
    except (StoreError, ConfigError):
        raise
    except BaseException as error:  # because every file system raises errors of its own
        # A panic in the Rust code of obstore is a BaseException in Python.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        failure = to_store_error(operation, key, error, secrets)
        # A cause with a secret is dropped, because a traceback would print it.
        raise failure from (error if _is_printable(error, secrets) else None)


def raise_if_no_bucket(error: FileNotFoundError) -> None:
    """Raise *error* if the whole bucket is missing, and not only the object."""
    if error_code(error) in ("NoSuchBucket", "ContainerNotFound"):
        raise error


def _is_printable(error: BaseException, secrets: Secrets) -> bool:
    """Return whether *error* and all errors in its chain contain no secret."""
    return all(secrets.hide(str(link)) == str(link) for link in _chain(error))


def _is_permanent(error: BaseException) -> bool:
    return isinstance(error, _PERMANENT_TYPES) or type(error).__name__ in _PERMANENT_NAMES


class _Answer(NamedTuple):
    """An error answer of a service."""

    code: str
    message: str
    status: int


def _answer(error: BaseException) -> _Answer | None:
    """Return the service's answer from a ``ClientError`` of botocore, which s3fs wraps, or from an error of obstore."""
    for link in _chain(error):
        if (answer := obstore_answer(link)) is not None:
            return _Answer(*answer)
        response = getattr(link, "response", None)
        if isinstance(response, dict) and "Error" in response:
            fields = response["Error"]
            status = response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
            return _Answer(str(fields.get("Code", "")), str(fields.get("Message", "")), int(status))
    return None


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield *error* and the errors that caused it."""
    link: BaseException | None = error
    while link is not None:
        yield link
        link = link.__cause__ or link.__context__


def _users(url: str) -> Iterator[str]:
    """Yield the user in *url*, if there is one: as a whole, then its name and its password."""
    if match := _USER_IN_URL.search(url):
        yield match[1]
        yield from match[1].partition(":")


def _strings(options: object) -> Iterator[str]:
    """Yield all strings in *options* that may be secret."""
    match options:
        case str():
            yield options
        case Mapping():
            for name, value in options.items():
                yield from _users(str(value)) if name in _NOT_SECRET else _strings(value)
        case list() | tuple():
            for value in options:
                yield from _strings(value)
