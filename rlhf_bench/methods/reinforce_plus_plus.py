"""REINFORCE++ (arXiv 2501.03262, section 3): PPO without its critic, at γ = λ = 1.

r_t = −k (log π_old(a_t) − log π0(a_t)) + [t is last] (score − b)  as in PPO, but for b
A_t = Σ_{s≥t} r_s, whitened over all tokens of the update
loss = −min( ρ A, clip(ρ, 1−ε, 1+ε) A ),  ρ = π(a_t) / π_old(a_t)

`baseline: update`: b = 0, and whitening takes off one number for all prompts. `baseline: prompt` is the paper's REINFORCE++ with
baseline: b is the mean score of the prompt's samples, and what is left is whitened over the update, not over the prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from pydantic import Field, ValidationInfo, field_validator

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
    baseline: Literal["update", "prompt"] = Field(
        "update",
        description="what a sample's score is compared with: update: the mean over all samples of the update; prompt: the mean of its prompt's samples first, of which there must be 2 or more",
    )

    @field_validator("baseline")
    @classmethod
    def _of_several_samples(cls, value: str, info: ValidationInfo) -> str:
        if value == "prompt" and info.data.get("samples_per_prompt") == 1:
            raise ValueError(
                "one sample is its prompt's mean, and nothing would be left of it: set samples_per_prompt to 2 or more, or baseline to update"
            )
        return value


def beyond_the_prompt(scores: np.ndarray, groups: Sequence[slice], rounding: float) -> np.ndarray:
    """Scores [R] less the mean of their prompt's; zeros for a prompt whose scores are no farther apart than `rounding`."""
    out = np.zeros_like(scores)
    for group in groups:
        own = scores[group]
        if np.ptp(own) > rounding:
            out[group] = own - own.mean()
    return out


def return_to_come(rewards: np.ndarray) -> np.ndarray:
    """Σ_{s≥t} r_s of each token t of one response [n]."""
    return np.cumsum(rewards[::-1])[::-1]


def estimate(episodes: Episodes, settings: ReinforcePlusPlusSettings) -> Estimate:
    scores, deviation = response_scores(episodes.rewards, episodes.rounding, settings.missing_eos_penalty)
    largest_score = float(np.abs(scores).max())
    if settings.baseline == "prompt":
        scores = beyond_the_prompt(scores, episodes.groups, episodes.rounding / deviation)
    rewards = token_rewards(scores, episodes.gaps, settings.reward_price / deviation)
    returns = [return_to_come(own) for own in rewards]
    largest = max(largest_score, *(float(np.abs(own).max()) for own in returns))  # rounding is that of the scores
    advantages = whiten_tokens(returns, ROUNDING[episodes.dtype] * largest)
    return Estimate(advantages, metrics={"reward_deviation": deviation})


METHOD = clipped_method("reinforce_plus_plus", ReinforcePlusPlusSettings, estimate)
