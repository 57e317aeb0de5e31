"""TRL's SFTTrainer with LoRA, interrupted, and equal in every bit to one that was left alone."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from contract.hosts.sft_host import tokenizer
from datasets import Dataset
from peft import LoraConfig
from trainer_lives import assert_exact
from transformers import LlamaConfig, LlamaForCausalLM
from trl import SFTConfig, SFTTrainer


def texts(number):
    generator = torch.Generator().manual_seed(number)
    lengths = torch.randint(5, 12, (number,), generator=generator).tolist()
    rows = [torch.randint(0, 61, (length,), generator=generator).tolist() for length in lengths]
    return Dataset.from_dict({"text": [" ".join(f"w{number}" for number in row) for row in rows]})


class Recorded(SFTTrainer):
    """Says which batches it had, and their losses."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        tokens = inputs["input_ids"].flatten().tolist()
        result = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        loss = result[0] if return_outputs else result
        self.record("train" if model.training else "evaluate", tokens, loss.item())
        return result


def make(packing=None, is_stream=False, **given):
    """Return a trainer. The model and the data are those of language, the rest is that of the other drills."""
    numbers = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=64, pad_token_id=0, eos_token_id=1, bos_token_id=None, **numbers))
    common = {name: value for name, value in given["args"].to_dict().items() if name in USED}
    if packing:
        common |= {"packing": True, "packing_strategy": packing}
    if is_stream:
        common["max_steps"] = 12
    arguments = SFTConfig(max_length=12, bf16=False, use_cpu=True, report_to=[], disable_tqdm=True, **common)
    data = texts(42 if packing else 21)
    trainer = Recorded(
        model=model,
        args=arguments,
        train_dataset=data.to_iterable_dataset(num_shards=2) if is_stream else data,
        eval_dataset=texts(5),
        processing_class=tokenizer(64),
        callbacks=given["callbacks"],
        peft_config=LoraConfig(r=2, lora_dropout=0.1, target_modules=["q_proj", "v_proj"]),
    )
    trainer.record = given["model"].record
    return trainer


USED = {
    "output_dir",
    "num_train_epochs",
    "per_device_train_batch_size",
    "per_device_eval_batch_size",
    "gradient_accumulation_steps",
    "learning_rate",
    "logging_steps",
    "save_strategy",
    "eval_strategy",
    "eval_steps",
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore:Cannot (locate|pickle)")
@pytest.mark.filterwarnings("ignore:.*[Pp]adding-free")
@pytest.mark.parametrize(
    "packing", [None, *(pytest.param(strategy, marks=pytest.mark.soak) for strategy in ("wrapped", "bfd"))]
)
@pytest.mark.parametrize("is_stream", [False, pytest.param(True, marks=pytest.mark.soak)], ids=["map", "stream"])
@pytest.mark.filterwarnings("ignore:fetching .* batches again to find the position")
def test_fine_tuning_with_lora(packing, is_stream, tmp_path):
    """A notice in a step and in an evaluation, and a kill. The tokens that were counted go on too."""
    lives = assert_exact(
        tmp_path,
        ("notice", "train", 7),
        ("notice", "evaluate", 2),
        ("kill", "train", 6),
        make=partial(make, packing=packing, is_stream=is_stream),
        every_steps=2,
        gradient_accumulation_steps=2,
        eval_strategy="steps",
        eval_steps=3,
    )

    assert lives[-1].trainer.state.num_input_tokens_seen == lives[0].trainer.state.num_input_tokens_seen
