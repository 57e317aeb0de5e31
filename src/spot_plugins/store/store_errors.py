"""Errors of every client library as :exc:`StoreError`, without secrets."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from json import JSONDecodeError
from typing import Final, NamedTuple

from ..errors import ConfigError, StoreError
from .network_errors import network_text
from .obstore_errors import obstore_text
from .redaction import Secrets
from .service_answers import Answer, chain, find_answer
from .settling import may_settle

_REJECTED: Final = "the service rejects these credentials; give valid ones in storage_options or the environment"
_NO_BUCKET: Final = "the bucket does not exist; create it, or correct the URL"
_DENIED: Final = "no permission; these credentials must be allowed to put, get, list and delete"
_SKEWED: Final = "the clock of this machine is wrong; set it, for example with NTP"
_REASONS: Final[dict[str | int, str]] = {
    "NoSuchBucket": _NO_BUCKET,
    "ContainerNotFound": _NO_BUCKET,
    "AccessDenied": _DENIED,
    "InvalidAccessKeyId": _REJECTED,
    "SignatureDoesNotMatch": _REJECTED,
    "ExpiredToken": _REJECTED,
    "InvalidToken": _REJECTED,
    "AuthenticationFailed": _REJECTED,
    "AuthorizationFailure": _REJECTED,
    401: _REJECTED,
    403: _DENIED,
    404: _NO_BUCKET,
}
"""Cause and remedy of error codes and HTTP statuses. A missing object is no error here."""

_SKEWED_CODES: Final = frozenset({"RequestTimeTooSkewed"})
_SKEWED_TEXT: Final = re.compile(r"(?i)date header too old|short-lived token|in a reasonable timeframe")
"""Sentences of Azure and Google about a clock, in answers that reject credentials."""

_PASSING_CODES: Final = frozenset(
    {"RequestTimeout", "BadDigest", "IncompleteBody", "XAmzContentSHA256Mismatch"}
    | {"rateLimitExceeded", "userRateLimitExceeded"}
)
"""Codes for requests that the network damaged or that came too fast. A retry may succeed, although the HTTP status is
400 or 403."""

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
        "ClientAuthenticationError",
        "CredentialUnavailableError",
        "DefaultCredentialsError",
        "NoCredentialsError",
        "PartialCredentialsError",
        "ParamValidationError",
        "ProfileNotFound",
        "RefreshError",
        "InvalidPathError",
        "NotSupportedError",
        "UnknownConfigurationKeyError",
    }
)


class _Verdict(NamedTuple):
    """Meaning of an error."""

    reason: str
    is_passing: bool


def to_store_error(operation: str, key: str, error: BaseException, secrets: Secrets) -> StoreError:
    """
    Return *error*, which a client library raised, as a :exc:`StoreError`.

    It can be retried, unless its type or the answer of the service shows that the next try will fail as well.
    """
    answer = find_answer(error)
    reason, is_passing = _judge(error) if answer is None else _judge_answer(answer)
    return StoreError(operation, key, secrets.hide(reason), is_passing, not is_passing and may_settle(error, answer))


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


def _judge_answer(answer: Answer) -> _Verdict:
    """Return the meaning of the service's *answer*, with the service's own sentence."""
    code, message, status = answer
    if code in _SKEWED_CODES or _SKEWED_TEXT.search(message):
        return _Verdict(f"{_SKEWED} ({code}: {message})", True)
    is_passing = code in _PASSING_CODES or status in _PASSING_STATUSES or (status >= 500 and status != 501)
    if code in _REASONS:
        return _Verdict(f"{_REASONS[code]} ({code}{f': {message}' if message else ''})", is_passing)
    label = f"{f'{code}, ' if code else ''}HTTP status {status}"
    if status in _REASONS and not is_passing:
        return _Verdict(f"{_REASONS[status]} ({label}{f': {message}' if message else ''})", False)
    return _Verdict(f"{message} ({label})" if message else label, is_passing)


def _judge(error: BaseException) -> _Verdict:
    """Return the meaning of *error*, which holds no answer of the service."""
    text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    if (failure := obstore_text(error)) is not None:
        return _Verdict(failure, not _is_permanent(error))
    if (failure := network_text(error)) is not None:
        return _Verdict(failure, True)
    if isinstance(error, JSONDecodeError):
        return _Verdict(f"the answer of the service cannot be read: {error}", True)
    if _SKEWED_TEXT.search(text):
        return _Verdict(f"{_SKEWED} ({text})", True)
    return _Verdict(text, not _is_permanent(error))


def _is_printable(error: BaseException, secrets: Secrets) -> bool:
    """Return whether *error* and all errors in its chain contain no secret."""
    return all(secrets.hide(str(link)) == str(link) for link in chain(error))


def _is_permanent(error: BaseException) -> bool:
    if getattr(error, "retryable", False):  # an error of google-auth
        return False
    return isinstance(error, _PERMANENT_TYPES) or type(error).__name__ in _PERMANENT_NAMES
