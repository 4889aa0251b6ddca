"""What a method is: a settings model and a record of pure functions. The loop and the learner know only this."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Literal, Self, get_args

import numpy as np
import torch
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationInfo,
    field_validator,
    model_validator,
)
from torch import Tensor

from rlhf_bench.core.types import Row
from rlhf_bench.models.packing import sum_by_response

DataMode = Literal["offline", "on_policy", "chosen_on_policy", "rejected_on_policy", "online"]
Feedback = Literal["reward_model", "judge"]
Measure = Literal["reference_logprobs", "logprobs", "values"]
PerResponse = tuple[np.ndarray, ...]


class Schedule(BaseModel):
    """A number that changes with the share of the budget that is spent."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    kind: Literal["constant", "linear", "cosine"] = Field(
        description="constant: start throughout; linear: a straight line; cosine: half a wave, slow at both ends"
    )
    start: float = Field(gt=0, description="the value when nothing is spent")
    end: float = Field(gt=0, description="the value when the budget is spent; constant needs none")

    @model_validator(mode="before")
    @classmethod
    def _constant_ends_where_it_starts(cls, data: Any) -> Any:
        if isinstance(data, Mapping) and data.get("kind") == "constant" and "start" in data:
            return {"end": data["start"], **data}
        return data

    @model_validator(mode="after")
    def _constant_has_one_value(self) -> Schedule:
        if self.kind == "constant" and self.end != self.start:
            raise ValueError("a constant schedule has one value: leave out end, or use kind: linear or cosine")
        return self

    def at(self, fraction: float) -> float:
        """The value at this fraction of the budget; past its end (the last update may overshoot) the end's value."""
        done = min(max(fraction, 0.0), 1.0)
        if self.kind == "cosine":
            done = (1 - math.cos(math.pi * done)) / 2
        return self.start + (self.end - self.start) * done


_POSITIVE: TypeAdapter[float] = TypeAdapter(Annotated[float, Field(gt=0, allow_inf_nan=False)])


def _number_or_schedule(value: Any) -> float | Schedule:
    """One or the other by the value's shape, so that a mistake is one problem at its own key and not one per kind."""
    if isinstance(value, (Mapping, Schedule)):
        return Schedule.model_validate(value)
    return _POSITIVE.validate_python(value)


Strength = Annotated[float | Schedule, BeforeValidator(_number_or_schedule)]
"""A setting above 0 that may follow a schedule."""


def number(strength: float | Schedule) -> float:
    """A strength as the plain number that it is after `MethodSettings.at`; TypeError for a schedule."""
    if isinstance(strength, Schedule):
        raise TypeError("a schedule has no value of its own: call settings.at(fraction, state) first")
    return strength


class MethodSettings(BaseModel):
    """Settings that every arm has. A method narrows `method` to its name and `data` to what it can learn from."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    method: str = ""
    data: DataMode = "offline"
    learning_rate: float = Field(1e-4, gt=0, description="Adam's step size for the policy")
    max_grad_norm: float = Field(1.0, gt=0, description="gradients are scaled down to this global norm")

    @property
    def draws_ahead(self) -> bool:
        """Whether an update's samples are drawn while the update before it is being learned from."""
        return False

    @property
    def reference_free(self) -> bool:
        """Whether the loss leaves the reference out; its log-probabilities are then neither measured nor charged."""
        return False

    def at(self, fraction: float, state: Mapping[str, float]) -> Self:
        """The settings at this fraction (0 to 1) of the budget: every schedule replaced by its value.

        `state` is what the method carries from update to update; a method that sets a number by it overrides this.
        """
        fields = {name: getattr(self, name) for name in type(self).model_fields}
        values = {name: value.at(fraction) for name, value in fields.items() if isinstance(value, Schedule)}
        return self.model_copy(update=values) if values else self

    def strengths(self) -> dict[str, float]:
        """The numbers that may follow a schedule, to be logged with every update; of settings that `at` gave."""
        names = [name for name, f in type(self).model_fields.items() if Schedule in get_args(f.annotation)]
        return {name: number(getattr(self, name)) for name in names}


def uses_reward_model(arm: MethodSettings) -> bool:
    """Whether an arm asks the reward model for anything, and so pays for it."""
    return arm.data != "offline" and getattr(arm, "feedback", None) == "reward_model"


