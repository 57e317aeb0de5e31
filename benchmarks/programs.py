"""The trainings of :mod:`.restart`, one per way. Each resumes as its documentation shows it."""

from __future__ import annotations

import itertools
import threading
import time
import warnings
from pathlib import Path

from .life import SAVED_STEP, Program

NEVER = 10**9
COMMIT_S = 600.0


class Spot(Program):
    """``SpotLoop`` of this project. The phases are split at its own calls."""

    restores = True

    def import_library(self):
        import spot_plugins.bare
        import spot_plugins.session  # noqa: F401

    def train(self):
        from spot_plugins.bare import SpotLoop

        self._split()
        committed = threading.Event()
        spot = SpotLoop(
            self.settings["url"],
            every_steps=SAVED_STEP,
            local_dir=self.settings.get("local_dir"),
            storage_options=self.settings.get("options"),
            on_event=lambda event: committed.set() if type(event).__name__ == "Committed" else None,
        )
        with spot:
            self.marks.end("join")
            spot.register_model(self.training.model, self.training.optimizer)
            loader = spot.register_loader(self.loader())
            if spot.resume().resumed != self.resumes:
                raise RuntimeError(f"resumed={not self.resumes}, which is not expected")
            self.marks.end("begin")
            if self.resumes:
                self.marks.check(self.training)

            def step(batch):
                self.training.step(batch=batch)
                if not self.resumes:
                    spot.after_step()

            def save():
                if not committed.wait(COMMIT_S):
                    raise TimeoutError(f"the save was not committed within {COMMIT_S} s")

            self.save = save
            for _ in spot.epochs(1):
                self.loop(spot.batches(loader), step)

    def _split(self):
        from spot_plugins.data import position
        from spot_plugins.resume import newest, restore

        split = self.marks.split
        split(restore, "stop_prefetch", before="join", within="read")
        split(restore, "load_newest", before="list", within="apply")
        split(newest, "_list_steps", before="list", within="list")
        split(newest, "_read_on_all", before="list", within="read")
        split(restore, "apply_state", before="apply", within="apply")
        split(position.LoaderPosition, "fast_forward", before="batch", within="position")
        if self.resumes:
            self._time_hashes()

    def _time_hashes(self):
        """Time every hash of what is read, on the threads that read."""
        import types

        from spot_plugins.resume import ranges

        lock = threading.Lock()

        def timed(function):
            def call(*arguments):
                started = time.thread_time()
                result = function(*arguments)
                with lock:
                    self.marks.add_hashing(time.thread_time() - started)
                return result

            return call

        ranges.xxhash = types.SimpleNamespace(xxh3_128_hexdigest=timed(ranges.xxhash.xxh3_128_hexdigest))
        ranges.hash_of_blob = timed(ranges.hash_of_blob)


class SpotPrefetch(Spot):
    """The same, with the download begun in the first line."""

    def begin(self):
        import spot_plugins

        spot_plugins.prefetch(
            self.settings["url"], local_dir=self.settings["local_dir"], storage_options=self.settings["options"]
        )


class Peer(Program):
    """A way that saves one directory or file, at :attr:`path`."""

    restores = True
    reads_s3 = False
    """True if the way reads a URL itself. Else its users download the directory first."""

    @property
    def path(self):
        url = self.settings.get("url")
        return url if url and self.reads_s3 else self.settings["folder"] + "/saved"

    def upload(self):
        """Copy what was saved to S3, if this way cannot."""
        if (fs := self._fs()) is not None:
            fs.put(self.path, self.settings["url"], recursive=True)

    def download(self):
        """Copy what was saved from S3 to an empty directory, and return that. Without S3 return :attr:`path`."""
        if (fs := self._fs()) is None:
            return self.path
        target = self.settings["local_dir"]
        fs.get(self.settings["url"], target, recursive=True)
        return target

    def _fs(self):
        if "url" not in self.settings or self.reads_s3:
            return None
        import s3fs

        return s3fs.S3FileSystem(**self.settings["options"])


class Dcp(Peer):
    """``dcp.save`` and ``dcp.load``. The loop passes over the batches that were trained on."""

    reads_s3 = True

    def import_library(self):
        import torch.distributed.checkpoint
        import torch.distributed.checkpoint.state_dict  # noqa: F401

    def train(self):
        import torch.distributed.checkpoint as dcp
        from torch.distributed.checkpoint.state_dict import set_state_dict

        warnings.simplefilter("ignore")
        batches = self.loader()
        if self.resumes:
            state = self._state()
            self.marks.end("apply")  # it allocates the state of the optimizer
            dcp.load(state, checkpoint_id=self.path)
            self.marks.end("read")
            parts = {"model_state_dict": state["model"], "optim_state_dict": state["optimizer"]}
            set_state_dict(self.training.model, self.training.optimizer, **parts)
            self.marks.end("apply")
            self.marks.check(self.training)
            batches = itertools.islice(iter(batches), state["steps"], None)
            self.marks.end("position")
        self.loop(batches)

    def save(self):
        import torch.distributed.checkpoint as dcp

        dcp.save(self._state(), checkpoint_id=self.path)

    def _state(self):
        from torch.distributed.checkpoint.state_dict import get_state_dict

        model, optimizer = get_state_dict(self.training.model, self.training.optimizer)
        return {"model": model, "optimizer": optimizer, "steps": self.num_steps or SAVED_STEP}


