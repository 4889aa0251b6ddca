"""The recipe: one file that says everything about a comparison. Unknown keys are refused; errors name key and remedy.

An arm holds a method's name and that method's settings, nothing else: data, start and budget are shared by
construction. `extends: other.yaml` inherits; `key.path=value` on the command line overrides.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from rlhf_bench.ledger import Column
from rlhf_bench.methods import METHODS
from rlhf_bench.methods.base import MethodSettings
from rlhf_bench.tasks import TaskSettings
from rlhf_bench.tokenizer import TokenizerSettings
from rlhf_bench.types import BadInput, Split

CPU_HEAD_SIZES = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)
"""Sizes of an attention head that vLLM 0.32 computes without a GPU."""


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class ModelSettings(Section):
    """The policy's architecture: a folder or Hugging Face id, or a Llama built from scratch."""

    name_or_path: str | None = Field(
        None, description="a Hugging Face id or a folder; null builds a Llama of the sizes below"
    )
    hidden_size: int = Field(128, ge=8, description="width (from scratch)")
    layers: int = Field(4, ge=1, description="decoder layers (from scratch)")
    heads: int = Field(4, ge=1, description="attention heads (from scratch)")
    intermediate_size: int = Field(384, ge=8, description="width of the feed-forward layers (from scratch)")
    max_length: int = Field(64, ge=8, description="most tokens of a prompt and its response together")
    dtype: Literal["float32", "bfloat16"] = Field("float32", description="number format of weights and activations")
    tokenizer: TokenizerSettings = Field(
        default_factory=lambda: TokenizerSettings(kind="characters"),
        description="trained on the task's texts, or a pretrained one",
    )

    @model_validator(mode="after")
    def _heads_divide_width(self) -> ModelSettings:
        if self.hidden_size % (2 * self.heads):
            raise ValueError("hidden_size must be a multiple of 2 × heads (rotary embeddings turn pairs of numbers)")
        return self


class DataSettings(Section):
    """Prompts, pairs and sampling, shared by all arms."""

    train_prompts: int = Field(2048, ge=1, description="prompts that methods sample from")
    off_policy_pairs: int = Field(
        1024, ge=1, description="fixed pairs that another, weaker policy's answers make (or that come with the data)"
    )
    held_out_pairs: int = Field(128, ge=1, description="further such pairs, kept for looking at likelihoods only")
    weaker_policy_steps: float = Field(
        0.5, gt=0, le=1, description="the other policy's fine-tuning, as a fraction of sft.steps"
    )
    on_policy_prompts: int = Field(
        512, ge=1, description="prompts sampled once from the start policy for data: on_policy"
    )
    candidates_per_prompt: int = Field(
        8, ge=2, description="samples among which best and worst are picked (on_policy, online)"
    )
    max_response_tokens: int = Field(16, ge=1, description="longest response that is sampled")
    temperature: float = Field(1.0, gt=0, description="sampling temperature in training")


class StageSettings(Section):
    """One supervised stage."""

    steps: int = Field(400, ge=1, description="optimizer steps")
    examples_per_step: int = Field(64, ge=1, description="examples in one optimizer step")
    learning_rate: float = Field(1e-3, gt=0, description="peak of a schedule with linear warm-up and linear decay")
    max_grad_norm: float = Field(1.0, gt=0, description="gradients are scaled down to this global norm")


class SFTSettings(StageSettings):
    demonstrations: int = Field(8192, ge=1, description="prompts with a response to imitate")


class RewardModelSettings(StageSettings):
    pairs: Literal["off_policy", "start_policy", "both"] = Field(
        "both", description="what it learns from: the off-policy pairs, pairs among the start policy's samples, or both"
    )
    start_policy_prompts: int = Field(512, ge=1, description="prompts sampled from the start policy for its pairs")
    pairs_per_prompt: int = Field(4, ge=1, description="most pairs made among one prompt's samples")


class ComputeSettings(Section):
    """The budget, the same for every arm and seed."""

    column: Column = Field("flops", description="which column of the ledger is the budget")
    limit: float = Field(gt=0, description="how much of it each arm may spend")
    tokens_per_micro_batch: int = Field(
        4096, ge=16, description="padded tokens in one forward pass of the learner or scorer"
    )


