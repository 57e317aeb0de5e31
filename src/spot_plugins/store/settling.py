"""Refusals that are final as a rule, but may end by themselves on a new machine or with a new key."""

from __future__ import annotations

from typing import Final

_STATUSES: Final = frozenset({401, 403})
_CODES: Final = frozenset({"ExpiredToken", "InvalidToken"})
_WRONG_SECRETS: Final = frozenset({"SignatureDoesNotMatch", "AuthenticationFailed"})

# Errors of botocore, google-auth and azure-identity. The metadata service of a new machine may answer late.
_NAMES: Final = frozenset(
    {
        "NoCredentialsError",
        "DefaultCredentialsError",
        "RefreshError",
        "CredentialUnavailableError",
        "ClientAuthenticationError",
    }
)


def may_settle(error: BaseException, answer: tuple[str, str, int] | None) -> bool:
    """
    Return whether *error* may end by itself within seconds, because a new key or role is not known everywhere yet.

    Args:
        error: The error of a client library.
        answer: Code, message and HTTP status of the service's answer. None if it did not answer.
    """
    if answer is None:
        return type(error).__name__ in _NAMES
    code, _, status = answer
    return (status in _STATUSES or code in _CODES) and code not in _WRONG_SECRETS
