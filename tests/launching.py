"""
Real processes that start in a fraction of a second: forked from a server that has imported torch and the hosts.

What is started is a process of its own, in its own session, with its own exit code; only the import is shared.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from drill_settings import Settings
from ports import free_port

PROGRAMS = Path(__file__).parent / "drills" / "programs"
_TESTS = str(Path(__file__).parent)
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


def exit_codes(processes, timeout=300):
    """Wait for all of *processes* and return how they ended, as ``subprocess`` does. Kills what is left."""
    deadline = time.monotonic() + timeout
    for process in processes:
        process.join(max(0.0, deadline - time.monotonic()))
    codes = [process.exitcode for process in processes]
    for process in processes:
        if process.exitcode is None:
            os.killpg(process.pid, signal.SIGKILL)
    return codes


def launch_ranks(module, folder, settings, environment=None):
    """Start the training *module* in *folder* on ``settings["ranks"]`` processes, as if on two nodes."""
    folder.mkdir(exist_ok=True)
    settings = Settings(folder=str(folder), **settings)
    ranks = settings.ranks
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(ranks), "NODE_RANK": "0"}
    return [
        launch(
            module,
            (settings,),
            environment={
                **(environment or {}),
                **(shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)} if ranks > 1 else {}),
            },
            output=folder / f"output-{rank}.txt",
        )
        for rank in range(ranks)
    ]


def train(module, folder, settings, expect):
    """Run the training on its ranks, and check how each of them ends."""
    codes = exit_codes(launch_ranks(module, folder, settings))
    assert codes == [expect] * len(codes), (codes, printed(folder, len(codes)))


def printed(folder, ranks):
    """Return the end of what each rank printed."""
    return [(folder / f"output-{rank}.txt").read_text()[-3000:] for rank in range(ranks)]


def launcher(name):
    """Return the command of a launcher that starts two ranks, and the training that it starts."""
    lightning = str(PROGRAMS / "launched.py")
    match name:
        case "torchrun":
            torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
            return [*torchrun, lightning]
        case "accelerate launch":
            accelerate = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes=2"]
            accelerate += ["--num_machines=1", "--mixed_precision=no", "--dynamo_backend=no"]
            return [*accelerate, f"--main_process_port={free_port()}", str(PROGRAMS / "accelerate_train.py")]
        case "Lightning's own":
            return [sys.executable, lightning]
    raise ValueError(name)


def start(command, folder, settings, environment=None):
    """Run *command*, a launcher and its training, as a user does. It leads a session of its own."""
    folder.mkdir(exist_ok=True)
    with (folder / "output.txt").open("ab") as output:
        return subprocess.Popen(
            [*command, Settings(folder=str(folder), **settings).encode()],
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": module_path(), **(environment or {})},
            stdout=output,
            stderr=output,
            start_new_session=True,
        )


def module_path():
    """Return ``PYTHONPATH`` with the test library, for programs that are started as scripts."""
    return os.pathsep.join(filter(None, [_TESTS, str(PROGRAMS), os.environ.get("PYTHONPATH")]))


def _run(module, arguments, environment, output):
    os.setsid()
    multiprocessing.set_start_method("fork", force=True)  # as in a program that was started in the usual way
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.environ.update(environment)
    sys.path.insert(0, str(PROGRAMS))
    importlib.import_module(module).main(*arguments)
