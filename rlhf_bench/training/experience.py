"""Where an update's data comes from: a fixed set of pairs, or fresh samples of the policy. One class per way."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from rlhf_bench.compute.ledger import Cost, Ledger
from rlhf_bench.core.types import ArmFailed, Group, Pair, Prompt, Row, Sampling
from rlhf_bench.diagnostics.distance import pairs_within
from rlhf_bench.methods.base import DataMode, Method
from rlhf_bench.recipe import DataSettings
from rlhf_bench.training.inputs import Material, rows_of, start_prompts
from rlhf_bench.training.judging import (
    Judge,
    Rewarded,
    begin_rewards,
    best_and_worst,
    crossed,
    sampled_row,
    with_rewards,
)
from rlhf_bench.training.roles import Roles


@dataclass(frozen=True)
class Drawn:
    """An update's data, or a part of it. `rewards`: per row, one number per response."""

    rows: list[Row]
    rewards: list[tuple[float, ...]]
    metrics: dict[str, float]
    fixed: bool  # the same rows come again: what was measured on them under the reference stays true


@dataclass(frozen=True)
class Judged:
    """Samples with their gold scores, what drawing them cost, and what judging them."""

    groups: list[Group]
    drawing: Cost
    judging: Cost


StartKey = tuple[int, Sampling, tuple[str, ...]]
"""The arm's seed, how the start policy was sampled, and on which prompts."""


class DrawnBefore(Protocol):
    """Samples of the start policy, for all arms: see `resume.StartSamples`."""

    def once(self, key: StartKey, draw: Callable[[], Judged]) -> Judged:
        """What was drawn for that key, or is drawn now."""


class Source(Protocol):
    def draw(self, version: int) -> Iterator[Drawn]:
        """One update's data, part by part as parts are there. Its numbers, `metrics`, come with the last one."""


def joined(parts: Sequence[Drawn]) -> Drawn:
    """All parts of an update as one."""
    rows, rewards = ([x for part in parts for x in getattr(part, name)] for name in ("rows", "rewards"))
    return Drawn(rows, rewards, {k: v for part in parts for k, v in part.metrics.items()}, parts[-1].fixed)


class Sampler:
    """Samples prompts with the current policy, has them judged and rewarded, and charges for it."""

    def __init__(
        self,
        roles: Roles,
        material: Material,
        data: DataSettings,
        settings: Any,
        ledger: Ledger,
        seed: int,
        drawn_before: DrawnBefore,
    ):
        self.drawn_before = drawn_before
        self.roles, self.data, self.settings, self.ledger, self.seed = roles, data, settings, ledger, seed
        self.judge = Judge(material.task, material.tokenizer)
        self.prompts, self.rng = material.train, np.random.default_rng([seed, 1])
        self.queue: list[int] = []
        self.drawn = 0

    def sample(self, prompts: int, samples: int) -> Iterator[list[Group]]:
        """`samples` responses to each of the next `prompts` training prompts, judged, rewarded and paid for: part by
        part. While one is being scored, the engines draw the next."""
        scored: deque[Callable[[], Rewarded]] = deque()
        at_work = 0 if self.settings.feedback == "judge" else 1  # parts that the scorer is left alone with
        for part in self.roles.pool.stream(self._next(prompts), self._sampling(samples)):
            judged, judging = self.judge(part.groups)
            self._pay(part.cost, judging)
            scored.append(begin_rewards(judged, self.settings.feedback, self.roles.scorer))
            while len(scored) > at_work:
                yield self._paid_scoring(*scored.popleft()())
        while scored:
            yield self._paid_scoring(*scored.popleft()())

    def sample_start(self, prompts: Sequence[Prompt], samples: int) -> list[Group]:
        """Samples of the start policy. Another arm with this seed draws the very same ones, so they are drawn once;
        every arm that uses them is charged for them."""
        sampling = self._sampling(samples)
        key = (self.seed, sampling, tuple(p.id for p in prompts))
        return self._paid(self.drawn_before.once(key, lambda: self._draw(prompts, sampling)))

    def _sampling(self, samples: int) -> Sampling:
        self.drawn += 1
        seed = self.seed * 1009 + self.drawn - 1
        return Sampling(samples, self.data.max_response_tokens, self.data.temperature, seed)

    def _draw(self, prompts: Sequence[Prompt], sampling: Sampling) -> Judged:
        groups, drawing = self.roles.pool.generate(prompts, sampling)
        judged, judging = self.judge(groups)
        return Judged(judged, drawing, judging)

    def _paid(self, found: Judged) -> list[Group]:
        """Pay for the samples and their judge, have them rewarded, and pay for that."""
        self._pay(found.drawing, found.judging)
        return self._paid_scoring(*with_rewards(found.groups, self.settings.feedback, self.roles.scorer))

    def _pay(self, drawing: Cost, judging: Cost) -> None:
        self.ledger.charge("rollout", drawing)
        # A judge who teaches is paid for; one who only looks on belongs to evaluation.
        self.ledger.charge("judging" if self.settings.feedback == "judge" else "evaluation", judging)

    def _paid_scoring(self, groups: list[Group], scoring: Cost) -> list[Group]:
        self.ledger.charge("scoring", scoring)
        return groups

    def on_own_scale(self, pairs: Sequence[Pair]) -> list[Pair]:
        """Others' pairs with the scores of whoever ranks this arm's samples: only then do sides of both kinds compare."""
        if self.settings.feedback == "judge":  # what they have already
            return list(pairs)
        assert self.roles.scorer is not None, "an arm that samples with feedback: reward_model has a scorer started"
        scores, cost = self.roles.scorer.score(rows_of(pairs))
        self.ledger.charge("scoring", cost)
        return [  # a response that did not end stays the worst there is
            replace(p, chosen_score=up, rejected_score=down if math.isfinite(p.rejected_score) else p.rejected_score)
            for p, (up, down) in zip(pairs, scores, strict=True)
        ]

    def _next(self, count: int) -> list[Prompt]:
        """Every prompt once per epoch, each epoch in a new order."""
        while len(self.queue) < count:
            self.queue += self.rng.permutation(len(self.prompts)).tolist()
        now, self.queue = self.queue[:count], self.queue[count:]
        return [self.prompts[i] for i in now]


