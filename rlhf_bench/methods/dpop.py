"""DPO-positive (arXiv 2402.13228, eq. 3): DPO with a penalty on a chosen response that falls below the reference.

loss = −log σ( β ( Δ⁺ − Δ⁻ − λ max(0, −Δ⁺) ) )
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor
from torch.nn.functional import logsigmoid, relu

from rlhf_bench.methods.base import PairLogprobs
from rlhf_bench.methods.pairs import PairSettings, pair_method


class DPOPSettings(PairSettings):
    method: Literal["dpop"] = "dpop"
    beta: float = Field(0.1, gt=0, description="β, strength of the tie to the reference policy")
    penalty: float = Field(50.0, ge=0, description="λ, weight of the chosen response's fall below the reference")


def dpop_loss(chosen_logratio: Tensor, rejected_logratio: Tensor, beta: float, penalty: float) -> Tensor:
    """Loss per pair [P] from log-ratios [P]. At Δ⁺ = 0, where training starts, the penalty's gradient is 0."""
    return -logsigmoid(beta * (chosen_logratio - rejected_logratio - penalty * relu(-chosen_logratio)))


def pair_loss(pairs: PairLogprobs, settings: DPOPSettings) -> Tensor:
    return dpop_loss(pairs.chosen_logratio, pairs.rejected_logratio, settings.beta, settings.penalty)


METHOD = pair_method("dpop", DPOPSettings, pair_loss)
