"""Checks of models that the user names, before any process starts.

They read only what is quick to read: the configuration and, for a folder, the headers of its weight files."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch
from tokenizers import Tokenizer

from rlhf_bench.core.errors import BadInput
from rlhf_bench.core.given import REWARD_MODEL
from rlhf_bench.models import attention
from rlhf_bench.models.flops import ModelShape
from rlhf_bench.models.hub import folder_of
from rlhf_bench.models.tokenizer import TextTokenizer, check_folder, first_line

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLED = (".bin", ".pt", ".pth", ".ckpt")


@dataclass(frozen=True)
class ModelSource:
    """A folder, or a repository at a commit; the recipe's key that names it, and what it must be."""

    key: str
    name: str
    kind: str

    @property
    def folder(self) -> Path | None:
        return Path(self.name) if Path(self.name).is_dir() else None

    @property
    def place(self) -> str:
        """Where its files are on this machine, those of a repository without weights."""
        return str(folder_of(self.name, weights=False))

    def refuse(self, reason: str, remedy: str = "give one that transformers can load") -> NoReturn:
        raise BadInput(f"{self.key}: {self.name} cannot be used as a {self.kind}: {reason}; {remedy}") from None


def pretrained_model(name: str, max_length: int, scalar: bool) -> tuple[Any, ModelShape]:
    """The model at a folder, or a repository at a commit, without its weights, and its shape; `scalar` says whether a reward model
    or critic is made of it too. BadInput where a role could not load it, or it has fewer than `max_length` positions.

    The weights of a repository are first seen when a role loads them."""
    from transformers import AutoModelForCausalLM
    from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING

    given = ModelSource("model.name_or_path", name, "causal language model")
    config = _config(given)
    model, shape = _built(given, config, AutoModelForCausalLM, _weights(given))
    if scalar and type(config) not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        given.refuse(f"transformers makes no reward model or critic of {config.model_type}", "give one of another kind")
    if positions := _too_few_positions(config, max_length):
        raise BadInput(f"model.max_length: {max_length} is more than the {positions} positions of {name}; lower it")
    _check_generation(given)
    return model, shape


def _check_generation(given: ModelSource) -> None:
    """BadInput where transformers would not write the model's generation_config.json again, as it must into finished policies."""
    from transformers import GenerationConfig

    with contextlib.suppress(OSError):  # there is none
        found = GenerationConfig.from_pretrained(given.place)
        try:
            found.validate(strict=True)
        except ValueError as error:
            said = [line.strip(" -") for line in str(error).splitlines() if line.startswith("- ")] or [
                first_line(error)
            ]
            given.refuse(f"its generation_config.json contradicts itself: {said[0]}", "correct that file")


def pretrained_reward_model(
    name: str, max_length: int, tokenizer: TextTokenizer, key: str = REWARD_MODEL
) -> ModelShape:
    """The shape of the reward model at a folder, or a repository at a commit, which `key` of the recipe names. BadInput as for
    `pretrained_model`, and where it does not answer with one number or does not know the policy's token ids, which are what it
    is given."""
    from transformers import AutoModelForSequenceClassification

    given = ModelSource(key, name, "reward model")
    config = _config(given)
    classifier = "save one with AutoModelForSequenceClassification and num_labels=1"
    architecture = str((getattr(config, "architectures", None) or [""])[0])
    if architecture and not architecture.endswith("ForSequenceClassification"):
        given.refuse(f"it is a {architecture}", classifier)
    if config.num_labels != 1:
        given.refuse(f"it has {config.num_labels} labels, and a reward is one number", classifier)
    model, shape = _built(given, config, AutoModelForSequenceClassification, _weights(given))
    if not hasattr(model, "score"):
        given.refuse(f"{config.model_type} has a head of its own kind", "give one of another kind")
    if positions := _too_few_positions(config, max_length):
        raise BadInput(
            f"{given.key}: {name} has {positions} positions, fewer than model.max_length {max_length}; lower that, or give another one"
        )
    _check_token_ids(given, model, tokenizer)
    return shape


