"""One policy for every client of every service: time limits, one try, the class of each failure, and its words."""

from __future__ import annotations

import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any, NamedTuple

import pytest
from clouds import CLIENTS, options_for
from steps import load, save

from spot_plugins.errors import ConfigError, StoreError
from spot_plugins.events import CheckpointRejected
from spot_plugins.store import ObjectStore, ObstoreStore, check_writable, patiently
from spot_plugins.testing import FaultProxy

MIB = 1024**2
DEADLINE_S = 300
TIMEOUT_S = 1.0

OPERATIONS = {
    "put": lambda store: store.put("key", b"data"),
    "put_if_absent": lambda store: store.put_if_absent(f"claim/{uuid.uuid4().hex}", b"data"),
    "get": lambda store: store.get("there"),
    "keys": lambda store: list(store.keys("")),
    "delete": lambda store: store.delete("key"),
}
"""Each of them sends one request, at least while the service fails."""


class Way(NamedTuple):
    """A way to a service: through one client, and through a proxy."""

    protocol: str
    through: Any
    server: Any
    url: str
    proxy: FaultProxy

    def open(self, url: str | None = None, timeout_s: float | None = None, **changed: Any) -> ObjectStore:
        options = options_for(self.server, self.proxy.endpoint_url, timeout_s)
        return self.through(url or self.url, {**options, **changed})


@pytest.fixture(params=OPERATIONS)
def operation(request):
    return OPERATIONS[request.param]


@pytest.fixture(scope="session")
def buckets():
    """URLs of the buckets of this module, which may be left and entered again, by protocol."""
    return {}


@pytest.fixture(scope="module", params=CLIENTS)
def way(request, buckets):
    protocol, through = CLIENTS[request.param]
    server = request.getfixturevalue(f"{protocol}_server")
    if protocol not in buckets:
        buckets[protocol] = server.create_bucket("clients")
    with FaultProxy(server.endpoint_url, protocol) as proxy:
        yield Way(protocol, through, server, f"{buckets[protocol]}/{uuid.uuid4().hex}/run", proxy)


@pytest.fixture(scope="module")
def opened(way):
    store = way.open(timeout_s=TIMEOUT_S)
    store.put("there", b"data")
    return store


@pytest.fixture
def proxy(way):
    way.proxy.heal()
    return way.proxy


@pytest.fixture
def store(opened, proxy):
    """A store after the healthy proxy, with the object ``there``."""
    return opened


PASSING = {
    "refused": (
        lambda proxy: proxy.refuse(),
        "the connection to the endpoint URL broke|cannot connect to the endpoint",
    ),
    "hangs": (lambda proxy: proxy.hang(), "timeout"),
    "500": (lambda proxy: proxy.fail_with(500), r"says the proxy \(InternalServerError, HTTP status 500\)"),
    "503": (lambda proxy: proxy.fail_with(503), r"says the proxy \(ServiceUnavailable, HTTP status 503\)"),
    "507 full": (lambda proxy: proxy.fail_with(507), "HTTP status 507"),
    "429": (lambda proxy: proxy.fail_with(429), r"says the proxy \(TooManyRequests, HTTP status 429\)"),
    "409": (lambda proxy: proxy.fail_with(409), "HTTP status 409"),
    "408": (lambda proxy: proxy.fail_with(408), "HTTP status 408"),
}


@pytest.mark.parametrize(("fault", "said"), PASSING.values(), ids=PASSING)
def test_a_service_in_trouble_is_a_store_error_that_may_pass(store, proxy, operation, fault, said):
    """
    A service that is away, stuck, overloaded or full gives StoreError, and is not asked again and again.

    Once it is well, so is the store.
    """
    fault(proxy)
    before = proxy.num_requests
    with pytest.raises(StoreError, match=said) as caught:
        operation(store)

    assert proxy.num_requests - before <= 2  # a client may repeat one whose connection is from before the trouble
    assert caught.value.retryable
    proxy.heal()
    patiently(lambda: operation(store))  # a busy machine may need longer than TIMEOUT_S
    assert patiently(lambda: store.get("there")) == b"data"


