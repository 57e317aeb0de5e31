"""Processes that save step 1, and die at an operation on files while they save step 2. Run by test_dying.py."""

from __future__ import annotations

import json
import os
import signal
from itertools import count

from steps import save

from spot_plugins.format.attempts import claim_attempt
from spot_plugins.store import LocalStore

OPERATIONS = ("mkdir", "open", "write", "fsync", "replace", "link", "unlink", "rmdir")


def main(settings):
    """
    For every n: save into FOLDER/n in a process that is killed before its n-th operation, counted from 0.

    Ends with the first one that lives. How they ended goes to FOLDER/codes.json.
    """
    codes = []
    for number in count():
        child = os.fork()
        if child == 0:
            push(f"{settings.folder}/{number}", number)
            os._exit(0)
        codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        if codes[-1] != -signal.SIGKILL:
            break
    (settings.path / "codes.json").write_text(json.dumps(codes))


def push(folder, num_operations):
    store, local = LocalStore(f"{folder}/remote"), LocalStore(f"{folder}/local")
    claim_attempt(store, b"")
    save(1, store, local=local, keep_last=1)
    left = [num_operations]
    for name in OPERATIONS:
        setattr(os, name, dying(getattr(os, name), left))
    save(2, store, local=local, keep_last=1)


def dying(operation, left):
    def call(*args, **kwargs):
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        left[0] -= 1
        return operation(*args, **kwargs)

    return call
