"""
Train an image classifier with Lightning, on a machine that may be taken away.

    python examples/vision_lightning/train.py                  # a tiny ResNet on small images, a minute on a CPU
    kill -TERM <pid>                                           # what a cloud does; or -KILL, which is worse
    python examples/vision_lightning/train.py                  # the same command again continues
    python examples/vision_lightning/train.py --full --url s3://bucket/run-7 --data folder_of_images

--data has a folder of images for each class. The tiny run takes the handwritten digits that come with scikit-learn.
"""

from __future__ import annotations

import argparse
import logging
import random
from pathlib import Path

import torch
import transformers
from datasets import load_dataset
from lightning.pytorch import LightningModule, Trainer, seed_everything
from PIL import ImageOps
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader
from transformers import AutoModelForImageClassification, ResNetConfig, ResNetForImageClassification

from spot_plugins.data import elastic_loader
from spot_plugins.lightning import SpotCheckpoint

parser = argparse.ArgumentParser(description="Train an image classifier with Lightning; resumes by itself.")
parser.add_argument("--full", action="store_true", help="a pretrained ResNet-50; without it a tiny one on the CPU")
parser.add_argument("--model", default="microsoft/resnet-50", help="with --full: any image classifier of transformers")
parser.add_argument("--data", help="with --full: folder with a folder of images for each class")
parser.add_argument("--url", default=f"file://{Path.cwd()}/spot-run/vision", help="where the run lives")
parser.add_argument("--every-seconds", type=float, default=180, help="between two saves; README.md says why")
parser.add_argument("--every-steps", type=int, help="save after so many steps as well")
parser.add_argument("--epochs", type=int, default=3)
parser.add_argument("--samples", type=int, help="train on so many images; default: all")
parser.add_argument("--csv", type=Path, help="append step and loss to this CSV file")
args = parser.parse_args()
if args.full and not args.data:
    parser.error("--full needs --data, a folder with a folder of images for each class")

seed_everything(7, verbose=False)
logging.basicConfig(format="%(message)s")
logging.getLogger("spot_plugins").setLevel(logging.INFO)
transformers.utils.logging.disable_progress_bar()

# -------------------------------------------------------------------------------------------------- images
if args.full:
    images = load_dataset("imagefolder", data_dir=args.data, split="train").shuffle(seed=7)
    names = images.features["label"].names
    held_out = min(5000, len(images) // 10)
    tests, trains = images.select(range(held_out)), images.select(range(held_out, len(images)))
else:
    pixels, numbers = load_digits(return_X_y=True)
    digits = list(zip(torch.tensor(pixels, dtype=torch.float32).view(-1, 1, 8, 8) / 16, numbers.tolist(), strict=True))
    names = [str(number) for number in range(10)]
    tests, trains = digits[:256], digits[256:]


class Images(torch.utils.data.Dataset):
    """Pixels and label of each image, and in training a random crop and flip, which is the same after a resume."""

    def __init__(self, rows, augment):
        self.rows, self.augment = rows, augment

    def __len__(self):
        return min(len(self.rows), args.samples or len(self.rows)) if self.augment else len(self.rows)

    def __getitem__(self, index):
        if args.full:
            row, edge = self.rows[index], 32
            image = ImageOps.fit(row["image"].convert("RGB"), (256, 256))
            data = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(256, 256, 3)
            pixels, label = data.permute(2, 0, 1).float() / 255 - 0.5, row["label"]
        else:
            (pixels, label), edge = self.rows[index], 1
            pixels = nn.functional.pad(pixels, (1, 0, 1, 0))
        top, left = (random.randrange(edge + 1), random.randrange(edge + 1)) if self.augment else (edge // 2, edge // 2)
        pixels = pixels[:, top : top + pixels.shape[1] - edge, left : left + pixels.shape[2] - edge]
        flip = args.full and self.augment and random.random() < 0.5  # a digit is not the same in a mirror
        return pixels.flip(-1) if flip else pixels, label


# --------------------------------------------------------------------------------------------------- model
class Classifier(LightningModule):
    def __init__(self):
        super().__init__()
        if args.full:
            load = AutoModelForImageClassification.from_pretrained
            self.model = load(args.model, num_labels=len(names), ignore_mismatched_sizes=True)
        else:
            sizes = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}
            self.model = ResNetForImageClassification(ResNetConfig(num_channels=1, num_labels=len(names), **sizes))
        self.model.train()  # a pretrained model comes in eval mode, and Lightning leaves it so

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self.model(batch[0]).logits, batch[1], label_smoothing=0.1)

    def on_train_batch_end(self, outputs, batch, batch_idx):
        if self.trainer.is_global_zero and args.csv:
            with args.csv.open("a") as file:
                file.write(f"{self.global_step},{outputs['loss'].item()!r}\n")

    def validation_step(self, batch, batch_idx):
        self.log("accuracy", (self.model(batch[0]).logits.argmax(-1) == batch[1]).float().mean(), sync_dist=True)

    def on_validation_epoch_end(self):
        if self.trainer.is_global_zero:
            print(f"step {self.global_step}, accuracy {self.trainer.callback_metrics['accuracy']:.2f}", flush=True)

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.02, momentum=0.9, nesterov=True, weight_decay=1e-4)
        steps = int(self.trainer.estimated_stepping_batches)
        scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1 if args.full else 0.2, total_steps=steps)
        return [optimizer], [{"scheduler": scheduler, "interval": "step"}]


# ------------------------------------------------------------------------------------------------ training
spot = SpotCheckpoint(args.url, every_seconds=args.every_seconds, every_steps=args.every_steps)
trainer = Trainer(
    max_epochs=args.epochs,
    accelerator="auto" if args.full else "cpu",
    precision="bf16-mixed" if args.full else "32-true",
    callbacks=[spot],
    num_sanity_val_steps=0,
    enable_checkpointing=False,  # Lightning's own
    enable_progress_bar=False,
    enable_model_summary=False,
    logger=False,
)
batch_size, num_workers = (64, 8) if args.full else (16, 0)
training = elastic_loader(
    Images(trains, augment=True), batch_size=batch_size, seed=7, drop_last=True, num_workers=num_workers
)
trainer.fit(
    Classifier(), training, DataLoader(Images(tests, augment=False), batch_size=batch_size, num_workers=num_workers)
)
