"""Where an update's data comes from: a fixed set of pairs, or fresh samples of the policy. One class per way."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from rlhf_bench.compute.ledger import Ledger
from rlhf_bench.core.errors import ArmFailed
from rlhf_bench.core.types import Group, Pair
from rlhf_bench.diagnostics.distance import pairs_within
from rlhf_bench.methods.base import DataMode, Method
from rlhf_bench.training.batch import Batch
from rlhf_bench.training.judging import sampled_row
from rlhf_bench.training.pairs import best_and_worst, mix_sides, rows_of, start_prompts
from rlhf_bench.training.rollouts import RolloutSampler, sample_metrics
from rlhf_bench.training.state import ArmState


class Source(Protocol):
    def draw(self, state: ArmState, ledger: Ledger) -> Iterator[Batch]:
        """One update's data, chunk by chunk as chunks are there; the last one holds the update's `metrics`. Where to
        continue is read from `state` and noted in it; what drawing costs is charged to `ledger`."""


class FixedPairs:
    """Shuffled epochs over a set of pairs: offline, and on_policy once its candidates are drawn."""

    def __init__(self, pairs: Sequence[Pair], per_update: int, metrics: dict[str, float]):
        self.rows, self.rewards, self.versions = rows_of(pairs), _pair_rewards(pairs), [p.policy_version for p in pairs]
        self.size, self.metrics = min(per_update, len(pairs)), metrics

    def draw(self, state: ArmState, ledger: Ledger) -> Iterator[Batch]:
        now = state.pairs.next(self.size, len(self.rows))
        lag = state.version - float(np.mean([self.versions[i] for i in now]))
        metrics = {"policy_version_lag": lag, "pairs": len(now)}
        yield Batch([self.rows[i] for i in now], [self.rewards[i] for i in now], metrics | self.metrics, fixed=True)


@dataclass(frozen=True)
class OnlinePairs:
    """Fresh candidates in every update; the best and the worst of each prompt make its pair."""

    sampler: RolloutSampler
    prompts: int
    candidates: int

    def draw(self, state: ArmState, ledger: Ledger) -> Iterator[Batch]:
        version, groups, pairs = state.version, list[Group](), 0
        for chunk in self.sampler.sample(state.sampler, ledger, self.prompts, self.candidates):
            made = best_and_worst(chunk)
            groups, pairs = groups + chunk, pairs + len(made)
            yield Batch(rows_of(made), _pair_rewards(made), {}, fixed=False)
        yield Batch([], [], sample_metrics(groups, version) | {"pairs": pairs}, fixed=False)


@dataclass(frozen=True)
class OnlineSamples:
    """Fresh samples in every update, all of them used."""

    sampler: RolloutSampler
    prompts: int
    samples: int

    def draw(self, state: ArmState, ledger: Ledger) -> Iterator[Batch]:
        version, groups = state.version, list[Group]()
        for chunk in self.sampler.sample(state.sampler, ledger, self.prompts, self.samples):
            groups += chunk
            rewards = [tuple(s.reward for s in g.samples) for g in chunk]
            yield Batch([sampled_row(g) for g in chunk], rewards, {}, fixed=False)
        yield Batch([], [], sample_metrics(groups, version), fixed=False)


def make_source(
    method: Method, settings: Any, sampler: RolloutSampler, off_policy: Sequence[Pair], state: ArmState
) -> Source:
    """The source that a method's `consumes` and its arm's `data` call for. on_policy draws its candidates here, once."""
    data = sampler.data
    if method.consumes == "samples":
        return OnlineSamples(sampler, settings.prompts_per_update, settings.samples_per_prompt)
    if settings.data == "online":
        return OnlinePairs(sampler, settings.prompts_per_update, data.candidates_per_prompt)
    pairs, metrics = list(off_policy), dict[str, float]()
    if settings.data != "offline":
        pairs, metrics = _one_shot_pairs(sampler, settings.data, off_policy, state)
    if settings.edit_distance is not None:
        low, high = settings.edit_distance
        pairs = pairs_within(pairs, low, high)
        if not pairs:
            raise ArmFailed(f"edit_distance: no pair's sides lie between {low} and {high} apart; widen the interval")
    return FixedPairs(pairs, settings.pairs_per_update, metrics)


def _one_shot_pairs(
    sampler: RolloutSampler, mode: DataMode, off_policy: Sequence[Pair], state: ArmState
) -> tuple[list[Pair], dict[str, float]]:
    """Pairs with one or both sides from the start policy, drawn once (arXiv 2406.07327, section 4)."""
    data = sampler.data
    prompts = start_prompts(data, mode, off_policy, sampler.prompts)
    groups = sampler.sample_start(state.sampler, state.ledger, prompts, data.candidates_per_prompt)
    if wrong := [s.id for g in groups for s in g.samples if s.reward == math.inf]:
        raise ArmFailed(
            f"data: {mode}: the reward of sample {wrong[0]} (and {len(wrong) - 1} more) is not a finite number"
        )
    pairs = best_and_worst(groups)
    if mode != "on_policy":
        drawn = {p.prompt.id for p in pairs}
        others = [p for p in off_policy if p.prompt.id in drawn]
        pairs = mix_sides(pairs, sampler.rescore(state.ledger, others), mode)
    if not pairs:
        raise ArmFailed(
            f"data: {mode}: no prompt had candidates of different quality, so there are no pairs; raise data.on_policy_prompts or data.temperature"
        )
    return pairs, {k: v for k, v in sample_metrics(groups, 0).items() if k in ("reward", "gold")}


def _pair_rewards(pairs: Sequence[Pair]) -> list[tuple[float, ...]]:
    return [(p.chosen_score, p.rejected_score) for p in pairs]
