"""Programs of Accelerate with several models or loaders or exits, and one that cannot be resumed."""

from __future__ import annotations

import torch
from torch import nn
from user_accelerate import Plain, hook
from user_pieces import cross_entropy, loader_of, mlp


class EarlyBreak(Plain):
    """Leaves each epoch after four batches."""

    def run(self, life):
        with hook(self.accelerator, life) as spot:
            self.net, self.optimizer, self.loader = self.accelerator.prepare(self.net, self.optimizer, self.loader)
            spot.resume()
            for _ in spot.epochs(3):
                for batch in spot.batches(self.loader):
                    if spot.progress.batches == 4:
                        break
                    life.begin_batch()
                    done = spot.progress.step
                    loss = self.step(batch)
                    life.trained(done, batch[0], loss.detach())
                    spot.after_step()
        return self.final()


class Gan(Plain):
    """Two models and two optimizers that take turns."""

    def run(self, life):
        maker, judge = mlp(6), mlp(1)
        first, second = torch.optim.Adam(maker.parameters(), lr=0.01), torch.optim.Adam(judge.parameters(), lr=0.02)
        with hook(self.accelerator, life) as spot:
            maker, judge, first, second, loader = self.accelerator.prepare(maker, judge, first, second, loader_of())
            spot.resume()
            for _ in spot.epochs(2):
                for index, x, _y in spot.batches(loader):
                    life.begin_batch()
                    fake, ones = maker(torch.randn(len(x), 6)), torch.ones(len(x), 1)
                    real = nn.functional.binary_cross_entropy_with_logits
                    loss = real(judge(x), ones) + real(judge(fake.detach()), 0 * ones)
                    second.zero_grad()
                    self.accelerator.backward(loss)
                    second.step()
                    first.zero_grad()
                    self.accelerator.backward(real(judge(fake), ones))
                    first.step()
                    life.trained(spot.progress.step, index, loss.detach())
                    spot.after_step()
        return maker.state_dict(), judge.state_dict()


class SemiSupervised(Plain):
    """Labeled and unlabeled data side by side, of unlike lengths."""

    def run(self, life):
        with hook(self.accelerator, life) as spot:
            loaders = [loader_of(7, 20), loader_of(8, 32)]
            self.net, self.optimizer, labeled, unlabeled = self.accelerator.prepare(self.net, self.optimizer, *loaders)
            spot.resume()
            for _ in spot.epochs(2):
                for (index, x, y), (other, z, _w) in zip(spot.batches(labeled), spot.batches(unlabeled), strict=False):
                    life.begin_batch()
                    pseudo = self.net(z + 0.1 * torch.randn_like(z)).argmax(1)
                    loss = cross_entropy(self.net(x), y) + 0.5 * cross_entropy(self.net(z), pseudo)
                    self.optimizer.zero_grad()
                    self.accelerator.backward(loss)
                    self.optimizer.step()
                    life.trained(spot.progress.step, index, other, loss.detach())
                    spot.after_step()
        return self.final()


class RoundRobin(Plain):
    """Two tasks, one of which is drawn for each step."""

    def run(self, life):
        with hook(self.accelerator, life) as spot:
            loaders = [loader_of(7), loader_of(8)]
            self.net, self.optimizer, *loaders = self.accelerator.prepare(self.net, self.optimizer, *loaders)
            spot.resume()
            for _ in spot.epochs(2):
                iterators = [iter(spot.batches(loader)) for loader in loaders]
                while iterators:
                    turn = int(torch.randint(0, len(iterators), ()))
                    batch = next(iterators[turn], None)
                    if batch is None:
                        iterators.pop(turn)
                        continue
                    life.begin_batch()
                    done = spot.progress.step
                    self.optimizer.zero_grad()
                    loss = self.loss(batch)
                    self.accelerator.backward(loss)
                    self.optimizer.step()
                    life.trained(done, batch[0], loss.detach())
                    spot.after_step()
        return self.final()


class GroupAdded(Plain):
    """Trains the first layer only from the second epoch on, by a group that is added then."""

    def make_optimizer(self):
        return torch.optim.Adam(self.net[4].parameters(), lr=0.01)

    def begin_epoch(self, epoch):
        if epoch == 1:
            self.optimizer.add_param_group({"params": self.accelerator.unwrap_model(self.net)[0].parameters()})


LOOPS_OF_ACCELERATE = [EarlyBreak, Gan, SemiSupervised, RoundRobin]
