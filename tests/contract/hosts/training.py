"""The pieces of the training that all adapters share: data, model, optimizers and schedulers. No host in here."""

from __future__ import annotations

import torch
from torch import nn
from torch.optim import lr_scheduler
from torch.utils.data import DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader
from training_pieces import Points

from spot_plugins.data import elastic_loader


class Net(nn.Module):
    """A model with weights, running statistics and random numbers of its own."""

    def __init__(self, width):
        super().__init__()
        self.first = nn.Sequential(nn.Linear(6, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Dropout(0.3))
        self.last = nn.Linear(width, 3)

    def forward(self, x):
        return self.last(self.first(x))


def loss_of(net, batch):
    """Return the loss of *batch*."""
    _, x, y = batch
    return nn.functional.cross_entropy(net(x), y)


def joined(batches):
    """Return one batch of the batches that several loaders yielded together."""
    return [torch.cat(parts) for parts in zip(*batches, strict=True)]


def make_loaders(program):
    """Return the loaders for training."""
    return [_make_loader(program, program.data_seed + number) for number in range(program.num_loaders)]


def _make_loader(program, seed):
    data = Points(program.num_samples, seed=seed, is_noisy=program.is_noisy)
    options = {"batch_size": program.batch_size, "num_workers": program.num_workers}
    match program.loader:
        case "elastic":
            return elastic_loader(data, seed=seed, **options)
        case "stateful":
            return StatefulDataLoader(data, shuffle=True, **options)
    return DataLoader(data, shuffle=True, **options)


def make_validation_loader():
    return DataLoader(Points(12, seed=3), batch_size=4)


def make_optimizers(program, net):
    """Return one optimizer of all weights, or one for each half of the model."""
    made = {
        "adam": lambda weights: torch.optim.Adam(weights, lr=program.lr),
        "sgd": lambda weights: torch.optim.SGD(weights, lr=program.lr, momentum=0.9),
    }
    if len(program.optimizers) == 1:
        return [made[program.optimizers[0]](net.parameters())]
    halves = (net.first.parameters(), net.last.parameters())
    return [made[name](half) for name, half in zip(program.optimizers, halves, strict=True)]


def make_schedulers(program, optimizers):
    """Return one scheduler for each optimizer, or none."""
    made = {
        "step": lambda optimizer: lr_scheduler.StepLR(optimizer, 3, gamma=0.7),
        "epoch": lambda optimizer: lr_scheduler.ExponentialLR(optimizer, gamma=0.5),
        "plateau": lambda optimizer: lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, threshold=1.0, factor=0.5),
    }
    return [made[program.schedule](optimizer) for optimizer in optimizers] if program.schedule != "none" else []


def rates(optimizers):
    """Return the learning rates as they are now."""
    return [group["lr"] for optimizer in optimizers for group in optimizer.param_groups]


def final_state(net, optimizers, schedulers):
    """Return everything that a training leaves. All of it has to be equal in every bit."""
    return {
        "net": net.state_dict(),
        "optimizers": [optimizer.state_dict() for optimizer in optimizers],
        "schedulers": [scheduler.state_dict() for scheduler in schedulers],
        "stream": torch.get_rng_state(),
    }
