"""Kahneman-Tversky optimisation (arXiv 2402.01306, eqs. 8 and 9): each side by itself against a reference point z0.

    loss = ½ [ λ_D (1 − σ( β (Δ⁺ − z0) )) + λ_U (1 − σ( β (z0 − Δ⁻) )) ]
    z0   = max( 0, mean of log π(a'|x) − log π0(a'|x) )        a': the responses of another pair of the update

A pair is a desirable and an undesirable example, as in the paper for paired data, and its loss the mean of both. No gradient
flows through z0, an estimate of KL(π‖π0), which is taken before every update.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal, Self

import numpy as np
from pydantic import Field, PrivateAttr, field_validator
from torch import Tensor

from rlhf_bench.core.types import Row
from rlhf_bench.methods.base import Measured, PairLogprobs, Prepared
from rlhf_bench.methods.pairs import PairSettings, pair_method, with_reference


class KTOSettings(PairSettings):
    method: Literal["kto"] = "kto"
    beta: float = Field(0.1, gt=0, description="β, how fast value saturates as a response moves from z0")
    desirable_weight: float = Field(1.0, gt=0, description="λ_D, weight of chosen responses")
    undesirable_weight: float = Field(1.0, gt=0, description="λ_U, weight of rejected responses")
    _reference_point: float = PrivateAttr(0.0)  # set by `resolve_at`

    @field_validator("pairs_per_update", "prompts_per_update")
    @classmethod
    def _other_pairs(cls, value: int) -> int:
        if value == 1:
            raise ValueError("one pair has no other whose responses give the reference point: use 2 or more")
        return value

    @property
    def reference_point(self) -> float:
        """z0 (nats) now: the value in the state that `resolve_at` got, and 0 before the first update, where π = π0."""
        return self._reference_point

    def resolve_at(self, fraction: float, state: Mapping[str, float]) -> Self:
        now = super().resolve_at(fraction, state).model_copy()
        now._reference_point = state.get("reference_point", 0.0)
        return now


def reference_point(logprobs: Sequence[np.ndarray], reference_logprobs: Sequence[np.ndarray]) -> float:
    """z0 from responses to prompts of other pairs: for each an array with a log-probability (nats) per token, of the policy
    and of the reference (arXiv 2402.01306, section 4.1)."""
    gaps = [float((own - other).sum()) for own, other in zip(logprobs, reference_logprobs, strict=True)]
    return max(0.0, float(np.mean(gaps)))


def prepare(
    rows: Sequence[Row],
    rewards: Sequence[Sequence[float]],
    measured: Measured,
    settings: KTOSettings,
    state: Mapping[str, float],
    dtype: str = "float32",
) -> Prepared:
    """As for all pairs, with the reference point as state."""
    own, reference = (
        [a.astype(np.float64) for row in measured[name] for a in row]
        for name in ("mismatched_logprobs", "mismatched_reference_logprobs")
    )
    prepared = with_reference(rows, rewards, measured, settings, state, dtype)
    return replace(prepared, state={"reference_point": reference_point(own, reference)})


def value_loss(gain: Tensor, beta: float) -> Tensor:
    """1 − σ( β gain ) per response from how far (nats) it is on the right side of the reference point."""
    return (-beta * gain).sigmoid()


def pair_loss(pairs: PairLogprobs, settings: KTOSettings) -> Tensor:
    """Loss per pair [P]: the mean of its two examples."""
    beta, z0 = settings.beta, settings.reference_point
    desirable = value_loss(pairs.chosen_logratio - z0, beta)
    undesirable = value_loss(z0 - pairs.rejected_logratio, beta)
    return (settings.desirable_weight * desirable + settings.undesirable_weight * undesirable) / 2


METHOD = replace(
    pair_method("kto", KTOSettings, pair_loss),
    measures=("reference_logprobs", "mismatched_logprobs", "mismatched_reference_logprobs"),
    prepare=prepare,
)
