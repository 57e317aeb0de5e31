"""Messages about an offer: to a command, or by POST to an address."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Final
from urllib.parse import urlsplit

from . import web
from .base import ProviderError

TIMEOUT_S: Final = 60.0
"""Longest time in seconds for one run of a command, or for one POST."""

_NUM_TRIES: Final = 3
_PAUSE_S: Final = 2.0


class NotifyError(Exception):
    """A message did not arrive. The text names neither the arguments of a command nor the path of an address."""


def check_target(target: str) -> None:
    """Raise :exc:`ValueError` if *target* is neither an ``http`` address nor a command that exists."""
    if _is_address(target):
        if not urlsplit(target).hostname:
            raise ValueError("the address has no host")
        return
    words = shlex.split(target)
    if not words or shutil.which(words[0]) is None:
        raise ValueError(f"{words[0] if words else 'nothing'} is not a command that can be run")


def notify(target: str, document: Mapping[str, Any], sleep: Callable[[float], object] = time.sleep) -> None:
    """
    Give *document* as JSON to *target*: to the standard input of a command, or to an address.

    A message that does not arrive is sent again, three times in all.

    Raises:
        NotifyError: It did not arrive.
    """
    body = json.dumps(document).encode()
    send = _post if _is_address(target) else _run
    for num_tries in range(1, _NUM_TRIES + 1):
        try:
            send(target, body)
            return
        except NotifyError as error:
            if num_tries == _NUM_TRIES:
                raise NotifyError(f"{error} ({num_tries} tries)") from None
            # wait: _PAUSE_S before each further try; the message is sent again
            sleep(_PAUSE_S)


def _is_address(target: str) -> bool:
    return target.startswith(("http://", "https://"))


def _post(url: str, body: bytes) -> None:
    # The path of a webhook is often its secret, so only the host is named.
    host = urlsplit(url).hostname
    try:
        web.fetch(url, time.monotonic() + TIMEOUT_S, headers={"Content-Type": "application/json"}, body=body)
    except ProviderError as error:
        raise NotifyError(f"{host} does not take the message: {error}") from None


def _run(command: str, body: bytes) -> None:
    words = shlex.split(command)
    try:
        # In a session of its own, so that all of its processes can be ended together.
        process = subprocess.Popen(words, stdin=subprocess.PIPE, start_new_session=True)
    except OSError as error:
        raise NotifyError(f"{words[0]} cannot be run: {error.strerror}") from None
    try:
        with suppress(BrokenPipeError):  # a command need not read
            # wait: TIMEOUT_S for the command; it is killed, and run again
            process.communicate(body, timeout=TIMEOUT_S)
        # wait: at once, or until TIMEOUT_S if the command did not read; it is killed, and run again
        code = process.wait(TIMEOUT_S)
    except subprocess.TimeoutExpired:
        raise NotifyError(f"{words[0]} does not end within {TIMEOUT_S:.0f} s") from None
    finally:
        if process.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            # wait: the time that the kernel takes to end the killed command; nothing is left to do
            process.wait()
    if code:
        raise NotifyError(f"{words[0]} ends with code {code}")
