"""
Real processes that start in a fraction of a second: forked from a server that has imported torch and the hosts.

What is started is a process of its own, in its own session, with its own exit code; only the import is shared.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import signal
import sys
import time
from pathlib import Path

_TESTS = str(Path(__file__).parent)
_DRILLS = str(Path(__file__).with_name("drills"))
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["preloaded"])


def launch(module, arguments, *, environment, output):
    """Start ``module.main(*arguments)`` in a process of its own. It appends what it prints to *output*."""
    paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    if _TESTS not in paths:  # the server looks for what it preloads there, and nowhere else
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [_TESTS, *paths]))
    process = _context.Process(target=_run, args=(module, arguments, environment, str(output)))
    process.start()
    return process


def exit_codes(processes, timeout=90):
    """Wait for all of *processes* and return how they ended, as ``subprocess`` does. Kills what is left."""
    deadline = time.monotonic() + timeout
    for process in processes:
        process.join(max(0.0, deadline - time.monotonic()))
    codes = [process.exitcode for process in processes]
    for process in processes:
        if process.exitcode is None:
            os.killpg(process.pid, signal.SIGKILL)
    return codes


def _run(module, arguments, environment, output):
    os.setsid()
    multiprocessing.set_start_method("fork", force=True)  # as in a program that was started in the usual way
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.environ.update(environment)
    sys.path.insert(0, _DRILLS)
    importlib.import_module(module).main(*arguments)