class EvaluationSettings(Section):
    """Held-out looks at fixed fractions of the budget. Metered apart."""

    prompts: int = Field(256, ge=1, description="held-out prompts per split")
    samples_per_prompt: int = Field(1, ge=1, description="responses that are sampled and scored for each of them")
    splits: tuple[Literal["in_distribution", "out_of_distribution", "unseen"], ...] = Field(
        ("in_distribution", "out_of_distribution", "unseen"),
        min_length=1,
        description="the first one is the score that is compared",
    )
    marks: tuple[float, ...] = Field(
        (0.25, 0.5, 0.75, 1.0),
        description="fractions of the budget at which to look; the start and the end are always seen",
    )
    temperature: float = Field(
        1.0,
        ge=0,
        description="how the scored responses are sampled: 1 scores the policy as the distribution it is, 0 its likeliest tokens",
    )
    kl_samples: int = Field(
        128, ge=1, description="responses sampled at temperature 1 to estimate sequence KL to the reference"
    )
    sample_prompts: int = Field(8, ge=0, description="prompts per split whose generations the report shows")

    @field_validator("splits")
    @classmethod
    def _main_split_first(cls, splits: tuple[str, ...]) -> tuple[str, ...]:
        if splits[0] != "in_distribution" or len(set(splits)) != len(splits):
            raise ValueError(
                "splits must start with in_distribution (the score that is compared) and name each split once"
            )
        return splits

    @field_validator("marks")
    @classmethod
    def _ascending(cls, marks: tuple[float, ...]) -> tuple[float, ...]:
        if list(marks) != sorted(set(marks)) or not all(0 < m <= 1 for m in marks):
            raise ValueError("marks must ascend within (0, 1]; the start needs no mark")
        return marks


class RolePlacement(Section):
    actors: int = Field(1, ge=1, description="processes of this role (for the learner: ranks)")
    cpus: int = Field(1, ge=1, description="cores each may use: its threads")
    gpus: int = Field(0, ge=0, description="GPUs each may use")


class RolloutPlacement(RolePlacement):
    concurrent_requests: int = Field(256, ge=1, description="sequences an engine decodes at once")
    cache_mib: int = Field(128, ge=16, description="key-value cache of an engine without a GPU, MiB")
    gpu_memory_fraction: float = Field(0.5, gt=0, lt=1, description="share of a GPU's memory an engine takes")


class LearnerPlacement(RolePlacement):
    zero_stage: Literal[0, 1, 2, 3] = Field(
        0, description="what DeepSpeed shards over ranks: nothing, optimizer, gradients, weights"
    )


class Placement(Section):
    """Which role gets which part of the cluster."""

    colocated: bool = Field(
        True, description="actor i of every role shares one bundle of CPUs and GPUs; otherwise each has its own"
    )
    timeout_seconds: float = Field(300, gt=0, description="how long to wait for the cluster to have room")
    rollout: RolloutPlacement = Field(default_factory=RolloutPlacement, description="the vLLM engines that sample")
    scorer: RolePlacement = Field(default_factory=RolePlacement, description="the reward model")
    learner: LearnerPlacement = Field(default_factory=LearnerPlacement, description="the DeepSpeed ranks that train")
    evaluator: RolloutPlacement = Field(
        default_factory=RolloutPlacement, description="the engine that looks at held-out prompts; one actor"
    )
    weight_sync: Literal["object_store", "nccl", "ipc"] = Field(
        "object_store", description="how weights reach the engines; nccl and ipc need GPUs"
    )
    sync_tolerance: float | None = Field(
        None,
        gt=0,
        description="largest gap between engine and learner log-probs after a sync (nats); null: 1e-3 in float32, 0.1 in bfloat16",
    )

    @model_validator(mode="after")
    def _possible(self) -> Placement:
        if self.evaluator.actors != 1:
            raise ValueError("evaluator.actors must be 1: snapshots are looked at one after the other")
        if self.weight_sync != "object_store" and not (self.rollout.gpus and self.learner.gpus):
            raise ValueError(
                f"weight_sync: {self.weight_sync} needs GPUs for rollout and learner; use object_store without them"
            )
        if self.weight_sync == "ipc" and not self.colocated:
            raise ValueError("weight_sync: ipc needs colocated: true (it shares a GPU's memory); use nccl across GPUs")
        return self


class Tracking(Section):
    uri: str | None = Field(
        None, description="MLflow tracking URI; null takes MLFLOW_TRACKING_URI, or a sqlite file beside the output"
    )


