"""Flex-DPO: separate strengths for the chosen and the rejected side (arXiv 2406.07327, appendix B.2).

    loss = −log σ( β⁺ Δ⁺ − β⁻ Δ⁻ )

With β⁺ = β⁻ it is DPO. A smaller β⁻ slows the fall of the rejected response.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor
from torch.nn.functional import logsigmoid

from rlhf_bench.methods.base import PairLogprobs
from rlhf_bench.methods.pairs import PairSettings, pair_method
from rlhf_bench.methods.schedules import Scheduled, resolved


class FlexDPOSettings(PairSettings):
    method: Literal["flex_dpo"] = "flex_dpo"
    beta_chosen: Scheduled = Field(0.1, description="β⁺ > 0, on the chosen response's log-ratio")
    beta_rejected: Scheduled = Field(0.08, description="β⁻ > 0, on the rejected response's log-ratio")


def flex_dpo_loss(
    chosen_logratio: Tensor, rejected_logratio: Tensor, beta_chosen: float, beta_rejected: float
) -> Tensor:
    """Loss per pair [P] from log-ratios [P]."""
    return -logsigmoid(beta_chosen * chosen_logratio - beta_rejected * rejected_logratio)


def pair_loss(pairs: PairLogprobs, settings: FlexDPOSettings) -> Tensor:
    up, down = pairs.chosen_logratio, pairs.rejected_logratio
    return flex_dpo_loss(up, down, resolved(settings.beta_chosen), resolved(settings.beta_rejected))


METHOD = pair_method("flex_dpo", FlexDPOSettings, pair_loss)
