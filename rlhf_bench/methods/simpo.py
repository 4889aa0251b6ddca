"""Simple preference optimisation (arXiv 2405.14734, eq. 6): no reference, and log-probabilities per token.

loss = −log σ( β/|a⁺| log π(a⁺) − β/|a⁻| log π(a⁻) − γ )
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor
from torch.nn.functional import logsigmoid

from rlhf_bench.methods.base import PairLogprobs
from rlhf_bench.methods.pairs import PairSettings, pair_method


class SimPOSettings(PairSettings):
    method: Literal["simpo"] = "simpo"
    beta: float = Field(2.0, gt=0, description="β, scale of the mean log-probability per token")
    gamma: float = Field(1.0, ge=0, description="γ, the margin between the two sides that the loss asks for")

    @property
    def reference_free(self) -> bool:
        return True


def simpo_loss(chosen_per_token: Tensor, rejected_per_token: Tensor, beta: float, gamma: float) -> Tensor:
    """Loss per pair [P] from mean log-probabilities per token [P]."""
    return -logsigmoid(beta * (chosen_per_token - rejected_per_token) - gamma)


def pair_loss(pairs: PairLogprobs, settings: SimPOSettings) -> Tensor:
    chosen, rejected = pairs.chosen / pairs.chosen_tokens, pairs.rejected / pairs.rejected_tokens
    return simpo_loss(chosen, rejected, settings.beta, settings.gamma)


METHOD = pair_method("simpo", SimPOSettings, pair_loss)
