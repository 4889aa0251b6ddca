"""Where an update's data comes from: a fixed set of pairs, or fresh samples of the policy. One class per way; that of pairs
from the start policy has a file of its own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from rlhf_bench.compute.ledger import Ledger
from rlhf_bench.core.errors import ArmFailed
from rlhf_bench.core.types import Group, Pair
from rlhf_bench.diagnostics.distance import pairs_within
from rlhf_bench.methods.base import Method
from rlhf_bench.models.flops import ModelShape
from rlhf_bench.training.batch import Batch
from rlhf_bench.training.judging import sampled_row
from rlhf_bench.training.pairs import best_and_worst, pair_rewards, rows_of
from rlhf_bench.training.rollouts import RolloutSampler, sample_metrics
from rlhf_bench.training.start_pairs import StartPolicyPairs
from rlhf_bench.training.state import ArmState


class Source(Protocol):
    def draw(self, state: ArmState, ledger: Ledger) -> Iterator[Batch]:
        """One update's data, chunk by chunk as chunks are there; the last one holds the update's `metrics`. Where to
        continue is read from `state` and noted in it; what drawing costs is charged to `ledger`."""


class FixedPairs:
    """Shuffled passes over a set of pairs: as many as the budget pays for, or `passes`."""

    def __init__(self, pairs: Sequence[Pair], per_update: int, metrics: dict[str, float], passes: int | None = None):
        self.rows, self.rewards, self.versions = rows_of(pairs), pair_rewards(pairs), [p.policy_version for p in pairs]
        self.size, self.metrics, self.passes = min(per_update, len(pairs)), metrics, passes

    def ended(self, state: ArmState) -> bool:
        """Whether all passes are made."""
        return self.passes is not None and state.rounds * self.size >= self.passes * len(self.rows)

    def draw(self, state: ArmState, ledger: Ledger) -> Iterator[Batch]:
        before, size = state.rounds * self.size, self.size
        if self.passes is not None:
            size = min(size, self.passes * len(self.rows) - before)
        now = state.pairs.next(size, len(self.rows))
        metrics = {
            "policy_version_lag": state.version - float(np.mean([self.versions[i] for i in now])),
            "pairs": len(now),
            "pair_passes": (before + size) / len(self.rows),
        }
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
            yield Batch(rows_of(made), pair_rewards(made), {}, fixed=False)
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
    method: Method,
    settings: Any,
    sampler: RolloutSampler,
    off_policy: Sequence[Pair],
    shape: ModelShape,
    state: ArmState,
) -> Source:
    """The source that a method's `consumes` and its arm's `data` call for. Where drawn pairs are trained on several times,
    they are drawn here. `shape`: of the policy."""
    if method.consumes == "samples":
        return OnlineSamples(sampler, settings.prompts_per_update, settings.samples_per_prompt)
    if settings.data == "online":
        return OnlinePairs(sampler, settings.prompts_per_update, sampler.data.candidates_per_prompt)
    if settings.data == "offline":
        return FixedPairs(_offline_pairs(settings, off_policy), settings.pairs_per_update, {})
    drawn = StartPolicyPairs.of(sampler, settings, off_policy)
    if not settings.rows_come_again:
        return drawn
    pairs, metrics = drawn.for_all_epochs(state, shape)
    return FixedPairs(pairs, settings.pairs_per_update, metrics, passes=settings.epochs)


def _offline_pairs(settings: Any, off_policy: Sequence[Pair]) -> list[Pair]:
    if settings.edit_distance is None:
        return list(off_policy)
    low, high = settings.edit_distance
    pairs = pairs_within(off_policy, low, high)
    if not pairs:
        raise ArmFailed(f"edit_distance: no pair's sides lie between {low} and {high} apart; widen the interval")
    return pairs