def _check_token_ids(given: ModelSource, model: Any, tokenizer: TextTokenizer) -> None:
    """BadInput where an id of the policy's is beyond the model's vocabulary, or its tokenizer knows it as another token.
    More tokens are allowed: many reward models have one for padding."""
    from transformers.utils import cached_file

    vocabulary, policys = model.get_input_embeddings().weight.shape[0], _ids(tokenizer.backend_tokenizer)
    remedy = "a reward model is given the policy's token ids, so give one with the policy's tokenizer"
    if (highest := max(policys.values())) >= vocabulary:
        raise BadInput(
            f"{given.key}: {given.name} has a vocabulary of {vocabulary}, and the policy's token ids go up to {highest}; {remedy}"
        )
    try:
        file = cached_file(given.place, "tokenizer.json", _raise_exceptions_for_missing_entries=False)
        own = policys if file is None else _ids(Tokenizer.from_file(file))
    except Exception as error:  # tokenizers has no more specific error
        raise BadInput(
            f"{given.key}: the tokenizer of {given.name} cannot be read ({first_line(error)}); copy or download it again"
        ) from None
    if differing := [token for token, index in policys.items() if own.get(token) != index]:
        token = min(differing, key=policys.__getitem__)
        raise BadInput(
            f"{given.key}: the tokenizer of {given.name} has {own.get(token, 'no id')} for {token!r}, and the policy's has {policys[token]}; {remedy}"
        )


def _ids(tokenizer: Tokenizer) -> dict[str, int]:
    return tokenizer.get_vocab(with_added_tokens=True)


def _too_few_positions(config: Any, max_length: int) -> int | None:
    """The model's number of positions, where that is less than `max_length`."""
    positions = getattr(config, "max_position_embeddings", None)
    return positions if isinstance(positions, int) and 0 < positions < max_length else None


def check_tokenizer(name: str, model: Any, tokenizer: TextTokenizer) -> None:
    """BadInput where the tokenizer has tokens that the model does not know. Fewer are allowed: models' vocabularies are often padded."""
    vocabulary = model.get_input_embeddings().weight.shape[0]
    highest = max(_ids(tokenizer.backend_tokenizer).values())
    if highest >= vocabulary:
        raise BadInput(
            f"model.tokenizer.name_or_path: its token ids go up to {highest}, and the model {name} has a vocabulary of {vocabulary}; give the tokenizer that belongs to the model"
        )


def _config(given: ModelSource) -> Any:
    from transformers import AutoConfig
    from transformers.utils.peft_utils import find_adapter_config_file

    check_folder(given.key, given.name)
    if find_adapter_config_file(given.place):  # transformers would load it, possibly from a pickle
        given.refuse("it holds an adapter (adapter_config.json)", "merge the adapter into its model and save that")
    if given.folder is not None and not (given.folder / "config.json").is_file():
        gguf = sorted(given.folder.glob("*.gguf"))
        wanted = f"give the GGUF file in it, {gguf[0]}" if gguf else "give a folder that save_pretrained wrote"
        given.refuse("it has no config.json", wanted)
    try:
        return AutoConfig.from_pretrained(given.place, trust_remote_code=False)
    except Exception as error:  # any error of transformers means that the user's file is wrong
        given.refuse(first_line(error))


