"""Proximal policy optimisation with a reward model and a critic (arXiv 1707.06347; for language models 2009.01325).

    r_t = −k (log π_old(a_t) − log π0(a_t)) + [t last] score         per-token KL penalty, score at the end
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
from typing import Literal

import numpy as np
import torch
from pydantic import Field, ValidationInfo, field_validator
from torch import Tensor

from rlhf_bench.core.rounding import ROUNDING
from rlhf_bench.core.types import Row
from rlhf_bench.methods.base import (
    Feedback,
    Measured,
    Method,
    MethodSettings,
    Objective,
    Outputs,
    PerUnit,
    Prepared,
)


class PPOSettings(MethodSettings):
    method: Literal["ppo"] = "ppo"
    data: Literal["online"] = Field("online", description="PPO always learns from new samples of its own policy")
    feedback: Feedback = Field(
        "reward_model", description="where scores come from: the reward model, or the task's judge"
    )
    prompts_per_update: int = Field(64, ge=1, description="prompts sampled for one update")
    samples_per_prompt: int = Field(4, ge=1, le=1024, description="responses sampled for each prompt")
    epochs_per_update: int = Field(4, ge=1, description="passes over an update's samples")
    minibatches_per_epoch: int = Field(1, ge=1, description="optimizer steps in one pass")
    critic_learning_rate: float = Field(1e-4, gt=0, description="Adam's step size for the critic")
    clip: float = Field(0.2, gt=0, lt=1, description="ε of the clipped policy loss and of the clipped value loss")
    discount: float = Field(1.0, gt=0, le=1, description="γ")
    gae_lambda: float = Field(0.95, ge=0, le=1, description="λ")
    kl_coefficient: float = Field(
        0.05,
        ge=0,
        description="k, the price of one nat of KL in the reward's own units: the judge's points, or deviations of the reward model on the base policy's samples",
    )
    kl_target: float | None = Field(
        None, gt=0, description="sequence KL (nats) that an adaptive k aims for; null keeps k fixed"
    )
    missing_eos_penalty: float = Field(
        1.0,
        gt=0,
        description="how much less a response without EOS scores than the worst finished one of its update, in the reward's own units",
    )
    rollouts_ahead: Literal[0, 1] = Field(
        0,
        description="1: sample for an update while the learner still works on the update before it. Faster where engines and learner have separate cores. Samples are then one update old, which truncated importance weights correct",
    )
    importance_cap: float = Field(2.0, ge=1, description="largest importance weight of a token (rollouts_ahead: 1)")

    @field_validator("kl_target")
    @classmethod
    def _steers_something(cls, value: float | None, info: ValidationInfo) -> float | None:
        if value is not None and info.data.get("kl_coefficient") == 0:
            raise ValueError(
                "kl_target adapts kl_coefficient by multiplying it, and 0 would stay 0: set kl_coefficient above 0"
            )
        return value

    @property
    def draws_ahead(self) -> bool:
        return self.rollouts_ahead == 1


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


def whiten(x: np.ndarray, rounding: float) -> np.ndarray:
    """Mean 0 and deviation 1; all zeros where no two entries are farther apart than `rounding` (nothing to prefer)."""
    return (x - x.mean()) / x.std() if np.ptp(x) > rounding else np.zeros_like(x)


def response_scores(rewards: np.ndarray, rounding: float, penalty: float) -> tuple[np.ndarray, float]:
    """Each response's whitened score, and σ, the deviation of the finished ones' rewards: m + (reward − m)/σ with their mean
    m, which is not shifted (arXiv 2403.17031): the critic begins on the rewards' own scale.

    nan marks a response without EOS. Its reward is taken to be `penalty` less than the worst finished one. Where none has
    finished all are alike, and score −`penalty`: 0 is the reward model's mean on the base policy, and a judge's nothing.
    Rewards no farther apart than `rounding` are equal; σ is then 1.
    """
    ended = ~np.isnan(rewards)
    if not ended.any():
        return np.full_like(rewards, -penalty), 1.0
    finished = rewards[ended]
    mean, deviation = finished.mean(), float(finished.std())
    if np.ptp(finished) <= rounding:
        return np.where(ended, mean, mean - penalty), 1.0
    filled = np.where(ended, rewards, finished.min() - penalty)
    return mean + (filled - mean) / deviation, deviation


def policy_loss(logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, clip: float) -> Tensor:
    """Clipped surrogate per token [T] (arXiv 1707.06347, eq. 7), as a loss."""
    ratio = (logprobs - old_logprobs).exp()
    return -torch.minimum(ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages)


def value_loss(values: Tensor, old_values: Tensor, returns: Tensor, clip: float) -> Tensor:
    """Clipped squared error per token [T]."""
    clipped = old_values + (values - old_values).clamp(-clip, clip)
    return 0.5 * torch.maximum((values - returns) ** 2, (clipped - returns) ** 2)


def importance_weights(old_logprobs: np.ndarray, sampler_logprobs: np.ndarray, cap: float) -> np.ndarray:
    """min(π_old/μ, cap) per token: μ drew the sample, π_old is the policy that the update starts from. With μ = π_old all
    are 1 (truncated importance sampling, Ionides 2008; for a lagging μ in PPO, arXiv 2110.00641, eq. 3)."""
    return np.minimum(np.exp(old_logprobs.astype(np.float64) - sampler_logprobs), cap)


def next_kl_coefficient(coefficient: float, kl: float, target: float | None, samples: int) -> float:
    """Proportional controller of arXiv 1909.08593, section 2.2: error clipped to ±0.2, a gain of 0.1 per 1,000 samples."""
    if target is None:
        return coefficient
    error = float(np.clip(kl / target - 1, -0.2, 0.2))
    return coefficient * (1 + error * min(samples / 10_000, 1.0))


def _estimates(
    scores: np.ndarray,
    gaps: Sequence[np.ndarray],
    values: Sequence[np.ndarray],
    price: float,
    settings: PPOSettings,
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Advantages and returns of each response: its score comes with the last token, `price` of each nat with its token."""
    both = []
    for score, gap, own in zip(scores, gaps, values, strict=True):
        rewards = -price * gap
        rewards[-1] += score
        both.append(gae(rewards, own, settings.discount, settings.gae_lambda))
    return [a for a, _ in both], [r for _, r in both]