REJECTED = "the service rejects these credentials; give valid ones"
DENIED = "no permission; these credentials must be allowed to put, get, list and delete"
NO_BUCKET = "the bucket does not exist; create it"
REFUSALS = {
    "401": ({"": (401, "", "")}, REJECTED),
    "403": ({"": (403, "", "")}, DENIED),
    "expired": (
        {
            "s3": (400, "ExpiredToken", "The provided token has expired."),
            "gs": (401, "authError", "Invalid Credentials"),
            "az": (401, "InvalidAuthenticationInfo", "Lifetime validation failed. The token is expired."),
        },
        REJECTED,
    ),
    "policy": (
        {
            "s3": (403, "AccessDenied", "not authorized to perform: kms:GenerateDataKey"),
            "gs": (403, "forbidden", "The billing account is disabled"),
            "az": (403, "AuthorizationPermissionMismatch", "This request is not authorized by this policy"),
        },
        DENIED,
    ),
    "no bucket": (
        {
            "s3": (404, "NoSuchBucket", "The specified bucket does not exist"),
            "gs": (404, "notFound", "The specified bucket does not exist."),
            "az": (404, "ContainerNotFound", "The specified container does not exist."),
        },
        NO_BUCKET,
    ),
}


@pytest.mark.parametrize(("answers", "said"), REFUSALS.values(), ids=REFUSALS)
def test_a_refusal_names_the_remedy_and_keeps_the_sentence_of_the_service(store, way, proxy, operation, answers, said):
    """
    Credentials, rights and buckets read the same from every service. The next try will not help.
    """
    status, code, message = answers.get(way.protocol) or answers[""]
    proxy.fail_with(status, code, message)

    with pytest.raises(StoreError, match=said) as caught:
        operation(store)

    assert not caught.value.retryable
    assert (message or "says the proxy") in caught.value.reason
    proxy.heal()
    operation(store)


SKEWED = {
    "s3": (403, "RequestTimeTooSkewed", "The difference between the request time and the current time is too large."),
    "az": (403, "AuthenticationFailed", "Request date header too old: 'Sat, 01 Jan 2000 00:00:00 GMT'"),
}


def test_a_wrong_clock_is_named_and_may_pass(store, way, proxy, operation):
    """
    A clock that is not set yet is set a moment later. Google looks at the clock where tokens are made.
    """
    if way.protocol not in SKEWED:
        pytest.skip("answers of this service do not depend on the clock")
    proxy.fail_with(*SKEWED[way.protocol])

    with pytest.raises(StoreError, match="the clock of this machine is wrong; set it") as caught:
        operation(store)

    assert caught.value.retryable
    assert SKEWED[way.protocol][2] in caught.value.reason


def test_rate_limits_pass(store, way, proxy):
    """
    Google says some of its limits with 403.
    """
    if way.protocol != "gs":
        pytest.skip("other services answer 429 or 503")
    proxy.fail_with(403, "userRateLimitExceeded", "Rate Limit Exceeded")

    with pytest.raises(StoreError, match="Rate Limit Exceeded") as caught:
        store.put("key", b"data")

    assert caught.value.retryable


def test_an_answer_that_is_cut_off_is_no_answer(store, way, proxy, operation):
    """
    A connection that ends before the answer does gives StoreError that may pass, and never a part of an object.

    The request is not repeated: a second conditional put would find the object of the first one.
    """
    proxy.cut_answers()
    before = proxy.num_requests

    with pytest.raises(StoreError, match="the connection to the endpoint URL broke") as caught:
        operation(store)

    assert caught.value.retryable
    # obstore deletes from Azure with a batch of one, a request within a request.
    is_batch = way.protocol == "az" and way.through is ObstoreStore and operation is OPERATIONS["delete"]
    assert proxy.num_requests - before == (2 if is_batch else 1)
    proxy.heal()
    assert store.get("there") == b"data"


