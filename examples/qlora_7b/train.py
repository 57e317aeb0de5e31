"""
Fine-tune a 7B language model with QLoRA on one rented card, which may be taken away.

    python examples/qlora_7b/train.py                 # a tiny model in 4 bits, under a minute on a CPU
    kill -TERM <pid>                                  # what a cloud does; or -KILL, which is worse
    python examples/qlora_7b/train.py                 # the same command again continues
    python examples/qlora_7b/train.py --full --url s3://bucket/run-7 --data my-texts.jsonl     # on a GPU with 24 GB

A line of --data is a JSON object with the key "text". Without --data the text is Python's own documentation.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from pydoc_data.topics import topics

import torch
import transformers
from datasets import Dataset, load_dataset
from peft import LoraConfig
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    MistralConfig,
    PreTrainedTokenizerFast,
    TrainerCallback,
    set_seed,
)
from trl import SFTConfig, SFTTrainer

from spot_plugins.transformers import SpotTrainerCallback

parser = argparse.ArgumentParser(description="Fine-tune with QLoRA on one card; resumes by itself.")
parser.add_argument("--full", action="store_true", help="the 7B on a GPU; without it a tiny model on the CPU")
parser.add_argument("--model", default="mistralai/Mistral-7B-v0.3", help="with --full: Qwen/Qwen2.5-7B works as well")
parser.add_argument("--data", help="file of JSON lines, each with a text")
parser.add_argument("--url", default=f"file://{Path.cwd()}/spot-run/qlora", help="where the run lives")
parser.add_argument("--every-seconds", type=float, default=120, help="between two saves; README.md says why")
parser.add_argument("--every-steps", type=int, help="save after so many steps as well")
parser.add_argument("--steps", type=int, help="end after so many steps; default: one epoch")
parser.add_argument("--csv", type=Path, help="append step, loss and learning rate to this CSV file")
parser.add_argument("--out", default="qlora-output", help="folder for the finished adapters")
args = parser.parse_args()

set_seed(7)
logging.basicConfig(format="%(message)s")
logging.getLogger("spot_plugins").setLevel(logging.INFO)
transformers.utils.logging.disable_progress_bar()

# --------------------------------------------------------------------------------------------------- model
if args.full:
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
else:  # a language of bytes, and a model of the same kind with random weights
    alphabet = ["<pad>", "<eos>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    letters = Tokenizer(models.BPE(vocab={letter: number for number, letter in enumerate(alphabet)}, merges=[]))
    letters.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    letters.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=letters, pad_token="<pad>", eos_token="<eos>")
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    tiny = MistralConfig(vocab_size=len(alphabet), pad_token_id=0, eos_token_id=1, num_key_value_heads=2, **sizes)
    args.model = f"{args.out}/tiny-model"
    AutoModelForCausalLM.from_config(tiny).save_pretrained(args.model)  # weights become 4-bit when they are loaded

compute = torch.bfloat16 if args.full else torch.float32
model = AutoModelForCausalLM.from_pretrained(
    args.model,
    quantization_config=BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=compute
    ),
    dtype=compute,
    device_map={"": 0 if args.full else "cpu"},
)
adapters = LoraConfig(task_type="CAUSAL_LM", r=16, lora_alpha=32, lora_dropout=0.05, target_modules="all-linear")

# ---------------------------------------------------------------------------------------------------- text
if args.data:
    texts = load_dataset("json", data_files=args.data, split="train").select_columns(["text"])
else:
    paragraphs = [" ".join(part.split()) for _, text in sorted(topics.items()) for part in text.split("\n\n")]
    texts = Dataset.from_dict({"text": [part for part in paragraphs if len(part) >= 80][: None if args.full else 512]})


# ------------------------------------------------------------------------------------------------ training
class Written(TrainerCallback):
    """Writes the loss of each step to a file. A step is logged once, also if it was interrupted."""

    def on_log(self, arguments, state, control, logs=None, **kwargs):
        if "loss" in logs and args.csv:
            with args.csv.open("a") as file:
                file.write(f"{state.global_step},{logs['loss']!r},{logs['learning_rate']!r}\n")


spot = SpotTrainerCallback(args.url, every_seconds=args.every_seconds, every_steps=args.every_steps)
arguments = SFTConfig(
    output_dir=args.out,
    num_train_epochs=1,
    max_steps=args.steps or -1,
    max_length=1024 if args.full else 64,
    per_device_train_batch_size=4,
    gradient_accumulation_steps=4 if args.full else 1,
    gradient_checkpointing=args.full,
    learning_rate=2e-4 if args.full else 2e-3,
    lr_scheduler_type="cosine",
    warmup_steps=0.03,
    bf16=args.full,
    use_cpu=not args.full,
    logging_steps=1,
    save_strategy="no",  # the callback saves
    report_to=[],
    disable_tqdm=True,
    seed=7,
)
trainer = SFTTrainer(
    model, arguments, train_dataset=texts, processing_class=tokenizer, peft_config=adapters, callbacks=[spot, Written()]
)
trainer.train()
trainer.save_model(args.out)  # the adapters alone
print(f"the adapters are in {args.out}")
