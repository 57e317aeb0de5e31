"""Folders of Hugging Face: the stock libraries load from them what the live model would have saved."""

from __future__ import annotations

import errno
import json

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from stored_models import WAYS, damage, save_model
from torch import nn
from transformers import AutoModelForCausalLM, BertConfig, BertForMaskedLM, LlamaConfig, LlamaForCausalLM, MixtralConfig

from spot_plugins.errors import ConfigError, CorruptCheckpointError
from spot_plugins.export import outputs
from spot_plugins.export.hugging_face import export_hugging_face

SIZES = {
    "vocab_size": 13,
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}


def llama(dtype=torch.float32, **settings):
    torch.manual_seed(1)
    return LlamaForCausalLM(LlamaConfig(**SIZES, **settings)).to(dtype)


def state_of(model):
    return dict(model.state_dict())


def assert_equal(found, wanted):
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape), name
        assert torch.equal(found[name], tensor), name


def configured(folder, model):
    """Return a folder with the configuration of *model*, and with files that are no business of an export."""
    model.config.save_pretrained(folder)
    (folder / "tokenizer.json").write_text("{}")
    (folder / "optimizer.pt").write_bytes(b"\0")
    return folder


@pytest.mark.parametrize(("world_size", "is_spread"), WAYS)
@pytest.mark.parametrize("is_tied", [True, False], ids=["tied", "untied"])
def test_transformers_loads_the_model(is_tied, world_size, is_spread, tmp_path):
    """By from_pretrained, in all bits and types, as from the folder of save_pretrained. Tied weights are one."""
    model = llama(tie_word_embeddings=is_tied)
    save_model(tmp_path / "run", {"model": model}, world_size=world_size, is_spread=is_spread)

    export_hugging_face(str(tmp_path / "run"), tmp_path / "out", configured(tmp_path / "config", model))

    found = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    model.save_pretrained(tmp_path / "live")
    assert_equal(state_of(found), state_of(AutoModelForCausalLM.from_pretrained(tmp_path / "live")))
    assert_equal(state_of(found), state_of(model))
    assert (found.lm_head.weight is found.model.embed_tokens.weight) == is_tied
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["config.json", "model.safetensors", "tokenizer.json"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config", "live", "out", "run"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_model_is_loaded_in_the_type_in_which_it_was_trained(dtype, tmp_path):
    """The base model was published in another one."""
    model = llama(dtype)
    configured(tmp_path / "config", llama())
    path = tmp_path / "config/config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "torch_dtype": "float16", "dtype": "float16"}))
    save_model(tmp_path / "run", {"model": model})

    export_hugging_face(str(tmp_path / "run"), tmp_path / "out", tmp_path / "config")

    assert_equal(state_of(AutoModelForCausalLM.from_pretrained(tmp_path / "out")), state_of(model))


def test_a_large_model_has_several_files(tmp_path):
    """They have an index, and no tensor is cut."""
    model = llama()
    save_model(tmp_path / "run", {"model": model})

    export_hugging_face(
        str(tmp_path / "run"), tmp_path / "out", configured(tmp_path / "config", model), shard_bytes=1000
    )

    files = sorted(path.name for path in (tmp_path / "out").glob("*.safetensors"))
    assert files == [f"model-{number:05d}-of-{len(files):05d}.safetensors" for number in range(1, len(files) + 1)]
    assert len(files) > 2
    index = json.loads((tmp_path / "out/model.safetensors.index.json").read_text())
    assert {name: file for file in files for name in load_file(tmp_path / "out" / file)} == index["weight_map"]
    assert_equal(state_of(AutoModelForCausalLM.from_pretrained(tmp_path / "out")), state_of(model))


def test_a_module_of_the_trained_one_is_written_with_its_own_names(tmp_path):
    """As in a LightningModule that has the model as self.model."""
    outer = nn.Module()
    outer.model, outer.head = llama(), nn.Linear(2, 2)
    save_model(tmp_path / "run", {"model": outer})
    config = configured(tmp_path / "config", outer.model)

    export_hugging_face(str(tmp_path / "run"), tmp_path / "out", config, module="model")

    assert_equal(state_of(AutoModelForCausalLM.from_pretrained(tmp_path / "out")), state_of(outer.model))
    assert load_file(tmp_path / "out/model.safetensors").keys() == state_of(outer.model).keys()
    with pytest.raises(ConfigError, match=r"module='net' has no tensors. The modules of this model are: model, head"):
        export_hugging_face(str(tmp_path / "run"), tmp_path / "other", config, module="net")


def test_several_tied_names_and_a_buffer(tmp_path):
    """A head of BERT ties a bias, too."""
    torch.manual_seed(1)
    sizes = {name: size for name, size in SIZES.items() if name != "num_key_value_heads"}
    model = BertForMaskedLM(BertConfig(**sizes))
    save_model(tmp_path / "run", {"model": model})

    export_hugging_face(str(tmp_path / "run"), tmp_path / "out", configured(tmp_path / "config", model))

    assert_equal(state_of(BertForMaskedLM.from_pretrained(tmp_path / "out")), state_of(model))


def test_experts_that_transformers_stores_one_by_one(tmp_path):
    """In memory they are one tensor, and from_pretrained takes that, too."""
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(MixtralConfig(**SIZES, num_local_experts=2))
    save_model(tmp_path / "run", {"model": model})

    export_hugging_face(str(tmp_path / "run"), tmp_path / "out", configured(tmp_path / "config", model))

    assert_equal(state_of(AutoModelForCausalLM.from_pretrained(tmp_path / "out")), state_of(model))


ADAPTERS = {
    "plain": {"target_modules": ["q_proj", "v_proj"]},
    "DoRA": {"target_modules": ["q_proj"], "use_dora": True},
    "whole modules": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    "embeddings": {"target_modules": ["embed_tokens", "q_proj"]},
    "the embeddings, by a pattern": {"target_modules": ".*embed_tokens"},
    "some tokens": {"target_modules": ["q_proj"], "trainable_token_indices": [1, 3]},
    "all biases": {"target_modules": ["q_proj"], "bias": "all"},
    "biases of its layers": {"target_modules": ["q_proj"], "bias": "lora_only"},
}


def adapted(settings, name="default"):
    """Return a model with an adapter in which no tensor is zero."""
    model = get_peft_model(llama(attention_bias=True), LoraConfig(r=2, **settings), adapter_name=name)
    with torch.no_grad():
        for number, parameter in enumerate(model.parameters()):
            parameter.add_(0.01 * number)
    return model


@pytest.mark.parametrize(("settings", "way"), [*zip(ADAPTERS.values(), WAYS * 2, strict=True)], ids=ADAPTERS)
@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`")
def test_peft_loads_the_adapter(settings, way, tmp_path):
    """By PeftModel.from_pretrained: the file has the names and bits of save_pretrained, and nothing else."""
    model = adapted(settings)
    save_model(tmp_path / "run", {"model": model}, world_size=way[0], is_spread=way[1])
    model.save_pretrained(tmp_path / "live")

    result = export_hugging_face(str(tmp_path / "run"), tmp_path / "out", tmp_path / "live")

    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    wanted = load_file(tmp_path / "live/adapter_model.safetensors")
    assert_equal(load_file(tmp_path / "out/adapter_model.safetensors"), wanted)
    assert result.num_tensors == len(wanted)
    base = llama(attention_bias=True)
    found, live = (PeftModel.from_pretrained(llama(attention_bias=True), tmp_path / n) for n in ("out", "live"))
    assert_equal(state_of(found), state_of(live))
    assert found(torch.arange(5)[None]).logits.sum() != base(torch.arange(5)[None]).logits.sum()


def test_an_adapter_without_a_wrapper(tmp_path):
    """transformers adds adapters itself, and saves them with the names of PEFT's wrapper."""
    model = llama()
    model.add_adapter(LoraConfig(r=2, target_modules=["q_proj"]), "mine")
    save_model(tmp_path / "run", {"model": model})
    model.save_pretrained(tmp_path / "live")

    export_hugging_face(str(tmp_path / "run"), tmp_path / "out", tmp_path / "live")

    wanted = load_file(tmp_path / "live/adapter_model.safetensors")
    assert_equal(load_file(tmp_path / "out/adapter_model.safetensors"), wanted)


def test_of_two_adapters_the_one_called_default_is_written(tmp_path):
    """As save_pretrained does at the root of its folder. Without such a name, nobody can know."""
    for name, refused in (("default", False), ("mine", True)):
        model = adapted(ADAPTERS["plain"], name)
        model.add_adapter("reference", LoraConfig(r=2, **ADAPTERS["plain"]))
        save_model(tmp_path / name, {"model": model})
        model.peft_config[name].save_pretrained(tmp_path / "config")
        if refused:
            with pytest.raises(ConfigError, match="the model has the adapters mine, reference, and a folder holds one"):
                export_hugging_face(str(tmp_path / name), tmp_path / "other", tmp_path / "config")
        else:
            export_hugging_face(str(tmp_path / name), tmp_path / "out", tmp_path / "config")
            model.save_pretrained(tmp_path / "live")
            wanted = load_file(tmp_path / "live/adapter_model.safetensors")
            assert_equal(load_file(tmp_path / "out/adapter_model.safetensors"), wanted)


def test_a_configuration_that_does_not_fit_is_refused(tmp_path):
    """Before anything is written."""
    save_model(tmp_path / "plain", {"model": llama()})
    save_model(tmp_path / "adapted", {"model": adapted(ADAPTERS["plain"])})
    for name, text in (
        ("none/other.json", "{}"),
        ("model/config.json", "{}"),
        ("adapter/adapter_config.json", '{"peft_type": "LORA"}'),
        ("ia3/adapter_config.json", '{"peft_type": "IA3"}'),
        ("broken/config.json", "{"),
        ("list/config.json", "[]"),
    ):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text(text)
    (tmp_path / "folder/config.json").mkdir(parents=True)
    for run, config, message in (
        ("plain", "folder", r"config=.* cannot be read: Is a directory"),
        ("plain", "none", "has neither config.json nor adapter_config.json: give a folder that has one"),
        ("plain", "missing", "has neither config.json nor adapter_config.json: give a folder that has one"),
        ("plain", "adapter", "there is no adapter of LoRA in the model, so adapter_config.json does not describe it"),
        ("adapted", "model", "the model has an adapter of PEFT, and config.json describes a model without"),
        ("adapted", "ia3", "peft_type='IA3' in adapter_config.json: only adapters of LORA can be exported"),
        ("plain", "broken", "is not a JSON object, so it is no configuration of a model"),
        ("plain", "list", "is not a JSON object, so it is no configuration of a model"),
    ):
        with pytest.raises(ConfigError, match=message):
            export_hugging_face(str(tmp_path / run), tmp_path / "out", tmp_path / config)
    assert not list(tmp_path.glob("out*"))


def test_nothing_is_left_if_it_fails(tmp_path, monkeypatch):
    """A damaged blob, a full disk, a folder that exists: no folder appears, and none is changed."""
    model = llama()
    save_model(tmp_path / "run", {"model": model})
    config = configured(tmp_path / "config", model)
    (tmp_path / "mine").mkdir()

    with pytest.raises(ConfigError, match="exists already: give the path of a new file or folder"):
        export_hugging_face(str(tmp_path / "run"), tmp_path / "mine", config)
    with monkeypatch.context() as patch:
        patch.setattr(outputs.os, "fsync", full_disk)
        with pytest.raises(ConfigError, match=r"out=.* cannot be written: No space left on device"):
            export_hugging_face(str(tmp_path / "run"), tmp_path / "out", config)
    damage(tmp_path / "run")
    with pytest.raises(CorruptCheckpointError, match="has changed since it was written: its hash differs"):
        export_hugging_face(str(tmp_path / "run"), tmp_path / "out", config)

    assert sorted(path.name for path in tmp_path.iterdir()) == ["config", "mine", "run"]
    assert list((tmp_path / "mine").iterdir()) == []


def full_disk(descriptor):
    raise OSError(errno.ENOSPC, "No space left on device")
