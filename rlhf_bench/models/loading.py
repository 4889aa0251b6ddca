"""Building and loading Hugging Face models of two kinds: causal, and scalar (reward model, critic).

transformers' model classes are imported inside functions. The import takes seconds, and a driver whose model is in the cache
never needs them.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from rlhf_bench.core.types import Combine
from rlhf_bench.models import attention
from rlhf_bench.models.cpu_kernels import with_cpu_kernels
from rlhf_bench.models.flops import ModelShape
from rlhf_bench.models.heads import ResponseValues, RewardEnsemble, TokenLogprobs
from rlhf_bench.models.hub import folder_of
from rlhf_bench.models.settings import ModelSettings

RANDOM_INIT = "fresh.json"
"""A note beside a configuration without weights: {"seed": N}. They are drawn when it is loaded, the same ones every time."""
REWARD = "reward.json"
"""A note of where a reward model is and how it is read: a `RewardScaling`.

Both count only where `load_model` is given the note itself, which the cache holds. In any other folder, such as one that the
recipe names, files of these names are a stranger's and are not read."""


def write_random_model(settings: ModelSettings, tokenizer: Any, seed: int, folder: Path) -> Path:
    """Write a Llama without weights, and its tokenizer, as a Hugging Face folder. Returns the note of it: `load_model` draws
    the weights.

    The configuration is written as plain JSON, since transformers' configuration class takes seconds to import.
    """
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": len(tokenizer),
        "hidden_size": settings.hidden_size,
        "intermediate_size": settings.intermediate_size,
        "num_hidden_layers": settings.layers,
        "num_attention_heads": settings.heads,
        "num_key_value_heads": settings.heads,
        "max_position_embeddings": settings.max_length,
        "tie_word_embeddings": True,
        "dtype": settings.dtype,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    tokenizer.save_pretrained(folder)
    note = folder / RANDOM_INIT
    note.write_text(json.dumps({"seed": seed}), encoding="utf-8")
    return note


def random_init_shape(settings: ModelSettings, vocabulary: int) -> ModelShape:
    """The shape of the Llama that `write_random_model` describes: four attention and three feed-forward products a
    layer, a head tied to the embedding, two norms a layer and one at the end."""
    hidden = settings.hidden_size
    linear = settings.layers * hidden * (4 * hidden + 3 * settings.intermediate_size)
    norms = (2 * settings.layers + 1) * hidden
    width = settings.layers * (4 * 2 * hidden + 3 * (hidden + settings.intermediate_size))
    head = hidden * vocabulary
    return ModelShape(linear, settings.layers, hidden, head, linear + norms + head, width, vocabulary)


def load_model(path: str, kind: Literal["causal", "scalar"], dtype: str, seed: int) -> nn.Module:
    """A model that answers about response tokens. `path`: a folder, a repository at a commit (`models.hub`), or a note of ours
    about one. `seed` draws a scalar head where there is none. By a reward model's note, scores are scale × the head's output
    − offset; of an ensemble it is the first member, which a critic can start from."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

    reward, drawn = RewardScaling.read(path), None
    if reward.offsets:
        path, reward = str(member_folder(Path(path).parent, 0)), reward.of_member(0)
    if _is_note(path, RANDOM_INIT):
        drawn = json.loads(Path(path).read_text(encoding="utf-8"))["seed"]
    path = str(folder_of(reward.model or (Path(path).parent if Path(path).is_file() else path)))
    attention.register()
    torch.manual_seed(seed)
    config = AutoConfig.from_pretrained(
        path, trust_remote_code=False, **({} if kind == "causal" else {"num_labels": 1})
    )
    config.transformers_weights = None  # the configuration could name a file that is a pickle
    # Without dropout the policy that is trained is the policy that sampled: PPO's ratio starts at 1, DPO's margin at 0.
    for name in [
        n for n in vars(config) if re.search("dropout|_pdrop$|^drop", n) and isinstance(getattr(config, n), float)
    ]:
        setattr(config, name, 0.0)
    kwargs: dict[str, Any] = {
        "config": config,
        "dtype": getattr(torch, dtype),
        "attn_implementation": attention.PACKED_ROWS,
        "trust_remote_code": False,
    }
    if drawn is not None:
        torch.manual_seed(drawn)
        causal = AutoModelForCausalLM.from_config(**kwargs)
        if kind == "causal":
            return TokenLogprobs(with_cpu_kernels(causal))
        torch.manual_seed(seed)
        classifier = AutoModelForSequenceClassification.from_config(**kwargs)
        classifier.base_model.load_state_dict(causal.base_model.state_dict())
        return ResponseValues(with_cpu_kernels(classifier))
    kwargs["use_safetensors"] = True  # other weights are pickles
    if kind == "causal":
        return TokenLogprobs(with_cpu_kernels(AutoModelForCausalLM.from_pretrained(path, **kwargs)))
    classifier = AutoModelForSequenceClassification.from_pretrained(path, **kwargs)
    return ResponseValues(with_cpu_kernels(_scaled(classifier, reward.scale)), reward.offset)


def load_reward_model(path: str, dtype: str) -> ResponseValues | RewardEnsemble:
    """What a note says, or a folder: one reward model or an ensemble, to be asked for scores and not trained."""
    note, folder = RewardScaling.read(path), Path(path).parent
    if not note.offsets:
        return load_model(path, "scalar", dtype, 0)
    members = [load_model(str(member_folder(folder, i)), "scalar", dtype, 0) for i in range(len(note.offsets))]
    for member, offset in zip(members, note.offsets, strict=True):
        member.offset = offset
    return RewardEnsemble(members, note.combine, note.scale, note.offset)


def member_folder(folder: Path, index: int) -> Path:
    """Where an ensemble, whose note is in `folder`, has the weights of its member, counted from 0."""
    return folder / f"member{index + 1}"


@dataclass(frozen=True)
class RewardScaling:
    """How a reward model's output becomes a score, by our note `reward.json`: scale × the head's output − offset. Of an
    ensemble: scale × (the members' outputs less their `offsets`, combined) − offset."""

    model: str | None = None  # where the weights are: a folder, or a repository at a commit; None: beside the note
    scale: float = 1.0
    offset: float = 0.0
    offsets: tuple[float, ...] = ()  # of an ensemble: each member's mean output; () of a single model
    combine: Combine = "mean"

    @property
    def members(self) -> int:
        """How many models score."""
        return max(1, len(self.offsets))

    def of_member(self, index: int) -> RewardScaling:
        """One member alone, on the ensemble's scale."""
        return RewardScaling(self.model, self.scale, self.scale * self.offsets[index] + self.offset)

    def write(self, folder: Path) -> Path:
        """Put the note into a folder of ours."""
        note = folder / REWARD
        note.write_text(json.dumps(asdict(self)), encoding="utf-8")
        return note

    @classmethod
    def read(cls, path: str) -> RewardScaling:
        """By a note. Scores of anything else are taken unchanged."""
        if not _is_note(path, REWARD):
            return cls()
        found = json.loads(Path(path).read_text(encoding="utf-8"))
        return cls(**found | {"offsets": tuple(found.get("offsets", ()))})


def _is_note(path: str, name: str) -> bool:
    return Path(path).name == name and Path(path).is_file()


def _scaled(classifier: nn.Module, scale: float) -> nn.Module:
    """The classifier with its head multiplied by `scale`, in memory only."""
    with torch.no_grad():
        for parameter in classifier.score.parameters():
            parameter.mul_(scale)
    return classifier