class Recipe(Section):
    """A whole comparison."""

    name: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$", description="names the MLflow experiment: letters, digits, - and _"
    )
    description: str = Field("", description="one sentence for the report's head")
    model: ModelSettings = Field(default_factory=ModelSettings, description="the policy's architecture and tokenizer")
    task: TaskSettings = Field(description="prompts, demonstrations and judge")
    data: DataSettings = Field(
        default_factory=DataSettings, description="prompts, pairs and sampling, shared by all arms"
    )
    sft: SFTSettings | None = Field(
        default_factory=SFTSettings, description="null starts from model.name_or_path as it is"
    )
    reward_model: RewardModelSettings = Field(
        default_factory=RewardModelSettings, description="trained when an arm needs it, and charged to it"
    )
    compute: ComputeSettings = Field(description="the budget, the same for every arm and seed")
    evaluation: EvaluationSettings = Field(
        default_factory=EvaluationSettings, description="held-out looks at fixed fractions of the budget"
    )
    seeds: tuple[int, ...] = Field((1, 2, 3), min_length=1, description="every arm runs once per seed")
    placement: Placement = Field(default_factory=Placement, description="which role gets which part of the cluster")
    tracking: Tracking = Field(default_factory=Tracking, description="where MLflow is")
    arms: dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")], MethodSettings] = Field(
        min_length=1, description="name -> method and that method's settings"
    )

    @field_validator("seeds")
    @classmethod
    def _distinct(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if min(seeds) < 0:
            raise ValueError("a seed is a whole number from 0 upwards")
        if len(set(seeds)) != len(seeds):
            raise ValueError("a seed is listed twice: every seed runs once")
        return seeds

    @model_validator(mode="after")
    def _fits(self) -> Recipe:
        if self.data.max_response_tokens >= self.model.max_length:
            raise ValueError("data.max_response_tokens must leave room for a prompt within model.max_length")
        size = self.model.hidden_size // self.model.heads
        if self.model.name_or_path is None and not self.placement.rollout.gpus and size not in CPU_HEAD_SIZES:
            raise ValueError(
                f"model.hidden_size / model.heads is {size}, and vLLM on a CPU knows only {', '.join(map(str, CPU_HEAD_SIZES))}; change one of the two"
            )
        if self.sft is None and self.model.name_or_path is None:
            raise ValueError("sft: null needs model.name_or_path: untrained weights are no base model")
        return self

    def resolved(self) -> dict[str, Any]:
        """Everything, defaults included, as plain data: what is saved with the run."""
        data = self.model_dump(mode="json", exclude={"arms"})
        return data | {"arms": {name: arm.model_dump(mode="json") for name, arm in self.arms.items()}}


def _arm_settings(name: str, arm: Any) -> MethodSettings:
    if isinstance(arm, MethodSettings):
        return arm
    if not isinstance(arm, Mapping) or "method" not in arm:
        raise BadInput(f"arms.{name}: needs `method:`, one of {', '.join(METHODS)}")
    if not isinstance(arm["method"], str) or arm["method"] not in METHODS:
        raise BadInput(
            f"arms.{name}.method: unknown method {arm['method']!r}{_meant(str(arm['method']), METHODS)}; known are {', '.join(METHODS)}"
        )
    settings = METHODS[arm["method"]].settings
    problems = []
    for key in [str(k) for k in arm if k not in settings.model_fields]:
        owners = [m.name for m in METHODS.values() if key in m.settings.model_fields]
        if key in Recipe.model_fields:
            problems.append(f"arms.{name}.{key}: shared by all arms; move it to the recipe's top level")
        elif owners:
            problems.append(
                f"arms.{name}.{key}: a setting of {' and '.join(owners)}, not of {arm['method']}; remove it"
            )
        else:
            problems.append(f"arms.{name}.{key}: unknown key{_meant(key, settings.model_fields)}; remove it")
    if problems:
        raise BadInput(*problems)
    try:
        return settings.model_validate(dict(arm))
    except ValidationError as error:
        raise BadInput(*_lines(error, settings, f"arms.{name}.")) from None


def _meant(word: str, known: Any) -> str:
    close = get_close_matches(word, list(known), n=1)
    return f" (did you mean {close[0]}?)" if close else ""


def _models_of(annotation: Any) -> list[type[BaseModel]]:
    """The settings models that a field's type allows, whatever unions and annotations are around them."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in _models_of(part)]


def _walk(model: type[BaseModel], path: Sequence[Any]) -> tuple[list[str], list[str]]:
    """The key that `path` means as the user wrote it (a union's tag is no key), and the keys known beside its last."""
    models, key, known = [model], [], []
    for part in map(str, path):
        tagged = [m for m in models if len(models) > 1 and getattr(m.model_fields.get("kind"), "default", None) == part]
        if tagged:
            models = tagged
            continue
        key.append(part)
        known = [name for m in models for name in m.model_fields]
        models = [
            found for m in models if part in m.model_fields for found in _models_of(m.model_fields[part].annotation)
        ]
    return key, known


def _lines(error: ValidationError, model: type[BaseModel], prefix: str = "") -> list[str]:
    """One line per problem: key, what is wrong, what to do."""
    lines = []
    for e in error.errors():
        where, known = _walk(model, e["loc"])
        key = prefix + ".".join(where) or "recipe"
        if e["type"] == "extra_forbidden":
            lines.append(f"{key}: unknown key{_meant(where[-1], known)}; remove it")
        elif e["type"] == "missing":
            lines.append(f"{key}: missing; add it")
        else:
            shown = "" if isinstance(e["input"], (dict, list)) else f" (found {e['input']!r})"
            lines.append(f"{key}: {e['msg'].removeprefix('Value error, ')}{shown}; correct it")
    return lines


def parse_recipe(data: Any) -> Recipe:
    """Plain data to a checked recipe. Raises BadInput, one line per problem."""
    if not isinstance(data, Mapping):
        raise BadInput("recipe: must be a mapping of keys to values")
    problems: list[str] = []
    arms = data.get("arms")
    if isinstance(arms, Mapping):
        data = {**data, "arms": {name: _checked_arm(name, arm, problems) for name, arm in arms.items()}}
    try:
        recipe = Recipe.model_validate(data)
    except ValidationError as error:
        raise BadInput(*_lines(error, Recipe), *problems) from None
    if problems:
        raise BadInput(*problems)
    return recipe


def _checked_arm(name: Any, arm: Any, problems: list[str]) -> MethodSettings:
    """The arm's settings; where it is wrong, a stand-in for the rest of the checks, and its problems in the list."""
    try:
        return _arm_settings(name, arm)
    except BadInput as error:
        problems += error.problems
        return MethodSettings()


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe file, apply what it extends and the overrides, check it. Relative paths in it start at its folder."""
    return parse_recipe(recipe_data(path, overrides))


def recipe_data(path: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    data = _read(path, seen=())
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals or not key:
            raise BadInput(f"{override}: an override is written key.path=value")
        try:
            parsed = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise BadInput(
                f"{override}: the value is not readable as YAML: {' '.join(str(error).split())}; quote it"
            ) from None
        _set(data, key.split("."), parsed, override)
    return data


def _read(path: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    path = path.resolve()
    if path in seen:
        raise BadInput(f"{path}: extends itself by way of {seen[-1]}; break the circle")
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BadInput(f"{path}: no such recipe file; check the path") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: not readable as YAML: {' '.join(str(error).split())}") from None
    except OSError as error:
        raise BadInput(f"{path}: cannot be read: {error.strerror}") from None
    if not isinstance(data, dict):
        raise BadInput(f"{path}: a recipe is a mapping of keys to values")
    base = data.pop("extends", None)
    _absolute(data, path.parent)
    return data if base is None else merge(_read(path.parent / str(base), (*seen, path)), data)


def _absolute(data: dict[str, Any], folder: Path) -> None:
    """Files of the task are named relative to the recipe that names them."""
    task = data.get("task")
    if isinstance(task, dict):
        for key, value in task.items():
            if isinstance(value, str) and value.startswith(("./", "../")):
                task[key] = str((folder / value).resolve())


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`over` wins; mappings merge key by key. `arms` and `task` are replaced whole: an arm or a task inherits nothing."""
    out = dict(base)
    for key, value in over.items():
        whole = key in ("arms", "task")
        both = isinstance(value, Mapping) and isinstance(out.get(key), Mapping)
        out[key] = merge(out[key], value) if both and not whole else value
    return out


def _set(data: dict[str, Any], path: list[str], value: Any, override: str) -> None:
    for part in path[:-1]:
        data = data.setdefault(part, {})
        if not isinstance(data, dict):
            raise BadInput(f"{override}: {part} is not a section; check the key")
    data[path[-1]] = value


__all__ = ["Recipe", "Split", "load_recipe", "merge", "parse_recipe", "recipe_data"]
