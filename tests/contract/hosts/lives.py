"""One life of a program: in this process, in a process of its own, or on several ranks."""

from __future__ import annotations

import importlib
import logging
import pickle
import sys
import warnings
from contextlib import contextmanager

import torch
from contract.hosts.probe import KilledError, Probe
from contract.hosts.situation import Outcome
from launching import exit_codes, launch
from ports import free_port

from spot_plugins.errors import Preempted, SpotError

HOSTS = ("bare", "lightning", "accelerate", *(("trainer", "sft") if sys.version_info >= (3, 11) else ()))
"""
Each is a module ``NAME_host`` with ``train(program, url, probe)``, which returns the final state.

transformers 5.23, which both trainers need, has no release on Python 3.10.
"""

TRAINERS = ("trainer", "sft")
"""Those of transformers: its own Trainer, and TRL's SFTTrainer."""

NOT_OURS = (
    "does not have many workers",
    "Skipping val loop",
    "OMP_NUM_THREADS",
    "LeafSpec",
    "set_vital",
    "GPU available",
    "lr_scheduler.step()",
    "`gradient_checkpointing` is deprecated",
)
"""Words of warnings that the hosts and torch give in any training."""

STUCK = "WARNING: the training thread is stuck in the pause, so this process ends"
"""
The line of a rank that had begun a collective when another rank left.

Lightning begins one between a validation and the next batch, and a rank that has not come so far leaves without it.
"""


def has(host, program):
    """Return True if there are such programs of *host*. A Trainer has one loader and one optimizer."""
    if host not in TRAINERS:
        return True
    is_one = program.num_loaders == len(program.optimizers) == 1
    return is_one and program.loader != "stateful" and program.schedule != "epoch"


def live(host, program, folder, interruption=None):
    """Run one life of *program* on one rank, and return its outcome."""
    if program.num_workers > 0:  # a process whose workers were ended at a notice has no use for workers any more
        return live_apart(host, program, folder, interruption)[0]
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)  # another number adds in another order, and all lives have to add in the same
    try:
        return live_here(host, program, folder, interruption)
    finally:
        torch.set_num_threads(num_threads)
        torch.utils.data._utils.python_exit_status = False  # a notice sets it, and this process lives on


def live_here(host, program, folder, interruption=None, rank=0):
    """
    Run one life of *program* in this process, and return its outcome.

    A rank that is stuck in a collective with a rank that has left ends its process. Its outcome is written just before.
    """
    probe = Probe(interruption=interruption, rank=rank)
    outcome = Outcome(end="finished", rows=probe.rows, validations=probe.validations, events=probe.events)
    train = importlib.import_module(f"contract.hosts.{host}_host").train

    def end_stuck():
        outcome.end = "preempted"
        complete(outcome, probe)
        write(outcome, folder, rank)

    with listening(outcome.told, end_stuck):
        try:
            outcome.final = train(program, f"file://{folder}/run", probe)
        except Preempted as preempted:
            outcome.end, outcome.exit_code, outcome.message = "preempted", preempted.code, str(preempted)
        except KilledError:
            outcome.end, outcome.exit_code = "killed", 1
        except Exception as error:  # noqa: BLE001  whatever it is, the situation says if it may be
            outcome.end, outcome.exit_code = "refused", 1
            outcome.message = f"{type(error).__name__}: {error}"
            outcome.names_remedy = isinstance(error, SpotError)
    complete(outcome, probe)
    return outcome


def complete(outcome, probe):
    """Add to *outcome* what the object of the library knows."""
    outcome.resumed_from = getattr(probe.host, "resumed_from", None)
    outcome.last_committed_step = getattr(probe.host, "last_committed_step", None)


def write(outcome, folder, rank):
    """Write *outcome* for the process that has started this one."""
    with open(f"{folder}/outcome-{rank}", "wb") as file:
        pickle.dump(outcome, file)


@contextmanager
def listening(told, end_stuck=lambda: None):
    """
    Collect in *told* the warnings, and those lines of the library's log that are shown without any set-up.

    *end_stuck* is called when a line says that this process ends because its training thread is stuck.
    """

    class Collect(logging.Handler):
        def emit(self, record):
            told.append(f"{record.levelname}: {record.getMessage()}")
            if STUCK in told[-1]:
                end_stuck()

    logger, handler = logging.getLogger("spot_plugins"), Collect()
    logger.addHandler(handler)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield
    finally:
        logger.removeHandler(handler)
        lines = [f"{each.category.__name__}: {each.message}" for each in caught]
        told += [line for line in lines if not any(words in line for words in NOT_OURS)]


def live_apart(host, program, folder, interruption=None):
    """Run one life in a process of its own for each rank. Return their outcomes. A killed rank has no final state."""
    return outcomes(folder, start_apart(host, program, folder, interruption))


def start_apart(host, program, folder, interruption=None):
    """Start one life in a process of its own for each rank, and return the processes."""
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(program.num_ranks)}
    processes = []
    for rank in range(program.num_ranks):
        (folder / f"outcome-{rank}").unlink(missing_ok=True)
        environment = shared | {"RANK": str(rank), "LOCAL_RANK": str(rank), "NODE_RANK": "0"}
        arguments = (host, program, str(folder), interruption, rank)
        output = folder / f"output-{rank}.txt"
        one = environment if program.num_ranks > 1 else {}
        processes.append(launch("contract.hosts.lives", arguments, environment=one, output=output))
    return processes


def outcomes(folder, processes):
    """Wait until *processes* have ended, and return the outcome of each rank."""
    found = []
    for rank, code in enumerate(exit_codes(processes)):
        path = folder / f"outcome-{rank}"
        outcome = pickle.loads(path.read_bytes()) if path.exists() else Outcome(end="killed")
        outcome.exit_code = code
        found.append(outcome)
    return found


def main(host, program, folder, interruption, rank):
    """Run one life in this process, which was started for it, write its outcome, and end as it ended."""
    torch.set_num_threads(1)
    outcome = live_here(host, program, folder, interruption, rank)
    write(outcome, folder, rank)
    print(outcome.end, outcome.message, flush=True)
    sys.exit(outcome.exit_code)


def differences(one, other, path=""):
    """Return the paths at which two states differ in any bit."""
    if type(one) is not type(other):
        return [f"{path}: {type(one).__name__} and {type(other).__name__}"]
    if isinstance(one, dict):
        if one.keys() != other.keys():
            return [f"{path}: keys {sorted(map(str, one.keys() ^ other.keys()))}"]
        return [found for key in one for found in differences(one[key], other[key], f"{path}/{key}")]
    if isinstance(one, (list, tuple)):
        if len(one) != len(other):
            return [f"{path}: {len(one)} and {len(other)} items"]
        return [
            found
            for index, (a, b) in enumerate(zip(one, other, strict=True))
            for found in differences(a, b, f"{path}/{index}")
        ]
    if isinstance(one, torch.Tensor):
        return [] if torch.equal(one, other) else [f"{path}: tensors differ"]
    return [] if one == other or one is other else [f"{path}: {one!r} and {other!r}"]
