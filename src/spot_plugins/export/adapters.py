"""The tensors of an adapter of LoRA, by the names that PEFT gives them in the model and in a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any, Final

from ..errors import ConfigError
from ..resume.weights import Weight

ADAPTER_CONFIG: Final = "adapter_config.json"

_DEFAULT: Final = "default"
_EMBEDDINGS: Final = ("embed_tokens", "lm_head")  # PEFT writes the whole layer, too, if an adapter changes one of these
_WRAPPER: Final = "base_model.model."


def is_adapted(tensors: Sequence[Weight]) -> bool:
    """Return True if PEFT has added an adapter of LoRA to the model."""
    return any(_adapter_of(each.name) is not None for each in tensors)


def adapter_tensors(tensors: Sequence[Weight], config: Mapping[str, Any]) -> list[Weight]:
    """
    Return the tensors that ``save_pretrained`` of PEFT writes, with the names that it gives them.

    Args:
        tensors: All tensors of a model with an adapter.
        config: The content of ``adapter_config.json``.

    Raises:
        ConfigError: Several adapters come into question, or *config* describes another kind of adapter.
    """
    if config.get("peft_type") != "LORA":
        kind = config.get("peft_type")
        raise ConfigError(f"peft_type={kind!r} in {ADAPTER_CONFIG}: only adapters of LORA can be exported")
    adapters = list(dict.fromkeys(name for each in tensors if (name := _adapter_of(each.name)) is not None))
    if len(adapters) > 1 and _DEFAULT not in adapters:
        raise ConfigError(
            f"the model has the adapters {', '.join(adapters)}, and a folder holds one. None is called {_DEFAULT}, "
            f"which would be written"
        )
    adapter = adapters[0] if len(adapters) == 1 else _DEFAULT
    layers = {each.name.partition(".lora_")[0] for each in tensors if _adapter_of(each.name) == adapter}
    found = []
    for each in tensors:
        name = _name_in_file(each.name, adapter)
        if name is None and _is_base_too(each.name, layers, config):
            name = each.name
        if name is not None:
            # A model whose own add_adapter() was called has no wrapper, and PEFT reads the names with its own.
            found.append(replace(each, name=_WRAPPER + name.removeprefix(_WRAPPER)))
    return found


def _name_in_file(name: str, adapter: str) -> str | None:
    """Return the name of a tensor, less the name of the adapter. None if it belongs to the base model."""
    words = name.split(".")
    for index, (word, following) in enumerate(pairwise(words)):
        if following != adapter:
            continue
        rest = words[index + 2 :]
        if word == "modules_to_save":
            return ".".join(words[:index] + rest)
        if word == "lora_magnitude_vector":
            return ".".join(words[: index + 1])  # of DoRA, whose files have no ".weight"
        if word.startswith("lora_") or word == "trainable_tokens_delta":
            return ".".join(words[: index + 1] + rest)
    return None


def _is_base_too(name: str, layers: set[str], config: Mapping[str, Any]) -> bool:
    """Return True for a tensor of the base model that PEFT writes beside the adapter."""
    layer, _, last = name.rpartition(".")
    bias = config.get("bias", "none")
    if last == "bias" and (bias == "all" or (bias == "lora_only" and layer.removesuffix(".base_layer") in layers)):
        return True
    targeted = layer.removesuffix(".base_layer")
    has_whole_embeddings = config.get("trainable_token_indices") is None
    return has_whole_embeddings and targeted in layers and targeted.rpartition(".")[2] in _EMBEDDINGS


def _adapter_of(name: str) -> str | None:
    """Return the adapter that a tensor of LoRA belongs to. None for every other tensor."""
    words = name.split(".")
    pairs = pairwise(words)
    return next((adapter for word, adapter in pairs if word in ("lora_A", "lora_embedding_A")), None)
