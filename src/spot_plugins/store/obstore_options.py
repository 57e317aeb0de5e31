"""Translation of the storage options of s3fs, gcsfs and adlfs for obstore, so that both take the same options."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final
from urllib.parse import urlsplit

from . import aws_config
from .aws_config import S3Options
from .http_limits import CONNECT_TIMEOUT_S, READ_TIMEOUT_S, limits

_LONGEST_REQUEST: Final = timedelta(hours=1)  # a request that stalls is given up much sooner
_MAPPED_GOOGLE_TYPES: Final = ("service_account", "authorized_user")


class UnmappedOptionError(Exception):
    """A storage option, or a value of it, for which obstore has no equivalent. The message names the option."""


@dataclass(frozen=True, kw_only=True, slots=True, repr=False)
class Setup:
    """Arguments for the obstore client of one bucket. They contain secrets."""

    kind: str
    """Name of the class in ``obstore.store``."""
    config: dict[str, Any]
    client: dict[str, Any]
    """Options of the HTTP client, except the read timeout."""
    credentials: Callable[[], dict[str, Any]] | None
    read_timeout_s: float | None
    """Seconds after which a request is given up if no byte moves. None for no limit."""


class _OptionReader:
    """Options that are read one by one. An option that is left at the end is unknown."""

    def __init__(self, options: Mapping[str, Any] | None, name: str = "") -> None:
        self._name = name
        self._left = {key: value for key, value in (options or {}).items() if value is not None}

    def take(self, *keys: str) -> Any:
        """Return the value of the first of *keys* that was given, or None. All *keys* count as read."""
        values = [self._left.pop(key, None) for key in keys]
        return next((value for value in values if value is not None), None)

    def text(self, *keys: str) -> str | None:
        """Return the same as :meth:`take`, for options that obstore takes only as text."""
        value = self.take(*keys)
        if value is not None and not isinstance(value, str):
            raise UnmappedOptionError(self._name + keys[0])
        return value

    def nested(self, key: str) -> _OptionReader:
        """Return a reader of the options in the dict *key*."""
        return _OptionReader(self.take(key), f"{self._name}{key}.")

    def check_empty(self) -> None:
        """Raise :exc:`UnmappedOptionError` if an option was not read."""
        for key in self._left:
            raise UnmappedOptionError(self._name + key)


def read_options(scheme: str, netloc: str, storage_options: Mapping[str, Any]) -> Callable[[], Setup]:
    """
    Check *storage_options* for the bucket or container *netloc*, and return a function that makes the setup of obstore.

    Only the returned function reads the environment and the configuration files of S3, because this takes time.

    Raises:
        UnmappedOptionError: obstore has no equivalent for an option or its value.
    """
    if scheme in ("s3", "s3a"):
        return _s3(netloc, storage_options)
    if scheme in ("gs", "gcs"):
        return _gcs(netloc, storage_options)
    return _azure(netloc, storage_options)


def _s3(bucket: str, storage_options: Mapping[str, Any]) -> Callable[[], Setup]:
    given = _OptionReader(storage_options)
    client, config = given.nested("client_kwargs"), given.nested("config_kwargs")
    s3 = config.nested("s3")
    options = S3Options(
        key=given.text("key", "username"),
        secret=given.text("secret", "password"),
        token=given.text("token"),
        anonymous=bool(given.take("anon")),
        profile=given.text("profile"),
        endpoint_url=given.text("endpoint_url") or client.text("endpoint_url"),
        region=client.text("region_name"),
        verify=client.take("verify"),
        addressing_style=s3.text("addressing_style"),
    )
    connect_s, read_s = limits(storage_options.get("config_kwargs") or {}, "connect_timeout", "read_timeout")
    config.take("connect_timeout", "read_timeout")
    if given.take("use_ssl") is False and not (options.endpoint_url or "").startswith("http://"):
        raise UnmappedOptionError("use_ssl")
    if config.text("signature_version") not in (None, "s3v4"):
        raise UnmappedOptionError("config_kwargs.signature_version")
    if not isinstance(options.verify, bool | str | None):
        raise UnmappedOptionError("client_kwargs.verify")
    if bool(options.key) != bool(options.secret):
        raise UnmappedOptionError("key" if options.key else "secret")
    if options.endpoint_url and options.addressing_style == "virtual":
        raise UnmappedOptionError("config_kwargs.s3.addressing_style")
    if "@" in bucket:
        raise UnmappedOptionError("user in the URL")
    for each in (given, client, config, s3):
        each.check_empty()

    def make() -> Setup:
        found = aws_config.find_endpoint(options)
        verified: dict[str, Any] = {"allow_invalid_certificates": True} if found.verify is False else {}
        if isinstance(found.verify, str):
            with open(found.verify, "rb") as file:
                verified = {"root_certificate": file.read()}
        return Setup(
            kind="S3Store",
            config={
                "bucket": bucket,
                "region": found.region,
                "unsigned_payload": True,  # TLS protects it on the way, and the hash in the manifest afterwards
                "virtual_hosted_style_request": found.is_virtual_hosted(bucket),
                "skip_signature": options.anonymous,
                # Some servers lack the request that deletes many objects, and others demand a Content-MD5 for it.
                "disable_bulk_delete": True,
                # Not "endpoint", because the variable AWS_ENDPOINT_URL_S3 would override it.
                **({"aws_endpoint_url_s3": found.endpoint_url} if found.endpoint_url else {}),
            },
            client={**_client(found.endpoint_url, connect_s), **verified},
            credentials=found.credentials,
            read_timeout_s=read_s,
        )

    return make


def _gcs(bucket: str, storage_options: Mapping[str, Any]) -> Callable[[], Setup]:
    given = _OptionReader(storage_options)
    token = given.take("token")
    given.take("project")  # only used for making buckets
    read_s = storage_options.get("requests_timeout", READ_TIMEOUT_S)
    given.take("requests_timeout")
    given.check_empty()
    if os.environ.get("STORAGE_EMULATOR_HOST"):
        raise UnmappedOptionError(
            "STORAGE_EMULATOR_HOST"
        )  # because emulators use the JSON API, and obstore the XML API
    config: dict[str, Any] = {"bucket": bucket}
    if token == "anon":
        config["skip_signature"] = True
    elif isinstance(token, Mapping):
        _check_google_type(token, ("service_account",))
        config["service_account_key"] = json.dumps(dict(token))
    elif isinstance(token, str) and os.path.isfile(token):
        kind = _check_google_file(token)
        config["service_account" if kind == "service_account" else "application_credentials"] = token
    elif token not in (None, "google_default"):
        raise UnmappedOptionError("token")
    elif path := os.environ.get("GOOGLE_APPLICATION_CREDENTIALS"):
        _check_google_file(path)
    return lambda: Setup(
        kind="GCSStore",
        config=config,
        client=_client(None, CONNECT_TIMEOUT_S),
        credentials=None,
        read_timeout_s=read_s,
    )


def _check_google_file(path: str) -> str:
    try:
        with open(path, encoding="utf-8") as file:
            return _check_google_type(json.load(file), _MAPPED_GOOGLE_TYPES)
    except (OSError, ValueError) as error:
        raise UnmappedOptionError("token") from error


def _check_google_type(document: Mapping[str, Any], mapped: tuple[str, ...]) -> str:
    """Return the type of Google credentials. Raise :exc:`UnmappedOptionError` if it is not in *mapped*."""
    kind = document.get("type")
    if kind not in mapped:
        raise UnmappedOptionError("token")
    return str(kind)


def _azure(netloc: str, storage_options: Mapping[str, Any]) -> Callable[[], Setup]:
    given = _OptionReader(storage_options)
    container, _, host = netloc.partition("@")
    environment = os.environ.get
    connection = given.text("connection_string") or environment("AZURE_STORAGE_CONNECTION_STRING") or ""
    fields = dict(field.partition("=")[::2] for field in connection.split(";") if field)
    if connection and not {"AccountName", "AccountKey"} <= fields.keys():
        raise UnmappedOptionError("connection_string")
    account = given.text("account_name") or host.partition(".")[0] or fields.get("AccountName")
    account = account or environment("AZURE_STORAGE_ACCOUNT_NAME")
    if account is None:
        raise UnmappedOptionError("account_name")
    secrets = {
        "account_key": given.text("account_key") or fields.get("AccountKey"),
        "sas_key": given.text("sas_token"),
        "tenant_id": given.text("tenant_id"),
        "client_id": given.text("client_id"),
        "client_secret": given.text("client_secret"),
    }
    endpoint = fields.get("BlobEndpoint")
    anonymous = bool(given.take("anon")) and not any(secrets.values())
    connect_s, read_s = limits(storage_options, "connection_timeout", "read_timeout")
    given.take("connection_timeout", "read_timeout")
    given.check_empty()
    config = {"account_name": account, **secrets, "endpoint": endpoint, "skip_signature": anonymous}
    return lambda: Setup(
        kind="AzureStore",
        config={"container_name": container, **{name: value for name, value in config.items() if value is not None}},
        client=_client(endpoint, connect_s),
        credentials=None,
        read_timeout_s=read_s,
    )


def _client(url: str | None, connect_s: float | None) -> dict[str, Any]:
    """Return the options of the HTTP client for the endpoint *url*. None stands for the endpoint of the service."""
    split = urlsplit(url or "https://of-the-service")
    if split.scheme not in ("http", "https") or not split.hostname:
        raise ValueError(f"the endpoint {url!r} is not the URL of a server. Give one such as https://host:9000")
    return {
        "allow_http": split.scheme == "http",
        "connect_timeout": _LONGEST_REQUEST if connect_s is None else timedelta(seconds=connect_s),
        "timeout": _LONGEST_REQUEST,
    }
