"""What the methods on samples share: settings, what samples earn, the clipped policy loss, and how an update is prepared.

PPO, GRPO, RLOO and REINFORCE++ are one page here, and each has its own `Estimator`: what makes advantages of an update's
rewards. Their policy loss is −min( ρ A, clip(ρ, 1−ε, 1+ε) A ) per token, ρ = π/π_old.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import BeforeValidator, Field
from torch import Tensor

from rlhf_bench.core.types import Row
from rlhf_bench.methods.base import (
    Feedback,
    Measured,
    Method,
    MethodSettings,
    Objective,
    Outputs,
    PerResponse,
    PerUnit,
    Prepared,
)


class SampleSettings(MethodSettings):
    """Settings of the methods that learn from samples of their own policy."""

    data: Literal["online"] = Field("online", description="new samples of the arm's own policy in every update")
    feedback: Feedback = Field(
        "reward_model", description="where scores come from: the reward model, or the task's judge"
    )
    prompts_per_update: int = Field(64, ge=1, description="prompts sampled for one update")
    samples_per_prompt: int = Field(4, ge=1, le=1024, description="responses sampled for each prompt")
    epochs_per_update: int = Field(1, ge=1, description="passes over an update's samples")
    minibatches_per_epoch: int = Field(1, ge=1, description="optimizer steps in one pass")
    rollouts_ahead: Literal[0, 1] = Field(
        0,
        description="1: sample for an update while the learner still works on the update before it. Faster where engines and learner have separate cores. Samples are then one update old, which truncated importance weights correct in a clipped loss",
    )

    @property
    def draws_ahead(self) -> bool:
        return self.rollouts_ahead == 1

    @property
    def responses_per_row(self) -> int:
        return self.samples_per_prompt


def _several(value: Any) -> Any:
    if value == 1:
        raise ValueError("one sample has no other of its prompt to be compared with: sample 2 or more for each prompt")
    return value


Several = Annotated[int, BeforeValidator(_several), Field(ge=2, le=1024)]
"""Of a method that compares a prompt's samples with each other."""


class ClippedSettings(SampleSettings):
    """Settings of the methods whose policy loss is the clipped one."""

    clip: float = Field(0.2, gt=0, lt=1, description="ε of the clipped policy loss")
    kl_coefficient: float = Field(
        0.05,
        ge=0,
        description="k, the price of one nat of KL in the reward's own units: the judge's points, or deviations of the reward model on the base policy's samples",
    )
    missing_eos_penalty: float = Field(
        1.0,
        gt=0,
        description="how much less a response without EOS scores than the worst finished one of its update, in the reward's own units",
    )
    importance_cap: float = Field(2.0, ge=1, description="largest importance weight of a token (rollouts_ahead: 1)")

    @property
    def clip_above(self) -> float:
        """ε of ratios above 1."""
        return self.clip

    @property
    def reward_price(self) -> float:
        """What a nat of KL costs in rewards."""
        return self.kl_coefficient

    @property
    def reference_free(self) -> bool:
        return self.kl_coefficient == 0


class GroupSettings(ClippedSettings):
    """Settings of the clipped methods whose baseline is a prompt's other samples."""

    samples_per_prompt: Several = Field(4, description="responses sampled for each prompt, 2 or more")


@dataclass(frozen=True)
class Episodes:
    """An update's R responses as numbers, in the rows' order. Lists have an array [n] a response, with a number per token."""

    rewards: np.ndarray  # [R]; nan: the response did not end
    rounding: float  # rewards no farther apart are equal
    groups: list[slice]  # the responses of each prompt
    gaps: list[np.ndarray]  # log π_old − log π0; zeros where KL has no price
    values: list[np.ndarray]  # the critic's; [] without one
    dtype: str  # the number format that all were computed in


@dataclass(frozen=True)
class Estimate:
    """Advantages, and what else the losses read: a list has an array [n] a response. Numbers to log."""

    advantages: list[np.ndarray]
    extras: Mapping[str, list[np.ndarray]] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)


Estimator = Callable[[Episodes, Any], Estimate]
"""Episodes and the method's settings -> advantages: what tells the clipped methods apart."""


def clipped_method(
    name: str,
    settings: type[ClippedSettings],
    estimate: Estimator,
    objective: Callable[[Outputs, Any], PerUnit] | None = None,
) -> Method:
    """The record of a method without a critic. `objective`: the policy's, where it is not the clipped loss alone."""
    return Method(
        name=name,
        settings=settings,
        consumes="samples",
        measures=("reference_logprobs", "logprobs"),
        objectives=(Objective("policy", "token", objective or policy_objective),),
        prepare=partial(prepare_samples, estimate),
        minibatches=minibatches,
    )