@pytest.mark.parametrize("num_bytes", [MIB, 300], ids=["large", "small"])
def test_a_reset_in_the_middle_of_a_put_may_pass(store, proxy, num_bytes):
    """
    The connection breaks within the body, or within the head of a request. The next put is whole.
    """
    proxy.reset_after(num_bytes // 2)

    with pytest.raises(StoreError, match="the connection to the endpoint URL broke") as caught:
        store.put("key", bytes(num_bytes))

    assert caught.value.retryable
    proxy.heal()
    store.put("key", b"data")
    assert store.get("key") == b"data"


def test_a_reset_in_the_middle_of_a_get_may_pass(store, proxy):
    """
    The connection breaks within the answer. The next get is whole.
    """
    store.put("large", bytes(4 * MIB))
    with ThreadPoolExecutor(1) as pool:
        proxy.slow(4 * MIB)
        before = proxy.num_returned
        getting = pool.submit(store.get, "large")
        deadline = time.monotonic() + DEADLINE_S
        while proxy.num_returned - before < MIB:
            assert time.monotonic() < deadline
        proxy.refuse()

        with pytest.raises(StoreError, match="the connection to the endpoint URL broke") as caught:
            getting.result(timeout=DEADLINE_S)

    assert caught.value.retryable
    proxy.heal()
    assert store.get("large") == bytes(4 * MIB)


def test_a_service_that_stops_reading_in_the_middle_of_a_put_is_given_up(store, proxy):
    """
    An upload that gets stuck half-way, where no answer is due yet, gives StoreError as well.
    """
    before = proxy.num_forwarded
    with ThreadPoolExecutor(1) as pool, ExitStack() as stack:
        stack.callback(proxy.heal)  # or a put that is not given up would never end
        proxy.slow(4 * MIB)
        putting = pool.submit(store.put, "key", bytes(16 * MIB))
        deadline = time.monotonic() + DEADLINE_S
        while proxy.num_forwarded - before < MIB:
            assert time.monotonic() < deadline
        proxy.hang()

        with pytest.raises(StoreError) as caught:
            putting.result(timeout=DEADLINE_S)

    assert caught.value.retryable


def test_a_service_that_stops_sending_in_the_middle_of_a_get_is_given_up(store, proxy):
    """
    A download that gets stuck half-way gives StoreError, and never the part that has come.
    """
    store.put("large", bytes(16 * MIB))
    with ThreadPoolExecutor(1) as pool, ExitStack() as stack:
        stack.callback(proxy.heal)
        proxy.slow(4 * MIB)
        before = proxy.num_returned
        getting = pool.submit(store.get, "large")
        deadline = time.monotonic() + DEADLINE_S
        while proxy.num_returned - before < MIB:
            assert time.monotonic() < deadline
        proxy.hang()

        with pytest.raises(StoreError) as caught:
            getting.result(timeout=DEADLINE_S)

    assert caught.value.retryable


def test_a_slow_service_is_not_given_up(store, proxy):
    """
    A put and a get that take longer than the read timeout succeed as long as bytes move.

    The default limit is 15 times as long, so that 100 kB/s are enough.
    """
    data = bytes(3_000_000)
    proxy.slow(1_500_000)
    before = time.monotonic()

    store.put("key", data)

    assert time.monotonic() - before > TIMEOUT_S
    assert store.get("key") == data


def test_requests_are_not_repeated(store, proxy, operation):
    """
    The caller knows how long it can wait, so the client asks once.
    """
    proxy.fail_with(503)
    before = proxy.num_requests

    with pytest.raises(StoreError):
        operation(store)

    assert proxy.num_requests - before == 1


def test_a_large_object_travels_in_one_request(way, proxy):
    """
    No multipart upload, which a killed writer would leave behind; no ranges, which may mix two objects.
    """
    store = way.open()
    data = bytes(101 * MIB)  # beyond where the clients begin to split
    before = proxy.num_requests

    store.put("large", data)
    assert proxy.num_requests - before == 1
    assert store.get("large") == data
    assert proxy.num_requests - before == 2
    memory = bytearray(len(data))
    assert store.get_into("large", 1, [memoryview(memory)]) == len(data) - 1
    assert proxy.num_requests - before == 3


WRONG = {
    "s3": [{"key": "wrong-key"}, {"secret": "wrong-secret"}],
    "az": [{"key": "d3Jvbmc="}],
}


@pytest.mark.parametrize("number", [0, 1])
def test_bad_credentials_cannot_be_retried(way, operation, number):
    """
    A service that does not know the credentials gives a StoreError that says so, and not to try again.
    """
    if number >= len(WRONG.get(way.protocol, ())):
        pytest.skip("this server has no such credentials")
    store = way.through(way.url, way.server.storage_options(**WRONG[way.protocol][number]))

    with pytest.raises(StoreError, match="rejects these credentials") as caught:
        operation(store)

    assert not caught.value.retryable
    with pytest.raises(ConfigError, match="rejects these credentials; give valid ones"):
        check_writable(store)


def test_a_missing_bucket_cannot_be_retried(way, proxy, operation):
    """
    A missing bucket is not taken for a bucket without the object.
    """
    if way.protocol == "gs" and operation in (OPERATIONS["get"], OPERATIONS["delete"]):
        pytest.skip("the server has other words for it than Google, which another test has")
    if way.protocol == "az" and way.through is ObstoreStore and operation is OPERATIONS["delete"]:
        pytest.skip("obstore takes it for a deletion of what is not there")
    store = way.open(f"{way.protocol}://no-such-bucket/run")

    with pytest.raises(StoreError, match="bucket does not exist") as caught:
        operation(store)

    assert not caught.value.retryable
    with pytest.raises(ConfigError, match=r"://no-such-bucket/run.*bucket does not exist; create it"):
        check_writable(store)


def test_what_a_damaged_object_lacks_is_not_read(store):
    """
    An object that is missing, empty or cut is told from a service in trouble: a reader takes an older step then.

    Readers are patient. fake-gcs-server closes a connection after 416, and does not say so.
    """
    store.put("empty", b"")
    store.put("cut", b"0123")
    memory = bytearray(8)

    def get_into(key, start):
        return patiently(lambda: store.get_into(key, start, [memoryview(memory)]))

    assert get_into("empty", 0) == 0
    assert get_into("cut", 0) == 4
    assert get_into("cut", 4) == 0
    assert get_into("cut", 9) == 0
    assert patiently(lambda: store.get("empty")) == b""
    with pytest.raises(KeyError):
        patiently(lambda: store.get("missing"))
    with pytest.raises(KeyError):
        get_into("missing", 3)


DAMAGES = {
    "missing": lambda store, key: store.delete(key),
    "empty": lambda store, key: store.put(key, b""),
    "cut": lambda store, key: store.put(key, store.get(key)[:-1]),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_step_is_passed_over(way, proxy, damage):
    """
    Whichever client reads it, a blob that is missing, empty or cut ends in the step before, and in an event.
    """
    store = way.open(f"{way.url}-{uuid.uuid4().hex}")
    for step in (1, 2):
        save(step, store)
    (blob,) = (key for key in store.keys("steps/") if key.endswith(".safetensors") and "0000000002" in key)
    told = []

    damage(store, blob)

    assert load(store, told=told).step_id.step == 1
    assert [type(event) for event in told if isinstance(event, CheckpointRejected)] == [CheckpointRejected]


def test_a_server_that_ignores_the_condition_has_no_put_if_absent(way, proxy):
    """
    A server that answers every conditional put with success is found out: nobody is told that it won.
    """
    if way.protocol == "gs":
        pytest.skip("a successful answer of this protocol has a document")
    store = way.open()
    proxy.fail_with(201 if way.protocol == "az" else 200)

    with pytest.raises(StoreError, match="no put-if-absent") as caught:
        store.put_if_absent("attempts/1", b"mine")

    assert not caught.value.retryable


def test_check_writable_passes_where_all_is_well(store):
    """
    A usable store passes, and keeps nothing of the check.
    """
    before = list(store.keys(""))

    check_writable(store)

    assert list(store.keys("")) == before


def test_check_writable_lets_a_passing_failure_pass(store, proxy):
    """
    A service that is away for the moment is no wrong setting.
    """
    proxy.refuse()

    with pytest.raises(StoreError):
        check_writable(store)


@pytest.mark.parametrize(("bucket", "pages"), [("bucket", 1), ("bucket--x-s3", 2)])
def test_a_listing_asks_for_its_prefix_alone(bucket, pages, s3_server):
    """
    Each of 1,100 ranks lists its own objects in a folder of all ranks. That is one page, and not both that there are.

    S3 Express One Zone lists in no order, and from the beginning. The names of its buckets end in --x-s3.
    """
    url = f"{s3_server.create_bucket(f'pages-{pages}')}/run"
    with FaultProxy(s3_server.endpoint_url) as proxy:
        store = ObstoreStore(url, s3_server.storage_options(endpoint_url=proxy.endpoint_url))
        store._is_unordered = ObstoreStore(f"s3://{bucket}/run")._is_unordered
        keys = [f"events/000001-{rank:05d}-000000.jsonl" for rank in range(1100)]
        with ThreadPoolExecutor(16) as pool:
            list(pool.map(lambda key: store.put(key, b"x"), keys))

        for rank in (0, 550, 1099):
            before = proxy.num_requests
            assert list(store.keys(f"events/000001-{rank:05d}-")) == [keys[rank]]
            assert proxy.num_requests - before == pages, rank
        before = proxy.num_requests
        assert list(store.keys("events/")) == keys
        assert proxy.num_requests - before >= 2


def test_a_service_that_lists_in_no_order_hides_nothing(s3_server, monkeypatch):
    """
    Not even a step behind one that comes after it in order, or a training would begin anew in silence.
    """
    import obstore

    def backwards(client, prefix=None, offset=None, plain=obstore.list):
        entries = [entry for page in plain(client, prefix=prefix) for entry in page][::-1]
        return [entries[start : start + 50] for start in range(0, len(entries), 50)]

    store = ObstoreStore(f"{s3_server.create_bucket('backwards')}/run", s3_server.storage_options())
    keys = [f"steps/{step:010d}-000001/rank" for step in range(120)]
    for key in keys:
        store.put(key, b"x")
    monkeypatch.setattr(obstore, "list", backwards)

    assert list(store.keys("steps/")) == keys
    assert list(store.keys(f"steps/{7:010d}-")) == keys[7:8]
    assert list(store.keys("steps/000000001")) == keys[10:20]
