"""Messages about prices: to a command and to an address, once per fall, and again if they do not arrive."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from markets import MarketServer

from spot_plugins.market import notify
from spot_plugins.market.notify import NotifyError, check_target
from spot_plugins.market.watch import Watch

DOCUMENT = {"version": 1, "offers": [], "below": 1.9}
WRITE = "import sys; open(sys.argv[1], 'a').write(sys.stdin.read() + '|'); sys.exit(int(sys.argv[2]))"


@pytest.fixture
def hook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[MarketServer]:
    """A webhook that answers 204."""
    for name in list(os.environ):
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    with MarketServer(tmp_path) as server:
        yield server


def command(path: Path, code: int) -> str:
    """Return a command that appends its input to *path* and ends with *code*."""
    return f"""{sys.executable} -c "{WRITE}" {path} {code}"""


class Pauses(list[float]):
    """A sleep that only remembers."""

    __call__ = list.append


def test_a_command_gets_the_offer_on_its_input(tmp_path: Path) -> None:
    """Without a shell: what would be a shell's business is text."""
    path = tmp_path / "a;b $(c)"
    notify.notify(command(f"'{path}'", 0), DOCUMENT)  # type: ignore[arg-type]
    assert json.loads(path.read_text().rstrip("|")) == DOCUMENT


def test_a_command_that_fails_is_run_again_three_times_in_all(tmp_path: Path) -> None:
    """Then the error names the program and its code, and no argument, which may be secret."""
    pauses = Pauses()

    with pytest.raises(NotifyError) as caught:
        notify.notify(f"{command(tmp_path / 'told', 7)} token-7f3a", DOCUMENT, pauses)

    assert str(caught.value) == f"{sys.executable} ends with code 7 (3 tries)"
    assert (tmp_path / "told").read_text().count("|") == 3
    assert len(pauses) == 2


def test_a_command_that_hangs_is_killed_with_its_children(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A message has a time limit, and no process remains."""
    monkeypatch.setattr(notify, "TIMEOUT_S", 0.3)
    monkeypatch.setattr(notify, "_NUM_TRIES", 1)
    reader, writer = os.pipe()
    os.set_inheritable(writer, True)
    script = tmp_path / "hang.sh"
    script.write_text(f"sleep 1000 >&{writer} &\nsleep 1000\n")
    real = notify.subprocess.Popen
    monkeypatch.setattr(notify.subprocess, "Popen", lambda *args, **keys: real(*args, close_fds=False, **keys))

    with pytest.raises(NotifyError, match="sh does not end within 0 s"):
        notify.notify(f"sh {script}", DOCUMENT)

    os.close(writer)
    with os.fdopen(reader) as pipe:
        assert pipe.read() == ""  # the end, which comes only when no child holds the other side any more


def test_a_command_need_not_read(tmp_path: Path) -> None:
    """More than a pipe holds, to a program that ends at once."""
    notify.notify("true", {"text": "x" * 1_000_000})


def test_an_address_gets_the_offer_by_post(hook: MarketServer) -> None:
    """As JSON; any status of success will do."""
    notify.notify(f"{hook.url}/services/token-7f3a", DOCUMENT)

    (request,) = hook.requests
    assert (request.path, json.loads(request.body)) == ("/services/token-7f3a", DOCUMENT)
    assert request.headers["Content-Type"] == "application/json"


@pytest.mark.parametrize("fault", ["503", "429", "redirect", "no HTTP"])
def test_an_address_that_fails_is_asked_again_and_its_path_is_not_shown(hook: MarketServer, fault: str) -> None:
    """The path of a webhook is its secret."""
    hook.faults[""] = fault
    pauses = Pauses()

    with pytest.raises(NotifyError) as caught:
        notify.notify(f"{hook.url}/services/token-7f3a", DOCUMENT, pauses)

    assert str(caught.value).startswith("127.0.0.1 does not take the message: ")
    assert str(caught.value).endswith("(3 tries)")
    assert "token" not in str(caught.value)
    assert len(hook.requests) == 3


@pytest.mark.parametrize("path", [":port/token", "/token 7f3a", "/token-\xe9"])
def test_an_address_that_cannot_be_used_is_not_shown(path: str) -> None:
    """The library's own error has all of it."""
    with pytest.raises(NotifyError) as caught:
        notify.notify(f"http://127.0.0.1{path}", DOCUMENT, Pauses())
    assert str(caught.value) == "127.0.0.1 does not take the message: the address cannot be used (3 tries)"


@pytest.mark.parametrize(
    ("target", "says"),
    [
        ("", "nothing is not a command that can be run"),
        ("no-such-program --token t", "no-such-program is not a command that can be run"),
        ("echo 'a", "No closing quotation"),
        ("https:///path", "the address has no host"),
    ],
)
def test_a_target_that_cannot_work_is_refused_at_once(target: str, says: str) -> None:
    with pytest.raises(ValueError, match=says) as caught:
        check_target(target)
    assert "token" not in str(caught.value)


def rounds(belows: list[bool], failing: set[int] = frozenset()) -> tuple[list[int], list[str]]:  # type: ignore[assignment]
    """Return the rounds in which a message was sent, and the lines that were told."""
    number, sent, told = 0, [], []

    def look() -> bool:
        return belows[number]

    def send() -> Any:
        sent.append(number)
        if number in failing:
            raise NotifyError("x ends with code 1 (3 tries)")

    watch = Watch(1.0, look, send, told.append)
    for number in range(len(belows)):  # noqa: B007 - look and send read it
        watch.round()
    return sent, told


def test_there_is_one_message_for_each_fall() -> None:
    """A price that stays below does not ring again; one that rises and falls does."""
    assert rounds([False, True, True, False, True, True]) == ([1, 4], [])


def test_a_message_that_does_not_arrive_is_sent_again_in_the_next_round() -> None:
    """And a line says so."""
    sent, told = rounds([True, True, True], failing={0, 1})
    assert sent == [0, 1, 2]
    line = "the message was not delivered: x ends with code 1 (3 tries). It is sent again in the next round"
    assert told == [line, line]
