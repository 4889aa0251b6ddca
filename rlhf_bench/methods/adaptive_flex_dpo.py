"""Flex-DPO that chooses β⁻ itself, from the angle between the two sides' gradients.

    loss = −log σ( β⁺ Δ⁺ − β⁻ Δ⁻ )
    G±   = mean_i w_i ∇ log π(a±_i),  w_i = σ(−m_i),  m_i = β⁺ Δ⁺_i − β⁻ Δ⁻_i
    β⁻   = clip( κ β⁺ ‖G⁺‖² / ⟨G⁺, G⁻⟩, minimum, maximum )  where ⟨G⁺, G⁻⟩ > 0, else the maximum

A step of gradient descent goes along β⁺G⁺ − β⁻G⁻, so that to first order the chosen responses' log-probability,
weighted by w, changes in proportion to ⟨G⁺, β⁺G⁺ − β⁻G⁻⟩ = β⁺‖G⁺‖² − β⁻⟨G⁺, G⁻⟩: it rises as long as β⁻ stays below
the bound. Measurements come every `adapt_every` updates and are averaged exponentially in log space, a bound being a
ratio. What the rule assumes, and what it costs, stands in docs/methods.md.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal, Self

import torch
from pydantic import Field, PrivateAttr, ValidationInfo, field_validator
from torch import Tensor
from torch.nn.functional import logsigmoid

from rlhf_bench.methods.base import PairLogprobs, SideGradients
from rlhf_bench.methods.pairs import PairSettings, pair_method
from rlhf_bench.methods.schedules import Scheduled, resolved


class AdaptiveFlexDPOSettings(PairSettings):
    method: Literal["adaptive_flex_dpo"] = "adaptive_flex_dpo"
    beta_chosen: Scheduled = Field(0.1, description="β⁺ > 0, on the chosen response's log-ratio")
    beta_rejected_min: float = Field(0.01, gt=0, description="the smallest β⁻ that the rule may choose")
    beta_rejected_max: float = Field(
        0.1,
        gt=0,
        validate_default=True,
        description="the largest β⁻ that the rule may choose; used where the two sides do not conflict",
    )
    safety: float = Field(0.9, gt=0, le=1, description="κ, the share of the bound that is used")
    adapt_every: int = Field(8, ge=1, description="updates from one measurement of the gradients to the next")
    smoothing: float = Field(
        0.5, ge=0, lt=1, description="weight of earlier measurements in the average; 0 uses only the latest"
    )
    _beta_rejected: float | None = PrivateAttr(None)  # set by `resolve_at`

    @field_validator("beta_rejected_max")
    @classmethod
    def _above_the_minimum(cls, value: float, info: ValidationInfo) -> float:
        if value < info.data.get("beta_rejected_min", 0):
            raise ValueError("beta_rejected_max must not be less than beta_rejected_min")
        return value

    @property
    def beta_rejected(self) -> float:
        """β⁻ now: the value in the state that `resolve_at` got, and the maximum before the first measurement."""
        return self.beta_rejected_max if self._beta_rejected is None else self._beta_rejected

    def resolve_at(self, fraction: float, state: Mapping[str, float]) -> Self:
        now = super().resolve_at(fraction, state).model_copy()
        now._beta_rejected = state.get("beta_rejected")
        return now


def pair_loss(pairs: PairLogprobs, settings: AdaptiveFlexDPOSettings) -> Tensor:
    beta_chosen, beta_rejected = resolved(settings.beta_chosen), settings.beta_rejected
    return -logsigmoid(beta_chosen * pairs.chosen_logratio - beta_rejected * pairs.rejected_logratio)


def pair_weight(pairs: PairLogprobs, settings: AdaptiveFlexDPOSettings) -> Tensor:
    """w = σ(−m) = 1 − exp(−loss) per pair [P]: how much of each pair's gradient enters the batch's."""
    return -torch.expm1(-pair_loss(pairs, settings))


def largest_beta_rejected(gradients: SideGradients, beta_chosen: float) -> float:
    """The β⁻ up to which a small step of gradient descent does not lower the weighted chosen log-probability."""
    if gradients.dot <= 0:
        return math.inf
    return beta_chosen * gradients.chosen_norm * gradients.chosen_norm / gradients.dot


def adapt(gradients: SideGradients, settings: AdaptiveFlexDPOSettings, state: Mapping[str, float]) -> dict[str, float]:
    """β⁻ after a measurement. One that is not finite says nothing about β⁻; the loss is not finite then either."""
    if not all(map(math.isfinite, (gradients.chosen_norm, gradients.rejected_norm, gradients.dot))):
        return dict(state)
    bound = settings.safety * largest_beta_rejected(gradients, resolved(settings.beta_chosen))
    found = min(max(bound, settings.beta_rejected_min), settings.beta_rejected_max)
    before = state.get("beta_rejected", found)
    share = settings.smoothing
    return {**state, "beta_rejected": math.exp(share * math.log(before) + (1 - share) * math.log(found))}


METHOD = pair_method("adaptive_flex_dpo", AdaptiveFlexDPOSettings, pair_loss, adapt=adapt, pair_weight=pair_weight)
