"""REINFORCE++ with a global baseline (arXiv 2501.03262, section 3): PPO without its critic, at γ = λ = 1.

r_t = −k (log π_old(a_t) − log π0(a_t)) + [t is last] score        as in PPO
A_t = Σ_{s≥t} r_s, whitened over all tokens of the update          the baseline is one number for all prompts
loss = −min( ρ A, clip(ρ, 1−ε, 1+ε) A ),  ρ = π(a_t) / π_old(a_t)
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from rlhf_bench.core.rounding import ROUNDING
from rlhf_bench.methods.samples import (
    ClippedSettings,
    Episodes,
    Estimate,
    clipped_method,
    response_scores,
    token_rewards,
    whiten_tokens,
)


class ReinforcePlusPlusSettings(ClippedSettings):
    method: Literal["reinforce_plus_plus"] = "reinforce_plus_plus"


def return_to_come(rewards: np.ndarray) -> np.ndarray:
    """Σ_{s≥t} r_s of each token t of one response [n]."""
    return np.cumsum(rewards[::-1])[::-1]


def estimate(episodes: Episodes, settings: ReinforcePlusPlusSettings) -> Estimate:
    scores, deviation = response_scores(episodes.rewards, episodes.rounding, settings.missing_eos_penalty)
    rewards = token_rewards(scores, episodes.gaps, settings.reward_price / deviation)
    returns = [return_to_come(own) for own in rewards]
    largest = max(float(np.abs(own).max()) for own in returns)
    advantages = whiten_tokens(returns, ROUNDING[episodes.dtype] * largest)
    return Estimate(advantages, metrics={"reward_deviation": deviation})


METHOD = clipped_method("reinforce_plus_plus", ReinforcePlusPlusSettings, estimate)
