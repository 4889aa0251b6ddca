"""Direct preference optimisation (arXiv 2305.18290).

loss = −log σ( β (Δ⁺ − Δ⁻) ),   Δ± = log π(a±|x) − log π0(a±|x)
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor
from torch.nn.functional import logsigmoid

from rlhf_bench.methods.base import PairLogprobs
from rlhf_bench.methods.pairs import PairSettings, pair_method
from rlhf_bench.methods.schedules import Scheduled, resolved


class DPOSettings(PairSettings):
    method: Literal["dpo"] = "dpo"
    beta: Scheduled = Field(0.1, description="β > 0, strength of the tie to the reference policy")


def dpo_loss(chosen_logratio: Tensor, rejected_logratio: Tensor, beta: float) -> Tensor:
    """Loss per pair [P] from log-ratios [P] (arXiv 2305.18290, eq. 7). log 2 where policy and reference agree."""
    return -logsigmoid(beta * (chosen_logratio - rejected_logratio))


def pair_loss(pairs: PairLogprobs, settings: DPOSettings) -> Tensor:
    return dpo_loss(pairs.chosen_logratio, pairs.rejected_logratio, resolved(settings.beta))


METHOD = pair_method("dpo", DPOSettings, pair_loss)
