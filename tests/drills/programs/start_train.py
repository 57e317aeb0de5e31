"""A training of one or more ranks, each with an endpoint of its own. Run by test_store_at_start.py."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import asdict

import torch.distributed as dist
from hearing import until
from steps import Holder, state_of

from spot_plugins.config import SpotConfig
from spot_plugins.session import SpotSession, spot_session
from spot_plugins.store import retry


def main(settings):
    """
    Open a session, write FOLDER/open-RANK, and wait for FOLDER/go.

    Then resume, save step 1 and wait for FOLDER/more. Then save step 2, and end with step 3.
    """
    signal.signal(signal.SIGTERM, lambda *_: None)  # as Lightning does before a session is opened
    folder, rank = settings.path, int(os.environ.get("RANK", "0"))
    if settings.patience_s is not None:
        retry.PATIENCE_S = spot_session.FINISH_WAIT_S = settings.patience_s
    if settings.ranks > 1:
        dist.init_process_group("gloo")

    def on_event(event):
        with (folder / f"events-{rank}.jsonl").open("a") as file:
            file.write(json.dumps({"event": type(event).__name__, **asdict(event)}) + "\n")

    options = {**settings.config["storage_options"], "endpoint_url": settings.endpoints[rank]}
    with SpotSession(SpotConfig(**{**settings.config, "storage_options": options}), on_event=[on_event]) as session:
        session.handle_signals()
        session.register("part", Holder(state_of(1, rank)))
        (folder / f"open-{rank}").touch()
        until((folder / "go").exists, "the test says go")
        session.resume()
        session.save(1)
        until((folder / "more").exists, "the test says more")
        session.save(2)
        session.finish(3)
