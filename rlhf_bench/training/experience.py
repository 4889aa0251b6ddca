"""Where an update's data comes from: a fixed set of pairs, or of responses with a label; or fresh samples of the policy. One class
per way; that of pairs from the start policy has a file of its own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from rlhf_bench.compute.ledger import Ledger
from rlhf_bench.core.errors import ArmFailed
from rlhf_bench.core.types import Group, LabelledResponse, Pair, Row
from rlhf_bench.diagnostics.distance import pairs_within
from rlhf_bench.methods.base import Method
from rlhf_bench.models.flops import ModelShape
from rlhf_bench.training.batch import Batch
from rlhf_bench.training.judging import sampled_row
from rlhf_bench.training.pairs import best_and_worst, labelled_rows, pair_rewards, rows_of, sides_of
from rlhf_bench.training.rollouts import RolloutSampler, sample_metrics
from rlhf_bench.training.start_pairs import StartPolicyPairs
from rlhf_bench.training.state import ArmState


class Source(Protocol):
    def draw(self, state: ArmState, ledger: Ledger) -> Iterator[Batch]:
        """One update's data, chunk by chunk as chunks are there; the last one holds the update's `metrics`. Where to
        continue is read from `state` and noted in it; what drawing costs is charged to `ledger`."""


@dataclass(frozen=True)
class FixedRows:
    """Shuffled passes over a set of rows: as many as the budget pays for, or `passes`."""

    rows: Sequence[Row]
    rewards: Sequence[tuple[float, ...]]
    versions: Sequence[int]  # of the policy that wrote each
    per_update: int
    metrics: Mapping[str, float]
    passes: int | None = None

    @classmethod
    def of_pairs(
        cls, pairs: Sequence[Pair], per_update: int, metrics: Mapping[str, float], passes: int | None = None
    ) -> FixedRows:
        return cls(rows_of(pairs), pair_rewards(pairs), [p.policy_version for p in pairs], per_update, metrics, passes)

    @classmethod
    def of_labelled(cls, labelled: Sequence[LabelledResponse], per_update: int) -> FixedRows:
        rewards = [(float(one.desirable),) for one in labelled]
        return cls(labelled_rows(labelled), rewards, [one.policy_version for one in labelled], per_update, {})

    @property
    def size(self) -> int:
        """Rows of an update."""
        return min(self.per_update, len(self.rows))

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
            "pairs": sum(len(self.rows[i].responses) for i in now) / 2,
            "pair_passes": (before + size) / len(self.rows),
        }
        yield Batch(
            [self.rows[i] for i in now], [self.rewards[i] for i in now], {**metrics, **self.metrics}, fixed=True
        )


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
    labelled: Sequence[LabelledResponse] | None = None,
    micro_batch: int = 4096,
) -> Source:
    """The source that a method's `consumes` and its arm's `data` call for. Where drawn pairs are trained on several times,
    they are drawn here. `shape`: of the policy. `labelled`: responses that come with the data; where none do, they are the
    pairs' sides. `micro_batch`: its tokens."""
    if method.consumes == "samples":
        return OnlineSamples(sampler, settings.prompts_per_update, settings.samples_per_prompt)
    if settings.data == "online":
        return OnlinePairs(sampler, settings.prompts_per_update, sampler.data.candidates_per_prompt)
    if settings.fixed_responses:
        return FixedRows.of_labelled(sides_of(off_policy) if labelled is None else labelled, settings.rows_per_update)
    if settings.data == "offline":
        return FixedRows.of_pairs(_offline_pairs(settings, off_policy), settings.pairs_per_update, {})
    drawn = StartPolicyPairs.of(sampler, settings, off_policy, micro_batch)
    if not settings.rows_come_again:
        return drawn
    pairs, metrics = drawn.for_all_epochs(state, shape)
    return FixedRows.of_pairs(pairs, settings.pairs_per_update, metrics, passes=settings.epochs)


def _offline_pairs(settings: Any, off_policy: Sequence[Pair]) -> list[Pair]:
    if settings.edit_distance is None:
        return list(off_policy)
    low, high = settings.edit_distance
    pairs = pairs_within(off_policy, low, high)
    if not pairs:
        raise ArmFailed(f"edit_distance: no pair's sides lie between {low} and {high} apart; widen the interval")
    return pairs
