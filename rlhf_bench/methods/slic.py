"""Sequence likelihood calibration (arXiv 2305.10425, section 2.4): a hinge on the margin, and a supervised term.

    form: likelihood    loss = max( 0, δ − (log π(a⁺) − log π(a⁻)) ) − λ log π(a⁺)
    form: reference     loss = max( 0, δ − (Δ⁺ − Δ⁻) ) − λ log π(a⁺)

The second takes the margin relative to the reference, as RSO does (arXiv 2309.06657, the hinge counterpart of DPO,
which has λ = 0). The first needs no reference at all.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor
from torch.nn.functional import relu

from rlhf_bench.methods.base import PairLogprobs
from rlhf_bench.methods.pairs import PairSettings, pair_method


class SLiCSettings(PairSettings):
    method: Literal["slic"] = "slic"
    form: Literal["likelihood", "reference"] = Field(
        "likelihood",
        description="what the hinge is on: log-probabilities, as in the paper, or log-ratios to the reference",
    )
    delta: float = Field(1.0, gt=0, description="δ, the margin (nats) above which a pair has no gradient")
    sft_weight: float = Field(0.05, ge=0, description="λ, weight of the supervised term on the chosen response")

    @property
    def reference_free(self) -> bool:
        return self.form == "likelihood"


def hinge_loss(margin: Tensor, delta: float) -> Tensor:
    """Loss per pair [P] from margins [P]: falls with slope 1 up to δ, then 0 (and so is its gradient, at δ too)."""
    return relu(delta - margin)


def pair_loss(pairs: PairLogprobs, settings: SLiCSettings) -> Tensor:
    if settings.form == "likelihood":
        margin = pairs.chosen - pairs.rejected
    else:
        margin = pairs.chosen_logratio - pairs.rejected_logratio
    return hinge_loss(margin, settings.delta) - settings.sft_weight * pairs.chosen


METHOD = pair_method("slic", SLiCSettings, pair_loss)
