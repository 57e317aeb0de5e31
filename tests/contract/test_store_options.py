"""The same storage options, environment and files mean the same to either client of S3."""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import os
import re
import shutil
import ssl
import stat
import subprocess
import sys
import threading
import traceback
from datetime import datetime, timedelta, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import obstore
import pytest
from hearing import DEADLINE_S
from servers import HOST

from spot_plugins.errors import ConfigError, StoreError
from spot_plugins.store import FsspecStore, ObstoreStore, aws_config, check_writable, open_store
from spot_plugins.store.obstore_options import UnmappedOptionError, read_options
from spot_plugins.testing import FaultProxy

MIB = 1024**2
NOWHERE = f"http://{HOST}:9"
SIGNED = re.compile(r"Credential=([^/]+)/\d+/([^/]+)/s3/aws4_request")


CHECKSUM = "x-amz-checksum-"
NO_CHECKSUM = (
    b"<Error><Code>InvalidRequest</Code><Message>Content-MD5 OR x-amz-checksum- HTTP header is required for Put Object "
    b"requests with Object Lock parameters</Message></Error>"
)
"""The answer of S3 for a bucket with object lock."""


class Recorder(ThreadingHTTPServer):
    """Says yes to every put, and keeps what was asked: path and headers."""

    daemon_threads = True

    def __init__(self, certificate=None):
        super().__init__((HOST, 0), Answering)
        self.asked = []
        self.demands_checksum = False
        if certificate:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            self.socket = context.wrap_socket(self.socket, server_side=True)
        self.url = f"http{'s' if certificate else ''}://{HOST}:{self.server_address[1]}"
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def handle_error(self, request, client_address):
        """Clients that do not trust the certificate end the connection."""


class Answering(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_PUT(self):
        if self.headers.get("Transfer-Encoding") == "chunked":
            while size := int(self.rfile.readline(), 16):
                self.rfile.read(size + 2)
            self.rfile.readline()
        else:
            self.rfile.read(int(self.headers["Content-Length"]))
        self.server.asked.append((self.path, self.headers))
        if self.server.demands_checksum and not any(name.lower().startswith(CHECKSUM) for name in self.headers):
            self.send_response(400)
            self.send_header("Content-Length", str(len(NO_CHECKSUM)))
            self.end_headers()
            self.wfile.write(NO_CHECKSUM)
            return
        self.send_response(200)
        self.send_header("ETag", '"0"')
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *args):
        pass


