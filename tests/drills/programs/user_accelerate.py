"""Programs of Accelerate as people write them."""

from __future__ import annotations

import copy
from typing import Any, ClassVar

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from torch import nn
from torch.optim.swa_utils import AveragedModel
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, IterableDataset, Sampler, WeightedRandomSampler
from training_pieces import Points, Stream, classifier
from user_pieces import Part, cross_entropy, loader_of, mlp

from spot_plugins.accelerate import SpotHook


def start(**settings):
    """Return an accelerator, as a new process makes it."""
    for state in (AcceleratorState, PartialState, GradientState):
        state._reset_state()
    return Accelerator(cpu=True, **settings)


def hook(accelerator, life):
    return SpotHook(accelerator, life.url, every_steps=2, on_event=life.on_event)


class Plain:
    """A usual Accelerate program. The kinds override what they do otherwise."""

    num_epochs = 2
    accelerator_settings: ClassVar[dict[str, Any]] = {}

    def __init__(self):
        self.accelerator = start(**self.accelerator_settings)
        self.net = classifier()
        self.make()
        self.loader = self.make_loader()
        self.optimizer = self.make_optimizer()
        self.scheduler = self.make_scheduler()

    def make(self): ...

    def make_loader(self):
        return loader_of()

    def make_optimizer(self):
        return torch.optim.Adam(self.net.parameters(), lr=0.01)

    def make_scheduler(self):
        return torch.optim.lr_scheduler.StepLR(self.optimizer, 3)

    def register(self, spot): ...

    def begin_epoch(self, epoch): ...

    def end_epoch(self, epoch, spot): ...

    def loss(self, batch):
        return cross_entropy(self.net(batch[1]), batch[2])

    def after_optimizer(self, batch, loss): ...

    def step(self, batch):
        self.optimizer.zero_grad()
        loss = self.loss(batch)
        self.accelerator.backward(loss)
        self.optimizer.step()
        self.scheduler.step()
        self.after_optimizer(batch, loss.detach())
        return loss

    def final(self):
        return self.accelerator.unwrap_model(self.net).state_dict(), self.optimizer.optimizer.state_dict()

    def run(self, life):
        with hook(self.accelerator, life) as spot:
            self.net, self.optimizer, self.loader, self.scheduler = self.accelerator.prepare(
                self.net, self.optimizer, self.loader, self.scheduler
            )
            self.register(spot)
            spot.resume()
            for epoch in spot.epochs(self.num_epochs):
                self.begin_epoch(epoch)
                for batch in spot.batches(self.loader):
                    life.begin_batch()
                    done = spot.progress.step
                    loss = self.step(batch)
                    life.trained(done, batch[0], loss.detach(), self.optimizer.param_groups[0]["lr"])
                    spot.after_step()
                self.end_epoch(epoch, spot)
        return self.final()


class LabelNoise(Plain):
    def loss(self, batch):
        flipped = torch.where(torch.rand(len(batch[2])) < 0.3, torch.randint(0, 3, batch[2].shape), batch[2])
        return cross_entropy(self.net(batch[1]), flipped)


class Reseeded(LabelNoise):
    def begin_epoch(self, epoch):
        torch.manual_seed(100 + epoch)


class Clipped(Plain):
    def step(self, batch):
        self.optimizer.zero_grad()
        loss = self.loss(batch)
        self.accelerator.backward(loss)
        self.accelerator.clip_grad_norm_(self.net.parameters(), 0.1)
        self.optimizer.step()
        return loss


class Adversarial(Plain):
    def loss(self, batch):
        x = batch[1].clone()
        x += 0.1 * torch.randn_like(x)
        for _ in range(3):
            x = x.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(cross_entropy(self.net(x), batch[2]), x)
            x = x + 0.05 * gradient.sign()
        return cross_entropy(self.net(x.detach()), batch[2])


class InBfloat16(Plain):
    accelerator_settings: ClassVar[dict[str, Any]] = {"mixed_precision": "bf16"}

    def make(self):
        self.net = mlp()