class FixedPairs:
    """Shuffled epochs over a set of pairs: offline, and on_policy once its candidates are drawn."""

    def __init__(self, pairs: Sequence[Pair], per_update: int, seed: int, metrics: dict[str, float]):
        self.rows, self.rewards, self.versions = rows_of(pairs), _pair_rewards(pairs), [p.policy_version for p in pairs]
        self.size, self.metrics = min(per_update, len(pairs)), metrics
        self.rng = np.random.default_rng([seed, 2])
        self.order: list[int] = []

    def draw(self, version: int) -> Iterator[Drawn]:
        while len(self.order) < self.size:
            self.order += self.rng.permutation(len(self.rows)).tolist()
        now, self.order = self.order[: self.size], self.order[self.size :]
        metrics = {"policy_version_lag": version - float(np.mean([self.versions[i] for i in now])), "pairs": len(now)}
        yield Drawn([self.rows[i] for i in now], [self.rewards[i] for i in now], metrics | self.metrics, fixed=True)


class OnlinePairs:
    """Fresh candidates in every update; the best and the worst of each prompt make its pair."""

    def __init__(self, sampler: Sampler, prompts: int, candidates: int):
        self.sampler, self.prompts, self.candidates = sampler, prompts, candidates

    def draw(self, version: int) -> Iterator[Drawn]:
        groups, pairs = list[Group](), 0
        for part in self.sampler.sample(self.prompts, self.candidates):
            made = best_and_worst(part)
            groups, pairs = groups + part, pairs + len(made)
            yield Drawn(rows_of(made), _pair_rewards(made), {}, fixed=False)
        yield Drawn([], [], sample_metrics(groups, version) | {"pairs": pairs}, fixed=False)


class OnlineSamples:
    """Fresh samples in every update, all of them used."""

    def __init__(self, sampler: Sampler, prompts: int, samples: int):
        self.sampler, self.prompts, self.samples = sampler, prompts, samples

    def draw(self, version: int) -> Iterator[Drawn]:
        groups = list[Group]()
        for part in self.sampler.sample(self.prompts, self.samples):
            groups += part
            rewards = [tuple(s.reward for s in g.samples) for g in part]
            yield Drawn([sampled_row(g) for g in part], rewards, {}, fixed=False)
        yield Drawn([], [], sample_metrics(groups, version), fixed=False)


def make_source(method: Method, settings: Any, sampler: Sampler, offline: Sequence[Pair]) -> Source:
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


def _one_shot_pairs(sampler: Sampler, mode: DataMode, offline: Sequence[Pair]) -> tuple[list[Pair], dict[str, float]]:
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
        pairs = crossed(pairs, sampler.on_own_scale([p for p in offline if p.prompt.id in drawn]), mode)
    if not pairs:
        raise ArmFailed(
            f"data: {mode}: no prompt had candidates of different quality, so there are no pairs; raise data.on_policy_prompts or data.temperature"
        )
    return pairs, {k: v for k, v in sample_metrics(groups, 0).items() if k in ("reward", "gold")}


def sample_metrics(groups: Sequence[Group], version: int) -> dict[str, float]:
    """Means over all samples: reward (of finished ones), gold, length in tokens, shares of finished ones and of those
    that end at once, share of prompts whose samples all have one reward, lag in updates."""
    samples = [s for g in groups for s in g.samples]
    rewards = [s.reward for s in samples if s.finished]
    return {
        "reward": float(np.mean(rewards)) if rewards else float("nan"),
        "gold": float(np.mean([s.gold for s in samples])),
        "response_length": float(np.mean([len(s.response_ids) for s in samples])),
        "finished": float(np.mean([s.finished for s in samples])),
        "empty": float(np.mean([len(s.response_ids) <= s.finished for s in samples])),
        "equal_rewards": float(np.mean([_all_equal([s.reward for s in g.samples]) for g in groups])),
        "policy_version_lag": version - float(np.mean([s.policy_version for s in samples])),
    }


def _all_equal(rewards: Sequence[float]) -> bool:
    """Then the group has nothing to learn from. A reward of nan, of a response without an end, equals another one."""
    return len(rewards) > 1 and len(set(np.nan_to_num(rewards, nan=-math.inf))) == 1


def _pair_rewards(pairs: Sequence[Pair]) -> list[tuple[float, ...]]:
    return [(p.chosen_score, p.rejected_score) for p in pairs]
