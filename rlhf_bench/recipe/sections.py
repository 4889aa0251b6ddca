"""Sections of a recipe as typed models: data, stages, compute, evaluation, reliability, tracking."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from rlhf_bench.core.costs import Column
from rlhf_bench.core.errors import check_agreement
from rlhf_bench.core.settings import Section
from rlhf_bench.core.text import without_passwords
from rlhf_bench.core.types import HELD_OUT_SPLITS, MAIN_SPLIT, Combine, HeldOutSplit


class DataSettings(Section):
    """Prompts, pairs and sampling, shared by all arms."""

    train_prompts: int = Field(
        2048, ge=1, description="prompts that methods sample from; once all were used, they come again with new samples"
    )
    labelled_responses: int = Field(
        2048,
        ge=2,
        description="labelled completions to train on, where the data has such and an arm has unpaired: true",
    )
    off_policy_pairs: int = Field(
        1024,
        ge=1,
        description="fixed off-policy pairs: from the data, or from the answers of a weaker policy; none where sft is null and the data has none",
    )
    held_out_pairs: int = Field(
        32,
        ge=1,
        description="further such pairs, never trained on, for measuring likelihoods; and as many of each other kind that an arm trains on",
    )
    weaker_policy_steps: float = Field(
        0.5, gt=0, le=1, description="fine-tuning steps of the weaker policy, as a fraction of sft.steps"
    )
    candidates_per_prompt: int = Field(
        8, ge=2, description="samples per prompt, of which the best and the worst become a pair (all but offline)"
    )
    max_response_tokens: int = Field(16, ge=1, description="maximum number of tokens of a sampled response")
    temperature: float = Field(1.0, gt=0, description="sampling temperature in training")


class StageSettings(Section):
    """One supervised stage."""

    steps: int = Field(400, ge=1, description="optimizer steps")
    examples_per_step: int = Field(64, ge=1, description="examples in one optimizer step")
    learning_rate: float = Field(1e-3, gt=0, description="peak of a schedule with linear warm-up and linear decay")
    max_grad_norm: float = Field(1.0, gt=0, description="gradients are scaled down to this global norm")


class SFTSettings(StageSettings):
    demonstrations: int = Field(8192, ge=1, description="prompts with a response to imitate")
    seed_follows: bool = Field(
        False,
        description="whether every seed of the comparison fine-tunes a base policy of its own, with reward model and pairs of a weaker policy, instead of one for all seeds",
    )


class EnsembleSettings(Section):
    """Reward models that score as one. They differ by the seed of their heads and the order of their data."""

    size: int = Field(3, ge=2, le=8, description="reward models; every one of them is trained, held and paid for")
    combine: Combine = Field(
        "mean", description="the score of a response: the mean of the members' scores, or the smallest (the worst case)"
    )


class RewardModelSettings(StageSettings):
    name_or_path: str | None = Field(
        None,
        description="a Hugging Face id or a folder of an AutoModelForSequenceClassification with one label and the policy's tokenizer, used unchanged; null trains one",
    )
    pairs: Literal["off_policy", "start_policy", "both"] = Field(
        "both",
        description="what it is trained on: the off-policy pairs, pairs among samples of the base policy, or both",
    )
    start_policy_prompts: int = Field(
        512, ge=1, description="prompts that the base policy answers, for the pairs and for the scale of the scores"
    )
    pairs_per_prompt: int = Field(4, ge=1, description="maximum number of pairs among the samples of one prompt")
    ensemble: EnsembleSettings | None = Field(
        None, description="several reward models that score as one; null trains one"
    )

    @property
    def members(self) -> int:
        """How many models are trained, and score."""
        return 1 if self.ensemble is None else self.ensemble.size

    @model_validator(mode="after")
    def _trained_or_given(self) -> RewardModelSettings:
        of_training = [key for key in type(self).model_fields if key not in ("name_or_path", "start_policy_prompts")]
        # By value: a recipe that was saved in full has every key.
        set_here = [key for key in of_training if getattr(self, key) != type(self).model_fields[key].default]
        check_agreement(
            f"{key} is for training a reward model, and name_or_path names a trained one; remove one of the two"
            for key in (set_here if self.name_or_path is not None else ())
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
        description="an update whose numbers are not finite is skipped; this many in a row end the arm as diverged, and this many that spend nothing of the column as failed",
    )


class EvaluationSettings(Section):
    """Evaluations on held-out prompts at fixed fractions of the budget. Their cost is recorded separately."""

    prompts: int = Field(64, ge=1, description="held-out prompts per split")
    samples_per_prompt: int = Field(
        4, ge=1, description="responses sampled and scored for each prompt, beside the greedy one"
    )
    best_of: int | None = Field(
        None,
        ge=2,
        description="also give the expected score of the best of so many responses, at most samples_per_prompt; null gives none",
    )
    expected_score: bool = Field(
        False,
        description="score a policy by the probability of the right answer in place of samples: exact, and only where the task has one right response and the tokenizer one way to write it (task arithmetic, tokenizer characters)",
    )
    splits: tuple[HeldOutSplit, ...] = Field(
        HELD_OUT_SPLITS,
        min_length=1,
        description="held-out splits; the first one gives the score that is compared",
    )
    marks: tuple[float, ...] = Field(
        (0.5, 1.0),
        description="fractions of the budget at which to evaluate; the start and the end are always evaluated",
    )
    temperature: float = Field(
        1.0,
        gt=0,
        description="sampling temperature of the scored responses, of KL and of entropy: 1 samples from the policy itself. The most likely tokens are scored in any case",
    )
    base_temperatures: tuple[float, ...] = Field(
        (0.5,),
        description="the base policy is scored at these temperatures too: what a policy gains by being sharper alone",
    )
    kl_prompts: int | None = Field(
        16,
        ge=1,
        description="prompts of the main split on whose samples KL and entropy are measured, at most; null takes all of them",
    )
    sample_prompts: int = Field(
        64,
        ge=0,
        description="prompts per split of which one response is kept at each evaluation: the report shows some of them, and `rlhf-bench judge` compares those of the main split (docs/llm_judge.md)",
    )
    gradient_pairs: int = Field(
        8, ge=0, description="held-out pairs whose gradients ∇θ log π are measured (docs/diagnostics.md); 0 for none"
    )

    @field_validator("splits")
    @classmethod
    def _main_split_first(cls, splits: tuple[str, ...]) -> tuple[str, ...]:
        if splits[0] != MAIN_SPLIT or len(set(splits)) != len(splits):
            raise ValueError(
                f"splits must start with {MAIN_SPLIT} (the score that is compared) and name each split once"
            )
        return splits

    @field_validator("base_temperatures")
    @classmethod
    def _positive(cls, temperatures: tuple[float, ...]) -> tuple[float, ...]:
        if any(t <= 0 for t in temperatures) or len(set(temperatures)) != len(temperatures):
            raise ValueError("base_temperatures must be above 0 and each named once; greedy scores need none")
        return temperatures

    @model_validator(mode="after")
    def _enough_samples(self) -> EvaluationSettings:
        if self.best_of is not None and self.best_of > self.samples_per_prompt:
            raise ValueError(
                f"best_of: the best of {self.best_of} needs as many scored responses; raise samples_per_prompt to {self.best_of}"
            )
        return self

    @field_validator("marks")
    @classmethod
    def _ascending(cls, marks: tuple[float, ...]) -> tuple[float, ...]:
        if list(marks) != sorted(set(marks)) or not all(0 < m <= 1 for m in marks):
            raise ValueError("marks must ascend within (0, 1]; the start needs no mark")
        return marks


class Reliability(Section):
    """Checkpoints and restarts, so that a process may die at any moment (docs/reliability.md)."""

    checkpoint_seconds: float = Field(
        120, ge=0, description="minimum time between two checkpoints of an arm; 0 writes one after every update"
    )
    checkpoints: int = Field(2, ge=1, description="how many of an arm's checkpoints are kept while it runs")
    checkpoint_place: str | None = Field(
        None,
        description="folder or URI for checkpoints that every node can reach, such as s3://bucket/folder; null uses DIR/state",
    )
    grace_seconds: float = Field(
        20, gt=0, description="after a signal to stop, how long to wait for the current update and its checkpoint"
    )
    hang_seconds: float = Field(
        60, ge=4, description="an actor without a heartbeat for this long is ended and started again"
    )
    restarts: int = Field(
        5, ge=0, description="maximum number of restarts of one actor within window_seconds; one more ends the run"
    )
    window_seconds: float = Field(600, gt=0, description="see restarts")


class Tracking(Section):
    uri: str | None = Field(
        None,
        description="MLflow tracking URI, without a password or token; null uses MLFLOW_TRACKING_URI, or an SQLite file beside the output",
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
