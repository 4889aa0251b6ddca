"""The whole recipe, and what its sections must agree on."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import Field, field_validator, model_validator

from rlhf_bench.core.settings import Section
from rlhf_bench.methods import METHODS
from rlhf_bench.methods.base import MethodSettings
from rlhf_bench.models.settings import ModelSettings
from rlhf_bench.recipe.placement import Placement
from rlhf_bench.recipe.sections import (
    ComputeSettings,
    DataSettings,
    EvaluationSettings,
    Reliability,
    RewardModelSettings,
    SFTSettings,
    Tracking,
)
from rlhf_bench.tasks import TaskSettings

CPU_HEAD_SIZES = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)
"""Sizes of an attention head that vLLM 0.32 computes without a GPU."""

ARM_NAME = r"^[A-Za-z0-9][A-Za-z0-9_.=+-]*$"

BEST = "best"
"""In MLflow's registry the alias of the policy that scored best; each arm's own best has the arm's name."""


def alias_of(arm: str) -> str:
    """An arm's name as MLflow takes it for an alias."""
    return re.sub(r"[^A-Za-z0-9_-]", "_", arm)


class TuningSettings(Section):
    """Trials before the comparison: every arm tries the same settings, once each, and keeps its best.

    Trials are scored on held-out prompts that the comparison never uses. What they spend is
    recorded in the ledger (phase `tuning`) and shown beside the budget: the same number of trials for every arm.
    """

    trials: tuple[dict[str, float], ...] = Field(
        min_length=2, description="settings to try, each a mapping such as {learning_rate: 1.0e-4}"
    )
    fraction: float = Field(0.5, gt=0, le=1, description="share of compute.limit that one trial may spend")
    prompts: int = Field(256, ge=1, description="held-out prompts that trials are scored on")
    seed: int = Field(0, ge=0, description="seed of the trials; it must not be one of the comparison's")


class Claim(Section):
    """A statement about two arms that the report decides: does `more` exceed `less` in `metric`?"""

    statement: str = Field(min_length=1, description="what is claimed, as a sentence")
    more: str = Field(description="the arm whose metric is claimed to be larger")
    less: str = Field(description="the arm whose metric is claimed to be smaller")
    metric: str = Field(
        "score", description="score, best_score, drawdown, or a number that evaluations record; see docs/statistics.md"
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
        default_factory=SFTSettings, description="supervised fine-tuning; null starts from model.name_or_path unchanged"
    )
    reward_model: RewardModelSettings = Field(
        default_factory=RewardModelSettings,
        description="trained or given; used where an arm needs it, and charged to that arm",
    )
    compute: ComputeSettings = Field(description="the budget, the same for every arm and seed")
    evaluation: EvaluationSettings = Field(
        default_factory=EvaluationSettings,
        description="evaluations on held-out prompts at fixed fractions of the budget",
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
            raise ValueError("sft: null needs model.name_or_path: untrained weights cannot be a base policy")
        if self.model.lora is not None and self.model.name_or_path is None:
            raise ValueError(
                "model.lora needs model.name_or_path: adapters are trained beside pretrained weights; name a model, or remove model.lora"
            )
        if self.model.lora is not None and self.placement.weight_sync != "object_store":
            raise ValueError(
                f"placement.weight_sync: {self.placement.weight_sync} sends parameters unmerged, and with model.lora an engine needs adapters merged into the weights; use object_store"
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
                f"arms.{ahead[0]}.rollouts_ahead: 1 samples before the seconds of the pending update are known, so it could exceed a budget of device_seconds; use another compute.column"
            )
        if self.tracking.register_as is not None:
            self._check_aliases()
        if self.tuning and self.tuning.seed in self.seeds:
            raise ValueError(f"tuning.seed: {self.tuning.seed} is one of seeds; trials need a seed of their own")
        return self

    def _check_aliases(self) -> None:
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
