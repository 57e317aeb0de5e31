"""
Fine-tune a 70B with LoRA or QLoRA, sharded by FSDP2 over 8 GPUs of machines that may be taken away.

    export ACCELERATE_USE_CPU=true                    # a tiny model on two CPU processes, under a minute
    accelerate launch --config_file examples/lora_70b_fsdp2/two_cpus.yaml examples/lora_70b_fsdp2/train.py
    kill -TERM <pid of a rank>                        # what a cloud does; all ranks save one step. Then start it again
    accelerate launch --config_file examples/lora_70b_fsdp2/fsdp2.yaml examples/lora_70b_fsdp2/train.py \
        --full --url s3://bucket/run-7 --data my-texts.jsonl

A line of --data is a JSON object with the key "text". Without --data the text is Python's own documentation.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
from pathlib import Path
from pydoc_data.topics import topics

import torch
import transformers
from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedType, set_seed
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, LlamaConfig

from spot_plugins.accelerate import SpotHook
from spot_plugins.data import elastic_loader

parser = argparse.ArgumentParser(description="Fine-tune with LoRA under FSDP2; resumes by itself.")
parser.add_argument("--full", action="store_true", help="the 70B on GPUs; without it a tiny model on CPUs")
parser.add_argument("--nf4", action="store_true", help="QLoRA: the frozen weights in 4 bits, for cards of 24 to 48 GB")
parser.add_argument("--model", default="meta-llama/Llama-3.1-70B", help="with --full: any model of the Llama kind")
parser.add_argument("--data", type=Path, help="file of JSON lines, each with a text")
parser.add_argument("--url", default=f"file://{Path.cwd()}/spot-run/lora-70b", help="where the run lives")
parser.add_argument("--every-seconds", type=float, default=300, help="between two saves; README.md says why")
parser.add_argument("--every-steps", type=int, help="save after so many steps as well")
parser.add_argument("--steps", type=int, help="end after so many steps; default: 40, with --full one epoch")
parser.add_argument("--csv", type=Path, help="append step and loss of rank 0 to this CSV file")
parser.add_argument("--out", default="lora-70b-output", help="folder for the finished adapters")
args = parser.parse_args()

if os.environ.get("ACCELERATE_USE_FSDP") == "true" and not args.full:
    PartialState(cpu=True).distributed_type = DistributedType.MULTI_GPU  # on CPUs Accelerate takes DDP without a word
accelerator = Accelerator(gradient_accumulation_steps=4 if args.full else 1)
set_seed(7)
logging.basicConfig(format="%(message)s")
logging.getLogger("spot_plugins").setLevel(logging.INFO if accelerator.is_main_process else logging.WARNING)
transformers.utils.logging.disable_progress_bar()

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
precision = torch.bfloat16 if args.full else torch.float32
if args.nf4:  # FSDP shards 4-bit weights if they are stored in the type of the others
    four_bits = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=precision,
        bnb_4bit_quant_storage=precision,
    )
if not args.full:
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    args.model = f"{args.out}/tiny-model"
    if accelerator.is_main_process:
        AutoModelForCausalLM.from_config(LlamaConfig(vocab_size=257, **sizes)).save_pretrained(args.model)
    accelerator.wait_for_everyone()
model = AutoModelForCausalLM.from_pretrained(
    args.model, dtype=precision, quantization_config=four_bits if args.nf4 else None
)
if args.full:
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.enable_input_require_grads()
set_seed(7)  # the adapters are the same on every rank, whoever has made a model before
adapters = LoraConfig(task_type="CAUSAL_LM", r=16, lora_alpha=32, lora_dropout=0.05, target_modules="all-linear")
model = get_peft_model(model, adapters, autocast_adapter_dtype=False)  # FSDP wants one type
loader = elastic_loader(samples, batch_size=1 if args.full else 4, seed=7, drop_last=True)
optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4 if args.full else 2e-3)
num_steps = args.steps or (len(loader) // (4 * accelerator.num_processes) if args.full else 40)
scheduler = transformers.get_cosine_schedule_with_warmup(
    optimizer, num_steps * accelerator.num_processes // 20, num_steps * accelerator.num_processes
)  # Accelerate's scheduler steps once per process

# ------------------------------------------------------------------------------------------------ training
with SpotHook(accelerator, args.url, every_seconds=args.every_seconds, every_steps=args.every_steps) as spot:
    model, optimizer, loader, scheduler = accelerator.prepare(model, optimizer, loader, scheduler)
    spot.resume()
    model.train()
    for _ in spot.epochs(1000, max_steps=num_steps):
        for tokens in spot.batches(loader):
            with accelerator.accumulate(model):
                loss = model(input_ids=tokens, labels=tokens).loss
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()
            step = spot.progress.step + 1
            if accelerator.is_main_process and accelerator.sync_gradients:
                if step % 10 == 0:
                    print(f"step {step}, loss {loss.item():.3f}", flush=True)
                if args.csv:
                    with args.csv.open("a") as file:
                        file.write(f"{step},{loss.item()!r}\n")
            spot.after_step()  # leaves with exit code 143 after a notice to any rank, once all is safe

weights = accelerator.get_state_dict(model)  # on every process, because FSDP gathers them from all
if accelerator.is_main_process:
    accelerator.unwrap_model(model).save_pretrained(args.out, state_dict=weights)
