"""Models that the user gives. Whether one can be used is said before any process starts, from what is quick to read:
its configuration and, of a folder, the headers of its weights. No weight itself is read."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch

from rlhf_bench import attention
from rlhf_bench.flops import ModelShape
from rlhf_bench.models import FRESH
from rlhf_bench.tokenizer import TextTokenizer, first_line, refuse_missing_folder
from rlhf_bench.types import BadInput

KEY = "model.name_or_path"
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLED = (".bin", ".pt", ".pth", ".ckpt")


def pretrained_model(name: str, max_length: int, scalar: bool) -> tuple[Any, ModelShape]:
    """The model at a folder or Hugging Face id without its weights, and its shape; `scalar` says whether a reward model
    or critic is made of it too. BadInput where a role could not load it, or it has fewer than `max_length` positions.

    The weights of an id are first seen when a role loads them."""
    from transformers.utils.peft_utils import find_adapter_config_file

    refuse_missing_folder(KEY, name)
    folder = Path(name) if Path(name).is_dir() else None
    if find_adapter_config_file(name):  # which transformers would load, from a pickle if need be
        _refuse(name, "it holds an adapter (adapter_config.json)", "merge the adapter into its model and save that")
    config = _config(name, folder)
    weights = {} if folder is None or (folder / FRESH).exists() else _weights(folder)
    layers = getattr(config, "num_hidden_layers", 0)
    if weights and layers > len(weights):  # before so many are built
        raise BadInput(
            f"{KEY}: {name}/config.json has {layers} layers, and its weights are {len(weights)} tensors; give both of one model"
        )
    model, shape = _built(name, config, scalar)
    if weights:
        _refuse_other_weights(name, weights, model)
    positions = getattr(config, "max_position_embeddings", None)
    if isinstance(positions, int) and 0 < positions < max_length:
        raise BadInput(f"model.max_length: {max_length} is more than the {positions} positions of {name}; lower it")
    return model, shape


def refuse_other_tokenizer(name: str, model: Any, tokenizer: TextTokenizer) -> None:
    """BadInput where the tokenizer has tokens that the model does not know. Fewer are no mistake: models are padded."""
    vocabulary = model.get_input_embeddings().weight.shape[0]
    highest = max(tokenizer.backend_tokenizer.get_vocab(with_added_tokens=True).values())
    if highest >= vocabulary:
        raise BadInput(
            f"model.tokenizer.name_or_path: its token ids go up to {highest}, and the model {name} has a vocabulary of {vocabulary}; give the tokenizer that belongs to the model"
        )


def _refuse(name: str, reason: str, remedy: str = "give one that transformers can load") -> NoReturn:
    raise BadInput(f"{KEY}: {name} is no causal language model that can be used: {reason}; {remedy}") from None


def _config(name: str, folder: Path | None) -> Any:
    from transformers import AutoConfig

    if folder is not None and not (folder / "config.json").is_file():
        _refuse(name, "it has no config.json", "give a folder that save_pretrained wrote")
    try:
        return AutoConfig.from_pretrained(name, trust_remote_code=False)
    except Exception as error:  # whatever transformers makes of a user's file, the file is wrong
        _refuse(name, first_line(error))


def _built(name: str, config: Any, scalar: bool) -> tuple[Any, ModelShape]:
    """The model without its weights, built as the roles build it, and its shape."""
    from transformers import AutoModelForCausalLM
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_MASKED_LM_MAPPING,
        MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    )

    if config.is_encoder_decoder:
        _refuse(name, f"{config.model_type} has an encoder and a decoder", "give one with a decoder alone")
    if type(config) in MODEL_FOR_MASKED_LM_MAPPING and not getattr(config, "is_decoder", False):
        _refuse(name, f"{config.model_type} sees the words to come", "give one with a decoder alone")
    if getattr(config, "quantization_config", None) is not None:
        _refuse(name, "its weights are quantized and cannot be trained", "give it as it was before")
    attention.register()
    kwargs = {"attn_implementation": attention.PACKED_ROWS}
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=False, **kwargs)
            shape = ModelShape.of(model)
    except Exception as error:  # as above
        _refuse(name, first_line(error))
    if not model.is_backend_compatible():
        _refuse(name, f"{config.model_type} has an attention of its own, which cannot take rows of several responses")
    if scalar and type(config) not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        _refuse(
            name, f"transformers makes no reward model or critic of {config.model_type}", "give one of another kind"
        )
    return model, shape


@dataclass(frozen=True)
class _Weight:
    """What the header of a safetensors file says of one tensor."""

    file: Path
    shape: tuple[int, ...]
    dtype: str  # as safetensors names it: F32, BF16, I8


def _weights(folder: Path) -> dict[str, _Weight]:
    """Every tensor of the folder's weights, by name."""
    from safetensors import SafetensorError, safe_open

    weights = {}
    for file in _files(folder):
        try:
            with safe_open(file, framework="pt") as opened:
                for key in opened.keys():
                    part = opened.get_slice(key)
                    weights[key] = _Weight(file, tuple(part.get_shape()), part.get_dtype())
        except FileNotFoundError:
            raise BadInput(f"{KEY}: {INDEX} names {file}, which is not there; copy or download it again") from None
        except (SafetensorError, OSError) as error:
            raise BadInput(
                f"{KEY}: {file} is damaged or cut short ({first_line(error)}); copy or download it again"
            ) from None
    return weights


