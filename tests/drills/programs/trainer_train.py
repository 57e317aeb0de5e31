"""
A real training with transformers' Trainer that can be interrupted at an exact point. Run by test_trainer_processes.py.

Writes what :mod:`drill` says, and the final state to FOLDER/final-RANK.pt. The points are ``["batch", n]`` and
``["val", n]``, with n from 1 in each process.
"""

from __future__ import annotations

import os
import signal
import sys
import warnings
from collections import Counter

import torch
from accelerate import PartialState
from accelerate.utils import DistributedType
from drill import Drill
from drill_settings import Settings
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict
from training_pieces import Points, hexed
from transformers import Trainer, TrainingArguments, default_data_collator, set_seed

from spot_plugins.state import RngPart, encode
from spot_plugins.transformers import SpotTrainerCallback


class Named(torch.utils.data.Dataset):
    """The points as a Trainer wants them."""

    def __init__(self, points):
        self.points = points

    def __len__(self):
        return len(self.points)

    def __getitem__(self, index):
        number, x, y = self.points[index]
        return {"number": number, "x": x, "labels": y}


class Sized(Named):
    """The same with tokens, of which some samples have more than others. No batch has them."""

    def __iter__(self):  # a Trainer that groups samples asks each of them for its length
        return map(self.__getitem__, range(len(self)))

    def __getitem__(self, index):
        return super().__getitem__(index) | {"input_ids": [index] * (1 + index * 5 % 7)}


class Streamed(torch.utils.data.IterableDataset):
    """The points one after another, in an order that the epoch decides. Each worker has its share of them."""

    def __init__(self, points):
        self.samples = Named(points)
        self.epoch = 0

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __iter__(self):
        order = torch.randperm(len(self.samples), generator=torch.Generator().manual_seed(self.epoch)).tolist()
        worker = torch.utils.data.get_worker_info()
        yield from map(self.samples.__getitem__, order if worker is None else order[worker.id :: worker.num_workers])


def hugging_face(points):
    """Return the points as a stream of Hugging Face with a shuffle buffer."""
    from datasets import Dataset

    rows = [{"number": number, "x": x.tolist(), "labels": int(y)} for number, x, y in points]
    return Dataset.from_list(rows).to_iterable_dataset(num_shards=4).shuffle(seed=5, buffer_size=7)


def shards(points):
    """Return the points as a stream of Hugging Face whose state holds the position."""
    from datasets import Dataset

    rows = [{"number": number, "x": x.tolist(), "labels": int(y)} for number, x, y in points]
    return Dataset.from_list(rows).to_iterable_dataset(num_shards=4)


class StatefulTrainer(Trainer):
    """Takes a loader of torchdata."""

    def get_train_dataloader(self):
        self.accelerator.dataloader_config.use_stateful_dataloader = True
        return super().get_train_dataloader()


LOADERS = {"elastic": Sized, "stream": Streamed, "hugging face": hugging_face, "stateful": shards}
"""The training data set, by the setting *loader*."""


def without_tokens(samples):
    return default_data_collator(
        [{name: value for name, value in each.items() if name != "input_ids"} for each in samples]
    )


class Net(nn.Module):
    """Says which samples each batch had, and its loss."""

    def __init__(self, training):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.2), nn.Tanh(), nn.Linear(8, 3))
        self.record = training.record

    def forward(self, x, labels, number=None):
        logits = self.layers(x)
        loss = nn.functional.cross_entropy(logits, labels)
        self.record("batch" if self.training else "val", number, loss)
        return {"loss": loss, "logits": logits}


def with_lora(model):
    """Freeze *model* and put adapters beside its layers."""
    from peft import LoraConfig, get_peft_model

    return get_peft_model(model, LoraConfig(r=2, lora_dropout=0.1, target_modules=["layers.0", "layers.3"]))


