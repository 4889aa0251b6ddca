"""The whole recipe, and what its sections must agree on."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import Field, field_validator

from rlhf_bench.core.settings import Section
from rlhf_bench.methods.base import MethodSettings, uses_reward_model
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

ARM_NAME = r"^[A-Za-z0-9][A-Za-z0-9_.=+-]*$"
RESERVED = ("base", "shared")
"""What tables call the base policy, and what is charged to no arm."""
MAX_NAME = 180
"""Characters of a name that files are named by, with a seed, an update and an ending behind it: a file's name has at most 255."""

BEST = "best"
"""In MLflow's registry the alias of the policy that scored best; each arm's own best has the arm's name."""


def alias_of(arm: str) -> str:
    """An arm's name as MLflow takes it for an alias."""
    return re.sub(r"[^A-Za-z0-9_-]", "_", arm)


def distinct_seeds(seeds: tuple[int, ...]) -> tuple[int, ...]:
    if min(seeds) < 0:
        raise ValueError("a seed is a whole number from 0 upwards")
    if len(set(seeds)) != len(seeds):
        raise ValueError("a seed is listed twice: every seed runs once")
    return seeds


class TuningSettings(Section):
    """Trials before the comparison: every arm has the same number of them, with the same share of what it has to train with,
    and keeps its best.

    Trials are scored on held-out prompts that the comparison never uses. What they spend is
    recorded in the ledger (phase `tuning`) and shown beside the budget.
    """

    trials: tuple[dict[str, float], ...] = Field(
        min_length=2, description="settings that every arm tries, each a mapping such as {learning_rate: 1.0e-4}"
    )
    arms: dict[str, tuple[dict[str, float], ...]] = Field(
        default_factory=dict,
        description="arm -> trials of its own in place of `trials`, and as many, for settings that other arms do not have",
    )
    extend: int = Field(
        0,
        ge=0,
        description="how many more trials an arm may have whose best value is the smallest or largest of a single key; each goes on by the ratio of the last two values",
    )
    fraction: float = Field(
        0.5,
        gt=0,
        le=1,
        description="share of compute.limit that one trial may spend, and of a reward model's cost that it is charged",
    )
    prompts: int = Field(256, ge=1, description="held-out prompts that trials are scored on")
    samples_per_prompt: int = Field(
        4, ge=1, description="responses sampled and scored for each of these prompts, as in evaluation"
    )
    seeds: tuple[int, ...] = Field(
        (0,),
        min_length=1,
        description="every trial runs once per seed and counts with its mean score; none may be of the comparison's `seeds`",
    )

    @field_validator("seeds")
    @classmethod
    def _distinct(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        return distinct_seeds(seeds)

    def of(self, arm: str) -> tuple[dict[str, float], ...]:
        """The trials of an arm."""
        return self.arms.get(arm, self.trials)


class Claim(Section):
    """A statement about two arms that the report decides: does `more` exceed `less` in `metric`?"""

    statement: str = Field(min_length=1, description="what is claimed, as a sentence")
    more: str = Field(description="the arm whose metric is claimed to be larger")
    less: str = Field(description="the arm whose metric is claimed to be smaller")
    metric: str = Field(
        "score", description="score, best_score, drawdown, or a number that evaluations record; see docs/statistics.md"
    )


class Recipe(Section):
    """A whole comparison. What its sections must agree on is checked as one is parsed (`recipe/agreement.py`)."""

    name: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$",
        max_length=MAX_NAME,
        description="names the MLflow experiment, and the output by default: letters, digits, - and _",
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
    gold_reward_model: RewardModelSettings | None = Field(
        None,
        description="a second one, trained or given, that no arm learns from: every evaluation is scored by it too, beside the first one, to see over-optimisation; charged to no arm. null has none",
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
        return distinct_seeds(seeds)

    @property
    def reward_models(self) -> dict[str, RewardModelSettings]:
        """Those that are made, by their key: the one that arms learn from where any of them does, and the gold one."""
        learned = {"reward_model": self.reward_model} if any(map(uses_reward_model, self.arms.values())) else {}
        return learned | ({} if self.gold_reward_model is None else {"gold_reward_model": self.gold_reward_model})

    def trial_evaluation(self) -> EvaluationSettings:
        """How tuning trials are scored."""
        assert self.tuning is not None
        own = {"samples_per_prompt": self.tuning.samples_per_prompt, "best_of": None}
        return self.evaluation.model_copy(update=own)

    @property
    def seed_follows(self) -> bool:
        """Whether each seed has a base policy of its own, with all that is made of it; otherwise all share one."""
        return self.sft is not None and self.sft.seed_follows

    def resolved(self) -> dict[str, Any]:
        """Everything, defaults included, as plain data: what is saved with the run."""
        data = self.model_dump(mode="json", exclude={"arms"})
        return data | {"arms": {name: arm.model_dump(mode="json") for name, arm in self.arms.items()}}