class Checkpointed(Plain):
    def loss(self, batch):
        net = self.accelerator.unwrap_model(self.net)
        hidden = checkpoint(net[:4], batch[1].requires_grad_(), use_reentrant=False)
        return cross_entropy(net[4](hidden), batch[2])


class WarmRestarts(Plain):
    num_epochs = 3

    def make_scheduler(self):
        return torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(self.optimizer, T_0=5)


class OneCycle(Plain):
    def make_scheduler(self):
        return torch.optim.lr_scheduler.OneCycleLR(self.optimizer, max_lr=0.1, total_steps=2 * len(self.loader))


class RangeTest(Plain):
    """Sets the learning rate by hand, batch after batch."""

    def make_scheduler(self):
        return torch.optim.lr_scheduler.ConstantLR(self.optimizer, factor=1.0, total_iters=0)

    def after_optimizer(self, batch, loss):
        for group in self.optimizer.param_groups:
            group["lr"] *= 1.3


class Freezing(Plain):
    """Trains the last layer first, then everything."""

    def begin_epoch(self, epoch):
        for p in self.accelerator.unwrap_model(self.net)[0].parameters():
            p.requires_grad_(epoch > 0)


class Weighted(Plain):
    def make_loader(self):
        return DataLoader(Points(24), batch_size=4, sampler=WeightedRandomSampler(torch.rand(24), 24))


class Batches(Sampler):
    """A batch sampler of the user's own, which shuffles batches of neighbors by the global stream."""

    def __iter__(self):
        for start in torch.randperm(6).tolist():
            yield list(range(4 * start, 4 * start + 4))

    def __len__(self):
        return 6


class Buckets(Plain):
    def make_loader(self):
        return DataLoader(Points(24), batch_sampler=Batches())


class SelfPaced(Plain):
    """Draws hard samples more often, by weights that are registered."""

    def make(self):
        self.part = Part(weights=torch.ones(24))

    def make_loader(self):
        program = self

        class Hard(Sampler):
            def __iter__(self):
                return iter(torch.multinomial(program.part.values["weights"], 24, replacement=True).tolist())

            def __len__(self):
                return 24

        return DataLoader(Points(24), batch_size=4, sampler=Hard())

    def register(self, spot):
        spot.register("weights", self.part)

    def after_optimizer(self, batch, loss):
        self.part.values["weights"][batch[0]] = 0.2 + 5 * loss


class Curriculum(Plain):
    """One loader whose sampler takes more of the data in each epoch."""

    num_epochs = 3

    def make_loader(self):
        self.reach = 8
        program = self

        class Easy(Sampler):
            def __iter__(self):
                return iter(torch.randperm(program.reach).tolist())

            def __len__(self):
                return program.reach

        return DataLoader(Points(24), batch_size=4, sampler=Easy())

    def begin_epoch(self, epoch):
        self.reach = 8 * (epoch + 1)


class Streaming(Plain):
    def make_loader(self):
        return DataLoader(Stream(Points(24)), batch_size=4)


class Generated(Plain):
    """Samples that are drawn while they are read."""

    def make_loader(self):
        class Drawn(IterableDataset):
            def __iter__(self):
                for number in range(24):
                    yield number, torch.randn(6), torch.randint(0, 3, ()).item()

        return DataLoader(Drawn(), batch_size=4)


class Averaged(Plain):
    """Keeps an average of the weights, registered, and swaps nothing."""

    def make(self):
        self.average = AveragedModel(self.net)

    def register(self, spot):
        spot.register("average", self.average)

    def after_optimizer(self, batch, loss):
        self.average.update_parameters(self.accelerator.unwrap_model(self.net))

    def final(self):
        return super().final(), self.average.state_dict()


class MeanTeacher(Averaged):
    """Learns from the average too."""

    def loss(self, batch):
        with torch.no_grad():
            soft = self.average(batch[1]).softmax(1)
        return super().loss(batch) + cross_entropy(self.net(batch[1]), soft)


