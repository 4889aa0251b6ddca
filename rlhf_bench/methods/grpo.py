"""Group relative policy optimisation (arXiv 2402.03300, section 4.1): a prompt's other samples in the place of a critic.

    A_i = (r_i − mean of the group) / deviation of the group          the same for each of the response's tokens
    loss = mean_i 1/|a_i| Σ_t [ −min( ρ A, clip(ρ, 1−ε, 1+ε) A ) + k ( π0/π − log π0/π − 1 ) ]

Four published corrections are settings: `average_over: tokens` (no length bias) and `divide_by_deviation: false` (Dr. GRPO,
arXiv 2503.20783), `clip_high` (DAPO, arXiv 2503.14476), and `kl_in: reward`, where KL is paid out of r_i, as in RLOO.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from rlhf_bench.methods.base import Outputs, PerUnit
from rlhf_bench.methods.samples import (
    Episodes,
    Estimate,
    GroupSettings,
    clipped_method,
    group_earnings,
    on_every_token,
    policy_objective,
)


class GRPOSettings(GroupSettings):
    method: Literal["grpo"] = "grpo"
    clip_high: float | None = Field(
        None, gt=0, description="ε of ratios above 1, where it is another one than `clip` (DAPO: 0.28)"
    )
    kl_coefficient: float = Field(
        0.04,
        ge=0,
        description="k: with kl_in: loss on the scale of advantages; with kl_in: reward the price of one nat in the reward's own units",
    )
    kl_in: Literal["loss", "reward"] = Field(
        "loss",
        description="loss: KL is estimated per token and added to the loss; reward: it is paid out of the reward",
    )
    divide_by_deviation: bool = Field(
        True, description="whether advantages are divided by the deviation of the prompt's rewards; Dr. GRPO does not"
    )
    average_over: Literal["responses", "tokens"] = Field(
        "responses",
        description="responses: every response weighs alike, so that a token of a long one weighs less; tokens: every token weighs alike (DAPO, Dr. GRPO)",
    )

    @property
    def clip_above(self) -> float:
        return self.clip if self.clip_high is None else self.clip_high

    @property
    def kl_in_loss(self) -> bool:
        return self.kl_in == "loss" and self.kl_coefficient > 0

    @property
    def reward_price(self) -> float:
        return self.kl_coefficient if self.kl_in == "reward" else 0.0


def group_advantages(rewards: np.ndarray, earned: np.ndarray, divide: bool) -> np.ndarray:
    """Of each of a prompt's n responses [n]: what it `earned`, KL paid, beyond the group's mean. `divide`: by the deviation of
    the n `rewards`, 1 where they are equal (arXiv 2402.03300, section 4.1.2; over n, and not n − 1)."""
    deviation = rewards.std() if divide and np.ptp(rewards) > 0 else 1.0
    return (earned - earned.mean()) / deviation


def estimate(episodes: Episodes, settings: GRPOSettings) -> Estimate:
    earnings = group_earnings(episodes, settings)
    advantages = [group_advantages(own, earned, settings.divide_by_deviation) for own, earned in earnings]
    extras = {"reference_gap": episodes.gaps} if settings.kl_in_loss else {}
    if settings.average_over == "responses":
        extras["weight"] = length_weights([len(gap) for gap in episodes.gaps])
    return Estimate(on_every_token(advantages, episodes), extras)


def length_weights(lengths: Sequence[int]) -> list[np.ndarray]:
    """Weights of tokens, an array [n] a response, with which a mean over all tokens is the mean over responses of each one's
    own mean."""
    mean = float(np.mean(lengths))
    return [np.full(n, mean / n) for n in lengths]


def kl_estimate(gap: Tensor) -> Tensor:
    """π0/π − log π0/π − 1 per token [T] from log π − log π0 (arXiv 2402.03300, eq. 4): never below 0, and over samples of π
    its mean is the KL."""
    return torch.expm1(-gap) + gap


def objective(out: Outputs, settings: GRPOSettings) -> PerUnit:
    """The clipped loss, KL and the weight of the response's length added, per token [T]."""
    per_token, metrics = policy_objective(out, settings)
    if settings.kl_in_loss:
        gap = out.logprobs - out.extras["old_logprobs"] + out.extras["reference_gap"]
        per_token = per_token + settings.kl_coefficient * kl_estimate(gap)
    if settings.average_over == "responses":
        per_token = per_token * out.extras["weight"]
    return per_token, metrics


METHOD = clipped_method("grpo", GRPOSettings, estimate, objective)