def _files(folder: Path) -> list[Path]:
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    index = folder / INDEX
    if index.is_file():
        try:
            files = set(json.loads(index.read_bytes())["weight_map"].values())
            return sorted(folder / file for file in files)
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            raise BadInput(f"{KEY}: {index} maps no weights to files; copy or download it again") from None
    pickled = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLED)
    if pickled:
        raise BadInput(
            f"{KEY}: {folder} has only pickled weights ({pickled[0]}), which can run code when they are read; convert them to {WEIGHTS}: load them where you trust them, and save_pretrained"
        )
    raise BadInput(f"{KEY}: {folder} has no weights; put {WEIGHTS} there, or shards and {INDEX}")


def _refuse_other_weights(name: str, weights: Mapping[str, _Weight], model: Any) -> None:
    """BadInput where transformers would draw weights at random or leave some out: names and shapes must be the model's.

    The names are those that transformers itself gives to a checkpoint's tensors as it loads them."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, rename_source_key

    remedy = "give configuration and weights of one model"
    wanted, changes = model.state_dict(), get_model_conversion_mapping(model)
    renamings = [change for change in changes if not isinstance(change, WeightConverter)]
    converters = [change for change in changes if isinstance(change, WeightConverter)]
    by_source = {source: converter for converter in converters for source in converter.source_patterns}
    filled, others = set(model.all_tied_weights_keys), []
    for key, weight in weights.items():
        to, source = rename_source_key(key, renamings, converters, model.base_model_prefix, wanted)
        if to not in wanted and key in wanted:
            to, source = key, None
        if to not in wanted:
            others.append(to)
            continue
        if not weight.dtype.startswith(("F", "BF")):
            raise BadInput(f"{KEY}: {weight.file}: {key} holds {weight.dtype}, no fractions; {remedy}, not quantized")
        if source is not None:  # several tensors become one, or one several: their shapes are the library's affair
            targets = by_source[source].target_patterns
            filled |= {to.replace(targets[0], target) for target in targets}
            continue
        filled.add(to)
        if weight.shape != tuple(wanted[to].shape):
            raise BadInput(
                f"{KEY}: {weight.file}: {key} has shape {list(weight.shape)}, and config.json makes it {list(wanted[to].shape)}; {remedy}"
            )
    ignored = model._keys_to_ignore_on_load_missing or ()
    missing = [key for key in wanted if key not in filled and not any(re.search(i, key) for i in ignored)]
    if missing:
        raise BadInput(
            f"{KEY}: the weights of {name} lack {len(missing)} of the model's {len(wanted)} tensors, first {missing[0]}; {remedy}"
        )
    kinds = {re.sub(r"\d+", "N", key) for key in wanted}
    if more := [key for key in others if re.sub(r"\d+", "N", key) in kinds]:
        raise BadInput(f"{KEY}: the weights of {name} have {more[0]}, beyond the layers of config.json; {remedy}")
