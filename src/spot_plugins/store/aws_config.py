"""Where S3 is and who we are there, found as botocore finds it, so that s3fs and obstore agree."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Any, Final

_DEFAULT_REGION: Final = "us-east-1"

# obstore asks again in the last 5 minutes of it. botocore renews what has less than 10 minutes left.
_CREDENTIALS_LAST: Final = timedelta(minutes=10)


@dataclass(frozen=True, kw_only=True, slots=True, repr=False)
class S3Options:
    """What the user said about S3; None for what was left open."""

    key: str | None
    secret: str | None
    token: str | None
    anonymous: bool
    profile: str | None
    endpoint_url: str | None
    region: str | None
    verify: bool | str | None
    addressing_style: str | None


@dataclass(frozen=True, kw_only=True, slots=True, repr=False)
class S3Place:
    """What is true of S3 here."""

    endpoint_url: str | None
    """None for that of AWS."""
    region: str
    verify: bool | str | None
    """False for no check of certificates, or a file of authorities to trust."""
    addressing_style: str | None
    credentials: Callable[[], dict[str, Any]] | None
    """Returns valid credentials whenever it is called. None to send none."""

    def is_virtual_hosted(self, bucket: str) -> bool:
        """Return whether *bucket* is a part of the host's name, rather than of the path."""
        # A certificate covers no dotted names.
        return self.endpoint_url is None and self.addressing_style != "path" and "." not in bucket


def look_up(options: S3Options) -> S3Place:
    """
    Fill in what *options* leave open, from the environment, the configuration files and instance metadata.

    botocore, which costs 16 MB, is imported only if the environment does not settle it.

    Raises:
        Exception: Whatever botocore raises if there are no credentials, no such profile, and so on.
    """
    session = _session(options)
    scoped = session.get_scoped_config() if session else {}
    region = options.region or os.environ.get("AWS_DEFAULT_REGION") or scoped.get("region")
    return S3Place(
        endpoint_url=options.endpoint_url or _endpoint(session, scoped),
        region=region or os.environ.get("AWS_REGION") or _DEFAULT_REGION,
        verify=_first(options.verify, os.environ.get("AWS_CA_BUNDLE"), scoped.get("ca_bundle")),
        addressing_style=options.addressing_style or _nested(scoped, "s3").get("addressing_style"),
        credentials=None if options.anonymous else _credentials(options, session),
    )


def _session(options: S3Options) -> Any:
    """Return a session of botocore, or None if nothing that it reads can matter."""
    environment = os.environ
    config = os.path.expanduser(environment.get("AWS_CONFIG_FILE") or "~/.aws/config")
    has_keys = options.anonymous or options.key or _environment_keys()
    profile = options.profile or environment.get("AWS_PROFILE") or environment.get("AWS_DEFAULT_PROFILE")
    if has_keys and not profile and not os.path.exists(config):
        return None
    from botocore.session import Session  # type: ignore[import-untyped]

    return Session(profile=options.profile)


def _endpoint(session: Any, scoped: dict[str, Any]) -> str | None:
    """Return what the environment or the configuration file says, the service's own entry first."""
    if session is not None and session.get_config_variable("ignore_configured_endpoint_urls"):
        return None
    services = _nested(session.full_config, "services").get(scoped["services"], {}) if "services" in scoped else {}
    return _first(  # type: ignore[no-any-return]
        os.environ.get("AWS_ENDPOINT_URL_S3"),
        os.environ.get("AWS_ENDPOINT_URL"),
        _nested(services, "s3").get("endpoint_url"),
        scoped.get("endpoint_url"),
    )


def _credentials(options: S3Options, session: Any) -> Callable[[], dict[str, Any]]:
    keys = (options.key, options.secret, options.token) if options.key else None
    if keys is None and session is None:
        keys = _environment_keys()
    if keys is not None:
        fixed = {**_named(*keys), "expires_at": None}
        return lambda: fixed
    found = session.get_credentials()
    if found is None:
        from botocore.exceptions import NoCredentialsError  # type: ignore[import-untyped]

        raise NoCredentialsError

    def provide() -> dict[str, Any]:
        frozen = found.get_frozen_credentials()
        now = datetime.now(timezone.utc)
        return {**_named(frozen.access_key, frozen.secret_key, frozen.token), "expires_at": now + _CREDENTIALS_LAST}

    return provide


def _environment_keys() -> tuple[str, str, str | None] | None:
    key, secret = os.environ.get("AWS_ACCESS_KEY_ID"), os.environ.get("AWS_SECRET_ACCESS_KEY")
    token = os.environ.get("AWS_SESSION_TOKEN") or os.environ.get("AWS_SECURITY_TOKEN")
    return (key, secret, token) if key and secret else None


def _named(key: str | None, secret: str | None, token: str | None) -> dict[str, Any]:
    return {"access_key_id": key, "secret_access_key": secret, "token": token}


def _nested(section: dict[str, Any], name: str) -> dict[str, Any]:
    value = section.get(name)
    return value if isinstance(value, dict) else {}


def _first(*values: Any) -> Any:
    return next((value for value in values if value is not None), None)
