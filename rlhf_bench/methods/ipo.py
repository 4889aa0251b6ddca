"""Identity preference optimisation (arXiv 2310.12036, eq. 17).

    loss = ( Δ⁺ − Δ⁻ − 1/(2τ) )²

A regression: the margin is pulled to 1/(2τ) and not beyond. `log_probs: mean` divides Δ± by the response's length.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor

from rlhf_bench.methods.base import PairLogprobs
from rlhf_bench.methods.pairs import PairSettings, pair_method


class IPOSettings(PairSettings):
    method: Literal["ipo"] = "ipo"
    tau: float = Field(0.1, gt=0, description="τ, strength of the tie to the reference; the margin's target is 1/(2τ)")
    log_probs: Literal["sum", "mean"] = Field(
        "sum", description="log-probability of a response: the sum over its tokens, as in the paper, or their mean"
    )


def ipo_loss(chosen_logratio: Tensor, rejected_logratio: Tensor, tau: float) -> Tensor:
    """Loss per pair [P] from log-ratios [P], summed or averaged over tokens. 0 where the margin is 1/(2τ)."""
    return (chosen_logratio - rejected_logratio - 1 / (2 * tau)) ** 2


def pair_loss(pairs: PairLogprobs, settings: IPOSettings) -> Tensor:
    up, down = pairs.chosen_logratio, pairs.rejected_logratio
    if settings.log_probs == "mean":
        up, down = up / pairs.chosen_tokens, down / pairs.rejected_tokens
    return ipo_loss(up, down, settings.tau)


METHOD = pair_method("ipo", IPOSettings, pair_loss)
