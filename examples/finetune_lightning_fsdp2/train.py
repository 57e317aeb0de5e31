"""
Fine-tune all weights of a language model with Lightning and FSDP2, on machines that may be taken away.

    python examples/finetune_lightning_fsdp2/train.py           # a tiny model on two CPU processes, under a minute
    kill -TERM <pid of a rank>                                  # what a cloud does; all ranks save one step
    python examples/finetune_lightning_fsdp2/train.py           # the same command again continues
    python examples/finetune_lightning_fsdp2/train.py --full --url s3://bucket/run-7 --data my-texts.jsonl

A line of --data is a JSON object with the key "text". Without --data the text is Python's own documentation.
"""

from __future__ import annotations

import argparse
import json
import logging
from pathlib import Path
from pydoc_data.topics import topics

import torch
import transformers
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.strategies import ModelParallelStrategy
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, get_cosine_schedule_with_warmup

from spot_plugins.data import elastic_loader
from spot_plugins.lightning import SpotCheckpoint

parser = argparse.ArgumentParser(description="Fine-tune all weights with Lightning and FSDP2; resumes by itself.")
parser.add_argument("--full", action="store_true", help="an 8B on GPUs; without it a tiny model on CPUs")
parser.add_argument("--model", default="meta-llama/Llama-3.1-8B", help="with --full: any model of the Llama kind")
parser.add_argument("--data", type=Path, help="file of JSON lines, each with a text")
parser.add_argument("--url", default=f"file://{Path.cwd()}/spot-run/finetune", help="where the run lives")
parser.add_argument("--devices", type=int, help="GPUs of this machine, or processes; default: 2, with --full 8")
parser.add_argument("--every-seconds", type=float, default=900, help="between two saves; README.md says why")
parser.add_argument("--every-steps", type=int, help="save after so many steps as well")
parser.add_argument("--steps", type=int, help="end after so many steps; default: 40, with --full one epoch")
parser.add_argument("--csv", type=Path, help="append step and loss of rank 0 to this CSV file")
args = parser.parse_args()

seed_everything(7, verbose=False)
logging.basicConfig(format="%(message)s")
logging.getLogger("spot_plugins").setLevel(logging.INFO)
transformers.utils.logging.disable_progress_bar()
num_devices = args.devices or (8 if args.full else 2)

# ---------------------------------------------------------------------------------------------------- text
block = 2048 if args.full else 64
if args.data:
    texts = [json.loads(line)["text"] for line in args.data.read_text().splitlines()]
else:
    texts = [text for _, text in sorted(topics.items())]
if args.full:
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    tokens = [token for text in texts for token in (*tokenizer(text)["input_ids"], tokenizer.eos_token_id)]
else:  # a token is a byte
    tokens = [token for text in texts for token in (*text.encode(), 256)]
samples = torch.tensor(tokens)[: len(tokens) // block * block].view(-1, block)


# --------------------------------------------------------------------------------------------------- model
class Language(LightningModule):
    def __init__(self):
        super().__init__()
        self.model = None

    def configure_model(self):
        """Make the model, and shard it layer by layer. Lightning calls this again, so it does nothing twice."""
        if self.model is not None:
            return
        if args.full:  # fp32, because the optimizer steps on these weights
            model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32)
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            precision = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
        else:
            sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
            model = AutoModelForCausalLM.from_config(LlamaConfig(vocab_size=257, **sizes))
            precision = MixedPrecisionPolicy()
        for module in (*model.model.layers, model):
            fully_shard(module, mesh=self.device_mesh["data_parallel"], mp_policy=precision)
        self.model = model.train()  # a pretrained model comes in eval mode, and Lightning leaves it so

    def training_step(self, tokens, batch_idx):
        return self.model(input_ids=tokens, labels=tokens).loss

    def on_train_batch_end(self, outputs, batch, batch_idx):
        if self.trainer.is_global_zero:
            if self.global_step % 10 == 0:
                print(f"step {self.global_step}, loss {outputs['loss'].item():.3f}", flush=True)
            if args.csv:
                with args.csv.open("a") as file:
                    file.write(f"{self.global_step},{outputs['loss'].item()!r}\n")

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=1e-5 if args.full else 3e-3, weight_decay=0.01)
        steps = int(self.trainer.estimated_stepping_batches)
        scheduler = get_cosine_schedule_with_warmup(optimizer, steps // 20, steps)
        return [optimizer], [{"scheduler": scheduler, "interval": "step"}]


# ------------------------------------------------------------------------------------------------ training
spot = SpotCheckpoint(args.url, every_seconds=args.every_seconds, every_steps=args.every_steps)
strategy = ModelParallelStrategy(
    data_parallel_size=num_devices, tensor_parallel_size=1, process_group_backend="nccl" if args.full else "gloo"
)
trainer = Trainer(
    accelerator="cuda" if args.full else "cpu",
    devices=num_devices,
    strategy=strategy,
    max_epochs=1 if args.full else None,
    max_steps=args.steps or (-1 if args.full else 40),
    gradient_clip_val=1.0,
    callbacks=[spot],
    enable_checkpointing=False,  # Lightning's own
    enable_progress_bar=False,
    enable_model_summary=False,
    logger=False,
)
trainer.fit(Language(), elastic_loader(samples, batch_size=2 if args.full else 4, seed=7, drop_last=True))
