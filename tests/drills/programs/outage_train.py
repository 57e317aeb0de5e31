"""A training of one or more ranks whose second save never reaches the store. Run by test_salvage.py."""

from __future__ import annotations

import json
from contextlib import closing

import torch.distributed as dist
from hearing import Heard, pusher_pid, until, until_idle
from steps import Holder, assert_same, state_of

from spot_plugins.config import SpotConfig
from spot_plugins.events import Committed, Salvaged, WrittenLocally
from spot_plugins.session import SpotSession


def main(settings):
    """
    Resume, and write what came of it to FOLDER/resumed-RANK. That is all, unless ``settings.goes_on``.

    Else save step 1, write the pusher's id to FOLDER/stored-RANK, wait for FOLDER/go, save step 2, write
    FOLDER/written-RANK once it is on the local disk, and wait for the end.
    """
    folder = settings.path
    if settings.ranks > 1:
        dist.init_process_group("gloo")
    heard, rank = Heard(), dist.get_rank() if settings.ranks > 1 else 0
    config = SpotConfig(**settings.config, local_dir=str(folder / f"local-{rank}"))
    with closing(SpotSession(config, on_event=[heard])) as session:
        holder = Holder(state_of(0, rank))
        session.register("part", holder, replicated=("both",))
        step = session.resume()
        assert_same(holder.state, state_of(step or 0, rank))
        (folder / f"resumed-{rank}").write_text(json.dumps([step, [each.step for each in heard.of(Salvaged)]]))
        if settings.goes_on:
            holder.state = state_of(1, rank)
            session.save(1)
            heard.wait(Committed, step=1)
            until_idle(session)  # what was pruned is pruned
            (folder / f"stored-{rank}").write_text(str(pusher_pid(session)))
            until(lambda: (folder / "go").exists(), "the test says go")
            holder.state = state_of(2, rank)
            session.save(2)
            heard.wait(WrittenLocally, step=2)
            (folder / f"written-{rank}").write_text("yes")
            until(lambda: False, "the test kills this process")
    if settings.ranks > 1:
        dist.destroy_process_group()
