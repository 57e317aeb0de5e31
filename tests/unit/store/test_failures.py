"""Reasons that the stores give for failures of disks and networks."""

from __future__ import annotations

import errno
import json

import pytest

from spot_plugins.errors import StoreError
from spot_plugins.store import LocalStore, MemoryStore
from spot_plugins.store.base import get_at_most
from spot_plugins.store.network_errors import network_text
from spot_plugins.store.obstore_errors import obstore_answer, obstore_text
from spot_plugins.store.redaction import Secrets
from spot_plugins.store.store_errors import to_store_error

DEBUG = "\n\nDebug source:\n"


def test_a_full_quota_may_be_cleared_later(tmp_path):
    """It is the user's own limit, and the disk has room."""
    store = LocalStore(str(tmp_path))
    with (
        pytest.raises(StoreError, match=r"the disk quota is used up, at .*EDQUOT") as caught,
        store._as_store_errors("put", "a"),
    ):
        raise OSError(errno.EDQUOT, "Disk quota exceeded")
    assert caught.value.retryable


def test_a_connection_that_takes_nothing_is_a_timeout():
    """The kernel gives it up after the time that the socket was given."""
    aiohttp = pytest.importorskip("aiohttp")
    assert network_text(aiohttp.ClientOSError(errno.ETIMEDOUT, "")) == "timeout: the service took no byte for a while"


def test_an_answer_without_its_location_means_another_region():
    """obstore follows no redirect of a bucket, and reports it in words only."""
    code, text, status = obstore_answer(ValueError(f"Received redirect without LOCATION{DEBUG}"))
    assert (code, status) == ("PermanentRedirect", 301)
    assert text == "the bucket is in another region; give its region_name in client_kwargs"


def test_a_private_authority_is_named_with_its_option():
    """The reason is in the debug output only."""
    text = obstore_text(ValueError(f"x{DEBUG}HttpError {{ kind: Request, source: InvalidCertificate(UnknownIssuer) }}"))
    assert "is not trusted (UnknownIssuer); give a file with its certificate authority as verify" in text


def test_an_object_larger_than_allowed_is_not_read():
    """A stranger who can write to the bucket cannot fill the memory."""
    store = MemoryStore()
    store.put("large", bytes(100))
    with pytest.raises(ValueError, match="it has more than 10 bytes"):
        get_at_most(store, "large", 10)


def test_an_answer_that_is_no_document_is_tried_again():
    """A proxy, or the page of a login, answers in the place of the service."""
    with pytest.raises(json.JSONDecodeError) as page:
        json.loads("<html>Welcome")
    error = to_store_error("get", "key", page.value, Secrets("s3://bucket/run", {}))

    assert error.reason.startswith("the answer of the service cannot be read: ")
    assert error.retryable
