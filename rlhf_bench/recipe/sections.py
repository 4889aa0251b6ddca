"""Every section of a recipe as a typed model: keys, defaults, limits, and the checks across keys."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from rlhf_bench.compute.ledger import Column
from rlhf_bench.core.text import without_passwords
from rlhf_bench.methods import METHODS
from rlhf_bench.methods.base import MethodSettings
from rlhf_bench.models.tokenizer import TokenizerSettings
from rlhf_bench.tasks import TaskSettings

CPU_HEAD_SIZES = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)
"""Sizes of an attention head that vLLM 0.32 computes without a GPU."""


ARM_NAME = r"^[A-Za-z0-9][A-Za-z0-9_.=+-]*$"
BEST = "best"
"""In MLflow's registry the alias of the policy that scored best; each arm's own best has the arm's name."""


def alias_of(arm: str) -> str:
    """An arm's name as MLflow takes it for an alias."""
    return re.sub(r"[^A-Za-z0-9_-]", "_", arm)


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class LoraSettings(Section):
    """Adapters of low rank beside every linear layer but the head, which learn in place of the weights (docs/lora.md)."""

    rank: int = Field(16, ge=1, description="rank of an adapter's two matrices")
    alpha: float = Field(32.0, gt=0, description="what the adapter adds is scaled by alpha / rank")


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
    lora: LoraSettings | None = Field(
        None,
        description="train adapters in place of the weights, in every stage and arm; null trains all weights",
    )
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
    name_or_path: str | None = Field(
        None,
        description="a Hugging Face id or a folder of an AutoModelForSequenceClassification with one label and the policy's tokenizer, used as it is; null trains one",
    )
    pairs: Literal["off_policy", "start_policy", "both"] = Field(
        "both", description="what it learns from: the off-policy pairs, pairs among the start policy's samples, or both"
    )
    start_policy_prompts: int = Field(
        512, ge=1, description="prompts sampled from the start policy, for its pairs and for the scores' scale"
    )
    pairs_per_prompt: int = Field(4, ge=1, description="most pairs made among one prompt's samples")

    @model_validator(mode="after")
    def _trained_or_given(self) -> RewardModelSettings:
        of_training = [key for key in type(self).model_fields if key not in ("name_or_path", "start_policy_prompts")]
        # By value: a recipe that was saved in full has every key.
        set_here = [key for key in of_training if getattr(self, key) != type(self).model_fields[key].default]
        if self.name_or_path is not None and set_here:
            raise ValueError(
                f"{set_here[0]} is for training one, and name_or_path gives one that is trained; remove one of the two"
            )
        return self


