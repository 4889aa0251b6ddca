"""Where an update's data comes from: a fixed set of pairs, or fresh samples of the policy. One class per way."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from rlhf_bench.core.errors import ArmFailed
from rlhf_bench.core.types import Group, Pair, Row
from rlhf_bench.diagnostics.distance import pairs_within
from rlhf_bench.methods.base import DataMode, Method
from rlhf_bench.training.judging import sampled_row
from rlhf_bench.training.pairs import best_and_worst, mix_sides, rows_of, start_prompts
from rlhf_bench.training.rollouts import RolloutSampler, sample_metrics


@dataclass(frozen=True)
class Batch:
    """An update's data, or a part of it. `rewards`: per row, one number per response."""

    rows: list[Row]
    rewards: list[tuple[float, ...]]
    metrics: dict[str, float]
    fixed: bool  # the same rows come again: what was measured on them under the reference stays true


class Source(Protocol):
    def draw(self, version: int) -> Iterator[Batch]:
        """One update's data, part by part as parts are there. Its numbers, `metrics`, come with the last one."""


def joined(parts: Sequence[Batch]) -> Batch:
    """All parts of an update as one."""
    rows, rewards = ([x for part in parts for x in getattr(part, name)] for name in ("rows", "rewards"))
    return Batch(rows, rewards, {k: v for part in parts for k, v in part.metrics.items()}, parts[-1].fixed)


class FixedPairs:
    """Shuffled epochs over a set of pairs: offline, and on_policy once its candidates are drawn."""

    def __init__(self, pairs: Sequence[Pair], per_update: int, seed: int, metrics: dict[str, float]):
        self.rows, self.rewards, self.versions = rows_of(pairs), _pair_rewards(pairs), [p.policy_version for p in pairs]
        self.size, self.metrics = min(per_update, len(pairs)), metrics
        self.rng = np.random.default_rng([seed, 2])
        self.order: list[int] = []

    def draw(self, version: int) -> Iterator[Batch]:
        while len(self.order) < self.size:
            self.order += self.rng.permutation(len(self.rows)).tolist()
        now, self.order = self.order[: self.size], self.order[self.size :]
        metrics = {"policy_version_lag": version - float(np.mean([self.versions[i] for i in now])), "pairs": len(now)}
        yield Batch([self.rows[i] for i in now], [self.rewards[i] for i in now], metrics | self.metrics, fixed=True)


class OnlinePairs:
    """Fresh candidates in every update; the best and the worst of each prompt make its pair."""

    def __init__(self, sampler: RolloutSampler, prompts: int, candidates: int):
        self.sampler, self.prompts, self.candidates = sampler, prompts, candidates

    def draw(self, version: int) -> Iterator[Batch]:
        groups, pairs = list[Group](), 0
        for part in self.sampler.sample(self.prompts, self.candidates):
            made = best_and_worst(part)
            groups, pairs = groups + part, pairs + len(made)
            yield Batch(rows_of(made), _pair_rewards(made), {}, fixed=False)
        yield Batch([], [], sample_metrics(groups, version) | {"pairs": pairs}, fixed=False)


class OnlineSamples:
    """Fresh samples in every update, all of them used."""

    def __init__(self, sampler: RolloutSampler, prompts: int, samples: int):
        self.sampler, self.prompts, self.samples = sampler, prompts, samples

    def draw(self, version: int) -> Iterator[Batch]:
        groups = list[Group]()
        for part in self.sampler.sample(self.prompts, self.samples):
            groups += part
            rewards = [tuple(s.reward for s in g.samples) for g in part]
            yield Batch([sampled_row(g) for g in part], rewards, {}, fixed=False)
        yield Batch([], [], sample_metrics(groups, version), fixed=False)


def make_source(method: Method, settings: Any, sampler: RolloutSampler, offline: Sequence[Pair]) -> Source:
    """The source that a method's `consumes` and its arm's `data` call for. on_policy draws its candidates here, once."""
    data = sampler.data
    if method.consumes == "samples":
        return OnlineSamples(sampler, settings.prompts_per_update, settings.samples_per_prompt)
    if settings.data == "online":
        return OnlinePairs(sampler, settings.prompts_per_update, data.candidates_per_prompt)
    pairs, metrics = list(offline), dict[str, float]()
    if settings.data != "offline":
        pairs, metrics = _one_shot_pairs(sampler, settings.data, offline)
    if settings.edit_distance is not None:
        low, high = settings.edit_distance
        pairs = pairs_within(pairs, low, high)
        if not pairs:
            raise ArmFailed(f"edit_distance: no pair's sides lie between {low} and {high} apart; widen the interval")
    return FixedPairs(pairs, settings.pairs_per_update, sampler.seed, metrics)


def _one_shot_pairs(
    sampler: RolloutSampler, mode: DataMode, offline: Sequence[Pair]
) -> tuple[list[Pair], dict[str, float]]:
    """Pairs with one or both sides from the start policy, drawn once (arXiv 2406.07327, section 4)."""
    data = sampler.data
    prompts = start_prompts(data, mode, offline, sampler.prompts)
    groups = sampler.sample_start(prompts, data.candidates_per_prompt)
    if wrong := [s.id for g in groups for s in g.samples if s.reward == math.inf]:
        raise ArmFailed(
            f"data: {mode}: the reward of sample {wrong[0]} (and {len(wrong) - 1} more) is not a finite number"
        )
    pairs = best_and_worst(groups)
    if mode != "on_policy":
        drawn = {p.prompt.id for p in pairs}
        pairs = mix_sides(pairs, sampler.rescore([p for p in offline if p.prompt.id in drawn]), mode)
    if not pairs:
        raise ArmFailed(
            f"data: {mode}: no prompt had candidates of different quality, so there are no pairs; raise data.on_policy_prompts or data.temperature"
        )
    return pairs, {k: v for k, v in sample_metrics(groups, 0).items() if k in ("reward", "gold")}


def _pair_rewards(pairs: Sequence[Pair]) -> list[tuple[float, ...]]:
    return [(p.chosen_score, p.rejected_score) for p in pairs]
