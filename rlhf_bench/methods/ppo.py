"""Proximal policy optimisation with a reward model and a critic (arXiv 1707.06347; for language models 2009.01325).

    r_t = −k (log π_old(a_t) − log π0(a_t)) + [t is last] score         per-token KL penalty, score at the end
    A_t = Σ_l (γλ)^l δ_{t+l},  δ_t = r_t + γ V(s_{t+1}) − V(s_t)      generalised advantages (arXiv 1506.02438)
    policy: −min( ρ A, clip(ρ, 1−ε, 1+ε) A ),  ρ = π/π_old
    critic: ½ max( (V−R)², (clip(V, V_old−ε, V_old+ε)−R)² ),  R = A + V_old

An update's finished scores are whitened to deviation 1 without shifting their mean, and the penalty is divided by the
same deviation; a response that did not end earns less than the worst finished one. Advantages are whitened over the
update's tokens, with their mean (arXiv 2403.17031). The critic starts from the reward model; the KL coefficient follows
a target when one is set (arXiv 1909.08593, section 2.2).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
import torch
from pydantic import Field, ValidationInfo, field_validator
from torch import Tensor

from rlhf_bench.core.rounding import ROUNDING
from rlhf_bench.core.types import Row
from rlhf_bench.methods.base import Measured, Method, Objective, Outputs, PerUnit, Prepared
from rlhf_bench.methods.samples import (
    ClippedSettings,
    Episodes,
    Estimate,
    minibatches,
    policy_objective,
    prepare_samples,
    response_scores,
    token_rewards,
    whiten_tokens,
)


class PPOSettings(ClippedSettings):
    method: Literal["ppo"] = "ppo"
    epochs_per_update: int = Field(4, ge=1, description="passes over an update's samples")
    clip: float = Field(0.2, gt=0, lt=1, description="ε of the clipped policy loss and of the clipped value loss")
    critic_learning_rate: float = Field(1e-4, gt=0, description="Adam's step size for the critic")
    discount: float = Field(1.0, gt=0, le=1, description="γ")
    gae_lambda: float = Field(0.95, ge=0, le=1, description="λ")
    kl_target: float | None = Field(
        None, gt=0, description="sequence KL (nats) that an adaptive k aims for; null keeps k fixed"
    )

    @field_validator("kl_target")
    @classmethod
    def _steers_something(cls, value: float | None, info: ValidationInfo) -> float | None:
        if value is not None and info.data.get("kl_coefficient") == 0:
            raise ValueError(
                "kl_target adapts kl_coefficient by multiplying it, and 0 would stay 0: set kl_coefficient above 0"
            )
        return value

    @property
    def reference_free(self) -> bool:
        return False  # KL is logged at any price


def gae(rewards: np.ndarray, values: np.ndarray, discount: float, lam: float) -> tuple[np.ndarray, np.ndarray]:
    """Advantages and returns of one response, both [n] (arXiv 1506.02438, eq. 16); the state after the end is worth 0."""
    if rewards.shape != values.shape:
        raise ValueError(f"rewards {rewards.shape} and values {values.shape} must have one entry per token")
    advantages = np.zeros_like(rewards)
    running = 0.0
    for t in reversed(range(len(rewards))):
        following = values[t + 1] if t + 1 < len(values) else 0.0
        running = rewards[t] + discount * following - values[t] + discount * lam * running
        advantages[t] = running
    return advantages, advantages + values


def value_loss(values: Tensor, old_values: Tensor, returns: Tensor, clip: float) -> Tensor:
    """Clipped squared error per token [T]."""
    clipped = old_values + (values - old_values).clamp(-clip, clip)
    return 0.5 * torch.maximum((values - returns) ** 2, (clipped - returns) ** 2)


def next_kl_coefficient(coefficient: float, kl: float, target: float | None, samples: int) -> float:
    """Proportional controller of arXiv 1909.08593, section 2.2: error clipped to ±0.2, a gain of 0.1 per 1,000 samples."""
    if target is None:
        return coefficient
    error = float(np.clip(kl / target - 1, -0.2, 0.2))
    return coefficient * (1 + error * min(samples / 10_000, 1.0))


def estimate(episodes: Episodes, settings: PPOSettings) -> Estimate:
    """Advantages against the critic's values, whitened over the update's tokens; and the critic's targets."""
    scores, deviation = response_scores(episodes.rewards, episodes.rounding, settings.missing_eos_penalty)
    rewards = token_rewards(scores, episodes.gaps, settings.reward_price / deviation)
    values = [own.astype(np.float64) for own in episodes.values]
    both = [
        gae(earned, own, settings.discount, settings.gae_lambda) for earned, own in zip(rewards, values, strict=True)
    ]
    advantages, returns = [a for a, _ in both], [r for _, r in both]
    largest = max(float(np.abs(a).max()) for a in (*returns, *values))
    return Estimate(
        whiten_tokens(advantages, ROUNDING[episodes.dtype] * largest),
        {"old_values": episodes.values, "returns": returns},
        {"reward_deviation": deviation},
    )


def prepare(
    rows: Sequence[Row],
    rewards: Sequence[Sequence[float]],
    measured: Measured,
    settings: PPOSettings,
    state: Mapping[str, float],
    dtype: str = "float32",
) -> Prepared:
    """As all clipped methods do, at the KL coefficient that the updates before have come to."""
    coefficient = state.get("kl_coefficient", settings.kl_coefficient)
    now = settings.model_copy(update={"kl_coefficient": coefficient})
    prepared = prepare_samples(estimate, rows, rewards, measured, now, state, dtype)
    samples = sum(map(len, rewards))
    following = next_kl_coefficient(coefficient, prepared.metrics["kl"], settings.kl_target, samples)
    return replace(prepared, state={"kl_coefficient": following})


def critic_objective(out: Outputs, settings: PPOSettings) -> PerUnit:
    returns = out.extras["returns"]
    per_token = value_loss(out.values, out.extras["old_values"], returns, settings.clip)
    return per_token, {"value_error": (out.values.detach() - returns) ** 2, "value": out.values.detach()}


METHOD = Method(
    name="ppo",
    settings=PPOSettings,
    consumes="samples",
    measures=("reference_logprobs", "logprobs", "values"),
    objectives=(Objective("policy", "token", policy_objective), Objective("critic", "token", critic_objective)),
    prepare=prepare,
    minibatches=minibatches,
)