class PairSettings(MethodSettings):
    """Settings of the methods that learn from pairs of a chosen and a rejected response."""

    data: DataMode = Field(
        "offline",
        description="offline: a fixed set written by others; on_policy: pairs among samples of the start policy, drawn once; chosen_on_policy, rejected_on_policy: only that side is such a sample, the other is the fixed set's; online: drawn afresh in every update",
    )
    feedback: Feedback = Field(
        "judge",
        description="who ranks sampled candidates (on_policy and online): the task's judge, or the reward model",
    )
    pairs_per_update: int = Field(32, ge=1, description="pairs in one optimizer step (offline, on_policy)")
    prompts_per_update: int = Field(
        32, ge=1, description="prompts sampled for one update (online); each gives at most one pair"
    )
    edit_distance: tuple[float, float] | None = Field(
        None,
        description="keep pairs whose sides are this far apart: from, to, as shares of their tokens between 0 and 1 (not for online)",
    )

    @field_validator("edit_distance")
    @classmethod
    def _a_range_of_fixed_pairs(
        cls, value: tuple[float, float] | None, info: ValidationInfo
    ) -> tuple[float, float] | None:
        if value is not None and not 0 <= value[0] < value[1] <= 1:
            raise ValueError("a range is two numbers with 0 <= from < to <= 1")
        if value is not None and info.data.get("data") == "online":
            raise ValueError("data: online draws its pairs as it goes and keeps them all; leave edit_distance out")
        return value


@dataclass(frozen=True)
class Outputs:
    """What the learner's forward pass gives a loss. T response tokens, R responses (pairs: chosen, rejected, chosen, …)."""

    response_index: Tensor  # [T]
    responses: int
    extras: Mapping[str, Tensor]
    logprobs: Any = None  # Tensor [T], the policy's
    entropy: Any = None  # Tensor [T], the policy's
    values: Any = None  # Tensor [T], the critic's
    scores: Any = None  # Tensor [R], the critic's

    def by_response(self, per_token: Tensor) -> Tensor:
        return sum_by_response(per_token, self.response_index, self.responses)


PerUnit = tuple[Tensor, dict[str, Tensor]]
"""A loss per unit [U], and named numbers per unit [U]; the learner averages both over all ranks and micro-batches."""


@dataclass(frozen=True)
class Objective:
    """One loss for one model. `unit` is what the loss is averaged over."""

    model: Literal["policy", "critic"]
    unit: Literal["pair", "token"]
    loss: Callable[[Outputs, Any], PerUnit]


@dataclass(frozen=True)
class PairLogprobs:
    """P pairs as numbers, all [P]: log-probabilities of whole responses (nats, summed over tokens), and lengths.

    The reference's are nan where a method is reference-free and they were not measured.
    """

    chosen: Tensor  # log π(a⁺|x)
    rejected: Tensor  # log π(a⁻|x)
    reference_chosen: Tensor  # log π0(a⁺|x)
    reference_rejected: Tensor  # log π0(a⁻|x)
    chosen_tokens: Tensor  # length of a⁺, as a float
    rejected_tokens: Tensor  # length of a⁻, as a float

    @property
    def chosen_logratio(self) -> Tensor:
        """Δ⁺ = log π(a⁺|x) − log π0(a⁺|x)."""
        return self.chosen - self.reference_chosen

    @property
    def rejected_logratio(self) -> Tensor:
        """Δ⁻ = log π(a⁻|x) − log π0(a⁻|x)."""
        return self.rejected - self.reference_rejected


PairLoss = Callable[[PairLogprobs, Any], Tensor]
"""Pairs and the settings that `at` gave -> loss per pair [P]. Pure, and differentiable in every log-probability."""


@dataclass(frozen=True)
class SideGradients:
    """The two sides' batch gradients in parameter space, G± = mean over pairs of w_i ∇θ log π(a±_i|x_i).

    w_i is the method's `pair_weight`; diagnostics use w = 1.
    """

    chosen_norm: float  # ‖G⁺‖
    rejected_norm: float  # ‖G⁻‖
    dot: float  # ⟨G⁺, G⁻⟩

    @property
    def cosine(self) -> float:
        """Of the angle between the sides; nan where one of them has no gradient."""
        scale = self.chosen_norm * self.rejected_norm
        return self.dot / scale if scale else float("nan")


Measured = Mapping[str, Sequence[PerResponse]]
"""name -> for each row, one array per response with a number per token: what a forward pass found."""


@dataclass(frozen=True)
class Prepared:
    """Rows ready for the loss; the state a method carries to its next update; numbers to log."""

    rows: list[Row]
    state: dict[str, float]
    metrics: dict[str, float]