def _built(given: ModelSource, config: Any, kind: Any, weights: Mapping[str, _Weight]) -> tuple[Any, ModelShape]:
    """The model without its weights, built as the roles build it, and its shape. BadInput where `weights` do not fit it."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING

    layers = getattr(config, "num_hidden_layers", 0)
    if weights and layers > len(weights):  # before that many are built
        raise BadInput(
            f"{given.key}: {given.name}/config.json has {layers} layers, and its weights are {len(weights)} tensors; give both of one model"
        )
    if config.is_encoder_decoder:
        given.refuse(f"{config.model_type} has an encoder and a decoder", "give one that is a decoder only")
    if type(config) in MODEL_FOR_MASKED_LM_MAPPING and not getattr(config, "is_decoder", False):
        given.refuse(
            f"{config.model_type} also attends to later tokens (a masked language model)",
            "give one that is a decoder only",
        )
    if getattr(config, "quantization_config", None) is not None:
        given.refuse("its weights are quantized and cannot be trained", "give it as it was before")
    attention.register()
    kwargs = {"attn_implementation": attention.PACKED_ROWS}
    try:
        with torch.device("meta"):
            model = kind.from_config(config, trust_remote_code=False, **kwargs)
            shape = ModelShape.of(model)
    except Exception as error:  # as above
        given.refuse(first_line(error))
    if not model.is_backend_compatible():
        given.refuse(
            f"{config.model_type} has an attention implementation of its own, which cannot compute rows of several responses"
        )
    if weights:
        _check_weights(given, weights, model)
    return model, shape


@dataclass(frozen=True)
class _Weight:
    """What the header of a safetensors file says about one tensor."""

    file: Path
    shape: tuple[int, ...]
    dtype: str  # as safetensors names it: F32, BF16, I8


def _weights(given: ModelSource) -> dict[str, _Weight]:
    """Every tensor of a folder's weights, by name; empty for a repository."""
    from safetensors import SafetensorError, safe_open

    weights = {}
    for file in _files(given.key, given.folder) if given.folder is not None else ():
        try:
            with safe_open(file, framework="pt") as opened:
                for key in opened.keys():
                    part = opened.get_slice(key)
                    weights[key] = _Weight(file, tuple(part.get_shape()), part.get_dtype())
        except FileNotFoundError:
            raise BadInput(
                f"{given.key}: {INDEX} names {file}, which is not there; copy or download it again"
            ) from None
        except (SafetensorError, OSError) as error:
            raise BadInput(
                f"{given.key}: {file} is damaged or cut short ({first_line(error)}); copy or download it again"
            ) from None
    return weights


def _files(key: str, folder: Path) -> list[Path]:
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    index = folder / INDEX
    if index.is_file():
        try:
            files = set(json.loads(index.read_bytes())["weight_map"].values())
            return sorted(folder / file for file in files)
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            raise BadInput(f"{key}: {index} maps no weights to files; copy or download it again") from None
    pickled = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLED)
    if pickled:
        raise BadInput(
            f"{key}: {folder} has only pickled weights ({pickled[0]}), which can run code when they are read; convert them to {WEIGHTS}: load them where you trust them, and save_pretrained"
        )
    raise BadInput(f"{key}: {folder} has no weights; put {WEIGHTS} there, or shards and {INDEX}")


def _check_weights(given: ModelSource, weights: Mapping[str, _Weight], model: Any) -> None:
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
            raise BadInput(
                f"{given.key}: {weight.file}: {key} holds {weight.dtype}, no fractions; {remedy}, not quantized"
            )
        if source is not None:  # several tensors become one, or one becomes several: transformers checks their shapes
            targets = by_source[source].target_patterns
            filled |= {to.replace(targets[0], target) for target in targets}
            continue
        filled.add(to)
        if weight.shape != tuple(wanted[to].shape):
            raise BadInput(
                f"{given.key}: {weight.file}: {key} has shape {list(weight.shape)}, and config.json makes it {list(wanted[to].shape)}; {remedy}"
            )
    ignored = model._keys_to_ignore_on_load_missing or ()
    missing = [key for key in wanted if key not in filled and not any(re.search(i, key) for i in ignored)]
    if missing:
        raise BadInput(
            f"{given.key}: the weights of {given.name} lack {len(missing)} of the model's {len(wanted)} tensors, first {missing[0]}; {remedy}"
        )
    kinds = {re.sub(r"\d+", "N", key) for key in wanted}
    if more := [key for key in others if re.sub(r"\d+", "N", key) in kinds]:
        raise BadInput(
            f"{given.key}: the weights of {given.name} have {more[0]}, beyond the layers of config.json; {remedy}"
        )