def _reward_rounding(rows: Sequence[Row]) -> float:
    """That of the update's largest reward; 0 where rewards are exact."""
    return max((float(a[0]) for row in rows for a in row.extras.get("reward_rounding", ())), default=0.0)


def prepare(
    rows: Sequence[Row],
    rewards: Sequence[Sequence[float]],
    measured: Measured,
    settings: PPOSettings,
    state: Mapping[str, float],
    dtype: str = "float32",
) -> Prepared:
    """Rewards, advantages and returns per token. A reward of nan marks a response that did not end."""
    coefficient = state.get("kl_coefficient", settings.kl_coefficient)
    flat = np.array([score for row in rewards for score in row], dtype=np.float64)
    scores, deviation = response_scores(flat, _reward_rounding(rows), settings.missing_eos_penalty)
    logprobs, reference, values = (
        [a.astype(np.float64) for row in measured[name] for a in row]
        for name in ("logprobs", "reference_logprobs", "values")
    )
    gaps = [own - other for own, other in zip(logprobs, reference, strict=True)]
    advantages, returns = _estimates(scores, gaps, values, coefficient / deviation, settings)
    largest = max(float(np.abs(a).max()) for a in (*returns, *values))
    white = whiten(np.concatenate(advantages), ROUNDING[dtype] * largest)
    out = _with_extras(rows, measured, np.split(white, np.cumsum([len(a) for a in advantages])[:-1]), returns, settings)
    kl = float(np.mean([gap.sum() for gap in gaps]))
    metrics = {
        "kl": kl,
        "kl_coefficient": coefficient,
        "kl_penalty": coefficient * kl,
        "reward_deviation": deviation,
        "unfinished": float(np.isnan(flat).mean()),
        **_importance_metrics(out, settings),
    }
    following = next_kl_coefficient(coefficient, kl, settings.kl_target, len(flat))
    return Prepared(out, {"kl_coefficient": following}, metrics)


def _with_extras(
    rows: Sequence[Row],
    measured: Measured,
    advantages: Sequence[np.ndarray],
    returns: Sequence[np.ndarray],
    settings: PPOSettings,
) -> list[Row]:
    """Rows with what both losses read of each token. Advantages and returns: an array per response, rows in order."""
    out, at = [], 0
    for i, row in enumerate(rows):
        part = slice(at, at + len(row.responses))
        extras = {
            "old_logprobs": tuple(measured["logprobs"][i]),
            "old_values": tuple(measured["values"][i]),
            "advantages": tuple(advantages[part]),
            "returns": tuple(returns[part]),
        }
        if settings.rollouts_ahead:
            both = zip(measured["logprobs"][i], row.extras["sampler_logprobs"], strict=True)
            extras["importance"] = tuple(importance_weights(old, drawn, settings.importance_cap) for old, drawn in both)
        out.append(Row(row.id, row.prompt_ids, row.responses, extras))
        at = part.stop
    return out


def _importance_metrics(rows: Sequence[Row], settings: PPOSettings) -> dict[str, float]:
    """Of rows that were drawn ahead."""
    if not settings.rollouts_ahead:
        return {}
    weights = np.concatenate([w for row in rows for w in row.extras["importance"]])
    return {
        "importance": float(weights.mean()),
        "importance_capped": float((weights >= settings.importance_cap).mean()),
    }


def minibatches(rows: Sequence[object], settings: PPOSettings, rng: np.random.Generator) -> list[list[int]]:
    """A fresh shuffle in every epoch, cut into near-equal parts."""
    parts = min(settings.minibatches_per_epoch, len(rows))
    return [
        sorted(part.tolist())
        for _ in range(settings.epochs_per_update)
        for part in np.array_split(rng.permutation(len(rows)), parts)
    ]


def actor_objective(out: Outputs, settings: PPOSettings) -> PerUnit:
    old, advantages = out.extras["old_logprobs"], out.extras["advantages"]
    per_token = policy_loss(out.logprobs, old, advantages, settings.clip)
    if settings.rollouts_ahead:
        per_token = per_token * out.extras["importance"]
    gap = out.logprobs.detach() - old
    clipped = ((gap.exp() - 1).abs() > settings.clip).float()
    return per_token, {"entropy": out.entropy.detach(), "clip_fraction": clipped, "step_kl": gap.exp() - 1 - gap}


def critic_objective(out: Outputs, settings: PPOSettings) -> PerUnit:
    returns = out.extras["returns"]
    per_token = value_loss(out.values, out.extras["old_values"], returns, settings.clip)
    return per_token, {"value_error": (out.values.detach() - returns) ** 2, "value": out.values.detach()}


METHOD = Method(
    name="ppo",
    settings=PPOSettings,
    consumes="samples",
    measures=("reference_logprobs", "logprobs", "values"),
    objectives=(Objective("policy", "token", actor_objective), Objective("critic", "token", critic_objective)),
    prepare=prepare,
    minibatches=minibatches,
)
