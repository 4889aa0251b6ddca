"""What a method is: a settings model and a record of pure functions. The loop and the learner know only this."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self, get_args

import numpy as np
from pydantic import Field
from torch import Tensor

from rlhf_bench.core.plain_data import Array
from rlhf_bench.core.settings import Section
from rlhf_bench.core.types import Row
from rlhf_bench.methods.schedules import Schedule, resolved

DataMode = Literal["offline", "on_policy", "chosen_on_policy", "rejected_on_policy", "online"]
Feedback = Literal["reward_model", "judge"]
Measure = Literal["reference_logprobs", "logprobs", "values"]
PerResponse = tuple[Array, ...]


class MethodSettings(Section):
    """Settings that every arm has. A method narrows `method` to its name and `data` to what it can learn from."""

    method: str = ""
    data: DataMode = "offline"
    learning_rate: float = Field(1e-4, gt=0, description="Adam's step size for the policy")
    max_grad_norm: float = Field(1.0, gt=0, description="gradients are scaled down to this global norm")

    @property
    def draws_ahead(self) -> bool:
        """Whether the samples of an update are drawn while the learner still works on the update before it."""
        return False

    @property
    def reference_free(self) -> bool:
        """Whether the loss has no reference. Its log-probabilities are then neither measured nor charged."""
        return False

    def resolve_at(self, fraction: float, state: Mapping[str, float]) -> Self:
        """The settings at this fraction (0 to 1) of the budget: every schedule replaced by its value.

        `state` is what the method carries from update to update; a method that sets a number by it overrides this.
        """
        fields = {name: getattr(self, name) for name in type(self).model_fields}
        values = {name: value.resolve_at(fraction) for name, value in fields.items() if isinstance(value, Schedule)}
        return self.model_copy(update=values) if values else self

    def scheduled_values(self) -> dict[str, float]:
        """The numbers that may follow a schedule, to log with every update. Call it on what `resolve_at` returned."""
        names = [name for name, f in type(self).model_fields.items() if Schedule in get_args(f.annotation)]
        return {name: resolved(getattr(self, name)) for name in names}


def uses_reward_model(arm: MethodSettings) -> bool:
    """Whether an arm uses the reward model, and so is charged for it."""
    return arm.data != "offline" and getattr(arm, "feedback", None) == "reward_model"


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
"""Pairs and the settings that `resolve_at` gave -> loss per pair [P]. Pure, and differentiable in every log-probability."""


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
        """Cosine of the angle between the two gradients; nan where one of them is 0."""
        scale = self.chosen_norm * self.rejected_norm
        return self.dot / scale if scale else float("nan")


Measured = Mapping[str, Sequence[PerResponse]]
"""name -> for each row, one array per response with a number per token, from a forward pass."""


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
        """What must be measured for an arm with these settings: `measures`, without the reference where the loss has none."""
        return tuple(m for m in self.measures if not (m == "reference_logprobs" and settings.reference_free))


def sum_by_response(per_token: Tensor, response_index: Tensor, responses: int) -> Tensor:
    """[T] -> [R]: add up each response's tokens."""
    return per_token.new_zeros(responses).index_add(0, response_index, per_token)
