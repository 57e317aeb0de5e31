"""
A training that may change its number of ranks and the way its state is spread.

Every rank appends what each batch saw to FOLDER/trace.jsonl, as ``[epoch, step, rank, samples, loss]``, and the events
of its session to FOLDER/events-RANK.jsonl. Rank 0 appends to FOLDER/schedule.jsonl as well, ``[step, steps of the
schedule]`` for each batch. Nothing in the trace depends on how a batch is cut: no dropout, no batch norm, no randomness
but the order of the samples.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import warnings
from dataclasses import asdict, replace
from functools import partial

import torch
import torch.distributed as dist
from accelerate import Accelerator, FullyShardedDataParallelPlugin, PartialState
from accelerate.utils import DistributedType
from drill_settings import Settings
from hearing import DEADLINE_S
from lightning.fabric import Fabric
from lightning.fabric.strategies import FSDPStrategy as FabricFSDPStrategy
from lightning.fabric.strategies import ModelParallelStrategy as FabricModelParallelStrategy
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, MixedPrecisionPolicy, fully_shard
from torch.distributed.fsdp.wrap import ModuleWrapPolicy
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel
from torch.optim.lr_scheduler import LambdaLR
from training_pieces import Points

from spot_plugins.accelerate import SpotHook
from spot_plugins.bare import SpotLoop
from spot_plugins.data import elastic_loader
from spot_plugins.events import NoticeReceived
from spot_plugins.lightning import SpotCheckpoint


def loader_of(settings):
    return elastic_loader(
        Points(settings.samples),
        batch_size=settings.batch,
        seed=7,
        drop_last=settings.drop_last,
    )


def net(settings):
    torch.manual_seed(1)
    width = 8 if settings.wrapper == "tp" else 9  # torch's tensor parallelism cannot do uneven ones, FSDP can
    return nn.Sequential(nn.Linear(6, width), nn.Tanh(), nn.Linear(width, 3))


def schedule_of(optimizer):
    """Return a schedule from whose rate :func:`record` knows the steps that it has made."""
    return LambdaLR(optimizer, lambda num_steps: 1 / (1 + num_steps / 1000))


def record(settings, rank, epoch, step, samples, loss, optimizer):
    with open(f"{settings.folder}/trace.jsonl", "a") as file:
        file.write(json.dumps([epoch, step, rank, samples.tolist(), float(loss)]) + "\n")
    if rank == 0:
        [group] = optimizer.param_groups
        num_steps = round(1000 * (group["initial_lr"] / group["lr"] - 1))
        with open(f"{settings.folder}/schedule.jsonl", "a") as file:
            file.write(json.dumps([step, num_steps]) + "\n")


def spot_settings(settings):
    def write(event):
        if isinstance(event, NoticeReceived):
            noticed.set()
        with (settings.path / f"events-{os.environ.get('RANK', 0)}.jsonl").open("a") as file:
            file.write(json.dumps({"event": type(event).__name__, **asdict(event)}) + "\n")

    defaults = {"every_steps": 1000, "grace_seconds": 60, "elastic_batch": settings.elastic_batch}
    return {**defaults, **settings.config, "on_event": write}


def write_final(settings, rank, model, optimizer):
    options = StateDictOptions(full_state_dict=True)
    model_state, optimizer_state = get_state_dict(model, optimizer, options=options)
    if rank == 0:
        torch.save([model_state, optimizer_state], f"{settings.folder}/final.pt")


noticed = threading.Event()
"""Set when a session of this process has received a notice."""


def preempt(settings, rank, step):
    """
    Take one machine, in the middle of a step; later in the next ones too, for all may leave some steps later.

    The next step waits for the notice, because all steps of the training may take less time than it takes to be known.
    """
    if settings.stop_in is not None and step >= settings.stop_in and rank == settings.ranks - 1:
        os.kill(os.getpid(), signal.SIGTERM)
        assert step == settings.stop_in or noticed.wait(DEADLINE_S)


# Lightning


class CpuFSDPStrategy(FSDPStrategy):
    """Lightning's refuses a CPU. Not for anything but tests."""

    @property
    def root_device(self):
        return torch.device("cpu")

    def _setup_model(self, model):
        return FullyShardedDataParallel(
            model, device_id=self.root_device, sharding_strategy=self.sharding_strategy, **self.kwargs
        )


