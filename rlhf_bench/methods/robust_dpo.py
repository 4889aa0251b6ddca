"""DPO for labels of which a share ε is wrong, with m = β (Δ⁺ − Δ⁻).

    form: robust          loss = [ −(1 − ε) log σ(m) + ε log σ(−m) ] / (1 − 2ε)         arXiv 2403.00409, eq. 12
    form: conservative    loss = −(1 − ε) log σ(m) − ε log σ(−m)                        label smoothing

The first is unbiased: over labels that are turned round with probability ε its mean is DPO's loss on the true ones. The
second is least where σ(m) = 1 − ε, and pulls a larger margin back.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor
from torch.nn.functional import logsigmoid

from rlhf_bench.methods.base import PairLogprobs
from rlhf_bench.methods.pairs import PairSettings, pair_method
from rlhf_bench.methods.schedules import Scheduled, resolved


class RobustDPOSettings(PairSettings):
    method: Literal["robust_dpo"] = "robust_dpo"
    form: Literal["robust", "conservative"] = Field(
        "robust", description="robust: unbiased under label noise; conservative: smoothed labels"
    )
    beta: Scheduled = Field(0.1, description="β > 0, strength of the tie to the reference policy")
    label_noise: float = Field(0.1, ge=0, lt=0.5, description="ε, the share of pairs whose label is taken to be wrong")


def robust_loss(margin: Tensor, noise: float) -> Tensor:
    """Loss per pair [P] from margins m [P]; DPO's at ε = 0."""
    return (-(1 - noise) * logsigmoid(margin) + noise * logsigmoid(-margin)) / (1 - 2 * noise)


def conservative_loss(margin: Tensor, noise: float) -> Tensor:
    """Loss per pair [P] from margins m [P]; DPO's at ε = 0."""
    return -(1 - noise) * logsigmoid(margin) - noise * logsigmoid(-margin)


def pair_loss(pairs: PairLogprobs, settings: RobustDPOSettings) -> Tensor:
    margin = resolved(settings.beta) * (pairs.chosen_logratio - pairs.rejected_logratio)
    loss = robust_loss if settings.form == "robust" else conservative_loss
    return loss(margin, settings.label_noise)


METHOD = pair_method("robust_dpo", RobustDPOSettings, pair_loss)