class ComputeSettings(Section):
    """The budget, the same for every arm and seed."""

    column: Column = Field("flops", description="which column of the ledger is the budget")
    limit: float = Field(gt=0, description="how much of it each arm may spend")
    tokens_per_micro_batch: int = Field(4096, ge=16, description="tokens in one forward pass of the learner or scorer")
    skips_in_a_row: int = Field(
        5,
        ge=1,
        description="so many updates in a row without finite numbers, each of them skipped, end an arm as diverged",
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
    gradient_pairs: int = Field(
        16, ge=0, description="held-out pairs whose gradients ∇θ log π are looked at (docs/diagnostics.md); 0 for none"
    )

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
    memory_gib: float = Field(
        8,
        gt=0,
        description="host memory that `rlhf-bench manifest` asks for each, GiB, and that more than one fleet is reckoned with",
    )


class RolloutPlacement(RolePlacement):
    concurrent_requests: int = Field(256, ge=1, description="sequences an engine decodes at once")
    cache_mib: int = Field(128, ge=16, description="key-value cache of an engine without a GPU, MiB")
    gpu_memory_fraction: float = Field(0.5, gt=0, lt=1, description="share of a GPU's memory an engine takes")


class LearnerPlacement(RolePlacement):
    zero_stage: Literal[0, 1, 2, 3] = Field(
        0, description="what DeepSpeed shards over ranks: nothing, optimizer, gradients, weights"
    )


class Device(Section):
    """What one GPU is, or one core where there is none: for the forecast of `check` alone, which starts nothing."""

    memory_gib: float = Field(79.0, gt=0, description="memory of a GPU; the default is an H100 of 80 GB")
    peak_tflops: float | None = Field(
        None,
        gt=0,
        description="most 10¹² FLOP/s; null takes the data sheet of an H100 SXM, 989 in bfloat16 and 67 in float32, or without GPUs 0.066 a core, as docs/benchmarks.md measured",
    )
    utilisation: float | None = Field(
        None, gt=0, le=1, description="share of them that a run makes use of; null takes 0.3 on GPUs and 0.6 on cores"
    )


class Placement(Section):
    """Which role gets which part of the cluster."""

    colocated: bool = Field(
        True, description="actor i of every role shares one bundle of CPUs and GPUs; otherwise each has its own"
    )
    pinned: bool = Field(
        False,
        description="every role only on nodes that offer a Ray resource of its name (rollout, scorer, learner, evaluator); needs colocated: false",
    )
    fleets: int | None = Field(
        None,
        ge=1,
        description="how many fleets, each with all roles, may work on arms at once; null: as many as the cluster has room for, one where the budget is in device_seconds",
    )
    timeout_seconds: float = Field(300, gt=0, description="how long to wait for the cluster to have room")
    rollout: RolloutPlacement = Field(default_factory=RolloutPlacement, description="the vLLM engines that sample")
    scorer: RolePlacement = Field(default_factory=RolePlacement, description="the reward model")
    learner: LearnerPlacement = Field(default_factory=LearnerPlacement, description="the DeepSpeed ranks that train")
    evaluator: RolloutPlacement = Field(
        default_factory=RolloutPlacement, description="the engine that looks at held-out prompts; one actor"
    )
    device: Device = Field(default_factory=Device, description="what the forecast of `check` takes a GPU or core to be")
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
        if self.pinned and self.colocated:
            raise ValueError(
                "pinned: true gives every role nodes of its own, and colocated: true puts all roles together; set colocated: false"
            )
        if self.weight_sync != "object_store" and not (self.rollout.gpus and self.learner.gpus):
            raise ValueError(
                f"weight_sync: {self.weight_sync} needs GPUs for rollout and learner; use object_store without them"
            )
        if self.weight_sync == "ipc" and not self.colocated:
            raise ValueError("weight_sync: ipc needs colocated: true (it shares a GPU's memory); use nccl across GPUs")
        return self

    def roles(self, scorer: bool) -> dict[str, RolePlacement]:
        """By name; the scorer's only where an arm is rewarded by a model."""
        roles: dict[str, RolePlacement] = {
            "learner": self.learner,
            "rollout": self.rollout,
            "evaluator": self.evaluator,
        }
        return roles | ({"scorer": self.scorer} if scorer else {})


class TuningSettings(Section):
    """Trials before the comparison: every arm tries the same settings, once each, and keeps its best.

    Trials are scored on held-out prompts of their own, which the comparison never looks at. What they spend is
    recorded in the ledger (phase `tuning`) and shown beside the budget: the same number of trials for every arm.
    """

    trials: tuple[dict[str, float], ...] = Field(
        min_length=2, description="settings to try, each a mapping such as {learning_rate: 1.0e-4}"
    )
    fraction: float = Field(0.5, gt=0, le=1, description="of compute.limit, what one trial may spend")
    prompts: int = Field(256, ge=1, description="held-out prompts that trials are scored on")
    seed: int = Field(0, ge=0, description="the trials' seed; not one of the comparison's")


class Claim(Section):
    """A statement about two arms that the report decides: does `more` exceed `less` in `metric`?"""

    statement: str = Field(min_length=1, description="what is claimed, as a sentence")
    more: str = Field(description="the arm whose metric is claimed to be larger")
    less: str = Field(description="the arm whose metric is claimed to be smaller")
    metric: str = Field(
        "score", description="score, best_score, drawdown, or a number of the held-out looks; see docs/statistics.md"
    )


class Reliability(Section):
    """What is done so that a process may die at any moment (docs/reliability.md)."""

    checkpoint_seconds: float = Field(
        120, ge=0, description="at least so long between two checkpoints of an arm; 0 writes one after every update"
    )
    checkpoints: int = Field(2, ge=1, description="how many of an arm's checkpoints are kept while it runs")
    checkpoint_place: str | None = Field(
        None,
        description="folder or URI for them that every node sees, such as s3://bucket/folder; null takes DIR/state",
    )
    grace_seconds: float = Field(
        20, gt=0, description="how long a signal to end may wait for the update under way, and its checkpoint"
    )
    hang_seconds: float = Field(
        60, ge=4, description="an actor that shows no sign of life for so long is ended and started again"
    )
    restarts: int = Field(
        5, ge=0, description="so many restarts of one actor within window_seconds; one more ends the run"
    )
    window_seconds: float = Field(600, gt=0, description="see restarts")


class Tracking(Section):
    uri: str | None = Field(
        None,
        description="MLflow tracking URI, without a password; null takes MLFLOW_TRACKING_URI, or a sqlite file beside the output",
    )

    register_as: str | None = Field(
        None,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$",
        description="name of a model in MLflow's registry: every finished policy becomes a version of it, with aliases (docs/mlflow.md); null registers none",
    )

    @field_validator("uri")
    @classmethod
    def _no_secret(cls, uri: str | None) -> str | None:
        if uri is not None and without_passwords(uri) != uri:
            raise ValueError(
                "holds a password or token, and a recipe is copied to the output and the report; leave it out and set "
                "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD (for a database: the whole MLFLOW_TRACKING_URI)"
            )
        return uri


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
        default_factory=RewardModelSettings, description="trained, or given, when an arm needs it, and charged to it"
    )
    compute: ComputeSettings = Field(description="the budget, the same for every arm and seed")
    evaluation: EvaluationSettings = Field(
        default_factory=EvaluationSettings, description="held-out looks at fixed fractions of the budget"
    )
    seeds: tuple[int, ...] = Field((1, 2, 3), min_length=1, description="every arm runs once per seed")
    placement: Placement = Field(default_factory=Placement, description="which role gets which part of the cluster")
    tracking: Tracking = Field(default_factory=Tracking, description="where MLflow is")
    reliability: Reliability = Field(
        default_factory=Reliability, description="checkpoints, and what happens when a process dies or hangs"
    )
    arms: dict[Annotated[str, Field(pattern=ARM_NAME)], MethodSettings] = Field(
        min_length=1, description="name -> method and that method's settings"
    )
    sweep: dict[str, tuple[float, ...]] = Field(
        default_factory=dict,
        description="setting -> values: every arm that has the setting runs once with each, as NAME.setting=value",
    )
    tuning: TuningSettings | None = Field(None, description="trials that every arm gets before the comparison")
    baseline: str | None = Field(None, description="the arm that all others are tested against")
    claims: tuple[Claim, ...] = Field((), description="statements about two arms that the report decides")

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
        if self.model.lora is not None and self.model.name_or_path is None:
            raise ValueError(
                "model.lora needs model.name_or_path: adapters learn beside pretrained weights; name a model, or remove model.lora"
            )
        if self.model.lora is not None and self.placement.weight_sync != "object_store":
            raise ValueError(
                f"placement.weight_sync: {self.placement.weight_sync} sends parameters as they are, and with model.lora an engine needs adapters and weights merged; use object_store"
            )
        known = ", ".join(self.arms)
        if self.baseline is not None and self.baseline not in self.arms:
            raise ValueError(f"baseline: there is no arm {self.baseline}; choose among {known}")
        for claim in self.claims:
            for side in (claim.more, claim.less):
                if side not in self.arms:
                    raise ValueError(f"claims: there is no arm {side}; choose among {known}")
        adapting = [name for name, arm in self.arms.items() if arm.method and METHODS[arm.method].adapt]
        if adapting and self.placement.learner.zero_stage == 3:
            raise ValueError(
                f"placement.learner.zero_stage: 3 shards the weights, and arm {adapting[0]} takes gradients of whole ones; use 2"
            )
        ahead = [name for name, arm in self.arms.items() if arm.draws_ahead]
        if ahead and self.compute.column == "device_seconds":
            raise ValueError(
                f"arms.{ahead[0]}.rollouts_ahead: 1 draws before the seconds of the update under way are known, so a budget of device_seconds could be passed; use another compute.column"
            )
        if self.tracking.register_as is not None:
            self._refuse_aliases()
        if self.tuning and self.tuning.seed in self.seeds:
            raise ValueError(f"tuning.seed: {self.tuning.seed} is one of seeds; trials need a seed of their own")
        return self

    def _refuse_aliases(self) -> None:
        """Names that MLflow's registry, or this project, has given to other things."""
        seen: dict[str, str] = {}
        for arm in self.arms:
            alias = alias_of(arm)
            if alias.lower() in ("latest", BEST) or re.fullmatch(r"[vV]\d+", alias):
                raise ValueError(
                    f"arms.{arm}: tracking.register_as cannot give a policy the alias {alias}; rename the arm"
                )
            if alias in seen:
                raise ValueError(
                    f"arms.{arm}: its alias in the registry, {alias}, would be that of arm {seen[alias]} too; rename one"
                )
            seen[alias] = arm

    def resolved(self) -> dict[str, Any]:
        """Everything, defaults included, as plain data: what is saved with the run."""
        data = self.model_dump(mode="json", exclude={"arms"})
        return data | {"arms": {name: arm.model_dump(mode="json") for name, arm in self.arms.items()}}
