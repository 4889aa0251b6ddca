"""What a method is: a settings model and a record of pure functions. The loop and the learner know only this."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Protocol, Self, get_args

import numpy as np
from pydantic import Field
from torch import Tensor

from rlhf_bench.core.plain_data import Array
from rlhf_bench.core.settings import Section
from rlhf_bench.core.types import FIXED, Row
from rlhf_bench.methods.schedules import Schedule, resolved

DataMode = Literal["offline", "on_policy", "chosen_on_policy", "rejected_on_policy", "online"]
Feedback = Literal["reward_model", "judge"]
Measure = Literal["reference_logprobs", "logprobs", "values", "mismatched_logprobs", "mismatched_reference_logprobs"]
"""A forward pass over an update's rows. mismatched: over each prompt with the responses of the row after it."""
MISMATCHED: Mapping[str, Literal["policy", "reference"]] = {
    "mismatched_logprobs": "policy",
    "mismatched_reference_logprobs": "reference",
}
"""By whom these are made: before every update anew, since they depend on which rows are together."""
PerResponse = tuple[Array, ...]


@dataclass(frozen=True)
class Adam:
    """What AdamW is told beside its rate: the decay of both averages, and ε."""

    betas: tuple[float, float]
    epsilon: float


STAGE_ADAM = Adam((0.9, 0.95), 1e-8)
"""Of the supervised stages, which make what all arms begin with."""


class MethodSettings(Section):
    """Settings that every arm has. A method narrows `method` to its name and `data` to what it can learn from."""

    method: str = ""
    data: DataMode = "offline"
    learning_rate: float = Field(1e-4, gt=0, description="Adam's step size for the policy")
    learning_rate_schedule: Literal["linear", "constant"] = Field(
        "linear",
        description="linear: every learning rate of the arm falls in a straight line, from its value at the first update to 0 where the budget ends; constant: it stays",
    )
    adam_betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = Field(
        (0.9, 0.999), description="Adam's decay of the gradient's average and of its square's"
    )
    adam_epsilon: float = Field(
        1e-5,
        gt=0,
        description="Adam's ε, added to the root of the squares' average: gradients far below it move little",
    )
    max_grad_norm: float = Field(1.0, gt=0, description="gradients are scaled down to this global norm")

    @property
    def adam(self) -> Adam:
        """The optimizer of each of the arm's models."""
        return Adam(self.adam_betas, self.adam_epsilon)

    def rate_share(self, done: float) -> float:
        """What is left of the learning rates once the share `done` (0 to 1) of the budget for updates is spent."""
        return 1.0 if self.learning_rate_schedule == "constant" else 1.0 - done

    @property
    def draws_ahead(self) -> bool:
        """Whether the samples of an update are drawn while the learner still works on the update before it."""
        return False

    @property
    def one_shot(self) -> bool:
        """Whether its pairs have a side, or both, from samples of the base policy (arXiv 2406.07327, section 4)."""
        return self.data not in ("offline", "online")

    @property
    def rows_come_again(self) -> bool:
        """Whether all rows are known before the first update, and are trained on in several passes."""
        return self.data == "offline"

    @property
    def responses_per_row(self) -> int:
        """How many responses to a prompt are measured and trained on together: a pair's two, or a prompt's samples."""
        return 2

    @property
    def fixed_responses(self) -> bool:
        """Whether its fixed data are single responses with a label, in place of pairs."""
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


@dataclass(frozen=True, slots=True)
class PairKind:
    """What pairs are made of: whose answers the sides are (`mode`, never `online`), and what ranked them."""

    mode: DataMode
    feedback: Feedback

    @property
    def name(self) -> str:
        """`fixed` for off-policy pairs; else the mode, with `_by_reward_model` where that one ranked them."""
        if self.mode == "offline":
            return FIXED
        return self.mode if self.feedback == "judge" else f"{self.mode}_by_reward_model"


def own_kind(arm: MethodSettings) -> PairKind:
    """The kind of pairs that an arm trains on, with the base policy in the place of the policy where that one samples.
    A method on samples trains on no pairs; its kind is that of an online arm, since it learns from the same answers."""
    if arm.data == "offline":
        return PairKind("offline", "judge")
    return PairKind("on_policy" if arm.data == "online" else arm.data, getattr(arm, "feedback", "judge"))


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
    """One loss for one model. `unit` is what the loss is averaged over: rows (pairs, or single responses that have a label), or
    response tokens."""

    model: Literal["policy", "critic"]
    unit: Literal["row", "token"]
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


class Prepare(Protocol):
    def __call__(
        self,
        rows: Sequence[Row],
        rewards: Sequence[Sequence[float]],
        measured: Measured,
        settings: Any,
        state: Mapping[str, float],
        dtype: str = "float32",
    ) -> Prepared:
        """`rewards`: for each row one number per response. `dtype`: the number format that `measured` was computed in."""


@dataclass(frozen=True)
class Method:
    """A method: what it learns from, what must be measured before, how rows are prepared, and its losses.

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
    prepare: Prepare
    minibatches: Callable[[Sequence[object], Any, np.random.Generator], list[list[int]]]
    pair_loss: PairLoss | None = None
    adapt: Callable[[SideGradients, Any, Mapping[str, float]], dict[str, float]] | None = None
    pair_weight: PairLoss | None = None

    def needs(self, settings: MethodSettings) -> tuple[Measure, ...]:
        """What must be measured for an arm with these settings: `measures`, without the reference where the loss has none."""
        return tuple(m for m in self.measures if not (m == "reference_logprobs" and settings.reference_free))

    def reference_at_hand(self, settings: MethodSettings) -> bool:
        """Whether the learner holds the reference while such an arm trains: of rows that come again it need not look twice."""
        needs = self.needs(settings)
        return "mismatched_reference_logprobs" in needs or (
            "reference_logprobs" in needs and not settings.rows_come_again
        )


def sum_by_response(per_token: Tensor, response_index: Tensor, responses: int) -> Tensor:
    """[T] -> [R]: add up each response's tokens."""
    return per_token.new_zeros(responses).index_add(0, response_index, per_token)
