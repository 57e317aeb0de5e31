"""Loops of one's own as people write them."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch.utils.data import DataLoader
from training_pieces import Points, classifier
from user_pieces import Part, cross_entropy, loader_of

from spot_plugins.config import SpotConfig
from spot_plugins.data import LoaderPosition
from spot_plugins.session import SpotSession
from spot_plugins.state import RngPart


class Loop:
    """A usual loop. The kinds override what they do otherwise."""

    def __init__(self):
        self.net = classifier()
        self.loader = loader_of()
        self.optimizers = self.make_optimizers()
        self.part = Part()

    def make_optimizers(self):
        return [torch.optim.Adam(self.net.parameters(), lr=0.01)]

    def step(self, batch, epoch):
        loss = cross_entropy(self.net(batch[1]), batch[2])
        self.optimizers[0].zero_grad()
        loss.backward()
        self.optimizers[0].step()
        return loss

    def run(self, life):
        place = SimpleNamespace(num_batches=0)
        position = LoaderPosition(self.loader, 1)
        part = SimpleNamespace(
            state_dict=lambda: position.state_dict(place.num_batches), load_state_dict=position.load_state_dict
        )
        config = SpotConfig(url=life.url, every_steps=2)
        with SpotSession(config, on_event=life.on_event) as session:
            session.register_model(self.net, self.optimizers)
            session.register("position", part)
            session.register("part", self.part)
            session.register("rng", RngPart())
            session.handle_signals()
            step = session.resume() or 0
            for epoch in range(position.epoch, 2):
                position.begin_epoch(epoch)
                iterator = iter(self.loader)
                position.fast_forward(iterator)
                place.num_batches = 0
                for batch in iterator:
                    life.begin_batch()
                    loss = self.step(batch, epoch)
                    life.trained(step, batch[0], loss.detach())
                    place.num_batches += 1
                    step += 1
                    session.after_step(step)
            session.finish(step)
        return self.net.state_dict(), [optimizer.state_dict() for optimizer in self.optimizers], self.part.values


class NoisyLoop(Loop):
    def step(self, batch, epoch):
        return super().step([batch[0], batch[1] + torch.randn_like(batch[1]), batch[2]], epoch)


class OwnGenerator(Loop):
    """Draws from a generator of its own, whose state is registered."""

    def __init__(self):
        super().__init__()
        self.generator = torch.Generator().manual_seed(3)
        self.part = SimpleNamespace(
            state_dict=lambda: {"state": self.generator.get_state()},
            load_state_dict=lambda state: self.generator.set_state(state["state"]),
            values=None,
        )

    def step(self, batch, epoch):
        return super().step([batch[0], batch[1] + torch.randn(6, generator=self.generator), batch[2]], epoch)


class SwitchedOptimizer(NoisyLoop):
    """Adam in the first epoch, and SGD after it. Both are registered."""

    def make_optimizers(self):
        return [*super().make_optimizers(), torch.optim.SGD(self.net.parameters(), lr=0.05, momentum=0.9)]

    def step(self, batch, epoch):
        optimizer = self.optimizers[min(epoch, 1)]
        loss = cross_entropy(self.net(batch[1] + torch.randn_like(batch[1])), batch[2])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss


class CountedLoop(NoisyLoop):
    def __init__(self):
        super().__init__()
        self.loader = DataLoader(Points(24), batch_size=4, shuffle=True)


class Policy(Loop):
    """Collects experience by its own policy, keeps it, and takes several steps on what it kept."""

    def __init__(self):
        super().__init__()
        self.part = Part(x=[], y=[], baseline=0.0)

    def step(self, batch, epoch):
        kept = self.part.values
        with torch.no_grad():
            actions = torch.distributions.Categorical(logits=self.net(batch[1])).sample()
        rewards = (actions == batch[2]).float() - kept["baseline"]
        kept["baseline"] = 0.9 * kept["baseline"] + 0.1 * float(rewards.mean())
        kept["x"], kept["y"] = [*kept["x"], batch[1]][-3:], [*kept["y"], actions][-3:]
        for x, y in zip(kept["x"], kept["y"], strict=True):
            loss = cross_entropy(self.net(x), y)
            self.optimizers[0].zero_grad()
            loss.backward()
            self.optimizers[0].step()
        return loss


LOOPS = [Loop, NoisyLoop, OwnGenerator, SwitchedOptimizer, CountedLoop, Policy]
