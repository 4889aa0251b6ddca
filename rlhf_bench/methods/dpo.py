"""Direct preference optimisation (arXiv 2305.18290).

loss = −log σ( β (Δ⁺ − Δ⁻) ),   Δ± = log π(a±|x) − log π0(a±|x)
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


class DPOSettings(PairSettings):
    method: Literal["dpo"] = "dpo"
    beta: float = Field(0.1, gt=0, description="strength of the tie to the reference policy")


def dpo_loss(chosen_logratio: Tensor, rejected_logratio: Tensor, beta: float) -> Tensor:
    """Loss per pair [P] from log-ratios [P] (arXiv 2305.18290, eq. 7). log 2 where policy and reference agree."""
    return -logsigmoid(beta * (chosen_logratio - rejected_logratio))


def loss(out: Outputs, settings: DPOSettings) -> PerUnit:
    chosen, rejected = pair_logprobs(out)
    ref_chosen, ref_rejected = split_pairs(out.extras["reference_logprob"], out.responses)
    return dpo_loss(chosen - ref_chosen, rejected - ref_rejected, settings.beta), pair_metrics(out)


METHOD = Method(
    name="dpo",
    settings=DPOSettings,
    consumes="pairs",
    measures=("reference_logprobs",),
    objectives=(Objective("policy", "pair", loss),),
    prepare=with_reference,
    minibatches=one_step,
)
