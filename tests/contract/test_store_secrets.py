"""Credentials, wherever a client finds them: never printed, refused where they cannot work, and renewed in time."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import threading
import traceback

import pytest
from clouds import options_for
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from servers import HOST

from spot_plugins import SpotConfig, prefetch
from spot_plugins.errors import ConfigError, StoreError
from spot_plugins.push.messages import PushSettings
from spot_plugins.store import FsspecStore, ObstoreStore, adlfs, gcsfs, open_store
from spot_plugins.store.redaction import Secrets
from spot_plugins.testing import FaultProxy

DEADLINE_S = 300
KEY_ID, TOKEN = "ASIAIOSFODNN7EXAMPLE", "IQoJb3JpZ2luX2VjEXAMPLE//token+of+a+session=="
AZURE_KEY = "aHVudGVyMmh1bnRlcjI="
FIELDS = f"AccountName=one;AccountKey={AZURE_KEY}"


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """A home and an environment without credentials, on a machine without metadata."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


@pytest.fixture
def proxy():
    """A service that answers with an error, whatever is asked."""
    with FaultProxy(f"http://{HOST}:9") as proxy:
        yield proxy


@pytest.mark.parametrize("source", ["environment", "profile"])
@pytest.mark.parametrize("client", [ObstoreStore, FsspecStore])
def test_credentials_that_a_server_repeats_are_hidden_wherever_they_came_from(
    client, source, proxy, home, monkeypatch, caplog
):
    """
    Neither error, nor traceback, nor log shows the key and the token of the environment or of a profile.
    """
    caplog.set_level(logging.INFO)
    options = {"endpoint_url": proxy.endpoint_url}
    if source == "environment":
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY_ID)
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret-word")
        monkeypatch.setenv("AWS_SESSION_TOKEN", TOKEN)
    else:
        (home / ".aws").mkdir()
        (home / ".aws" / "credentials").write_text(
            f"[team]\naws_access_key_id={KEY_ID}\naws_secret_access_key=secret-word\naws_session_token={TOKEN}\n"
        )
        options["profile"] = "team"
    proxy.fail_with(403, "InvalidAccessKeyId", f"{KEY_ID} with {TOKEN} is unknown")

    with pytest.raises(StoreError, match=r"\*\*\* with \*\*\* is unknown") as caught:
        client("s3://bucket/run", options).put("key", b"data")

    printed = "".join(traceback.format_exception(caught.value)) + caplog.text
    assert KEY_ID not in printed
    assert TOKEN not in printed


@pytest.mark.parametrize(
    ("variable", "url", "echoed"),
    [
        ("AZURE_STORAGE_CONNECTION_STRING", "az://box/run", AZURE_KEY),
        ("AZURE_STORAGE_SAS_TOKEN", "abfs://box/run", "c2lnbmF0dXJl"),
        ("AZURE_CLIENT_SECRET", "az://box/run", "hunter2hunter2"),
    ],
)
def test_parts_of_credentials_are_hidden_too(variable, url, echoed, monkeypatch):
    """
    The key in a connection string, and the signature in a signed address.
    """
    values = {
        "AZURE_STORAGE_CONNECTION_STRING": FIELDS,
        "AZURE_STORAGE_SAS_TOKEN": f"?sv=2024-01-01&sig={echoed}",
        "AZURE_CLIENT_SECRET": echoed,
    }
    monkeypatch.setenv(variable, values[variable])

    assert Secrets(url, {}).hide(f"no such key: {echoed}.") == "no such key: ***."
    assert Secrets("s3://bucket/run", {}).hide(echoed) == echoed


@pytest.mark.parametrize("token", ["ya29.a0AfH6SMB-x_y", "eyJ0eXAi.eyJhdWQi.c2ln-_"])
def test_tokens_that_a_client_has_made_are_hidden(token):
    """
    obstore makes tokens of its own, and tells nobody. They have a form by which they are known.
    """
    assert Secrets("gs://bucket/run", {}).hide(f"bad token {token}, sorry") == "bad token ***, sorry"