def prepare_samples(
    estimate: Estimator,
    rows: Sequence[Row],
    rewards: Sequence[Sequence[float]],
    measured: Measured,
    settings: Any,
    state: Mapping[str, float],
    dtype: str = "float32",
) -> Prepared:
    """Rows with what the losses read of each token. A reward of nan marks a response that did not end."""
    flat = np.array([score for row in rewards for score in row], dtype=np.float64)
    logprobs = [a.astype(np.float64) for row in measured["logprobs"] for a in row]
    if known := "reference_logprobs" in measured:
        reference = [a.astype(np.float64) for row in measured["reference_logprobs"] for a in row]
        gaps = [own - other for own, other in zip(logprobs, reference, strict=True)]
    else:
        gaps = [np.zeros_like(own) for own in logprobs]
    values = [a for row in measured.get("values", ()) for a in row]
    found = estimate(Episodes(flat, reward_rounding(rows), _groups(rows), gaps, values, dtype), settings)
    kl = float(np.mean([gap.sum() for gap in gaps]))
    prices = {"kl_coefficient": settings.kl_coefficient, "kl_penalty": settings.reward_price * kl}
    metrics = ({"kl": kl} | prices if known else {}) | {"unfinished": float(np.isnan(flat).mean()), **found.metrics}
    out = _with_extras(rows, measured, {"advantages": found.advantages, **found.extras}, settings)
    return Prepared(out, {}, metrics | _importance_metrics(out, settings))


def _groups(rows: Sequence[Row]) -> list[slice]:
    ends = np.cumsum([len(row.responses) for row in rows]).tolist()
    return [slice(start, end) for start, end in zip([0, *ends], ends, strict=False)]


def reward_rounding(rows: Sequence[Row]) -> float:
    """That of the largest reward; 0 where rewards are exact."""
    return max((float(a[0]) for row in rows for a in row.extras.get("reward_rounding", ())), default=0.0)


def _with_extras(
    rows: Sequence[Row], measured: Measured, found: Mapping[str, list[np.ndarray]], settings: ClippedSettings
) -> list[Row]:
    """`found`: by name, an array per response, rows in order."""
    out = []
    for row, part, old in zip(rows, _groups(rows), measured["logprobs"], strict=True):
        extras: dict[str, PerResponse] = {name: tuple(arrays[part]) for name, arrays in found.items()}
        extras["old_logprobs"] = tuple(old)
        if settings.rollouts_ahead:
            both = zip(old, row.extras["sampler_logprobs"], strict=True)
            extras["importance"] = tuple(importance_weights(own, drawn, settings.importance_cap) for own, drawn in both)
        out.append(Row(row.id, row.prompt_ids, row.responses, extras))
    return out


def _importance_metrics(rows: Sequence[Row], settings: ClippedSettings) -> dict[str, float]:
    """Of rows that were drawn ahead."""
    if not settings.rollouts_ahead:
        return {}
    weights = np.concatenate([w for row in rows for w in row.extras["importance"]])
    return {
        "importance": float(weights.mean()),
        "importance_capped": float((weights >= settings.importance_cap).mean()),
    }


def importance_weights(old_logprobs: np.ndarray, sampler_logprobs: np.ndarray, cap: float) -> np.ndarray:
    """min(π_old/μ, cap) per token: μ drew the sample, π_old is the policy that the update starts from. With μ = π_old all
    are 1 (truncated importance sampling, Ionides 2008; for a lagging μ in PPO, arXiv 2110.00641, eq. 3)."""
    return np.minimum(np.exp(old_logprobs.astype(np.float64) - sampler_logprobs), cap)


def completed(rewards: np.ndarray, rounding: float, penalty: float) -> np.ndarray:
    """Rewards [R] with a number for each response that did not end, marked by nan: `penalty` less than the worst finished one.

    Where none has finished all are alike, and get −`penalty`: 0 is the reward model's mean on the base policy, and a judge's
    nothing. Finished ones no farther apart than `rounding` are equal.
    """
    ended = ~np.isnan(rewards)
    if not ended.any():
        return np.full_like(rewards, -penalty)
    finished = rewards[ended]
    if np.ptp(finished) <= rounding:
        mean = finished.mean()
        return np.where(ended, mean, mean - penalty)
    return np.where(ended, rewards, finished.min() - penalty)


