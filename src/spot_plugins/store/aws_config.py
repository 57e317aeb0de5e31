"""Endpoint, region and credentials of S3, found where botocore finds them, so that s3fs and obstore agree."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

from ..clock import SystemClock

_DEFAULT_REGION: Final = "us-east-1"

# botocore renews credentials that expire in less than 10 minutes. obstore asks for new ones 5 minutes before the end of
# this time.
_CREDENTIALS_LAST: Final = timedelta(minutes=10)


@dataclass(frozen=True, kw_only=True, slots=True, repr=False)
class S3Options:
    """Settings of S3 that the user gave. None for a setting that was not given."""

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
class S3Endpoint:
    """Settings of S3, complete."""

    endpoint_url: str | None
    """None for the endpoint of AWS."""
    region: str
    verify: bool | str | None
    """False if certificates are not checked. Or a file of trusted certificate authorities."""
    addressing_style: str | None
    credentials: Callable[[], dict[str, Any]] | None
    """Function that returns credentials that are still valid. None if requests are not signed."""

    def is_virtual_hosted(self, bucket: str) -> bool:
        """Return whether requests name *bucket* in the host, and not in the path."""
        # A name with a dot stays in the path, because the certificate of AWS does not cover it.
        return self.endpoint_url is None and self.addressing_style != "path" and "." not in bucket


def find_endpoint(options: S3Options) -> S3Endpoint:
    """
    Complete *options* from the environment, the configuration files and the instance metadata.

    botocore takes 16 MB of memory. It is imported only if the environment does not give all settings.

    Raises:
        Exception: Any error of botocore, for example if there are no credentials or no such profile.
    """
    session = _session(options)
    scoped = session.get_scoped_config() if session else {}
    region = options.region or os.environ.get("AWS_DEFAULT_REGION") or scoped.get("region")
    return S3Endpoint(
        endpoint_url=options.endpoint_url or _endpoint(session, scoped),
        region=region or os.environ.get("AWS_REGION") or _DEFAULT_REGION,
        verify=_first(options.verify, os.environ.get("AWS_CA_BUNDLE"), scoped.get("ca_bundle")),
        addressing_style=options.addressing_style or _nested(scoped, "s3").get("addressing_style"),
        credentials=None if options.anonymous else _credentials(options, session),
    )


def _session(options: S3Options) -> Any:
    """Return a session of botocore. None if neither profiles nor botocore's search for credentials are needed."""
    environment = os.environ
    config = os.path.expanduser(environment.get("AWS_CONFIG_FILE") or "~/.aws/config")
    has_keys = options.anonymous or options.key or _environment_keys()
    profile = options.profile or environment.get("AWS_PROFILE") or environment.get("AWS_DEFAULT_PROFILE")
    if has_keys and not profile and not os.path.exists(config):
        return None
    from botocore.session import Session  # type: ignore[import-untyped]

    return Session(profile=options.profile)


def _endpoint(session: Any, scoped: dict[str, Any]) -> str | None:
    """Return the endpoint URL of the environment or the configuration file. An entry for S3 alone comes first."""
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
    """Return a function that returns valid credentials in the form that obstore takes."""
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
        now = SystemClock().utc()
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
