"""Kahneman-Tversky optimisation (arXiv 2402.01306, eqs. 8 and 9): each response by itself against a reference point z0.

    desirable:    λ_D (1 − σ( β (Δ − z0) ))        Δ = log π(a|x) − log π0(a|x)
    undesirable:  λ_U (1 − σ( β (z0 − Δ) ))
    z0 = max( 0, mean of log π(a'|x) − log π0(a'|x) )        a': the responses of another row of the update

The loss is the mean over responses. A pair is a desirable and an undesirable example, as in the paper for paired data; with
`unpaired`, rows are single responses with a label. No gradient flows through z0, an estimate of KL(π‖π0), which is taken before
every update.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal, Self

import numpy as np
import torch
from pydantic import Field, PrivateAttr, ValidationInfo, field_validator
from torch import Tensor

from rlhf_bench.core.plain_data import Array
from rlhf_bench.core.types import DESIRABLE, Row
from rlhf_bench.methods.base import Measured, Objective, Outputs, PairLogprobs, PerUnit, Prepared
from rlhf_bench.methods.pairs import PairSettings, pair_method, pair_objective, with_reference


class KTOSettings(PairSettings):
    method: Literal["kto"] = "kto"
    beta: float = Field(0.1, gt=0, description="β, how fast value saturates as a response moves from z0")
    desirable_weight: float = Field(1.0, gt=0, description="λ_D, weight of chosen responses")
    undesirable_weight: float = Field(1.0, gt=0, description="λ_U, weight of rejected responses")
    unpaired: bool = Field(
        False,
        description="learn from single responses with a label (data: offline): the task's labelled completions or, where it has none, the sides of its pairs, taken apart and shuffled. An update has twice pairs_per_update of them",
    )
    _reference_point: float = PrivateAttr(0.0)  # set by `resolve_at`

    @field_validator("pairs_per_update", "prompts_per_update")
    @classmethod
    def _other_pairs(cls, value: int) -> int:
        if value == 1:
            raise ValueError("one pair has no other whose responses give the reference point: use 2 or more")
        return value

    @field_validator("unpaired")
    @classmethod
    def _of_a_fixed_set(cls, value: bool, info: ValidationInfo) -> bool:
        if value and info.data.get("data") not in (None, "offline"):
            raise ValueError(f"data: {info.data['data']} makes pairs; use data: offline, or leave unpaired out")
        if value and info.data.get("edit_distance") is not None:
            raise ValueError("single responses have no edit distance; leave edit_distance out")
        return value

    @property
    def fixed_responses(self) -> bool:
        return self.unpaired

    @property
    def responses_per_row(self) -> int:
        return 1 if self.unpaired else 2

    @property
    def rows_per_update(self) -> int:
        return 2 * self.pairs_per_update if self.unpaired else self.pairs_per_update

    @property
    def reference_point(self) -> float:
        """z0 (nats) now: the value in the state that `resolve_at` got, and 0 before the first update, where π = π0."""
        return self._reference_point

    def resolve_at(self, fraction: float, state: Mapping[str, float]) -> Self:
        now = super().resolve_at(fraction, state).model_copy()
        now._reference_point = state.get("reference_point", 0.0)
        return now


def reference_point(logprobs: Sequence[np.ndarray], reference_logprobs: Sequence[np.ndarray]) -> float:
    """z0 from responses to prompts of other rows: for each an array with a log-probability (nats) per token, of the policy
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
    found = {"reference_point": reference_point(own, reference)}
    if not settings.unpaired:
        return replace(prepared, state=found)
    desirable = np.array([float(row.extras[DESIRABLE][0][0]) for row in rows])
    rows = [
        replace(row, extras={**row.extras, **shares})
        for row, shares in zip(prepared.rows, label_shares(desirable), strict=True)
    ]
    return Prepared(rows, found, prepared.metrics | {"desirable": float(desirable.mean())})


def label_shares(desirable: np.ndarray) -> list[dict[str, tuple[Array, ...]]]:
    """Of responses with labels [R], 1 or 0: what a number of each is multiplied by, so that the mean over all is the mean over
    those of one label. Of a label that no response has, nan."""
    weights = {"of_chosen": desirable, "of_rejected": 1 - desirable}
    shares = {name: own * len(own) / own.sum() if own.any() else own * np.nan for name, own in weights.items()}
    return [{name: (share[i : i + 1],) for name, share in shares.items()} for i in range(len(desirable))]


def value_loss(gain: Tensor, beta: float) -> Tensor:
    """1 − σ( β gain ) per response from how far (nats) it is on the right side of the reference point."""
    return (-beta * gain).sigmoid()


def response_loss(logratio: Tensor, desirable: Tensor, settings: KTOSettings) -> Tensor:
    """Loss per response [R] from Δ [R] (nats) and labels [R] (bool)."""
    one, good, bad = map(logratio.new_tensor, (1.0, settings.desirable_weight, settings.undesirable_weight))
    gain = torch.where(desirable, one, -one) * (logratio - settings.reference_point)
    weight = torch.where(desirable, good, bad)
    return weight * value_loss(gain, settings.beta)


def pair_loss(pairs: PairLogprobs, settings: KTOSettings) -> Tensor:
    """Loss per pair [P]: the mean of its two examples."""
    up, down = pairs.chosen_logratio, pairs.rejected_logratio
    good, bad = torch.ones_like(up, dtype=torch.bool), torch.zeros_like(down, dtype=torch.bool)
    return (response_loss(up, good, settings) + response_loss(down, bad, settings)) / 2


def objective(out: Outputs, settings: KTOSettings) -> PerUnit:
    """The loss of each row: of a pair or, with `unpaired`, of a response; and what all methods on pairs log, of chosen and
    rejected responses by their label."""
    if not settings.unpaired:
        return pair_objective(pair_loss, out, settings)
    logprob = out.by_response(out.logprobs)
    logratio = logprob - out.extras["reference_logprob"]
    own, ratio = logprob.detach(), logratio.detach()
    chosen, rejected = out.extras["of_chosen"], out.extras["of_rejected"]
    tokens = out.by_response(torch.ones_like(out.logprobs))
    return response_loss(logratio, out.extras[DESIRABLE] > 0, settings), {
        "chosen_logprob": own * chosen,
        "rejected_logprob": own * rejected,
        "entropy": out.by_response(out.entropy.detach()) / tokens,
        "chosen_logratio": ratio * chosen,
        "rejected_logratio": ratio * rejected,
        "margin": ratio * (chosen - rejected),
    }


METHOD = replace(
    pair_method("kto", KTOSettings, pair_loss),
    measures=("reference_logprobs", "mismatched_logprobs", "mismatched_reference_logprobs"),
    objectives=(Objective("policy", "row", objective),),
    prepare=prepare,
)
