"""Folders of Hugging Face: a model for transformers, or an adapter for PEFT. Neither is imported, and no torch."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from ..errors import ConfigError
from ..resume.weights import Weight, Weights, open_weights
from .adapters import ADAPTER_CONFIG, adapter_tensors, is_adapted
from .outputs import Exported, check_new, exported, new_folder, no_tensors
from .safetensors import write_tensors

MODEL_CONFIG: Final = "config.json"

SHARD_BYTES: Final = 50 * 10**9
"""Most bytes of tensors in one file, as ``save_pretrained`` of transformers 5 has it."""

_COPIED: Final = (
    *("generation_config.json", "chat_template.jinja", "chat_template.json", "added_tokens.json"),
    *("special_tokens_map.json", "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "spiece.model"),
    *("sentencepiece.bpe.model", "merges.txt", "vocab.json", "vocab.txt"),
    *("preprocessor_config.json", "processor_config.json"),
)
"""Small files that belong to a model and hold no code. Those that exist are copied."""

_FLOATS: Final = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def export_hugging_face(
    url: str,
    out: str | os.PathLike[str],
    config: str | os.PathLike[str],
    step: int | None = None,
    *,
    kept: bool = False,
    part: str | None = None,
    module: str | None = None,
    shard_bytes: int = SHARD_BYTES,
    storage_options: Mapping[str, Any] | None = None,
) -> Exported:
    """
    Write the weights of a committed step to *out*, a folder for ``from_pretrained``.

    A checkpoint holds no configuration, so the model's is copied from the folder *config*. If that folder has an
    ``adapter_config.json`` and the model has an adapter of LoRA, the adapter is written without its base model.

    Args:
        url: URL of the run.
        out: Path of the folder. It must not exist.
        config: A folder with ``config.json`` or ``adapter_config.json``, such as that of the base model.
        step: Number of a committed step. None: the newest.
        kept: Whether only steps count that are kept. Then *step* may be None if one step is kept.
        part: Name of the model, such as ``model-1``, if the program trains several.
        module: Name of the model of transformers in the module that is trained. None: it is that module.
        shard_bytes: Most bytes of tensors in one file.
        storage_options: Options of the fsspec file system.

    Raises:
        ConfigError: There is no such step, model, module or configuration, they do not fit together, or *out* cannot be
            written.
        CorruptCheckpointError, IncompatibleCheckpointError: The step cannot be read.
        StoreError: The store does not answer.
    """
    check_new(out)
    folder = Path(config)
    settings = {name: _read(folder / name) for name in (MODEL_CONFIG, ADAPTER_CONFIG) if (folder / name).exists()}
    if not settings:
        raise ConfigError(
            f"config={str(folder)!r} has neither {MODEL_CONFIG} nor {ADAPTER_CONFIG}: give a folder that has one, such "
            f"as that of the base model, because a checkpoint holds no configuration"
        )
    weights = open_weights(url, step, kept=kept, part=part, module=module, storage_options=storage_options)
    name, tensors = _chosen(weights, settings)
    document = settings[name]
    if name == MODEL_CONFIG:
        document = {key: value for key, value in document.items() if key != "torch_dtype"}  # its name in old files
        document["dtype"] = _dtype_of(tensors) or settings[name].get("dtype")
    stem = "model" if name == MODEL_CONFIG else "adapter_model"
    with new_folder(out) as unfinished:
        (unfinished / name).write_text(json.dumps(document, indent=2) + "\n")
        for each in _COPIED:
            if (folder / each).is_file():
                shutil.copyfile(folder / each, unfinished / each)
        _write(unfinished, stem, weights, _shards(tensors, shard_bytes))
    # What is no tensor of a model with an adapter belongs to its base model.
    return exported(weights, tensors, no_tensors(weights) if name == MODEL_CONFIG else ())


def _chosen(weights: Weights, settings: Mapping[str, dict[str, Any]]) -> tuple[str, list[Weight]]:
    """Return the name of the configuration that counts, and the tensors to write."""
    if is_adapted(weights.tensors):
        if ADAPTER_CONFIG in settings:
            return ADAPTER_CONFIG, adapter_tensors(weights.tensors, settings[ADAPTER_CONFIG])
        raise ConfigError(
            f"the model has an adapter of PEFT, and {MODEL_CONFIG} describes a model without: give a folder with "
            f"{ADAPTER_CONFIG}. model.peft_config['default'].save_pretrained(folder) writes one"
        )
    if MODEL_CONFIG in settings:
        return MODEL_CONFIG, weights.tensors
    raise ConfigError(f"there is no adapter of LoRA in the model, so {ADAPTER_CONFIG} does not describe it")


def _read(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"config={str(path)!r} cannot be read: {error.strerror}") from error
    except ValueError:
        document = None
    if not isinstance(document, dict):
        raise ConfigError(f"config={str(path)!r} is not a JSON object, so it is no configuration of a model")
    return document


def _dtype_of(tensors: Sequence[Weight]) -> str | None:
    """Return the dtype in which transformers loads all weights. It takes that of the first parameter, too."""
    return next((_FLOATS[each.dtype] for each in tensors if each.dtype in _FLOATS), None)


def _shards(tensors: Sequence[Weight], shard_bytes: int) -> list[list[Weight]]:
    shards: list[list[Weight]] = [[]]
    room = shard_bytes
    for each in tensors:
        if each.num_bytes > room and shards[-1]:
            shards.append([])
            room = shard_bytes
        shards[-1].append(each)
        room -= each.num_bytes
    return shards


def _write(folder: Path, stem: str, weights: Weights, shards: Sequence[Sequence[Weight]]) -> None:
    """Write one file of safetensors, or several with an index."""
    names = [f"{stem}-{number:05d}-of-{len(shards):05d}.safetensors" for number in range(1, len(shards) + 1)]
    if len(shards) == 1:
        names = [f"{stem}.safetensors"]
    for name, tensors in zip(names, shards, strict=True):
        with (folder / name).open("xb") as file:
            write_tensors(file, weights, tensors)
    if len(shards) > 1:
        total = sum(each.num_bytes for tensors in shards for each in tensors)
        places = {each.name: name for name, tensors in zip(names, shards, strict=True) for each in tensors}
        index = {"metadata": {"total_size": total}, "weight_map": places}
        (folder / f"{stem}.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
