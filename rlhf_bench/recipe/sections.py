"""Every section of a recipe as a typed model: keys, defaults, limits, and the checks across keys."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from rlhf_bench.core.costs import Column
from rlhf_bench.core.settings import Section
from rlhf_bench.core.text import without_passwords
from rlhf_bench.core.types import HELD_OUT_SPLITS, MAIN_SPLIT, HeldOutSplit


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
    splits: tuple[HeldOutSplit, ...] = Field(
        HELD_OUT_SPLITS,
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
        if splits[0] != MAIN_SPLIT or len(set(splits)) != len(splits):
            raise ValueError(
                f"splits must start with {MAIN_SPLIT} (the score that is compared) and name each split once"
            )
        return splits

    @field_validator("marks")
    @classmethod
    def _ascending(cls, marks: tuple[float, ...]) -> tuple[float, ...]:
        if list(marks) != sorted(set(marks)) or not all(0 < m <= 1 for m in marks):
            raise ValueError("marks must ascend within (0, 1]; the start needs no mark")
        return marks


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