class Lightning(Peer):
    """``fit`` with ``ckpt_path``. Lightning does not reposition a plain loader."""

    reads_s3 = True

    def import_library(self):
        import lightning.pytorch

        from .ways.hosts import quieten

        assert lightning.pytorch
        quieten()

    def train(self):
        import lightning.pytorch as pl

        program = self

        class Module(pl.LightningModule):
            def __init__(self):
                super().__init__()
                self.model = program.training.model

            def configure_optimizers(self):
                return program.training.optimizer

            def setup(self, stage):
                program.marks.end("join")

            def on_load_checkpoint(self, checkpoint):
                program.marks.end("read")

            def on_train_start(self):
                program.marks.end("apply")
                program.marks.check(program.training)

            def on_train_batch_start(self, batch, batch_idx):
                program.marks.end("batch")

            def training_step(self, batch, batch_idx):
                return self.model(batch).square().mean()

            def on_train_batch_end(self, *arguments):
                program.after_step()

        warnings.simplefilter("ignore")
        self.trainer = pl.Trainer(
            accelerator="cpu",
            devices=1,
            max_steps=NEVER,
            max_epochs=-1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=self.settings["folder"],
        )
        fit = {"ckpt_path": self.path, "weights_only": True} if self.resumes else {}
        self.trainer.fit(Module(), self.loader(), **fit)

    def save(self):
        self.trainer.save_checkpoint(self.path)


class Accelerate(Peer):
    """``load_state`` and ``skip_first_batches``."""

    def import_library(self):
        import accelerate  # noqa: F401

    def train(self):
        from accelerate import Accelerator

        self.accelerator = accelerator = Accelerator(cpu=True)
        training = self.training
        training.module, optimizer, batches = accelerator.prepare(training.model, training.optimizer, self.loader())
        self.marks.end("join")
        if self.resumes:
            accelerator.load_state(self.download())
            self.marks.end("read")
            self.marks.check(training)
            batches = accelerator.skip_first_batches(batches, SAVED_STEP)
            self.marks.end("position")

        def step(batch):
            optimizer.zero_grad()
            accelerator.backward(training.module(batch).square().mean())
            optimizer.step()

        self.loop(batches, step)

    def save(self):
        self.accelerator.save_state(self.path)
        self.upload()


class Transformers(Peer):
    """``Trainer.train(resume_from_checkpoint=...)``. Its read includes what it does with what it has read."""

    def import_library(self):
        import transformers.trainer

        assert transformers.trainer
        transformers.logging.set_verbosity_error()

    def train(self):
        import torch
        from transformers import Trainer, TrainerCallback, TrainingArguments
        from transformers.trainer_utils import get_last_checkpoint

        program = self

        class Net(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.model = program.training.model

            def forward(self, x):
                return {"loss": self.model(x).square().mean()}

        class Phases(TrainerCallback):
            def on_train_begin(self, *arguments, **keywords):
                program.marks.end("read" if program.resumes else "join")
                program.marks.check(program.training)

            def on_step_begin(self, *arguments, **keywords):
                program.marks.end("batch")

            def on_step_end(self, *arguments, **keywords):
                if program.resumes:
                    program.after_step()

            def on_save(self, *arguments, **keywords):
                program.upload()
                program.num_steps = SAVED_STEP - 1
                program.after_step()

        warnings.simplefilter("ignore")
        arguments = TrainingArguments(
            self.path,
            max_steps=NEVER,
            per_device_train_batch_size=len(self.training.batch),
            save_strategy="steps",
            save_steps=SAVED_STEP,
            max_grad_norm=0.0,
            logging_strategy="no",
            report_to=[],
            disable_tqdm=True,
            use_cpu=True,
            dataloader_pin_memory=False,
            remove_unused_columns=False,
        )
        rows = self.loader(named=True).dataset
        optimizers = (self.training.optimizer, None)
        trainer = Trainer(Net(), arguments, train_dataset=rows, callbacks=[Phases()], optimizers=optimizers)
        self.marks.end("join")
        last = None
        if self.resumes:
            folder = self.download()
            self.marks.end("read")
            last = get_last_checkpoint(folder)
            self.marks.end("list")
        trainer.train(resume_from_checkpoint=last)


PROGRAMS = {
    "spot_plugins": Spot,
    "no checkpoint": Program,
    "DCP": Dcp,
    "Lightning ckpt_path": Lightning,
    "Accelerate load_state": Accelerate,
    "transformers resume_from_checkpoint": Transformers,
    "spot_plugins, S3": Spot,
    "spot_plugins, S3, prefetch": SpotPrefetch,
    "DCP, S3": Dcp,
    "Lightning ckpt_path, S3": Lightning,
    "Accelerate load_state, S3": Accelerate,
    "transformers resume_from_checkpoint, S3": Transformers,
}
"""The trainings by name of the way. Those with S3 in their name have nothing on the local disk."""


def find(name):
    """Return the class of the way called *name*."""
    return PROGRAMS[name]


def settings_of(name, number, folder, bucket, options):
    """Return the settings of life *number* of the way called *name*. The first one, number 0, saves."""
    settings = {"way": name, "folder": str(folder), "resumes": number > 0}
    if ", S3" in name:
        url = f"s3://{bucket}/{Path(folder).name}"
        return settings | {"url": url, "options": options, "local_dir": f"{folder}/local-{number}"}
    return settings | ({"url": f"file://{folder}/run"} if name == "spot_plugins" else {})
