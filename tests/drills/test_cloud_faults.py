"""Services of Google and Azure that fail while a training runs: it goes on, is told, and the newest state is stored."""

from __future__ import annotations

import uuid

import pytest
import torch
from clouds import CLIENTS, options_for
from hearing import Heard, pusher_pid, until, until_gone
from steps import Holder, assert_same, assert_whole, load, numbers

from spot_plugins.config import SpotConfig
from spot_plugins.events import Committed, PushFailing
from spot_plugins.session import SpotSession
from spot_plugins.store import open_store
from spot_plugins.testing import FaultProxy

NUM_FLOATS = 300_000  # 1.2 MB
FAULTS = {
    "hangs": (lambda proxy: proxy.hang(), "timeout"),
    "breaks in the body": (lambda proxy: proxy.reset_after(100_000), "the connection to the endpoint URL broke"),
    "loses the answer": (lambda proxy: proxy.cut_answers(), "the connection to the endpoint URL broke"),
    "rejects": (lambda proxy: proxy.fail_with(401), "the service rejects these credentials"),
}


@pytest.fixture(params=[name for name in CLIENTS if not name.startswith("s3")])
def way(request):
    """The protocol of a service, its server, and options that choose the client."""
    protocol, _ = CLIENTS[request.param]
    other = {"blocksize": 2**22} if request.param == "az adlfs" else {}  # an option that only adlfs knows
    server = request.getfixturevalue(f"{protocol}_server")
    with FaultProxy(server.endpoint_url, protocol) as proxy:
        yield server, proxy, {**options_for(server, proxy.endpoint_url, 1.0), **other}


@pytest.mark.parametrize(("fault", "said"), FAULTS.values(), ids=FAULTS)
def test_a_put_that_fails_is_told_and_tried_again(way, tmp_path, fault, said):
    """
    Also a put whose answer never comes ends, with an event. The training goes on, and its newest state is stored.
    """
    server, proxy, options = way
    url = f"{server.create_bucket(f'faults-{uuid.uuid4().hex[:8]}')}/run"
    heard, holder = Heard(), Holder({"w": torch.zeros(NUM_FLOATS), "step": 0})
    config = SpotConfig(url=url, local_dir=str(tmp_path), storage_options=options, every_steps=1)
    step = 0

    def train():
        nonlocal step
        step += 1
        holder.state = {"w": torch.full((NUM_FLOATS,), float(step)), "step": step}
        session.after_step(step)

    with SpotSession(config, on_event=[heard]) as session:
        session.register("part", holder)
        session.resume()
        train()
        heard.wait(Committed, step=1)
        fault(proxy)
        until(lambda: train() or heard.of(PushFailing), "the failure is told")
        failing = heard.of(PushFailing)[0]
        proxy.heal()
        until(lambda: train() or any(event.step > failing.step for event in heard.of(Committed)), "it is stored")
        session.finish(step)
        until_gone(pusher_pid(session))

    assert said in failing.reason
    store = open_store(url, options_for(server))
    assert numbers(store)[0] == step
    assert_whole(store)
    assert_same(load(store).state["part"], holder.state)