def test_nothing_that_carries_options_shows_them():
    """
    A debugger, a log or an assertion prints the repr of what it finds.
    """
    options = {"key": "key-word", "secret": "secret-word", "endpoint_url": "http://127.0.0.1:9"}
    carriers = [
        SpotConfig(url="s3://bucket/run", every_steps=1, storage_options=options),
        PushSettings(
            **{"url": "s3://bucket/run", "storage_options": options, "local_dir": None, "rank": 0, "world_size": 1},
            **{"attempt": 1, "keep_last": 1, "keep_every": None},
        ),
        open_store("s3://bucket/run", options),
        FsspecStore("s3://bucket/run", options),
        Secrets("s3://bucket/run", options),
    ]
    store = carriers[2]
    carriers += [store._set_up(), store._open(), store._set_up().credentials]

    for carrier in carriers:
        assert "-word" not in repr(carrier), carrier


@pytest.mark.parametrize(
    ("url", "options", "field"),
    [
        ("s3://bucket/run", {"key": "key\n", "secret": "word"}, r"storage_options\['key'\]"),
        ("s3://bucket/run", {"key": "key", "secret": " word"}, r"storage_options\['secret'\]"),
        ("s3://bucket/run", {"key": "key", "secret": "word", "token": "a\r\n"}, r"storage_options\['token'\]"),
        ("az://box/run", {"account_name": "one", "account_key": "d29yZA==\n"}, r"storage_options\['account_key'\]"),
        ("az://box/run", {"connection_string": FIELDS.replace(";", ";\n")}, r"storage_options\['connection_string'\]"),
        ("gs://bucket/run", {"token": "/a/file.json\n"}, r"storage_options\['token'\]"),
    ],
)
def test_a_credential_with_the_end_of_its_line_is_refused_at_once(url, options, field):
    """
    The message names the option, and not its value. Nothing is asked of the service.
    """
    with pytest.raises(ConfigError, match=rf"^{field}=\*\*\* begins or ends with white space") as caught:
        open_store(url, options)

    assert "word" not in str(caught.value)


@pytest.mark.parametrize(
    ("variable", "url"),
    [
        ("AWS_ACCESS_KEY_ID", "s3://bucket/run"),
        ("AWS_SECRET_ACCESS_KEY", "s3a://bucket/run"),
        ("AWS_SESSION_TOKEN", "s3://bucket/run"),
        ("AZURE_STORAGE_ACCOUNT_KEY", "abfs://box@one/run"),
        ("AZURE_CLIENT_SECRET", "az://box@one/run"),
    ],
)
def test_a_variable_with_the_end_of_its_line_is_refused_at_once(variable, url, monkeypatch, tmp_path):
    """
    The message names the variable. It matters only to its own service.
    """
    monkeypatch.setenv(variable, "hunter2\n")

    for start in (open_store, prefetch):
        with pytest.raises(ConfigError, match=rf"^{variable}=\*\*\* begins or ends with white space"):
            start(url)
    open_store(str(tmp_path))
    open_store("memory://run")


class Session:
    """Stands for an object that only a client library knows how to use."""


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"session": Session()}, "has a Session as 'session'"),
        ({"client_kwargs": {"verify": Session()}}, r"has a Session as 'client_kwargs'\['verify'\]"),
        ({"token": b"word"}, "has a bytes as 'token'"),
        ({"config_kwargs": {"proxies": [Session()]}}, r"has a Session as 'config_kwargs'\['proxies'\]\[0\]"),
    ],
)
def test_an_option_that_cannot_be_sent_to_the_pusher_is_refused_by_its_name(options, named):
    """
    The pusher process gets the options as JSON. An object would end the training at its start, without a reason.
    """
    with pytest.raises(
        ConfigError, match=rf"^storage_options=\*\*\* {named}, which cannot be sent to the pusher"
    ) as caught:
        SpotConfig(url="s3://bucket/run", every_steps=1, storage_options=options)

    assert "word" not in str(caught.value)