class Distilled(Plain):
    """Learns from a frozen teacher that every start makes anew."""

    def make(self):
        with torch.random.fork_rng():
            torch.manual_seed(5)
            self.teacher = mlp().eval().requires_grad_(requires_grad=False)

    def loss(self, batch):
        return super().loss(batch) + cross_entropy(self.net(batch[1]), self.teacher(batch[1]).softmax(1))


class Contrastive(Plain):
    """A queue of keys as a buffer, and a slow copy of the encoder that changes in the forward, as MoCo does."""

    def make(self):
        class Moco(nn.Module):
            def __init__(self):
                super().__init__()
                self.query, self.key = mlp(4), mlp(4)
                self.key.load_state_dict(self.query.state_dict())
                self.key.requires_grad_(requires_grad=False)
                self.register_buffer("queue", torch.randn(16, 4))
                self.register_buffer("next", torch.zeros((), dtype=torch.long))

            def forward(self, x):
                with torch.no_grad():
                    for slow, fast in zip(self.key.parameters(), self.query.parameters(), strict=True):
                        slow.mul_(0.9).add_(fast, alpha=0.1)
                    keys = self.key(x + 0.1 * torch.randn_like(x))
                queries = self.query(x)
                logits = torch.cat([(queries * keys).sum(1, keepdim=True), queries @ self.queue.T.clone()], 1)
                with torch.no_grad():
                    at = int(self.next)
                    self.queue[at : at + len(x)] = keys
                    self.next.fill_((at + len(x)) % 16)
                return logits

        self.net = Moco()

    def loss(self, batch):
        return cross_entropy(self.net(batch[1]), torch.zeros(len(batch[1]), dtype=torch.long))


class Replay(Plain):
    """Trains on a batch and on samples of the past, from a buffer that is registered."""

    def make(self):
        self.part = Part(x=[], y=[])

    def register(self, spot):
        spot.register("buffer", self.part)

    def loss(self, batch):
        loss = super().loss(batch)
        buffer = self.part.values
        if buffer["x"]:
            old = torch.randint(0, len(buffer["x"]), (4,)).tolist()
            x, y = torch.stack([buffer["x"][i] for i in old]), torch.stack([buffer["y"][i] for i in old])
            loss = loss + cross_entropy(self.net(x), y)
        buffer["x"] += list(batch[1].detach().clone())
        buffer["y"] += list(batch[2].clone())
        return loss


class Experience(Plain):
    """Takes several optimizer steps on each batch of experience."""

    def step(self, batch):
        for rows in torch.randperm(4).view(2, 2):
            loss = super().step([part[rows] for part in batch])
        return loss


class Snapshots(Plain):
    """Keeps the weights of each cycle, registered."""

    num_epochs = 3

    def make(self):
        self.part = Part(snapshots=[])

    def register(self, spot):
        spot.register("snapshots", self.part)

    def begin_epoch(self, epoch):
        if epoch == len(self.part.values["snapshots"]):
            self.part.values["snapshots"].append(copy.deepcopy(self.accelerator.unwrap_model(self.net).state_dict()))

    def final(self):
        return super().final(), self.part.values


class Nested(Plain):
    """A pass over a small support set, a plain loader, for each batch."""

    def make(self):
        self.support = DataLoader(Points(8, seed=3), batch_size=4, shuffle=True)

    def loss(self, batch):
        return super().loss(batch) + sum(cross_entropy(self.net(x), y) for _, x, y in self.support)


ACCELERATE = [
    Plain, LabelNoise, Reseeded, Clipped, Adversarial, InBfloat16, Checkpointed, WarmRestarts, OneCycle, RangeTest,
    Freezing, Weighted, Buckets, SelfPaced, Curriculum, Streaming, Generated, Averaged, MeanTeacher, Distilled,
    Contrastive, Replay, Experience, Snapshots, Nested,
]  # fmt: skip