class Module(LightningModule):
    def __init__(self, settings):
        super().__init__()
        self.settings = settings
        self.net = net(settings)

    def configure_model(self):
        if self.settings.wrapper == "fsdp2" and self.device_mesh is not None:
            fully_shard(self.net[2], mesh=self.device_mesh["data_parallel"])
            fully_shard(self.net, mesh=self.device_mesh["data_parallel"])
        if self.settings.wrapper == "tp":
            plan = {"0": ColwiseParallel(), "2": RowwiseParallel()}
            parallelize_module(self.net, self.device_mesh["tensor_parallel"], plan)

    def training_step(self, batch, batch_idx):
        index, x, y = batch
        preempt(self.settings, self.global_rank, self.global_step + 1)
        loss = nn.functional.cross_entropy(self.net(x), y)
        step, optimizer = self.global_step + 1, self.trainer.optimizers[0]
        record(self.settings, self.global_rank, self.current_epoch, step, index, loss, optimizer)
        return loss

    def validation_step(self, batch, batch_idx):
        self.net(batch[1])
        if self.global_rank == 0 and not self.trainer.sanity_checking:
            with open(f"{self.settings.folder}/validations.jsonl", "a") as file:
                file.write(json.dumps([self.current_epoch, self.global_step]) + "\n")

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=1e-2)
        schedule = {"scheduler": schedule_of(optimizer), "interval": "step", "frequency": self.settings.frequency}
        return [optimizer], [schedule]

    def train_dataloader(self):
        return loader_of(self.settings)

    def val_dataloader(self):
        return loader_of(replace(self.settings, samples=8))


class Final(Callback):
    def __init__(self, settings):
        self.settings = settings

    def on_train_end(self, trainer, pl_module):
        write_final(self.settings, trainer.global_rank, trainer.strategy.model, trainer.optimizers[0])


def lightning(settings):
    strategies = {
        "ddp": lambda: "ddp" if settings.ranks > 1 else "auto",
        "fsdp1": lambda: CpuFSDPStrategy(auto_wrap_policy={nn.Linear}),
        "fsdp2": lambda: ModelParallelStrategy(
            data_parallel_size=settings.ranks, tensor_parallel_size=1, process_group_backend="gloo"
        ),
        "tp": lambda: ModelParallelStrategy(
            data_parallel_size=1, tensor_parallel_size=settings.ranks, process_group_backend="gloo"
        ),
    }
    spot = SpotCheckpoint(
        settings.run,
        **spot_settings(settings),
    )
    trainer = Trainer(
        accelerator="cpu",
        devices=settings.ranks,
        strategy=strategies[settings.wrapper](),
        max_epochs=settings.epochs,
        accumulate_grad_batches=settings.accumulate,
        val_check_interval=0.5,
        default_root_dir=settings.folder,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        logger=False,
        callbacks=[Final(settings), spot],
    )
    trainer.fit(Module(settings))


# Accelerate


def cpu_accelerator(settings):
    """FSDP on a CPU takes persuasion. Not for anything but tests."""
    if settings.wrapper == "ddp" or settings.ranks == 1:
        return Accelerator(cpu=True, gradient_accumulation_steps=settings.accumulate)
    state = PartialState(cpu=True)
    state.distributed_type = DistributedType.MULTI_GPU
    state.device = torch.device("cpu")
    version = int(settings.wrapper[-1])
    plugin = None
    if "ACCELERATE_USE_FSDP" not in os.environ:  # the configuration of a launcher
        plugin = FullyShardedDataParallelPlugin(
            fsdp_version=version,
            auto_wrap_policy="size_based_wrap",
            min_num_params=20,
            use_orig_params=True if version == 1 else None,
            mixed_precision_policy=MixedPrecisionPolicy() if version == 2 else None,
        )
    return Accelerator(cpu=True, fsdp_plugin=plugin, gradient_accumulation_steps=settings.accumulate)


def accelerate(settings):
    accelerator = cpu_accelerator(settings)
    rank = accelerator.process_index
    hook = SpotHook(
        accelerator,
        settings.run,
        **spot_settings(settings),
    )
    with hook as spot:
        model = net(settings)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        scheduler = schedule_of(optimizer)
        model, optimizer, loader, scheduler = accelerator.prepare(model, optimizer, loader_of(settings), scheduler)
        if settings.wrapper != "ddp" and settings.ranks > 1:
            assert accelerator.distributed_type is DistributedType.FSDP
            assert accelerator.is_fsdp2 == (settings.wrapper == "fsdp2")
        spot.resume()
        for epoch in spot.epochs(settings.epochs):
            for index, x, y in spot.batches(loader):
                preempt(settings, rank, spot.progress.step + 1)
                with accelerator.accumulate(model):
                    loss = nn.functional.cross_entropy(model(x), y)
                    record(settings, rank, epoch, spot.progress.step + 1, index, loss, optimizer)
                    accelerator.backward(loss)
                    optimizer.step()
                    scheduler.step()
                    optimizer.zero_grad()
                spot.after_step()
        write_final(settings, rank, model, optimizer.optimizer)