@pytest.fixture
def recorder():
    recorder = Recorder()
    yield recorder
    recorder.shutdown()
    recorder.server_close()


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """A home without credentials, an environment without AWS, and a machine without metadata."""
    for name in os.environ:
        if name.startswith(("AWS_", "GOOGLE_", "AZURE_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".aws").mkdir()
    return tmp_path


@pytest.fixture(params=[ObstoreStore, FsspecStore])
def client(request):
    return request.param


KEYS = {"key": "their-key", "secret": "their-secret"}
ENVIRONMENT_KEYS = {"AWS_ACCESS_KEY_ID": "env-key", "AWS_SECRET_ACCESS_KEY": "env-secret"}
CREDENTIALS = """
[default]
aws_access_key_id = default-key
aws_secret_access_key = default-secret
[team]
aws_access_key_id = team-key
aws_secret_access_key = team-secret
aws_session_token = team-token
"""
CONFIG = """
[default]
region = eu-north-1
[profile team]
region = ap-south-1
services = near
[services near]
s3 =
  endpoint_url = {url}
[profile asks]
endpoint_url = {url}
credential_process = {program}
"""

# Options, environment, whether ~/.aws is there; then key, region and token in the request.
SEEN = {
    "keys": (KEYS | {"endpoint_url": "{url}"}, {}, False, ("their-key", "us-east-1", None)),
    "user name": (
        {"username": "u-key", "password": "word", "endpoint_url": "{url}"},
        {},
        False,
        ("u-key", "us-east-1", None),
    ),
    "token": (
        KEYS | {"token": "their-token", "endpoint_url": "{url}"},
        {},
        False,
        ("their-key", "us-east-1", "their-token"),
    ),
    "client_kwargs": (
        KEYS | {"client_kwargs": {"endpoint_url": "{url}", "region_name": "eu-west-3"}},
        {},
        False,
        ("their-key", "eu-west-3", None),
    ),
    "path style": (
        KEYS
        | {"endpoint_url": "{url}", "config_kwargs": {"s3": {"addressing_style": "path"}, "signature_version": "s3v4"}},
        {},
        False,
        ("their-key", "us-east-1", None),
    ),
    "no TLS": (KEYS | {"endpoint_url": "{url}", "use_ssl": False}, {}, False, ("their-key", "us-east-1", None)),
    "environment": (
        {},
        ENVIRONMENT_KEYS
        | {"AWS_SESSION_TOKEN": "env-token", "AWS_DEFAULT_REGION": "eu-west-2", "AWS_ENDPOINT_URL": "{url}"},
        False,
        ("env-key", "eu-west-2", "env-token"),
    ),
    "environment for S3": (
        {},
        ENVIRONMENT_KEYS | {"AWS_ENDPOINT_URL": NOWHERE, "AWS_ENDPOINT_URL_S3": "{url}"},
        False,
        ("env-key", "us-east-1", None),
    ),
    "options before environment": (
        KEYS | {"endpoint_url": "{url}", "client_kwargs": {"region_name": "eu-west-3"}},
        ENVIRONMENT_KEYS
        | {"AWS_SESSION_TOKEN": "env-token", "AWS_DEFAULT_REGION": "eu-west-2", "AWS_ENDPOINT_URL_S3": NOWHERE},
        False,
        ("their-key", "eu-west-3", None),
    ),
    "environment before files": (
        {"endpoint_url": "{url}"},
        ENVIRONMENT_KEYS | {"AWS_DEFAULT_REGION": "eu-west-2"},
        True,
        ("env-key", "eu-west-2", None),
    ),
    "files": ({"endpoint_url": "{url}"}, {}, True, ("default-key", "eu-north-1", None)),
    "environment and a region in a file": (
        {"endpoint_url": "{url}"},
        ENVIRONMENT_KEYS,
        True,
        ("env-key", "eu-north-1", None),
    ),
    "profile": ({"profile": "team"}, {}, True, ("team-key", "ap-south-1", "team-token")),
    "profile before environment": (
        {"profile": "team"},
        ENVIRONMENT_KEYS,
        True,
        ("team-key", "ap-south-1", "team-token"),
    ),
    "AWS_PROFILE": ({}, {"AWS_PROFILE": "team"}, True, ("team-key", "ap-south-1", "team-token")),
    "a program that knows": ({"profile": "asks"}, {}, True, ("fresh-key", "us-east-1", "fresh-token")),
    "anonymous": ({"anon": True, "endpoint_url": "{url}"}, ENVIRONMENT_KEYS, True, (None, None, None)),
}


def filled(value, url):
    if isinstance(value, dict):
        return {name: filled(each, url) for name, each in value.items()}
    return value.replace("{url}", url) if isinstance(value, str) else value


@pytest.mark.parametrize(("options", "environment", "has_files", "expected"), SEEN.values(), ids=SEEN)
def test_who_asks_whom_is_the_same_for_both(
    client, options, environment, has_files, expected, recorder, home, monkeypatch
):
    """
    Endpoint, region, keys, token, profile and anonymity come from the same places, in the same order.
    """
    for name, value in filled(environment, recorder.url).items():
        monkeypatch.setenv(name, value)
    if has_files:
        (home / ".aws" / "credentials").write_text(CREDENTIALS)
        (home / ".aws" / "config").write_text(CONFIG.format(url=recorder.url, program=write_program(home)))

    client("s3://bucket/run", filled(options, recorder.url)).put("key", b"data")

    ((path, headers),) = recorder.asked
    signed = SIGNED.search(headers.get("Authorization", ""))
    assert path.partition("?")[0] == "/bucket/run/key"
    assert (*(signed.groups() if signed else (None, None)), headers.get("x-amz-security-token")) == expected


def write_program(home):
    """Write the program that a profile asks for credentials, and return its path."""
    expiry = (datetime.now(timezone.utc) + timedelta(hours=1)).isoformat()
    answer = {
        "Version": 1,
        "AccessKeyId": "fresh-key",
        "SecretAccessKey": "fresh-secret",
        "SessionToken": "fresh-token",
        "Expiration": expiry,
    }
    program = home / "credentials"
    program.write_text(f"#!/bin/sh\necho '{json.dumps(answer)}'\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return program


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    """Files: an authority that nobody knows, and what it says of 127.0.0.1, with its key."""
    if shutil.which("openssl") is None:
        pytest.skip("no program openssl")
    folder = tmp_path_factory.mktemp("certificates")

    def openssl(*args):
        subprocess.run(["openssl", *args], cwd=folder, check=True, capture_output=True)

    new = ("req", "-newkey", "rsa:2048", "-nodes", "-days", "2")
    openssl(*new, "-x509", "-subj", "/CN=authority", "-keyout", "ca.key", "-out", "ca.pem")
    openssl(*new, "-subj", "/CN=server", "-keyout", "server.key", "-out", "server.csr")
    (folder / "names").write_text(f"subjectAltName=IP:{HOST}\nbasicConstraints=CA:FALSE\n")
    sign = ("x509", "-req", "-in", "server.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial")
    openssl(*sign, "-days", "2", "-extfile", "names", "-out", "server.crt")
    (folder / "server.pem").write_text((folder / "server.crt").read_text() + (folder / "server.key").read_text())
    return folder / "ca.pem", folder / "server.pem"


TRUST = {
    "verify": ({"client_kwargs": {"verify": "{ca}"}}, {}, ""),
    "no check": ({"client_kwargs": {"verify": False}}, {}, ""),
    "environment": ({}, {"AWS_CA_BUNDLE": "{ca}"}, ""),
    "file": ({}, {}, "[default]\nca_bundle = {ca}\n"),
}


@pytest.mark.parametrize(("options", "environment", "config"), TRUST.values(), ids=TRUST)
def test_a_private_authority_is_trusted_where_it_is_named(
    client, options, environment, config, certificates, home, monkeypatch
):
    """
    Over https with a certificate that no public authority signed, both clients ask where they are told to trust.
    """
    authority, certificate = certificates
    recorder = Recorder(certificate)
    for name, value in environment.items():
        monkeypatch.setenv(name, value.format(ca=authority))
    if config:
        (home / ".aws" / "config").write_text(config.format(ca=authority))
    verify = options.get("client_kwargs", {}).get("verify")
    if isinstance(verify, str):
        options = {"client_kwargs": {"verify": verify.format(ca=authority)}}
    try:
        client("s3://bucket/run", {**KEYS, "endpoint_url": recorder.url, **options}).put("key", b"data")
        assert len(recorder.asked) == 1
    finally:
        recorder.shutdown()
        recorder.server_close()


def test_an_unknown_authority_is_not_trusted(client, certificates):
    """
    Without a word from the user nothing is sent to a server that cannot prove who it is.
    """
    recorder = Recorder(certificates[1])
    try:
        with pytest.raises(StoreError, match=r"(?i)certificate"):
            client("s3://bucket/run", {**KEYS, "endpoint_url": recorder.url}).put("key", b"data")
        assert recorder.asked == []
    finally:
        recorder.shutdown()
        recorder.server_close()


@pytest.mark.parametrize("size", [4, MIB], ids=["small", "large"])
def test_a_bucket_that_demands_checksums_gets_them(client, recorder, size):
    """
    A bucket with object lock refuses a put without a checksum. It is asked once, and each later put has one.
    """
    recorder.demands_checksum = True
    store = client("s3://bucket/run", {**KEYS, "endpoint_url": recorder.url})
    data = bytes(size)

    for key in ("first", "second"):
        store.put(key, data)

    has_checksum = [
        [value for name, value in headers.items() if name.lower().startswith(CHECKSUM)] for _, headers in recorder.asked
    ]
    assert [bool(each) for each in has_checksum] == ([False, True, True] if client is ObstoreStore else [True, True])
    if client is ObstoreStore:
        assert has_checksum[1] == [base64.b64encode(hashlib.sha256(data).digest()).decode()]


def test_no_credentials_at_all_cannot_be_retried(client):
    """
    Where nobody knows any credentials both clients say so, and that it will not pass.
    """
    with pytest.raises(StoreError, match="Unable to locate credentials") as caught:
        client("s3://bucket/run", {"endpoint_url": NOWHERE}).put("key", b"data")

    assert not caught.value.retryable


@pytest.mark.parametrize(
    ("url", "options"),
    [
        ("s3://bucket/run", {**KEYS, "endpoint_url": "host:9000"}),
        ("az://container/run", {"connection_string": "AccountName=name;AccountKey=a2V5;BlobEndpoint=host:9000"}),
    ],
)
def test_an_endpoint_without_a_scheme_is_refused(url, options):
    """
    Its server is not known, and the error says what a whole URL looks like.
    """
    with pytest.raises(ConfigError, match=r"the endpoint 'host:9000' is not the URL of a server\. Give one such as "):
        check_writable(ObstoreStore(url, options))


def test_a_profile_that_is_not_there_cannot_be_retried(client):
    """
    A misspelled profile is named, and will not come by itself.
    """
    with pytest.raises(StoreError, match="ProfileNotFound") as caught:
        client("s3://bucket/run", {"profile": "nobody", "endpoint_url": NOWHERE}).put("key", b"data")

    assert not caught.value.retryable


def test_keys_that_are_given_need_no_botocore():
    """
    The pusher stays small: with keys in options or environment botocore is not loaded, nor fsspec.
    """
    program = (
        "import sys; from spot_plugins.store import open_store; from spot_plugins.errors import StoreError\n"
        "store = open_store('s3://bucket/run', {'endpoint_url': 'http://127.0.0.1:9'})\n"
        "try: store.put('key', bytes(10**6))\n"
        "except StoreError: print({'fsspec', 's3fs', 'botocore', 'aiohttp'} & set(sys.modules))"
    )
    environment = {**os.environ, **ENVIRONMENT_KEYS, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=DEADLINE_S
    )

    assert done.stdout == "set()\n"


def test_credentials_that_expire_are_asked_for_again(home):
    """
    What botocore renews is handed on for a few minutes only, so that it is never used when it has expired.
    """
    (home / ".aws" / "config").write_text(CONFIG.format(url=NOWHERE, program=write_program(home)))
    options = aws_config.S3Options(
        key=None,
        secret=None,
        token=None,
        anonymous=False,
        profile="asks",
        endpoint_url=None,
        region=None,
        verify=None,
        addressing_style=None,
    )

    given = aws_config.find_endpoint(options).credentials()

    assert given["access_key_id"] == "fresh-key"
    assert timedelta(0) < given["expires_at"] - datetime.now(timezone.utc) <= timedelta(minutes=10)


class Session:
    """Stands for an object that only s3fs knows how to use."""


UNMAPPED = [
    ("s3", {"session": Session()}, "session"),
    ("s3", {"default_fill_cache": False}, "default_fill_cache"),
    ("s3", {"requester_pays": True}, "requester_pays"),
    ("s3", {"s3_additional_kwargs": {"ServerSideEncryption": "aws:kms"}}, "s3_additional_kwargs"),
    ("s3", {"client_kwargs": {"api_version": "2006-03-01"}}, "client_kwargs.api_version"),
    ("s3", {"client_kwargs": {"verify": Session()}}, "client_kwargs.verify"),
    ("s3", {"config_kwargs": {"retries": {"max_attempts": 3}}}, "config_kwargs.retries"),
    ("s3", {"config_kwargs": {"signature_version": "s3"}}, "config_kwargs.signature_version"),
    ("s3", {"config_kwargs": {"s3": {"use_accelerate_endpoint": True}}}, "config_kwargs.s3.use_accelerate_endpoint"),
    ("s3", {"endpoint_url": NOWHERE, "config_kwargs": {"s3": {"addressing_style": "virtual"}}}, "addressing_style"),
    ("s3", {"use_ssl": False}, "use_ssl"),
    ("s3", {"key": "their-key"}, "key"),
    ("s3", {"key": Session(), "secret": "word"}, "key"),
    ("gs", {"token": "browser"}, "token"),
    ("gs", {"token": {"type": "external_account"}}, "token"),
    ("gs", {"requester_pays": True}, "requester_pays"),
    ("gs", {"endpoint_url": NOWHERE}, "endpoint_url"),
    ("gs", {"session_kwargs": {"trust_env": True}}, "session_kwargs"),
    ("az", {"account_name": "one", "credential": Session()}, "credential"),
    ("az", {}, "account_name"),
    ("az", {"connection_string": "BlobEndpoint=http://h"}, "connection_string"),
]


SERVICE_ACCOUNT = {"type": "service_account", "private_key": "word"}
CONNECTION = f"DefaultEndpointsProtocol=http;AccountName=one;AccountKey=d29yZA==;BlobEndpoint={NOWHERE}/one"
MAPPED = {
    "gs": ("gs", "bucket", {"project": "p"}, {"bucket": "bucket"}),
    "gs anonymous": ("gs", "bucket", {"token": "anon"}, {"bucket": "bucket", "skip_signature": True}),
    "gs key": (
        "gcs",
        "bucket",
        {"token": SERVICE_ACCOUNT},
        {"bucket": "bucket", "service_account_key": json.dumps(SERVICE_ACCOUNT)},
    ),
    "az key": (
        "az",
        "box",
        {"account_name": "one", "account_key": "d29yZA=="},
        {"container_name": "box", "account_name": "one", "account_key": "d29yZA==", "skip_signature": False},
    ),
    "az account in the URL": (
        "abfss",
        "box@one.dfs.core.windows.net",
        {"sas_token": "?sig=1"},
        {"container_name": "box", "account_name": "one", "sas_key": "?sig=1", "skip_signature": False},
    ),
    "az principal": (
        "abfs",
        "box",
        {"account_name": "one", "tenant_id": "t", "client_id": "c", "client_secret": "s", "anon": True},
        {
            "container_name": "box",
            "account_name": "one",
            "tenant_id": "t",
            "client_id": "c",
            "client_secret": "s",
            "skip_signature": False,
        },
    ),
    "az anonymous": (
        "az",
        "box",
        {"account_name": "one", "anon": True},
        {"container_name": "box", "account_name": "one", "skip_signature": True},
    ),
    "az connection": (
        "az",
        "box",
        {"connection_string": CONNECTION},
        {
            "container_name": "box",
            "account_name": "one",
            "account_key": "d29yZA==",
            "endpoint": f"{NOWHERE}/one",
            "skip_signature": False,
        },
    ),
}


@pytest.mark.parametrize(("scheme", "netloc", "options", "expected"), MAPPED.values(), ids=MAPPED)
def test_options_of_google_and_azure_are_said_in_the_words_of_obstore(scheme, netloc, options, expected):
    """
    What gcsfs and adlfs take, obstore gets under its own names; it knows them all.
    """
    setup = read_options(scheme, netloc, options)()

    assert setup.config == expected
    if "service_account_key" not in expected:  # which takes a real one
        getattr(obstore.store, setup.kind)(config=setup.config, client_options=setup.client)


def test_files_of_google_are_told_apart(tmp_path, monkeypatch):
    """
    A file with a kind of credentials that obstore can use is handed on; any other one is left to gcsfs.
    """
    for kind, name in [("service_account", "service_account"), ("authorized_user", "application_credentials")]:
        (tmp_path / kind).write_text(json.dumps({"type": kind}))
        path = str(tmp_path / kind)

        assert read_options("gs", "bucket", {"token": path})().config == {"bucket": "bucket", name: path}
    (tmp_path / "federated").write_text(json.dumps({"type": "external_account"}))
    for options, environment in [
        ({"token": str(tmp_path / "federated")}, {}),
        ({}, {"GOOGLE_APPLICATION_CREDENTIALS": str(tmp_path / "federated")}),
        ({}, {"GOOGLE_APPLICATION_CREDENTIALS": str(tmp_path / "nothing")}),
        ({}, {"STORAGE_EMULATOR_HOST": NOWHERE}),
    ]:
        with monkeypatch.context() as patch:
            for name, value in environment.items():
                patch.setenv(name, value)
            with pytest.raises(UnmappedOptionError):
                read_options("gs", "bucket", options)


def test_azure_without_a_service_is_a_store_error_that_may_pass():
    """
    The whole way to Azure, but for Azure: what it says goes through the same words.
    """
    store = open_store("az://box/run", {"connection_string": CONNECTION})

    for operation in (lambda: store.put("key", b"data"), lambda: store.get("key"), lambda: list(store.keys(""))):
        with pytest.raises(StoreError, match="cannot connect to the endpoint URL: Connection refused") as caught:
            operation()
        assert caught.value.retryable
        assert "d29yZA" not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize(("scheme", "options", "name"), UNMAPPED, ids=[each[2] for each in UNMAPPED])
def test_an_option_that_obstore_lacks_is_not_passed_over(scheme, options, name):
    """
    Every option, and every value, that obstore has no word for is refused by its name.
    """
    with pytest.raises(UnmappedOptionError, match=re.escape(name)):
        read_options(scheme, "bucket", options)


def test_an_option_that_obstore_lacks_chooses_fsspec_and_says_so(caplog):
    """
    One line names the option, and not its value; what the user asked for is done by s3fs.
    """
    caplog.set_level(logging.INFO, logger="spot_plugins")

    store = open_store("s3://bucket/run", {**KEYS, "s3_additional_kwargs": {"SSECustomerKey": "hunter2"}})

    assert isinstance(store, FsspecStore)
    assert [record.message.partition(" is ")[0] for record in caplog.records] == ["s3_additional_kwargs"]
    assert "hunter2" not in caplog.text


def test_an_obstore_that_is_too_old_is_not_used(caplog, monkeypatch):
    """
    Somebody else's package may have brought one that lacks what is needed here.
    """
    caplog.set_level(logging.INFO, logger="spot_plugins")
    monkeypatch.setattr(obstore, "__version__", "0.10.1")

    assert isinstance(open_store("s3://bucket/run", KEYS), FsspecStore)
    assert "obstore 0.10.1 is too old" in caplog.text


def test_what_means_nothing_different_is_mapped():
    """
    Options with the value that they have anyway, or none, do not take the fast path away.
    """
    options = {**KEYS, "anon": False, "use_ssl": None, "token": None, "client_kwargs": {}, "config_kwargs": None}

    assert isinstance(open_store("s3://bucket/run", options), ObstoreStore)


def test_a_put_that_is_given_up_lets_go_of_its_memory(s3_server):
    """
    The shared memory under a put that hung is read by nobody any more: it takes the next step, or is unmapped.
    """
    url = s3_server.create_bucket("given-up")
    memory = bytearray(4 * MIB)
    with FaultProxy(s3_server.endpoint_url) as proxy, memoryview(memory) as view:
        options = s3_server.storage_options(endpoint_url=proxy.endpoint_url, read_timeout=0.5)
        clients = ObstoreStore(url, options)._open()
        proxy.hang()

        with pytest.raises(TimeoutError, match="no byte moved"):
            clients.guard.run(lambda body: obstore.put_async(clients.untimed, "key", body, use_multipart=False), view)
    memory.append(0)  # refused while anybody has a view of it