def fsdp2():
    """Return the arguments for FSDP2. On a CPU it takes persuasion, which is not for anything but tests."""
    state = PartialState(cpu=True)
    state.distributed_type = DistributedType.MULTI_GPU
    state.device = torch.device("cpu")
    arguments = {"accelerator_config": {"use_configured_state": True}}
    if "ACCELERATE_USE_FSDP" in os.environ:  # the configuration of a launcher
        return arguments
    return arguments | {"fsdp": True, "fsdp_config": {"version": 2, "transformer_layer_cls_to_wrap": ["Linear"]}}


class Training:
    def __init__(self, settings):
        self.settings = settings
        torch.set_num_threads(1)
        set_seed(1)
        self.points = Counter()
        usual = {
            "output_dir": str(settings.path / settings.output.format(rank=os.environ.get("RANK", 0))),
            "per_device_train_batch_size": settings.batch,
            "per_device_eval_batch_size": 5,
            "gradient_accumulation_steps": settings.accumulate,
            "num_train_epochs": settings.epochs,
            "eval_strategy": "steps",
            "eval_steps": 4,
            "logging_steps": 3,
            "save_strategy": "no",
            "train_sampling_strategy": settings.sampling,
            "learning_rate": 1e-2,
            "lr_scheduler_type": "cosine",
            "dataloader_num_workers": settings.workers,
            "dataloader_persistent_workers": settings.persistent,
            "remove_unused_columns": False,
            "label_names": ["labels"],
            "report_to": [],
            "disable_tqdm": True,
            "use_cpu": True,
        }
        wrapped = fsdp2() if settings.wrapper == "fsdp2" and settings.ranks > 1 else {}
        arguments = TrainingArguments(**(usual | wrapped | settings.trainer))
        self.drill = Drill(settings, arguments.process_index, lambda: self.spot._attached.fit.hook._session)
        self.spot = SpotTrainerCallback(
            settings.run, every_steps=settings.every_steps, grace_seconds=60, on_event=[self.drill.on_event]
        )
        self.trainer = (StatefulTrainer if settings.loader == "stateful" else Trainer)(
            model=with_lora(Net(self)) if settings.lora else Net(self),
            args=arguments,
            train_dataset=LOADERS[settings.loader](Points(settings.samples, is_noisy=True)),
            eval_dataset=Sized(Points(17, seed=20)),
            data_collator=without_tokens,
            callbacks=[self.spot],
        )

    def record(self, kind, number, loss):
        """Write down what a batch saw, and send this process the signal if this is the point of settings.at."""
        self.points[kind] += 1
        point = (kind, self.points[kind])
        step = self.trainer.state.global_step
        within = self.points[kind, step]
        self.points[kind, step] += 1
        self.drill.write("trace", [kind, step, within, number.tolist(), hexed(loss)])
        self.drill.reach(*point)
        if self.drill.is_at_own_signal(*point):
            self.trainer.accelerator.wait_for_everyone()
            os.kill(os.getpid(), getattr(signal, self.settings.signal))
            self.drill.await_notice()

    def run(self):
        self.trainer.train()
        trainer = self.trainer
        ends_as_best = (
            trainer.args.load_best_model_at_end and trainer.state.best_metric == trainer.evaluate()["eval_loss"]
        )
        history = [
            {name: value for name, value in each.items() if "_per_second" not in name and "runtime" not in name}
            for each in trainer.state.log_history
        ]
        model, optimizer = get_state_dict(
            trainer.model, trainer.optimizer.optimizer, options=StateDictOptions(full_state_dict=True)
        )
        if self.settings.wrapper == "fsdp2" and self.settings.ranks > 1:
            assert trainer.accelerator.is_fsdp2
        final = {
            "model": model,
            "optimizer": optimizer,
            "scheduler": trainer.lr_scheduler.state_dict(),
            "rng": encode(RngPart().state_dict()),
            "log": history,
            "step": trainer.state.global_step,
            "best": [trainer.state.best_global_step, trainer.state.best_metric, ends_as_best],
        }
        torch.save(final, self.settings.path / f"final-{self.drill.rank}.pt")


def main(settings):
    warnings.simplefilter("ignore")
    warnings.filterwarnings("default", "load_best_model_at_end")
    Training(settings).run()


if __name__ == "__main__":
    main(Settings.decode(sys.argv[1]))