def test_what_json_can_hold_is_no_error():
    """
    Text, numbers, switches and nothing, however deep.
    """
    options = {"key": "a", "anon": False, "token": None, "config_kwargs": {"read_timeout": 1.5, "a": [1, (2, {})]}}

    assert SpotConfig(url="s3://bucket/run", every_steps=1, storage_options=options).storage_options == options


def service_account(token_uri):
    """Return the document of a service account, as Google gives it."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    account = {"type": "service_account", "client_email": "a@b.c", "token_uri": token_uri, "private_key_id": "1"}
    return {**account, "private_key": key.private_bytes(*form).decode()}


def test_a_service_of_tokens_that_never_answers_is_given_up(gs_server, monkeypatch):
    """
    gcsfs itself would wait 120 s for it, and hold up every other request meanwhile.
    """
    monkeypatch.setattr(gcsfs, "READ_TIMEOUT_S", 0.5)
    url = gs_server.create_bucket("tokens")
    healthy = FsspecStore(f"{url}/run", options_for(gs_server))
    with FaultProxy(f"http://{HOST}:9") as tokens:
        tokens.hang()
        options = {**options_for(gs_server), "token": service_account(f"{tokens.endpoint_url}/token")}
        store = FsspecStore(f"{url}/run", options)

        with pytest.raises(StoreError, match=r"(?i)timed? ?out") as caught:
            store.put("key", b"data")

    assert caught.value.retryable
    healthy.put("key", b"data")


@pytest.mark.parametrize(
    ("sentence", "said", "retryable"),
    [
        ("Invalid JWT: Token must be a short-lived token (60 minutes) and in a reasonable timeframe.", "clock", True),
        ("Invalid JWT Signature.", "Invalid JWT Signature", False),
    ],
)
def test_a_service_of_tokens_that_refuses_is_quoted(gs_server, sentence, said, retryable):
    """
    Google looks at the clock where tokens are made.
    """
    url = gs_server.create_bucket(f"refused-{retryable}".lower())
    with TokenService({"error": "invalid_grant", "error_description": sentence}) as tokens:
        options = {**options_for(gs_server), "token": service_account(tokens)}

        with pytest.raises(StoreError, match=said) as caught:
            FsspecStore(f"{url}/run", options).put("key", b"data")

    assert caught.value.retryable == retryable
    assert sentence in caught.value.reason


class TokenService:
    """A service that refuses every request for a token with *document*. Yields its URL."""

    def __init__(self, document):
        self._body = json.dumps(document).encode()

    def __enter__(self):
        self._listener = socket.create_server((HOST, 0))
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()
        return f"http://{HOST}:{self._listener.getsockname()[1]}/token"

    def __exit__(self, *_):
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(DEADLINE_S)

    def _serve(self):
        while True:
            try:
                connection = self._listener.accept()[0]
            except OSError:
                return
            with connection:
                connection.recv(65536)
                head = "HTTP/1.1 400 Bad Request\r\nContent-Type: application/json\r\nConnection: close\r\n"
                connection.sendall(f"{head}Content-Length: {len(self._body)}\r\n\r\n".encode() + self._body)


class Credential:
    """A credential of azure-core that never gives a token."""

    async def get_token(self, *scopes, **kwargs):
        await asyncio.Event().wait()

    async def close(self):
        pass


def test_a_credential_that_never_gives_a_token_is_given_up(monkeypatch):
    """
    azure-identity asks several services one after the other, each with limits and tries of its own.
    """
    monkeypatch.setattr(adlfs, "_TOKEN_TIMEOUT_S", 0.5)
    store = FsspecStore("az://box/run", {"account_name": "one", "credential": Credential()})

    with pytest.raises(StoreError, match="timeout") as caught:
        store.put("key", b"data")

    assert caught.value.retryable


def test_a_machine_without_credentials_of_google_asks_nothing_anonymously(monkeypatch):
    """
    gcsfs goes on without credentials where it finds none, and would do so for the rest of that process.
    """
    monkeypatch.setenv("NO_GCE_CHECK", "true")

    with pytest.raises(StoreError, match="Unable to locate credentials; give token in storage_options") as caught:
        FsspecStore("gs://bucket/run").put("key", b"data")

    assert not caught.value.retryable
