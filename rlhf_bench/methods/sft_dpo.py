"""DPO with a supervised term on the chosen response (arXiv 2406.07327, eq. 7).

    loss = −log σ( β (Δ⁺ − Δ⁻) ) − γ log π(a⁺)

The equation is printed there with a plus before γ. That would push the chosen response down; the gradient that the
paper states for the term, −γ/π(a⁺), is that of the minus.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor
from torch.nn.functional import logsigmoid

from rlhf_bench.methods.base import PairLogprobs
from rlhf_bench.methods.pairs import PairSettings, pair_method


class SFTDPOSettings(PairSettings):
    method: Literal["sft_dpo"] = "sft_dpo"
    beta: float = Field(0.1, gt=0, description="β, strength of the tie to the reference policy")
    gamma: float = Field(0.05, ge=0, description="γ, weight of the supervised term on the chosen response")


def sft_dpo_loss(
    chosen: Tensor, chosen_logratio: Tensor, rejected_logratio: Tensor, beta: float, gamma: float
) -> Tensor:
    """Loss per pair [P] from the chosen response's log-probability, summed over tokens, and log-ratios [P]."""
    return -logsigmoid(beta * (chosen_logratio - rejected_logratio)) - gamma * chosen


def pair_loss(pairs: PairLogprobs, settings: SFTDPOSettings) -> Tensor:
    return sft_dpo_loss(pairs.chosen, pairs.chosen_logratio, pairs.rejected_logratio, settings.beta, settings.gamma)


METHOD = pair_method("sft_dpo", SFTDPOSettings, pair_loss)
