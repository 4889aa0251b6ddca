"""Flex-DPO: separate strengths for the chosen and the rejected side (arXiv 2406.07327, appendix B.2).

    loss = −log σ( β⁺ Δ⁺ − β⁻ Δ⁻ )

With β⁺ = β⁻ it is DPO. A smaller β⁻ slows the fall of the rejected response.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor
from torch.nn.functional import logsigmoid

from rlhf_bench.methods.base import (
    Method,
    Objective,
    Outputs,
    PairSettings,
    PerUnit,
    one_step,
    pair_logprobs,
    pair_metrics,
    split_pairs,
    with_reference,
)  # fmt: skip


class FlexDPOSettings(PairSettings):
    method: Literal["flex_dpo"] = "flex_dpo"
    beta_chosen: float = Field(0.1, gt=0, description="β⁺, on the chosen response's log-ratio")
    beta_rejected: float = Field(0.08, gt=0, description="β⁻, on the rejected response's log-ratio")


def flex_dpo_loss(
    chosen_logratio: Tensor, rejected_logratio: Tensor, beta_chosen: float, beta_rejected: float
) -> Tensor:
    """Loss per pair [P] from log-ratios [P]."""
    return -logsigmoid(beta_chosen * chosen_logratio - beta_rejected * rejected_logratio)


def loss(out: Outputs, settings: FlexDPOSettings) -> PerUnit:
    chosen, rejected = pair_logprobs(out)
    ref_chosen, ref_rejected = split_pairs(out.extras["reference_logprob"], out.responses)
    per_pair = flex_dpo_loss(chosen - ref_chosen, rejected - ref_rejected, settings.beta_chosen, settings.beta_rejected)
    return per_pair, pair_metrics(out)


METHOD = Method(
    name="flex_dpo",
    settings=FlexDPOSettings,
    consumes="pairs",
    measures=("reference_logprobs",),
    objectives=(Objective("policy", "pair", loss),),
    prepare=with_reference,
    minibatches=one_step,
)
