"""The blocks of docs/commands/import.md and export.md, run on files that libraries and spot export have written."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from documented import block_of
from lightning.pytorch import LightningModule, Trainer
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from stored_models import LOOPS, WAYS, save_model
from torch import nn
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint.state_dict import get_state_dict
from torch.utils.data import DataLoader
from transformers import LlamaConfig, LlamaForCausalLM, TrainingArguments
from transformers import Trainer as HuggingFaceTrainer

from spot_plugins import export_weights
from spot_plugins.bare import SpotLoop
from spot_plugins.data import elastic_loader
from spot_plugins.export.accelerate_folder import export_accelerate
from spot_plugins.export.distributed import export_distributed
from spot_plugins.export.hugging_face import export_hugging_face
from spot_plugins.export.lightning_file import export_lightning
from spot_plugins.export.torch_file import export_torch_weights
from spot_plugins.state import RngPart

BATCHES = 4

from_each_source = pytest.mark.parametrize(
    "way",
    [None, *({"world_size": number, "is_spread": is_spread} for number, is_spread in WAYS)],
    ids=["of a library", *(f"of spot export from {n}{', spread' if spread else ''}" for n, spread in WAYS)],
)
"""The file is of a library, or of an export from some ranks, each of which had all of the state or its own rows."""

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")


def run(words, page="import.md", **values):
    exec(block_of(f"docs/commands/{page}", words).text, values)
    return values


def assert_equal(found, wanted):
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(found[name], value), name
        elif isinstance(value, dict):
            assert_equal(found[name], value)
        else:
            assert found[name] == value, name


class Training:
    """A small training in plain torch."""

    def __init__(self, seed, num_steps=0):
        torch.manual_seed(seed)
        self.model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 1))
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.1)
        self.scheduler = torch.optim.lr_scheduler.StepLR(self.optimizer, 2, 0.5)
        for _ in range(num_steps):
            self.step(torch.ones(2, 4))

    def step(self, batch):
        self.model(batch).square().sum().backward()
        self.optimizer.step()
        self.scheduler.step()
        self.optimizer.zero_grad()

    def state(self):
        return {name: getattr(self, name).state_dict() for name in ("model", "optimizer", "scheduler")}


@pytest.fixture(autouse=True)
def in_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@from_each_source
def test_weights_move_in(way):
    """From safetensors, a file of torch and a .ckpt of Lightning."""
    old = Training(1, num_steps=3).model
    if way:
        save_model("run", {"model": old}, **way, others={"loops": LOOPS})
        export_weights("run", "old.safetensors")
        export_torch_weights("run", "old.pt")
        export_lightning("run", "old.ckpt")
    else:
        save_file(old.state_dict(), "old.safetensors")
        torch.save(old.state_dict(), "old.pt")
        torch.save({"state_dict": old.state_dict()}, "old.ckpt")

    for words in ("import load_file", 'torch.load("old.pt", weights_only=True))', '["state_dict"]'):
        found = Training(2).model
        run(words, model=found)
        assert_equal(found.state_dict(), old.state_dict())


@from_each_source
def test_a_folder_and_an_adapter_move_in(way):
    """The adapter is trained on."""
    config = LlamaConfig(vocab_size=13, hidden_size=8, intermediate_size=12, num_hidden_layers=1, num_attention_heads=2)
    base = LlamaForCausalLM(config)
    base.save_pretrained("base-folder")
    if way:
        save_model("run", {"model": base}, **way)
        export_hugging_face("run", "old-folder", "base-folder")
    else:
        base.save_pretrained("old-folder")
    state = dict(base.state_dict())
    adapted = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    adapted.save_pretrained("config" if way else "old-adapter")
    if way:
        save_model("adapted", {"model": adapted}, **way)
        export_hugging_face("adapted", "old-adapter", "config")

    assert_equal(dict(run('from_pretrained("old-folder")')["model"].state_dict()), {**state})
    found = run('"old-adapter"')["model"]
    assert_equal(dict(found.state_dict()), dict(adapted.state_dict()))
    assert {name for name, each in found.named_parameters() if each.requires_grad} == {
        name for name in found.state_dict() if "lora_" in name
    }


@from_each_source
def test_a_directory_moves_in(way):
    """Weights and the state of the optimizer."""
    old = Training(1, num_steps=3)
    if way:
        save_model("run", {"model": old.model}, [old.optimizer], **way)
        export_distributed("run", "old-directory")
    else:
        weights, moments = get_state_dict(old.model, old.optimizer)
        dcp.save({"model": weights, "optim": moments}, checkpoint_id="old-directory")
    Path("directory").symlink_to("old-directory")

    for page in ("import.md", "export.md"):
        found = Training(2)
        run("dcp.load", page, model=found.model, optimizer=found.optimizer)
        found.scheduler = old.scheduler
        assert_equal(found.state()["model"], old.state()["model"])
        assert_equal(found.state()["optimizer"]["state"], old.state()["optimizer"]["state"])


def test_a_loop_of_your_own_moves_in():
    """
    A new run begins with the old file, and trains on. Started again, it continues from its own step, not from the file.
    """
    old = Training(1, num_steps=3)
    torch.save(old.state(), "old.pt")
    batches = torch.arange(4.0 * BATCHES).view(BATCHES, 4) / 9

    def life():
        found = Training(2)
        run('old["optimizer"]', model=found.model, optimizer=found.optimizer, scheduler=found.scheduler)
        with SpotLoop("run", every_steps=1000, notice_sources=()) as spot:
            spot.register_model(found.model, found.optimizer, found.scheduler)
            loader = spot.register_loader(elastic_loader(batches, batch_size=1, shuffle=False))
            spot.resume()
            first = torch.nn.utils.parameters_to_vector(found.model.parameters()).clone()
            for _ in spot.epochs(1):
                for batch in spot.batches(loader):
                    found.step(batch)
                    spot.after_step()
        return first, found

    first, trained = life()
    again, loaded = life()

    assert torch.equal(first, torch.nn.utils.parameters_to_vector(old.model.parameters()))
    for batch in batches:
        old.step(batch[None])
    assert_equal(trained.state(), old.state())
    assert torch.equal(again, torch.nn.utils.parameters_to_vector(old.model.parameters()))
    assert_equal(loaded.state(), old.state())


@from_each_source
def test_a_state_of_accelerate_moves_in(way):
    """Weights, optimizer and scheduler."""
    states = []
    for seed, words in ((1, None), (2, 'accelerator.load_state("old-state")')):
        for shared in (AcceleratorState, PartialState, GradientState):
            shared._reset_state()
        accelerator = Accelerator(cpu=True)
        found = Training(seed)
        accelerator.prepare(found.model, found.optimizer, found.scheduler)
        if words is None:
            for _ in range(3):
                found.step(torch.ones(2, 4))
            if way:
                others = {"scheduler-0": found.scheduler.state_dict(), "accelerator": {"step": 0}}
                others["rng"] = RngPart().state_dict()
                save_model("run", {"model-0": found.model}, [found.optimizer], **way, others=others)
                export_accelerate("run", "old-state")
            else:
                accelerator.save_state("old-state")
        else:
            run(words, accelerator=accelerator)
        states.append(found.state())
    assert_equal(*states[::-1])


class Lightning(LightningModule):
    def __init__(self, seed):
        super().__init__()
        self.training_ = Training(seed)
        self.layer = self.training_.model

    def training_step(self, batch):
        return self.layer(batch).square().sum()

    def configure_optimizers(self):
        return self.training_.optimizer

    def train_dataloader(self):
        return DataLoader(torch.arange(4.0 * BATCHES).view(BATCHES, 4) / 9)


def test_lightning_moves_in():
    """The old training had ended one epoch, and two are trained: the end is that of a training of two epochs."""
    states = []
    for epochs, words in ((2, None), (1, None), (2, "trainer.fit")):
        quiet = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing"), False)
        trainer = Trainer(accelerator="cpu", max_epochs=epochs, **quiet)
        model = Lightning(2 if words else 1)
        if words is None:
            trainer.fit(model)
            trainer.save_checkpoint("old.ckpt")
        else:
            run(words, trainer=trainer, model=model)
        states.append(dict(model.state_dict()))
    assert_equal(states[2], states[0])


class ForTrainer(nn.Module):
    def __init__(self, seed):
        super().__init__()
        self.layer = Training(seed).model

    def forward(self, x):
        return {"loss": self.layer(x).square().sum()}


def test_the_trainer_moves_in():
    """The old training had ended one epoch, and two are trained: the end is that of a training of two epochs."""
    states = []
    rows = [{"x": row} for row in torch.arange(4.0 * BATCHES).view(BATCHES, 4) / 9]
    for seed, words in ((1, None), (2, "resume_from_checkpoint")):
        arguments = TrainingArguments(
            "old-output",
            num_train_epochs=2,
            per_device_train_batch_size=2,
            save_strategy="epoch" if words is None else "no",
            report_to=[],
            disable_tqdm=True,
            use_cpu=True,
        )
        trainer = HuggingFaceTrainer(ForTrainer(seed), arguments, train_dataset=rows)
        if words is None:
            trainer.train()
            Path("old-output/checkpoint-2").rename("old-output/checkpoint-500")
        else:
            run(words, trainer=trainer)
        states.append(dict(trainer.model.state_dict()))
    assert_equal(*states[::-1])
