"""Words that must never be printed, and a check of the credentials among them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from typing import Any, Final
from urllib.parse import parse_qsl, quote

from ..errors import ConfigError

_NOT_SECRET: Final = frozenset({"endpoint_url", "region_name", "addressing_style", "signature_version"})
_SHORTEST_SECRET: Final = 4
_USER_IN_URL = re.compile(r"://([^/\s'\"]*)@")
_QUERY_IN_URL = re.compile(r"(://[^\s'\"?]*)\?[^\s'\"]*")  # because the query of a signed URL contains the signature
_TOKEN = re.compile(r"\bya29\.[\w.-]+|\beyJ[\w-]+\.[\w-]+\.[\w-]+")  # tokens of Google, and of Azure
_PRIVATE_KEY: Final = "-----BEGIN"

_VARIABLES: Final[dict[str, tuple[str, ...]]] = {
    "s3": ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_SECURITY_TOKEN"),
    "az": (
        *("AZURE_STORAGE_ACCOUNT_KEY", "AZURE_STORAGE_ACCESS_KEY", "AZURE_STORAGE_KEY", "AZURE_STORAGE_SAS_TOKEN"),
        *("AZURE_STORAGE_SAS_KEY", "AZURE_STORAGE_CONNECTION_STRING", "AZURE_STORAGE_CLIENT_SECRET"),
        *("AZURE_STORAGE_TOKEN", "AZURE_CLIENT_SECRET"),
    ),
    "gs": ("GOOGLE_SERVICE_ACCOUNT_KEY", "GOOGLE_SERVICE_ACCOUNT"),
}
"""Environment variables with credentials, by service."""

_SERVICES: Final = {"s3a": "s3", "gcs": "gs", "abfs": "az", "abfss": "az"}


class Secrets:
    """
    Words that must never be printed: values of storage options, credentials, and users and queries of URLs.

    Only a file system knows which of its options are secret. Therefore all of them are hidden, except a few known ones.
    """

    def __init__(self, url: str, storage_options: Mapping[str, Any]) -> None:
        self._words: tuple[str, ...] = ()
        self.add(*_users(url), *_strings(storage_options), *_environment(url).values())

    def add(self, *words: str | None) -> None:
        """Hide *words* as well, from now on. For credentials that a client has found somewhere else."""
        found = {part for word in words if word for part in _parts(word)}
        found |= {quote(word, safe="") for word in found}
        long = {word for word in found if len(word) >= _SHORTEST_SECRET}
        if not long <= set(self._words):
            # Longest first, because one word may contain another.
            self._words = tuple(sorted(long.union(self._words), key=len, reverse=True))

    def hide(self, text: str) -> str:
        """Return *text* with every secret replaced by ``***``."""
        for word in self._words:
            text = text.replace(word, "***")
        return _TOKEN.sub("***", _QUERY_IN_URL.sub(r"\1?***", _USER_IN_URL.sub("://***@", text)))


def check_credentials(url: str, storage_options: Mapping[str, Any]) -> None:
    """
    Check that no credential for *url* was read with the end of its line.

    Raises:
        ConfigError: An option or a variable begins or ends with white space, or has a control character.
    """
    named = {f"storage_options[{name!r}]": value for name, value in storage_options.items() if isinstance(value, str)}
    for field, value in {**named, **_environment(url)}.items():
        is_text = value == value.strip() and value.isprintable()
        if not is_text and _PRIVATE_KEY not in value:
            raise ConfigError(
                f"{field}=*** begins or ends with white space, or has a line break: give the value alone, for example "
                f"without the end of the line of a file"
            )


def _environment(url: str) -> dict[str, str]:
    """Return the variables with credentials for the service of *url* that are set."""
    scheme = url.partition("://")[0]
    names = _VARIABLES.get(_SERVICES.get(scheme, scheme), ())
    return {name: os.environ[name] for name in names if os.environ.get(name)}


def _parts(word: str) -> Iterator[str]:
    """Yield *word*, and the secrets in it if it is a connection string or a signature of Azure."""
    yield word
    for field in word.split(";"):
        name, _, value = field.partition("=")
        if name in ("AccountKey", "SharedAccessSignature"):
            yield value
        yield from (value for name, value in parse_qsl(field.lstrip("?")) if name == "sig" or name.endswith("?sig"))


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
