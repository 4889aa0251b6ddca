"""REINFORCE with a leave-one-out baseline (arXiv 2402.14740, section 3): no critic, since a prompt's other samples tell what
to expect.

    R_i = reward_i − k Σ_t (log π_old(a_t) − log π0(a_t))            KL is paid out of the reward
    A_i = R_i − 1/(n−1) Σ_{j≠i} R_j                                  the same for each of the response's tokens
    loss = −min( ρ A, clip(ρ, 1−ε, 1+ε) A ),  ρ = π(a_t) / π_old(a_t)

At ρ = 1, which one optimizer step per update never leaves, the gradient is the paper's: −A_i ∇ log π(a_i).
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from rlhf_bench.methods.samples import (
    Episodes,
    Estimate,
    GroupSettings,
    clipped_method,
    group_earnings,
    on_every_token,
)


class RLOOSettings(GroupSettings):
    method: Literal["rloo"] = "rloo"


def leave_one_out(earned: np.ndarray) -> np.ndarray:
    """Of each of a prompt's n responses [n]: what it earned beyond the mean of the others (arXiv 2402.14740, eq. 8)."""
    return earned - (earned.sum() - earned) / (len(earned) - 1)


def estimate(episodes: Episodes, settings: RLOOSettings) -> Estimate:
    advantages = [leave_one_out(earned) for _, earned in group_earnings(episodes, settings)]
    return Estimate(on_every_token(advantages, episodes))


METHOD = clipped_method("rloo", RLOOSettings, estimate)
