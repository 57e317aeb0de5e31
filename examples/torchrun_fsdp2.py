"""
Train a small language model with FSDP2 and no framework, on machines that may be taken away.

    torchrun --nproc-per-node 2 examples/torchrun_fsdp2.py           # about a minute on a CPU
    kill -TERM <pid of torchrun, or of a single rank>                # what a cloud does; all ranks save one step
    torchrun --nproc-per-node 4 examples/torchrun_fsdp2.py           # the same run on other ranks: it goes on

The text is Python's own documentation, byte by byte.
The real thing: --url s3://bucket/run-7 --data folder_of_text_files --width 1024 --layers 24 --block 1024
"""

from __future__ import annotations

import argparse
import logging
import os
from pathlib import Path
from pydoc_data.topics import topics

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from spot_plugins.bare import SpotLoop
from spot_plugins.data import elastic_loader

parser = argparse.ArgumentParser(description="Train a language model with FSDP2 under torchrun; resumes by itself.")
parser.add_argument("--url", default=f"file://{Path.cwd()}/spot-run/torchrun", help="where the run lives")
parser.add_argument("--data", type=Path, help="folder of text files")
parser.add_argument("--samples", type=int, default=2048, help="use so many blocks of text; 0: all")
parser.add_argument("--epochs", type=int, default=2)
parser.add_argument("--batch-size", type=int, default=8, help="per rank")
parser.add_argument("--learning-rate", type=float, default=3e-3)
parser.add_argument("--block", type=int, default=64, help="bytes of one sample")
parser.add_argument("--width", type=int, default=64)
parser.add_argument("--layers", type=int, default=2)
parser.add_argument("--every-steps", type=int, default=20, help="save after so many steps ...")
parser.add_argument("--every-seconds", type=float, default=300, help="... or seconds, whichever comes first")
parser.add_argument("--csv", type=Path, help="append step and loss to this CSV file")
args = parser.parse_args()

device_type = "cuda" if torch.cuda.is_available() else "cpu"
dist.init_process_group("nccl" if device_type == "cuda" else "gloo")
rank, world_size = dist.get_rank(), dist.get_world_size()
if device_type == "cuda":
    torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
torch.manual_seed(7)
logging.basicConfig(format="%(message)s")
logging.getLogger("spot_plugins").setLevel(logging.INFO if rank == 0 else logging.WARNING)

# ---------------------------------------------------------------------------------------------------- text
texts = [path.read_text() for path in sorted(args.data.glob("*.txt"))] if args.data else list(topics.values())
text = torch.frombuffer(bytearray("\n\n".join(texts).encode()), dtype=torch.uint8).long()
blocks = text[: len(text) // (args.block + 1) * (args.block + 1)].view(-1, args.block + 1)
loader = elastic_loader(blocks[: args.samples or None], batch_size=args.batch_size, seed=7, drop_last=True)

# --------------------------------------------------------------------------------------------------- model
layer = nn.TransformerEncoderLayer(args.width, 4, 4 * args.width, dropout=0.1, batch_first=True, norm_first=True)
encoder = nn.TransformerEncoder(layer, args.layers, enable_nested_tensor=False)
model = nn.ModuleDict({"embedding": nn.Embedding(256, args.width), "encoder": encoder})
model["position"] = nn.Embedding(args.block, args.width)
model["head"] = nn.Linear(args.width, 256)
model.to(device_type)
mesh = init_device_mesh(device_type, (world_size,))
for part in (*model["encoder"].layers, *model.values()):
    fully_shard(part, mesh=mesh)
optimizer = torch.optim.AdamW(model.parameters(), lr=args.learning_rate)
scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 0.1, 1.0, total_iters=20)
mask = nn.Transformer.generate_square_subsequent_mask(args.block, device=device_type)
places = torch.arange(args.block, device=device_type)

# ------------------------------------------------------------------------------------------------ training
with SpotLoop(args.url, every_steps=args.every_steps, every_seconds=args.every_seconds) as spot:
    spot.register_model(model, optimizer, scheduler)
    spot.register_loader(loader)
    spot.resume()
    for _ in spot.epochs(args.epochs):
        for batch in spot.batches(loader):
            inputs, targets = batch[:, :-1].to(device_type), batch[:, 1:].to(device_type)
            hidden = model["embedding"](inputs) + model["position"](places)
            logits = model["head"](model["encoder"](hidden, mask=mask, is_causal=True))
            loss = nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
            (loss / spot.gradient_accumulation_steps).backward()  # 2 on half as many ranks as the run began with
            if spot.sync_gradients:
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