@dataclass(frozen=True)
class Method:
    """A method: what it learns from, what must be measured before, how rows are prepared, and its losses.

    `prepare(rows, rewards, measured, settings, state)`: `rewards` holds for each row one number per response.
    `minibatches(rows, settings, rng)`: row indices of each optimizer step of one update.
    `pair_loss(pairs, settings)`: the loss of a method on pairs as a function of numbers, for diagnostics and theory.
    `adapt(gradients, settings, state)`: the state after a measurement of both sides' gradients, every
    `settings.adapt_every` updates; `pair_weight(pairs, settings)` gives the weights [P] they are measured with.
    """

    name: str
    settings: type[MethodSettings]
    consumes: Literal["pairs", "samples"]
    measures: tuple[Measure, ...]
    objectives: tuple[Objective, ...]
    prepare: Callable[[Sequence[Row], Sequence[Sequence[float]], Measured, Any, Mapping[str, float]], Prepared]
    minibatches: Callable[[Sequence[object], Any, np.random.Generator], list[list[int]]]
    pair_loss: PairLoss | None = None
    adapt: Callable[[SideGradients, Any, Mapping[str, float]], dict[str, float]] | None = None
    pair_weight: PairLoss | None = None

    def needs(self, settings: MethodSettings) -> tuple[Measure, ...]:
        """What must be measured for an arm with these settings: `measures`, less a reference that its loss leaves out."""
        return tuple(m for m in self.measures if not (m == "reference_logprobs" and settings.reference_free))


def pair_method(
    name: str,
    settings: type[PairSettings],
    pair_loss: PairLoss,
    adapt: Callable[[SideGradients, Any, Mapping[str, float]], dict[str, float]] | None = None,
    pair_weight: PairLoss | None = None,
) -> Method:
    """The record of a method that is a loss on pairs: one policy objective, one optimizer step per update."""
    return Method(
        name=name,
        settings=settings,
        consumes="pairs",
        measures=("reference_logprobs",),
        objectives=(Objective("policy", "pair", partial(_pair_objective, pair_loss)),),
        prepare=with_reference,
        minibatches=one_step,
        pair_loss=pair_loss,
        adapt=adapt,
        pair_weight=pair_weight,
    )


def _pair_objective(pair_loss: PairLoss, out: Outputs, settings: PairSettings) -> PerUnit:
    pairs = pair_logprobs(out, settings.reference_free)
    return pair_loss(pairs, settings), pair_metrics(out, pairs, settings.reference_free)


def with_reference(
    rows: Sequence[Row],
    rewards: Sequence[Sequence[float]],
    measured: Measured,
    settings: MethodSettings,
    state: Mapping[str, float],
) -> Prepared:
    """Attach each response's log-probability under the reference (summed over its tokens), where the loss has one."""
    if settings.reference_free:
        return Prepared(list(rows), dict(state), settings.strengths())
    out = [
        Row(r.id, r.prompt_ids, r.responses, {"reference_logprob": tuple(a.sum(keepdims=True) for a in logprobs)})
        for r, logprobs in zip(rows, measured["reference_logprobs"], strict=True)
    ]
    return Prepared(out, dict(state), settings.strengths())


def one_step(rows: Sequence[object], settings: MethodSettings, rng: np.random.Generator) -> list[list[int]]:
    """All rows in one optimizer step."""
    return [list(range(len(rows)))]


def split_pairs(per_response: Tensor, responses: int) -> tuple[Tensor, Tensor]:
    """[2P] in the order chosen, rejected, chosen, … -> chosen [P], rejected [P]."""
    if per_response.shape != (responses,) or responses % 2:
        raise ValueError(
            f"pairs need an even number of responses, one number each; got {tuple(per_response.shape)} for {responses}"
        )
    return per_response[0::2], per_response[1::2]


def pair_logprobs(out: Outputs, reference_free: bool) -> PairLogprobs:
    """What a forward pass found, per pair."""
    logprobs = out.by_response(out.logprobs)
    reference = torch.full_like(logprobs, float("nan")) if reference_free else out.extras["reference_logprob"]
    tokens = out.by_response(torch.ones_like(out.logprobs))
    return PairLogprobs(
        *split_pairs(logprobs, out.responses),
        *split_pairs(reference, out.responses),
        *split_pairs(tokens, out.responses),
    )


def pair_metrics(out: Outputs, pairs: PairLogprobs, reference_free: bool) -> dict[str, Tensor]:
    """What every method on pairs logs, per pair [P]: log-probs and the entropy per token; and, where the loss has a
    reference, log-ratios Δ⁺ and Δ⁻, the margin Δ⁺ − Δ⁻ and its sign. A method without one logs no other margin under
    the same names: the evaluations measure Δ± for all arms alike."""
    entropy = sum(split_pairs(out.by_response(out.entropy.detach()), out.responses))
    metrics = {
        "chosen_logprob": pairs.chosen.detach(), "rejected_logprob": pairs.rejected.detach(),
        "entropy": entropy / (pairs.chosen_tokens + pairs.rejected_tokens),
    }  # fmt: skip
    if reference_free:
        return metrics
    up, down = pairs.chosen_logratio.detach(), pairs.rejected_logratio.detach()
    return metrics | {
        "chosen_logratio": up, "rejected_logratio": down, "margin": up - down, "accuracy": (up > down).float(),
    }  # fmt: skip