def response_scores(rewards: np.ndarray, rounding: float, penalty: float) -> tuple[np.ndarray, float]:
    """Each response's whitened score, and σ, the deviation of the finished ones' rewards: m + (reward − m)/σ with their mean
    m, which is not shifted (arXiv 2403.17031): a critic begins on the rewards' own scale. Of a response without EOS the reward
    is that of `completed`. σ is 1 where all finished rewards are equal."""
    whole, finished = completed(rewards, rounding, penalty), rewards[~np.isnan(rewards)]
    if not len(finished) or np.ptp(finished) <= rounding:
        return whole, 1.0
    mean, deviation = finished.mean(), float(finished.std())
    return mean + (whole - mean) / deviation, deviation


def token_rewards(scores: np.ndarray, gaps: Sequence[np.ndarray], price: float) -> list[np.ndarray]:
    """What each token [n] of each response earns: the score comes with the last one, `price` of each nat with its token."""
    out = [-price * gap for gap in gaps]
    for score, rewards in zip(scores, out, strict=True):
        rewards[-1] += score
    return out


def group_earnings(episodes: Episodes, settings: ClippedSettings) -> list[tuple[np.ndarray, np.ndarray]]:
    """Of each prompt's n responses: rewards [n], and what is left of them [n] once their KL is paid. Rewards that are equal
    up to rounding are equal."""
    rewards = completed(episodes.rewards, episodes.rounding, settings.missing_eos_penalty)
    paid = settings.reward_price * np.array([gap.sum() for gap in episodes.gaps])
    out = []
    for group in episodes.groups:
        own = rewards[group]
        own = own if np.ptp(own) > episodes.rounding else np.full_like(own, own.mean())
        out.append((own, own - paid[group]))
    return out


def on_every_token(advantages: Sequence[np.ndarray], episodes: Episodes) -> list[np.ndarray]:
    """Advantages of responses, by group, as one of each token: a response's tokens share its own."""
    flat = np.concatenate(list(advantages))
    return [np.full(len(gap), advantage) for advantage, gap in zip(flat, episodes.gaps, strict=True)]


def whiten(x: np.ndarray, rounding: float) -> np.ndarray:
    """Mean 0 and deviation 1; all zeros where no two entries are farther apart than `rounding` (nothing to prefer)."""
    return (x - x.mean()) / x.std() if np.ptp(x) > rounding else np.zeros_like(x)


def whiten_tokens(advantages: Sequence[np.ndarray], rounding: float) -> list[np.ndarray]:
    """The same over all tokens of an update: a list in, a list out."""
    return np.split(whiten(np.concatenate(list(advantages)), rounding), np.cumsum([len(a) for a in advantages])[:-1])


def minibatches(rows: Sequence[object], settings: SampleSettings, rng: np.random.Generator) -> list[list[int]]:
    """A fresh shuffle in every epoch, cut into near-equal parts."""
    parts = min(settings.minibatches_per_epoch, len(rows))
    return [
        sorted(part.tolist())
        for _ in range(settings.epochs_per_update)
        for part in np.array_split(rng.permutation(len(rows)), parts)
    ]


def policy_loss(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, clip: float, clip_above: float | None = None
) -> Tensor:
    """Clipped surrogate per token [T] (arXiv 1707.06347, eq. 7), as a loss. Ratios are clipped to 1 − `clip` and 1 +
    `clip_above`, `clip` again where that is None."""
    ratio = (logprobs - old_logprobs).exp()
    clipped = ratio.clamp(1 - clip, 1 + (clip if clip_above is None else clip_above))
    return -torch.minimum(ratio * advantages, clipped * advantages)


def policy_objective(out: Outputs, settings: ClippedSettings) -> PerUnit:
    """The clipped loss of each token [T], by its importance weight where samples were drawn ahead."""
    old, advantages = out.extras["old_logprobs"], out.extras["advantages"]
    per_token = policy_loss(out.logprobs, old, advantages, settings.clip, settings.clip_above)
    if settings.rollouts_ahead:
        per_token = per_token * out.extras["importance"]
    gap = out.logprobs.detach() - old
    moved = gap.exp() - 1
    clipped = ((moved > settings.clip_above) | (moved < -settings.clip)).float()
    return per_token, {"entropy": out.entropy.detach(), "clip_fraction": clipped, "step_kl": gap.exp() - 1 - gap}
