"""The measurement of ``spot plan``, against a real S3 service."""

from __future__ import annotations

import uuid

import pytest

from spot_plugins.economics import link_speed
from spot_plugins.errors import ConfigError
from spot_plugins.store import open_store


@pytest.fixture
def bucket(s3_server, monkeypatch):
    """A bucket, with the credentials for it where a user has them."""
    options = s3_server.storage_options()
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", options["key"])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", options["secret"])
    monkeypatch.setenv("AWS_ENDPOINT_URL", options["endpoint_url"])
    monkeypatch.setattr(link_speed, "MAX_BYTES", 16 * 1024**2)
    return s3_server.create_bucket(f"speed-{uuid.uuid4().hex}")


def test_the_speed_to_s3_is_measured_and_nothing_stays(bucket):
    """
    Puts of up to 16 MiB, all of which are removed.
    """
    found = link_speed.measure_store(f"{bucket}/run")

    assert found.value > 0
    assert "to the store in" in found.basis
    assert list(open_store(f"{bucket}/run").keys("")) == []


def test_credentials_that_are_refused_are_named(bucket, monkeypatch):
    """
    At once, and without the secret.
    """
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "no-such-secret")
    with pytest.raises(ConfigError, match="rejects these credentials") as refused:
        link_speed.measure_store(f"{bucket}/run")
    assert "no-such-secret" not in str(refused.value)
