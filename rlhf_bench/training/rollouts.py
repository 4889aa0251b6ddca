"""Samples of the policy: drawn, judged, rewarded and paid for."""

from __future__ import annotations

import hashlib
import json
import math
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from rlhf_bench.compute.ledger import Ledger
from rlhf_bench.core.costs import Cost
from rlhf_bench.core.types import Group, Pair, Prompt, Sample, Sampling
from rlhf_bench.recipe import DataSettings
from rlhf_bench.training.inputs import Inputs
from rlhf_bench.training.judging import Judge, Rewarded, reward_groups, reward_groups_async
from rlhf_bench.training.pairs import rows_of
from rlhf_bench.training.roles import Roles


class StartSamples:
    """The start policy's samples in a folder, a JSON file each: a run that goes on must not draw them anew, since with
    several engines the last bits of what comes out hang on the clock. `base`: which policy that is."""

    def __init__(self, folder: Path, base: str):
        self.folder, self.base = folder, base
        self._drawing: dict[str, threading.Lock] = {}  # by file's name

    def once(self, key: StartKey, draw: Callable[[], Judged]) -> Judged:
        """What was drawn for that key, or is drawn now: of arms that want the same at once, one draws and the others wait."""
        path = self._path(key)
        with self._drawing.setdefault(path.name, threading.Lock()):
            if not path.exists():
                self._write(path, draw())
        data = json.loads(path.read_text())
        return Judged([_group(g) for g in data["groups"]], Cost(**data["drawing"]), Cost(**data["judging"]))

    def clear(self, seed: int) -> None:
        """Once no arm with that seed is to come."""
        for path in self.folder.glob(f"samples-seed{seed}-*.json"):
            path.unlink()

    def _write(self, path: Path, drawn: Judged) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        aside = path.with_suffix(".tmp")
        aside.write_text(json.dumps(asdict(drawn)))
        aside.rename(path)

    def _path(self, key: StartKey) -> Path:
        seed, sampling, prompts = key
        digest = hashlib.sha256(json.dumps([self.base, asdict(sampling), prompts]).encode()).hexdigest()[:16]
        return self.folder / f"samples-seed{seed}-{digest}.json"


def _group(data: Mapping[str, Any]) -> Group:
    prompt = Prompt(**{**data["prompt"], "token_ids": tuple(data["prompt"]["token_ids"])})
    samples = [
        Sample(**{**s, "response_ids": tuple(s["response_ids"]), "sampler_logprobs": tuple(s["sampler_logprobs"])})
        for s in data["samples"]
    ]
    return Group(prompt, tuple(samples))


@dataclass(frozen=True)
class Judged:
    """Samples with their gold scores, what drawing them cost, and what judging them."""

    groups: list[Group]
    drawing: Cost
    judging: Cost


StartKey = tuple[int, Sampling, tuple[str, ...]]
"""The arm's seed, how the start policy was sampled, and on which prompts."""


class SampleCache(Protocol):
    """Samples of the start policy, for all arms: see `resume.StartSamples`."""

    def once(self, key: StartKey, draw: Callable[[], Judged]) -> Judged:
        """What was drawn for that key, or is drawn now."""


class RolloutSampler:
    """Samples prompts with the current policy, has them judged and rewarded, and charges for it."""

    def __init__(
        self,
        roles: Roles,
        inputs: Inputs,
        data: DataSettings,
        settings: Any,
        ledger: Ledger,
        seed: int,
        sample_cache: SampleCache,
    ):
        self.sample_cache = sample_cache
        self.roles, self.data, self.settings, self.ledger, self.seed = roles, data, settings, ledger, seed
        self.judge = Judge(inputs.task, inputs.tokenizer)
        self.prompts, self.rng = inputs.train, np.random.default_rng([seed, 1])
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
            scored.append(reward_groups_async(judged, self.settings.feedback, self.roles.scorer))
            while len(scored) > at_work:
                yield self._paid_scoring(*scored.popleft()())
        while scored:
            yield self._paid_scoring(*scored.popleft()())

    def sample_start(self, prompts: Sequence[Prompt], samples: int) -> list[Group]:
        """Samples of the start policy. Another arm with this seed draws the very same ones, so they are drawn once;
        every arm that uses them is charged for them."""
        sampling = self._sampling(samples)
        key = (self.seed, sampling, tuple(p.id for p in prompts))
        return self._paid(self.sample_cache.once(key, lambda: self._draw(prompts, sampling)))

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
        return self._paid_scoring(*reward_groups(found.groups, self.settings.feedback, self.roles.scorer))

    def _pay(self, drawing: Cost, judging: Cost) -> None:
        self.ledger.charge("rollout", drawing)
        # A judge who teaches is paid for; one who only looks on belongs to evaluation.
        self.ledger.charge("judging" if self.settings.feedback == "judge" else "evaluation", judging)

    def _paid_scoring(self, groups: list[Group], scoring: Cost) -> list[Group]:
        self.ledger.charge("scoring", scoring)
        return groups

    def rescore(self, pairs: Sequence[Pair]) -> list[Pair]:
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
