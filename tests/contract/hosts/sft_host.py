"""The adapter of TRL's SFTTrainer: a small Llama, made from its configuration, that learns to write rows of words."""

from __future__ import annotations

from tempfile import TemporaryDirectory

import torch
from contract.hosts import training
from contract.hosts.trainer_host import Places, Probed, arguments_of, forget_accelerators
from datasets import Dataset, disable_progress_bars
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.utils.data import DataLoader
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, set_seed
from trl import SFTConfig, SFTTrainer

from spot_plugins.transformers import SpotTrainerCallback

SPECIAL = ["<pad>", "<eos>", "<unk>"]
NUM_TOKENS = 131
"""The numbers of up to 120 samples, each of which begins with its own, and a few words."""


def tokenizer(size):
    """Return a tokenizer of *size* tokens: padding, the end, the unknown, and words ``w0``, ``w1`` and so on."""
    words = [*SPECIAL, *(f"w{number}" for number in range(size - len(SPECIAL)))]
    made = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")


def rows(number, seed, is_noisy=False):
    """Return *number* samples of 3 to 6 tokens. A noisy one has a last token that is drawn whenever it is read."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(2, 6, (number,), generator=generator).tolist()
    tokens = [torch.randint(len(SPECIAL), NUM_TOKENS, (length,), generator=generator).tolist() for length in lengths]
    data = Dataset.from_dict({"input_ids": [[len(SPECIAL) + index, *row] for index, row in enumerate(tokens)]})
    return data.with_transform(_with_noise) if is_noisy else data


def _with_noise(batch):
    drawn = [[*row[:-1], int(torch.randint(len(SPECIAL), NUM_TOKENS, ()))] for row in batch["input_ids"]]
    return {"input_ids": drawn, "labels": drawn}


def make_model(program):
    """Return a model with random numbers of its own."""
    width = program.width
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=NUM_TOKENS,
            hidden_size=width,
            intermediate_size=width,
            num_hidden_layers=1,
            num_attention_heads=2,
            attention_dropout=0.3,
            pad_token_id=0,
            eos_token_id=1,
            bos_token_id=None,
        )
    )


class Own(Probed, SFTTrainer):
    """Tells the probe what it does."""

    def numbers_of(self, inputs):
        return inputs["input_ids"][:, 0] - len(SPECIAL)


class OwnLoader(Own):
    """A trainer that makes its loader itself, so that its batches are counted."""

    def get_train_dataloader(self):
        settings = {"batch_size": self.args.per_device_train_batch_size, "num_workers": self.program.num_workers}
        return self.accelerator.prepare(
            DataLoader(self.train_dataset, shuffle=True, collate_fn=self.data_collator, **settings)
        )


def train(program, url, probe):
    """Train *program* at *url* and return its final state."""
    forget_accelerators()
    disable_progress_bars()
    set_seed(1)
    spot = probe.host = SpotTrainerCallback(url, every_steps=program.every_steps, on_event=probe.on_event)
    model = make_model(program)
    optimizers = training.make_optimizers(program, model)
    schedulers = training.make_schedulers(program, optimizers)
    with TemporaryDirectory() as output:
        trainer = (Own if program.loader == "elastic" else OwnLoader)(
            program,
            probe,
            model=model,
            args=arguments_of(
                program,
                output,
                SFTConfig,
                max_length=8,
                bf16=False,
                dataset_kwargs={"skip_prepare_dataset": program.is_noisy},  # TRL does not prepare what is drawn
            ),
            train_dataset=rows(program.num_samples, program.data_seed, program.is_noisy),
            eval_dataset=rows(12, 3, program.is_noisy),
            processing_class=tokenizer(NUM_TOKENS),
            optimizers=(optimizers[0], schedulers[0] if program.schedule == "step" else None),
            callbacks=[Places(probe), spot],
        )
        trainer.train()
    return training.final_state(trainer.model, [trainer.optimizer], [trainer.lr_scheduler])
