"""
Pre-train a Llama from nothing on a streamed data set, with FSDP2 under torchrun, on machines that may be taken away.

    torchrun --nproc-per-node 2 examples/pretrain_torchrun/train.py      # a tiny model, under a minute on CPUs
    kill -TERM <pid of torchrun, or of a single rank>                    # what a cloud does; all ranks save one step
    torchrun --nproc-per-node 2 examples/pretrain_torchrun/train.py      # the same command again continues
    torchrun --nproc-per-node 8 examples/pretrain_torchrun/train.py --full --url s3://bucket/run-7

The tiny run streams Python's own documentation. Nothing is downloaded.
"""

from __future__ import annotations

import argparse
import logging
import os
from pathlib import Path
from pydoc_data.topics import topics

import torch
import torch.distributed as dist
from datasets import Dataset, load_dataset
from datasets.distributed import split_dataset_by_node
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torchdata.stateful_dataloader import StatefulDataLoader
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, get_cosine_schedule_with_warmup, set_seed

from spot_plugins.bare import SpotLoop

parser = argparse.ArgumentParser(description="Pre-train a language model on a stream; resumes by itself.")
parser.add_argument("--full", action="store_true", help="1.1 B parameters on GPUs; without it a tiny model on CPUs")
parser.add_argument("--data", default="HuggingFaceFW/fineweb", help="with --full: a data set that has texts")
parser.add_argument("--tokenizer", default="mistralai/Mistral-7B-v0.3", help="with --full: whose tokens to take")
parser.add_argument("--url", default=f"file://{Path.cwd()}/spot-run/pretrain", help="where the run lives")
parser.add_argument("--steps", type=int, help="end after so many steps; default: 40, with --full 50,000")
parser.add_argument("--every-seconds", type=float, default=300, help="between two saves; README.md says why")
parser.add_argument("--every-steps", type=int, help="save after so many steps as well")
parser.add_argument("--csv", type=Path, help="append step and loss of rank 0 to this CSV file")
args = parser.parse_args()

device_type = "cuda" if args.full else "cpu"
dist.init_process_group("nccl" if args.full else "gloo")
rank, world_size = dist.get_rank(), dist.get_world_size()
if args.full:
    torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
set_seed(7)
logging.basicConfig(format="%(message)s")
logging.getLogger("spot_plugins").setLevel(logging.INFO if rank == 0 else logging.WARNING)

# ------------------------------------------------------------------------------------------------ settings
num_steps = args.steps or (50_000 if args.full else 40)
block = 2048 if args.full else 64  # tokens of a sample
batch_size = 8 if args.full else 4  # samples of a step on each rank
sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
if args.full:
    sizes = {"hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22, "num_attention_heads": 32}

# -------------------------------------------------------------------------------------------------- stream
if args.full:
    tokenizer = AutoTokenizer.from_pretrained(args.tokenizer)
    vocabulary, end = len(tokenizer), tokenizer.eos_token_id
    stream = load_dataset(args.data, split="train", streaming=True).select_columns(["text"])
else:  # a token is a byte
    vocabulary, end = 257, 256
    stream = Dataset.from_dict({"text": [text for _, text in sorted(topics.items())]}).to_iterable_dataset(8)


def blocks(rows):
    """Tokenize texts and cut them into blocks. What does not fill a block is dropped."""
    texts = tokenizer(rows["text"])["input_ids"] if args.full else [[*text.encode()] for text in rows["text"]]
    tokens = [token for text in texts for token in (*text, end)]
    return {"input_ids": [tokens[start : start + block] for start in range(0, len(tokens) - block + 1, block)]}


# The stream has a state of its own: the shard, and the example in it. A shuffle() with a buffer would have to read the
# stream again up to its place after a resume. Shuffle the files before the training instead.
stream = split_dataset_by_node(stream, rank=rank, world_size=world_size)
stream = stream.map(blocks, batched=True, batch_size=16, remove_columns=["text"]).with_format("torch")
loader = StatefulDataLoader(stream, batch_size=batch_size, drop_last=True, num_workers=0)

# --------------------------------------------------------------------------------------------------- model
config = LlamaConfig(vocab_size=vocabulary, num_key_value_heads=4, max_position_embeddings=block, **sizes)
model = LlamaForCausalLM(config).to(device_type)
mesh = init_device_mesh(device_type, (world_size,))
precision = MixedPrecisionPolicy(param_dtype=torch.bfloat16 if args.full else None, reduce_dtype=torch.float32)
for module in (*model.model.layers, model):
    fully_shard(module, mesh=mesh, mp_policy=precision)
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4 if args.full else 3e-3, betas=(0.9, 0.95), weight_decay=0.1)
scheduler = get_cosine_schedule_with_warmup(optimizer, num_steps // 20, num_steps)

# ------------------------------------------------------------------------------------------------ training
with SpotLoop(args.url, every_seconds=args.every_seconds, every_steps=args.every_steps) as spot:
    spot.register_model(model, optimizer, scheduler)
    spot.register_loader(loader)
    spot.resume()
    for _ in spot.epochs(1000, max_steps=num_steps):
        for batch in spot.batches(loader):
            tokens = batch["input_ids"].to(device_type)
            loss = model(input_ids=tokens, labels=tokens).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
            step = spot.progress.step + 1
            if rank == 0 and step % 10 == 0:
                print(f"step {step}, loss {loss.item():.3f}", flush=True)
            if rank == 0 and args.csv:
                with args.csv.open("a") as file:
                    file.write(f"{step},{loss.item()!r}\n")
            spot.after_step()  # leaves with exit code 143 after a notice to any rank, once all is safe
dist.destroy_process_group()
