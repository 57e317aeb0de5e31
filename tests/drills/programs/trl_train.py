"""
A real training with a trainer of TRL that can be interrupted at an exact point. Run by test_trl_processes.py.

``settings.host`` says which trainer, and ``settings.trainer`` has arguments of its configuration. It writes what
:mod:`drill` says, and the final state to FOLDER/final-RANK.pt. The points are ``["batch", n]`` and ``["val", n]``, with
n from 1 in each process.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
import warnings
from collections import Counter
from pathlib import Path

import torch
from contract.hosts.sft_host import tokenizer
from datasets import Dataset, disable_progress_bars, load_from_disk
from drill import Drill
from drill_settings import Settings
from hearing import until
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict
from trainer_train import fsdp2
from training_pieces import hexed
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification, set_seed

from spot_plugins.state import RngPart, encode
from spot_plugins.transformers import SpotTrainerCallback

NUM_TOKENS = 64
PREFIXES = {"dpo": "DPO", "reward": "Reward", "kto": "KTO", "grpo": "GRPO", "rloo": "RLOO", "distill": "Distillation"}
OF_A_LIFE = ("_per_second", "runtime", "step_time")
"""Parts of the names of what a log has and no two trainings have in common."""


def words(number, seed, shortest=2, longest=6):
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(shortest, longest, (number,), generator=generator).tolist()
    return [
        " ".join(f"w{word}" for word in torch.randint(0, 61, (length,), generator=generator).tolist())
        for length in lengths
    ]


def rows(host, number, seed):
    """Return *number* samples as the trainer of *host* wants them."""
    prompts = words(number, seed)
    if host == "kto":
        labels = [index % 3 != 0 for index in range(number)]
        return {"prompt": prompts, "completion": [f" {each}" for each in words(number, seed + 1)], "label": labels}
    if host in ("dpo", "reward"):
        return {
            "prompt": prompts,
            "chosen": [f" {each}" for each in words(number, seed + 1)],
            "rejected": [f" {each}" for each in words(number, seed + 2)],
        }
    return {"prompt": prompts}


def stored(folder, make):
    """Let *make* write to *folder*, unless it is there. The first rank does it, and the others wait for it."""
    if os.environ.get("RANK", "0") != "0":
        until(folder.exists, "the first rank has written it")
    elif not folder.exists():
        own = folder.with_name(f"{folder.name}-unfinished")
        make(own)
        own.rename(folder)
    return str(folder)


def new_words(completion_ids, **_):
    """Return a reward: the share of words that come once."""
    return [len(set(each)) / max(len(each), 1) - 0.01 * sum(each) / NUM_TOKENS for each in completion_ids]


class Training:
    def __init__(self, settings):
        self.settings = settings
        torch.set_num_threads(1)
        set_seed(1)
        disable_progress_bars()
        self.points = Counter()
        prefix = PREFIXES[settings.host]
        module = importlib.import_module("trl")
        usual = {
            "output_dir": str(settings.path / settings.output.format(rank=os.environ.get("RANK", 0))),
            "per_device_train_batch_size": settings.batch,
            "per_device_eval_batch_size": 2,
            "gradient_accumulation_steps": settings.accumulate,
            "num_train_epochs": settings.epochs,
            "eval_strategy": "steps",
            "eval_steps": 4,
            "logging_steps": 3,
            "save_strategy": "no",
            "learning_rate": 1e-2,
            "lr_scheduler_type": "cosine",
            "dataloader_num_workers": settings.workers,
            "dataloader_persistent_workers": settings.persistent,
            "gradient_checkpointing": False,
            "bf16": False,
            "report_to": [],
            "disable_tqdm": True,
            "use_cpu": True,
        }
        wrapped = fsdp2() if settings.wrapper == "fsdp2" and settings.ranks > 1 else {}
        if wrapped:
            wrapped["fsdp_config"]["transformer_layer_cls_to_wrap"] = ["LlamaDecoderLayer"]
        arguments = getattr(module, f"{prefix}Config")(**(usual | wrapped | settings.trainer))
        self.drill = Drill(settings, arguments.process_index, lambda: self.spot._attached.fit.hook._session)
        self.spot = SpotTrainerCallback(
            settings.run, every_steps=settings.every_steps, grace_seconds=60, on_event=[self.drill.on_event]
        )
        self.trainer = recorded(getattr(module, f"{prefix}Trainer"))(
            model=self.model(),
            args=arguments,
            train_dataset=self.data("train", settings.samples, 10),
            eval_dataset=self.data("eval", 6, 20),
            processing_class=tokenizer(NUM_TOKENS),
            callbacks=[self.spot],
            **self.more(),
        )
        self.trainer.record = self.record

    def model(self, name="model"):
        """Return the model, loaded from a folder, because a trainer may load its reference model from there too."""
        kind = LlamaForSequenceClassification if self.settings.host == "reward" else LlamaForCausalLM
        config = LlamaConfig(
            vocab_size=NUM_TOKENS,
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            attention_dropout=0.3,
            num_labels=1,
            pad_token_id=0,
            eos_token_id=1,
            bos_token_id=None,
        )
        return kind.from_pretrained(
            stored(self.settings.path / name, lambda folder: kind(config).save_pretrained(folder))
        )

    def data(self, name, number, seed):
        """Return data of a file, so that all ranks find what one of them adds to it."""
        made = Dataset.from_dict(rows(self.settings.host, number, seed))
        found = load_from_disk(stored(self.settings.path / f"data-{name}", made.save_to_disk))
        is_stream = self.settings.loader == "stream" and name == "train"
        return found.to_iterable_dataset(num_shards=2) if is_stream else found

    def more(self):
        settings, host = self.settings, self.settings.host
        more = {}
        if settings.lora:
            from peft import LoraConfig

            task = "SEQ_CLS" if host == "reward" else "CAUSAL_LM"
            more["peft_config"] = LoraConfig(r=2, lora_dropout=0.1, target_modules=["q_proj", "v_proj"], task_type=task)
        if settings.reference:
            more["ref_model"] = self.model("reference")
        if host in ("grpo", "rloo"):
            more["reward_funcs"] = new_words
        if host == "distill":
            more["teacher_model"] = self.model("teacher")
        return more

    def record(self, kind, inputs, loss):
        """Write down what a batch saw, and send this process the signal if this is the point of settings.at."""
        self.points[kind] += 1
        point = (kind, self.points[kind])
        step = self.trainer.state.global_step
        within = self.points[kind, step]
        self.points[kind, step] += 1
        saw = {name: each.tolist() for name, each in inputs.items() if isinstance(each, torch.Tensor)}
        self.drill.write("trace", [kind, step, within, saw, hexed(loss.detach())])
        self.drill.reach(*point)
        if self.drill.is_at_own_signal(*point):
            self.trainer.accelerator.wait_for_everyone()
            os.kill(os.getpid(), getattr(signal, self.settings.signal))
            self.drill.await_notice()

    def run(self):
        self.trainer.train()
        trainer = self.trainer
        history = [
            {name: value for name, value in each.items() if not any(part in name for part in OF_A_LIFE)}
            for each in trainer.state.log_history
        ]
        options = StateDictOptions(full_state_dict=True)
        model, optimizer = get_state_dict(trainer.model, trainer.optimizer.optimizer, options=options)
        if self.settings.wrapper == "fsdp2" and self.settings.ranks > 1:
            assert trainer.accelerator.is_fsdp2
        reference = getattr(trainer, "ref_model", None)
        final = {
            "model": model,
            "optimizer": optimizer,
            "scheduler": trainer.lr_scheduler.state_dict(),
            "rng": encode(RngPart().state_dict()),
            "log": history,
            "step": trainer.state.global_step,
            "tokens": [trainer._total_train_tokens, trainer.state.num_input_tokens_seen],
            "reference": None if reference is None else get_state_dict(reference, [], options=options)[0],
            "texts": texts_of(Path(trainer.args.output_dir) / "completions"),
            "entropy": [getattr(trainer, name, None) for name in ("entropy_coef", "_last_world_entropy")],
        }
        torch.save(final, self.settings.path / f"final-{self.drill.rank}.pt")


def texts_of(folder):
    """Return the completions that were logged, by file."""
    if not folder.is_dir():
        return {}
    import pandas

    return {path.name: pandas.read_parquet(path).to_dict("list") for path in sorted(folder.iterdir())}


def recorded(trainer):
    """Return a class of *trainer* that says which batches it had, and their losses."""

    class Recorded(trainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            result = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
            self.record("batch" if self.model.training else "val", inputs, result[0] if return_outputs else result)
            return result

    return Recorded


def main(settings):
    warnings.simplefilter("ignore")
    Training(settings).run()


if __name__ == "__main__":
    main(Settings.decode(sys.argv[1]))
