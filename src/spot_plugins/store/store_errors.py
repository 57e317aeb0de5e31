"""What went wrong in a service, in words that are safe to print."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final, NamedTuple
from urllib.parse import quote

from ..errors import StoreError
from .obstore_errors import obstore_answer, obstore_text

_REJECTED: Final = "the service rejects these credentials; give valid ones in storage_options or the environment"
_NO_BUCKET: Final = "the bucket does not exist; create it, or correct the URL"
_REASONS: Final[dict[str, str]] = {
    "NoSuchBucket": _NO_BUCKET,
    "ContainerNotFound": _NO_BUCKET,
    "AccessDenied": "no permission; these credentials need to put, get, list and delete",
    "InvalidAccessKeyId": _REJECTED,
    "SignatureDoesNotMatch": _REJECTED,
    "ExpiredToken": _REJECTED,
    "InvalidToken": _REJECTED,
    "AuthenticationFailed": _REJECTED,
    "AuthorizationFailure": _REJECTED,
}
"""What to do about an error code of S3, or of Azure, where that is known."""

_PASSING_CODES: Final = frozenset({"RequestTimeout", "BadDigest", "IncompleteBody", "XAmzContentSHA256Mismatch"})
"""Codes of S3 for what a network did to a request. Their HTTP status, 400, says nothing."""

_PASSING_STATUSES: Final = frozenset({408, 409, 429})

_PERMANENT_TYPES: Final = (
    PermissionError,
    FileNotFoundError,
    NotADirectoryError,
    ImportError,
    NotImplementedError,
    TypeError,
    ValueError,
)

# By name, because their packages need not be there.
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
_QUERY_IN_URL = re.compile(r"(://[^\s'\"?]*)\?[^\s'\"]*")  # a signed URL carries its signature there


class Secrets:
    """
    What must never be printed: the values of storage options, and the user part and the query of URLs.

    Every option counts, but a few that are known, for only its file system knows which ones are secret.
    """

    def __init__(self, url: str, storage_options: Mapping[str, Any]) -> None:
        words = {*_users(url), *_strings(storage_options)}
        words |= {quote(word, safe="") for word in words}
        # The longest first, for one may hold another.
        self._words = sorted((word for word in words if len(word) >= _SHORTEST_SECRET), key=len, reverse=True)

    def hide(self, text: str) -> str:
        """Return *text* with every secret replaced by ``***``."""
        for word in self._words:
            text = text.replace(word, "***")
        return _QUERY_IN_URL.sub(r"\1?***", _USER_IN_URL.sub("://***@", text))


def error_code(error: BaseException) -> str | None:
    """Return the code that S3 answered with, for example ``NoSuchBucket``, or None if it gave none."""
    answer = _answer(error)
    return None if answer is None else answer.code


def store_error(operation: str, key: str, error: BaseException, secrets: Secrets) -> StoreError:
    """
    Return *error*, whatever a file system raised, as the one error that a store raises.

    It can be retried unless the service or its client is sure that trying again will not help.
    """
    answer = _answer(error)
    if answer is None:
        text = obstore_text(error) or (f"{type(error).__name__}: {error}" if str(error) else type(error).__name__)
        return StoreError(operation, key, secrets.hide(text), retryable=not _is_permanent(error))
    code, message, status = answer
    if code in _REASONS:
        reason = f"{_REASONS[code]} ({code})"
    else:
        reason = f"{message} ({f'{code}, ' if code else ''}HTTP status {status})"
    passing = code in _PASSING_CODES or status in _PASSING_STATUSES or (status >= 500 and status != 501)
    return StoreError(operation, key, secrets.hide(reason), retryable=passing)


def http_status(error: BaseException) -> int | None:
    """Return the HTTP status that the service answered with, or None if it gave no answer."""
    answer = _answer(error)
    return None if answer is None else answer.status


@contextmanager
def failures(operation: str, key: str, secrets: Secrets) -> Iterator[None]:
    """Raise what goes wrong inside as :exc:`StoreError`, without *secrets*."""
    try:
        yield
    except StoreError:
        raise
    except BaseException as error:  # every file system has errors of its own
        # What Rust calls a panic, in obstore, is no Exception in Python.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        failure = store_error(operation, key, error, secrets)
        # A traceback prints the cause as well.
        raise failure from (error if _is_printable(error, secrets) else None)


def raise_if_no_bucket(error: FileNotFoundError) -> None:
    """Raise *error* if not the object but its whole bucket is missing."""
    if error_code(error) in ("NoSuchBucket", "ContainerNotFound"):
        raise error


def _is_printable(error: BaseException, secrets: Secrets) -> bool:
    """Return whether neither *error* nor what it was raised from holds a secret."""
    return all(secrets.hide(str(link)) == str(link) for link in _chain(error))


def _is_permanent(error: BaseException) -> bool:
    return isinstance(error, _PERMANENT_TYPES) or type(error).__name__ in _PERMANENT_NAMES


class _Answer(NamedTuple):
    code: str
    message: str
    status: int


def _answer(error: BaseException) -> _Answer | None:
    """Return what the service answered: what a ``ClientError`` of botocore holds, which s3fs wraps, or obstore says."""
    for link in _chain(error):
        if (answer := obstore_answer(link)) is not None:
            return _Answer(*answer)
        response = getattr(link, "response", None)
        if isinstance(response, dict) and "Error" in response:
            said = response["Error"]
            status = response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
            return _Answer(str(said.get("Code", "")), str(said.get("Message", "")), int(status))
    return None


def _chain(error: BaseException) -> Iterator[BaseException]:
    link: BaseException | None = error
    while link is not None:
        yield link
        link = link.__cause__ or link.__context__


def _users(url: str) -> Iterator[str]:
    """Yield the user part of *url*, whole and as name and password, if it has one."""
    if match := _USER_IN_URL.search(url):
        yield match[1]
        yield from match[1].partition(":")


def _strings(options: object) -> Iterator[str]:
    match options:
        case str():
            yield options
        case Mapping():
            for name, value in options.items():
                yield from _users(str(value)) if name in _NOT_SECRET else _strings(value)
        case list() | tuple():
            for value in options:
                yield from _strings(value)
