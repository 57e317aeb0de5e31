"""A life of a training with a compiled function. Prints what the compiler found in its caches, as a line of JSON."""

from __future__ import annotations

import json
import logging
import threading

import torch
from hearing import until
from torch import nn
from torch._dynamo.utils import counters

from spot_plugins.config import SpotConfig
from spot_plugins.session import SpotSession
from spot_plugins.store import open_store


def main(url: str, num_steps: int, *words: str) -> None:
    """Train up to step *num_steps*. With the word ``keeps`` it waits after each step until compiled code is stored."""
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    model = nn.Linear(4, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    compiled = torch.compile(torch.sin)  # one kernel, because each takes seconds
    config = SpotConfig(url=url, every_steps=1, compile_cache="off" not in words, notice_sources=())
    store = open_store(url)
    with SpotSession(config) as session:
        session.register_model(model, [optimizer])
        for step in range(session.resume() or 0, num_steps):
            optimizer.zero_grad()
            model(compiled(torch.full((8, 4), step / 8))).square().mean().backward()
            optimizer.step()
            session.after_step(step + 1)
            if "keeps" in words:
                until(lambda: list(store.keys("compile-cache/")), "compiled code is kept")
            if "gives up" in words:
                until(lambda: "spot-compiled" not in [each.name for each in threading.enumerate()], "it gives up")
        session.finish(num_steps)
    print(json.dumps({name: counters["inductor"][name] for name in ("fxgraph_cache_hit", "fxgraph_cache_miss")}))
