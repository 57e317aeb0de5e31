"""One rank of a job that uses a board. Run by test_board.py: ``main(rank, world_size, port, what it does)``."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time

import pytest
import torch.distributed as dist

from spot_plugins.agreement import Group, Notice
from spot_plugins.clock import SystemClock
from spot_plugins.ranks import BoardClosedError, Job, RankLostError, TorchRanks
from spot_plugins.schedule import PeriodicTrigger

PATIENCE_S = 120.0
LOGGED = []
"""The lines in the log about the port of the board."""


class Participant:
    """Trains on until a notice, and can always save."""

    def is_ready(self):
        return True

    def on_deferred(self, step):
        pass

    def on_notice(self):
        pass

    def on_lost(self, loss):
        pass

    def leave_in_pause(self):
        pass

    def figures(self):
        return None

    def merge(self, figures):
        pass

    def decide(self, step, notice, num_ahead):
        return "train"


def main(rank, world_size, port, what):
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=world_size)
    ranks = TorchRanks()
    if what == "listen_to_ourselves":  # as some schedulers do
        os.environ["MASTER_ADDR"] = "localhost" if rank == 0 else "127.0.0.1"
        logging.basicConfig(level=logging.INFO, format="%(message)s")
        logging.getLogger("spot_plugins.ranks.torch_ranks").addFilter(lambda record: LOGGED.append(record) or True)
    globals()[what](ranks, ranks.open_board())
    os._exit(0)  # without the end of the process group, which waits for ranks that were killed


def take_part(ranks, board):
    """Everything a board can do, from several threads at once."""
    assert Job(ranks, board).exchange("hello", {"from": [ranks.rank, None]}) == [
        {"from": [rank, None]} for rank in range(ranks.world_size)
    ]
    numbers = []
    threads = [
        threading.Thread(target=lambda: numbers.extend(board.take_number("n") for _ in range(20))) for _ in range(3)
    ]
    reader = threading.Thread(target=lambda: numbers.append(board.read("late")))
    for thread in (reader, *threads):
        thread.start()
    for thread in threads:
        thread.join()
    board.post(f"done/{ranks.rank}", sorted(numbers))
    taken = [number for rank in range(ranks.world_size) for number in board.read(f"done/{rank}")]
    assert sorted(taken) == [*range(1, 60 * ranks.world_size + 1)]
    assert reader.is_alive(), "one that waits holds up no other"
    Job(ranks, board).exchange("all is read", None)
    if ranks.rank == 0:
        board.post("late", "now")
    reader.join(PATIENCE_S)
    assert numbers[-1] == "now"
    assert_given_up(board)
    board.close()


def assert_given_up(board):
    try:
        board.read("never", 0.1)
    except BoardClosedError:
        assert board.take_number("given up") > 0, "the connection is still good"
    else:
        raise AssertionError("a note that nobody wrote was read")


def lose_rank_0(ranks, board):
    """Rank 0 ends; the others notice at once, whatever they do."""
    Job(ranks, board).exchange("start", None)
    if ranks.rank == 0:
        board.close()
        os._exit(0)
    for use in (
        lambda: board.read("never"),
        lambda: board.take_number("n"),
        lambda: board.read("never"),
    ):
        try:
            use()
        except BoardClosedError:
            continue
        raise AssertionError("rank 0 is gone")
    board.close()


def lose_a_rank(ranks, board):
    """Rank 2 is killed, and a child of it lives on, as data workers do for a while. The others learn it at once."""
    job = Job(ranks, board)
    pids = job.exchange("pid", os.getpid())
    if ranks.rank == 2:
        if os.fork() == 0:
            time.sleep(PATIENCE_S)
            os._exit(0)
        board.post("forked", None)
        signal.pause()
    board.read("forked")
    if ranks.rank == 1:
        os.kill(pids[2], signal.SIGKILL)
    started = time.monotonic()
    for use in (lambda: job.exchange("never", None), lambda: board.read("never")):
        with pytest.raises(RankLostError, match=r"rank 2 has ended \(its connection was closed\)"):
            use()
    assert time.monotonic() - started < PATIENCE_S / 2, "before its child has ended"
    meeting = job.meet(time.monotonic() + 3600, None)
    meeting.wait()
    assert meeting.lost.rank == 2
    board.close()


def outlive_a_machine(ranks, board):
    """Rank 0 stands still, as on a machine that was taken without a word. A notice and the end come all the same."""
    group = Group(Job(ranks, board), PeriodicTrigger(1, None, SystemClock()), Participant())
    group.open()
    pid, *_ = Job(ranks, board).exchange("pid", os.getpid())
    if ranks.rank == 0:
        signal.pause()
    os.kill(pid, signal.SIGSTOP)
    notice = Notice("test", time.monotonic() + 1.0)
    threading.Thread(target=group.notify, args=(notice,), daemon=True).start()
    group.at_boundary(1)
    group.close()
    board.close()
    os.kill(pid, signal.SIGKILL)


def listen_to_ourselves(ranks, board):
    """The board uses the loopback address alone. Anything else would show in the table of the kernel."""
    job = Job(ranks, board)
    job.exchange("all have come", None)
    deadline = time.monotonic() + PATIENCE_S
    while ranks.rank == 0:
        used = addresses_of(LOGGED[0].args[1])
        assert used <= {"0100007F"}, used
        if used:
            break
        assert time.monotonic() < deadline, "the port is not in the table"
    job.exchange("rank 0 has looked", None)  # until then the connection is there
    board.close()


def addresses_of(port):
    """Return the own addresses at which this process uses *port*. A row may be missing while sockets come and go."""
    inodes = {os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if fd_is_open(fd)}
    addresses = set()
    for table in ("tcp", "tcp6"):
        with open(f"/proc/self/net/{table}") as file:
            rows = [line.split() for line in file.readlines()[1:]]
        own = [row[1].rpartition(":") for row in rows if f"socket:[{row[9]}]" in inodes]
        addresses |= {address for address, _, number in own if int(number, 16) == port}
    return addresses


def fd_is_open(fd):
    return os.path.islink(f"/proc/self/fd/{fd}")
