"""
One rank of a training that loses a rank: ``main(folder, rank, ranks, address, what)``.

Run by test_lost_ranks.py, and by test_lost_hosts.py on the host of the variable SPOT_DRILL_HOST.
"""

from __future__ import annotations

import logging
import os
import signal
from contextlib import nullcontext
from pathlib import Path

import torch
import torch.distributed as dist
from hearing import Heard, until
from hosts import Host
from steps import Holder, state_of

from spot_plugins.config import SpotConfig
from spot_plugins.events import Committed, SharesCounted
from spot_plugins.leave import last_resort, lost_rank
from spot_plugins.ranks import TorchRanks, frames, torch_ranks
from spot_plugins.ranks.frames import Limits
from spot_plugins.session import SpotSession

SILENT_S = 3.0


def main(folder, rank, ranks, address, what):
    """Write FOLDER/at-RANK where the test may do something, and end as the training ends."""
    host, port = address
    os.environ.update(MASTER_ADDR=host, MASTER_PORT=str(port))
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(ranks))
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    with Host(os.environ["SPOT_DRILL_HOST"]).entered() if "SPOT_DRILL_HOST" in os.environ else nullcontext():
        train(Path(folder), rank, ranks, what)


def train(folder, rank, ranks, what):
    dist.init_process_group("gloo")
    Training(folder, rank, ranks).run(what)
    os._exit(0)  # without the end of the process group, which waits for ranks that were killed


class Training:
    def __init__(self, folder, rank, ranks):
        self.folder = folder
        self.rank = rank
        self.is_last = rank == ranks - 1
        config = SpotConfig(url=f"{folder.as_uri()}/run", every_steps=1000, grace_seconds=2.0)
        self.heard = Heard()
        self.session = SpotSession(config, on_event=[self.heard])

    def run(self, what):
        getattr(self, what)()

    def reach(self):
        """Let the test know that this rank is where it waits for, or stands still."""
        (self.folder / f"at-{self.rank}").touch()

    def stand(self, number):
        """Be lost by the signal *number*."""
        self.reach()
        os.kill(os.getpid(), number)

    def open(self):
        self.session.open()
        self.session.handle_signals()
        self.session.register("part", Holder(state_of(1, self.rank)))

    def dies_before_it_joins(self):
        if self.is_last:
            TorchRanks().open_board()
            self.stand(signal.SIGKILL)
        self.open()

    def dies_before_it_resumes(self):
        self.open()
        if self.is_last:
            self.stand(signal.SIGKILL)
        self.session.resume()

    def hangs_before_it_resumes(self):
        torch_ranks.LIMITS = Limits(beat_s=0.2, silent_s=SILENT_S)
        self.open()
        if self.is_last:
            self.stand(signal.SIGSTOP)
        self.session.resume()

    def never_joins(self):
        if self.is_last:
            board = TorchRanks().open_board()
            board.read("never")
        self.reach()
        self.open()

    def dies_in_training(self):
        """No step needs the other ranks, so that the survivors train on."""
        self.open()
        self.session.resume()
        self.session.after_step(1)
        if self.is_last:
            self.stand(signal.SIGKILL)
        until(lambda: self.session._opened.agreement._ballot.alone, "the loss is known")
        self.session.after_step(2)
        self.reach()
        until(lambda: self.session.notice, "there is a notice")
        self.session.after_step(3)

    def dies_in_a_collective(self):
        """
        The error of the collective ends the others. The one that ends first breaks the collective of the next.

        All ranks store their shares of step 1. The rank that dies stores none of step 2.
        """
        self.open()
        with self.session:
            self.session.resume()
            self.session.save(1)
            self.heard.wait(SharesCounted if self.rank == 0 else Committed, step=1)
            if not self.is_last:
                self.session.save(2)
                self.heard.wait(Committed, step=2)
            self.reach()
            if self.is_last:
                until(lambda: all((self.folder / f"at-{rank}").exists() for rank in range(2)), "all are there")
                self.stand(signal.SIGKILL)
            for _ in range(10**9):
                dist.all_reduce(torch.zeros(1))

    def hangs_in_training(self):
        """The other rank is stuck in a collective with it."""
        last_resort.LAST_RESORT_S = 1.0
        self.open()
        self.session.resume()
        self.session.after_step(1)
        if self.is_last:
            self.stand(signal.SIGSTOP)
        self.reach()
        dist.all_reduce(torch.zeros(1))
        raise AssertionError("the other rank hangs")

    def hangs_in_training_without_a_notice(self):
        """The other rank is stuck in a collective with it."""
        torch_ranks.LIMITS = Limits(beat_s=0.2, silent_s=SILENT_S)
        lost_rank.OWN_ERROR_S = lost_rank.STUCK_S = 1.0
        self.hangs_in_training()

    def vanishes(self):
        """A host vanishes, and the others are stuck in a collective with its rank."""
        frames.VANISHED_S = 6
        lost_rank.OWN_ERROR_S = lost_rank.STUCK_S = 1.0
        self.open()
        self.session.resume()
        self.session.after_step(1)
        self.reach()
        for _ in range(10**9):
            dist.all_reduce(torch.zeros(1))

    def rank_0_hangs_at_the_end(self):
        self.open()
        self.session.resume()
        self.session.after_step(1)
        if self.rank == 0:
            self.stand(signal.SIGSTOP)
        until((self.folder / "at-0").exists, "rank 0 stands still")
        self.session.close()