# Plain PyTorch


def spread(model, settings):
    """Return *model* in the wrapper of the settings."""
    if settings.ranks == 1:
        return model
    mesh = init_device_mesh("cpu", (settings.ranks,))
    match settings.wrapper:
        case "ddp":
            return DistributedDataParallel(model)
        case "fsdp1":
            return FullyShardedDataParallel(
                model, auto_wrap_policy=ModuleWrapPolicy({nn.Linear}), device_id=torch.device("cpu"), device_mesh=mesh
            )
        case "fsdp2":
            fully_shard(model[2], mesh=mesh)
            return fully_shard(model, mesh=mesh)
        case "tp":
            return parallelize_module(model, mesh, {"0": ColwiseParallel(), "2": RowwiseParallel()})


def bare(settings):
    if settings.ranks > 1:
        dist.init_process_group("gloo")
    model = spread(net(settings), settings)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    loop(settings, model, optimizer, torch.Tensor.backward)
    write_final(settings, int(os.environ.get("RANK", 0)), model, optimizer)


def loop(settings, model, optimizer, backward):
    """Make a step of the schedule for each batch of each rank that an optimizer step is made of."""
    rank = int(os.environ.get("RANK", 0))
    scheduler = schedule_of(optimizer)
    loader = loader_of(settings)
    if settings.wrapper == "tp":  # all ranks train on the same samples
        loader.sampler.bind(num_replicas=1, rank=0)
    with SpotLoop(settings.run, **spot_settings(settings), gradient_accumulation_steps=settings.accumulate) as spot:
        spot.register_model(model, optimizer, scheduler)
        spot.register_loader(loader)
        spot.resume()
        num_waiting = 0
        for epoch in spot.epochs(settings.epochs):
            for index, x, y in spot.batches(loader):
                step = spot.progress.step + 1
                preempt(settings, rank, step)
                loss = nn.functional.cross_entropy(model(x), y)
                record(settings, rank, epoch, step, index, loss, optimizer)
                backward(loss / spot.gradient_accumulation_steps)
                num_waiting += 1
                if spot.sync_gradients:
                    optimizer.step()
                    optimizer.zero_grad()
                    for _ in range(settings.ranks * num_waiting):
                        scheduler.step()
                    num_waiting = 0
                spot.after_step()


# Lightning Fabric, in the same loop


class CpuFabricFSDPStrategy(FabricFSDPStrategy):
    """Fabric's refuses a CPU. Not for anything but tests."""

    def setup_module(self, module):
        return FullyShardedDataParallel(module, device_id=self.root_device, **self._fsdp_kwargs)


def shard(model, mesh):
    """Shard *model* as Fabric asks for it."""
    fully_shard(model[2], mesh=mesh["data_parallel"])
    return fully_shard(model, mesh=mesh["data_parallel"])


def share(model, mesh):
    """Share each layer of *model* between the ranks."""
    return parallelize_module(model, mesh["tensor_parallel"], {"0": ColwiseParallel(), "2": RowwiseParallel()})


def fabric(settings):
    """Wrap the model before its optimizer is made, as FSDP needs it."""
    parallel = partial(FabricModelParallelStrategy, process_group_backend="gloo")
    strategies = {
        "ddp": lambda: "ddp",
        "fsdp1": lambda: CpuFabricFSDPStrategy(auto_wrap_policy=ModuleWrapPolicy({nn.Linear})),
        "fsdp2": lambda: parallel(shard, data_parallel_size=settings.ranks, tensor_parallel_size=1),
        "tp": lambda: parallel(share, data_parallel_size=1, tensor_parallel_size=settings.ranks),
    }
    strategy = strategies[settings.wrapper]() if settings.ranks > 1 else "auto"
    fabric = Fabric(accelerator="cpu", devices=settings.ranks, strategy=strategy)
    fabric.launch()
    model = fabric.setup_module(net(settings))
    optimizer = fabric.setup_optimizers(torch.optim.AdamW(model.parameters(), lr=1e-2))
    loop(settings, model, optimizer, fabric.backward)
    write_final(settings, fabric.global_rank, model._forward_module, optimizer.optimizer)


def main(settings):
    warnings.simplefilter("ignore")
    warnings.filterwarnings("always", message="an optimizer step")
    torch.set_num_threads(1)
    {"lightning": lightning, "accelerate": accelerate, "bare": bare, "fabric": fabric}[settings.host](settings)


if __name__ == "__main__":
    main(Settings.decode(sys.argv[1]))
