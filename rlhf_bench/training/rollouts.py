"""Samples of the policy: drawn, judged, rewarded and charged for."""

from __future__ import annotations

import hashlib
import json
import math
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter

from rlhf_bench.compute.ledger import Ledger
from rlhf_bench.core.costs import Cost
from rlhf_bench.core.errors import RunFailed
from rlhf_bench.core.files import write_text
from rlhf_bench.core.types import Group, Pair, Prompt, Sample, Sampling
from rlhf_bench.methods.base import Feedback
from rlhf_bench.recipe import DataSettings
from rlhf_bench.training.inputs import Inputs
from rlhf_bench.training.judging import Judge, Rewarded, reward_groups, reward_groups_async
from rlhf_bench.training.pairs import rows_of
from rlhf_bench.training.roles import RewardScorer, Roles
from rlhf_bench.training.state import SamplerState


@dataclass(frozen=True)
class JudgedSamples:
    """Samples with their judge scores, what drawing them cost, and what judging them cost."""

    groups: list[Group]
    drawing: Cost
    judging: Cost


JUDGED: TypeAdapter[JudgedSamples] = TypeAdapter(JudgedSamples)
"""How they are kept. A score of a response that did not end may be nan, which it keeps."""

StartKey = tuple[int, Sampling, tuple[str, ...]]
"""The arm's seed, how the start policy was sampled, and on which prompts."""


class StartSamples:
    """The start policy's samples in a folder, a JSON file each: a resumed run must not draw them anew, since with several
    engines the last bits of what comes out depend on the clock. `base`: which policy that is."""

    def __init__(self, folder: Path, base: str):
        self.folder, self.base = folder, base
        self._drawing: dict[str, threading.Lock] = {}  # by file's name

    def once(self, key: StartKey, draw: Callable[[], JudgedSamples]) -> JudgedSamples:
        """What was drawn for that key, or is drawn now: of arms that want the same at once, one draws and the others wait."""
        path = self._path(key)
        with self._drawing.setdefault(path.name, threading.Lock()):
            if not path.exists():
                self._write(path, draw())
        try:
            return JUDGED.validate_python(json.loads(path.read_text(encoding="utf-8")))
        except ValueError:
            raise RunFailed(
                f"{path}: is damaged; bring back a copy of it, or remove it, and the same command draws these samples again"
            ) from None

    def clear(self, seed: int) -> None:
        """Once no arm with that seed is left to run."""
        for path in self.folder.glob(f"samples-seed{seed}-*.json"):
            path.unlink()

    def _write(self, path: Path, drawn: JudgedSamples) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(JUDGED.dump_python(drawn, mode="json")))

    def _path(self, key: StartKey) -> Path:
        seed, sampling, prompts = key
        digest = hashlib.sha256(json.dumps([self.base, asdict(sampling), prompts]).encode()).hexdigest()[:16]
        return self.folder / f"samples-seed{seed}-{digest}.json"


class RolloutSampler:
    """Samples prompts with the current policy, has them judged and rewarded, and charges a ledger for it."""

    def __init__(self, roles: Roles, inputs: Inputs, data: DataSettings, settings: Any, seed: int, start: StartSamples):
        self.roles, self.data, self.settings, self.seed = roles, data, settings, seed
        self.judge, self.prompts, self.start_samples = Judge(inputs.task, inputs.codec), inputs.train, start

    def sample(self, state: SamplerState, ledger: Ledger, prompts: int, samples: int) -> Iterator[list[Group]]:
        """`samples` responses to each of the next `prompts` training prompts, judged, rewarded and charged for: chunk by
        chunk. While one is being scored, the engines draw the next."""
        scored: deque[Callable[[], Rewarded]] = deque()
        left_alone = 0 if self.settings.feedback == "judge" else 1  # chunks that the scorer works on meanwhile
        now = [self.prompts[i] for i in state.prompts.next(prompts, len(self.prompts))]
        for chunk in self.roles.pool.stream(now, self._sampling(state, samples)):
            judged, judging = self.judge(chunk.groups)
            self._charge(ledger, chunk.cost, judging)
            scored.append(reward_groups_async(judged, self.settings.feedback, self.roles.scorer))
            while len(scored) > left_alone:
                yield _charged(ledger, *scored.popleft()())
        while scored:
            yield _charged(ledger, *scored.popleft()())

    def sample_start(self, state: SamplerState, ledger: Ledger, prompts: Sequence[Prompt], samples: int) -> list[Group]:
        """Samples of the start policy. Another arm with this seed draws the very same ones, so they are drawn once;
        every arm that uses them is charged for them."""
        sampling = self._sampling(state, samples)
        key = (self.seed, sampling, tuple(p.id for p in prompts))
        found = self.start_samples.once(key, lambda: self._draw(prompts, sampling))
        self._charge(ledger, found.drawing, found.judging)
        return _charged(ledger, *reward_groups(found.groups, self.settings.feedback, self.roles.scorer))

    def rescore(self, ledger: Ledger, pairs: Sequence[Pair]) -> list[Pair]:
        """Off-policy pairs, scored by whatever ranks this arm's samples: only then do sides of both kinds compare."""
        scored, cost = rescored(pairs, self.settings.feedback, self.roles.scorer)
        ledger.charge("scoring", cost)
        return scored

    def _sampling(self, state: SamplerState, samples: int) -> Sampling:
        state.calls += 1
        seed = self.seed * 1009 + state.calls - 1
        return Sampling(samples, self.data.max_response_tokens, self.data.temperature, seed)

    def _draw(self, prompts: Sequence[Prompt], sampling: Sampling) -> JudgedSamples:
        groups, drawing = self.roles.pool.generate(prompts, sampling)
        judged, judging = self.judge(groups)
        return JudgedSamples(judged, drawing, judging)

    def _charge(self, ledger: Ledger, drawing: Cost, judging: Cost) -> None:
        ledger.charge("rollout", drawing)
        # A judge that teaches is charged for; one that only measures belongs to evaluation.
        ledger.charge("judging" if self.settings.feedback == "judge" else "evaluation", judging)


def rescored(pairs: Sequence[Pair], feedback: Feedback, scorer: RewardScorer | None) -> tuple[list[Pair], Cost]:
    """Off-policy pairs with scores of the feedback in place of the judge's, which they have already; and what that cost."""
    if feedback == "judge":
        return list(pairs), Cost()
    assert scorer is not None, "an arm that samples with feedback: reward_model has a scorer started"
    scores, cost = scorer.score(rows_of(pairs))
    return [  # a response that did not end stays the worst there is
        replace(
            p,
            chosen_score=up,
            rejected_score=down if math.isfinite(p.rejected_score) else p.rejected_score,
            rounding=max(scorer.rounding(up), scorer.rounding(down)),
        )
        for p, (up, down) in zip(pairs, scores, strict=True)
    ], cost


def _charged(ledger: Ledger, groups: list[Group], scoring: Cost) -> list[Group]:
    ledger.charge("scoring", scoring)
    return groups


def sample_metrics(groups: Sequence[Group], version: int) -> dict[str, float]:
    """Means over all samples: reward (of finished ones), judge score (`gold`), length in tokens, shares of finished ones and of those
    that end at once, share that the judge could not decide, share of prompts whose samples all have one reward, lag in
    updates."""
    samples = [s for g in groups for s in g.samples]
    rewards = [s.reward for s in samples if s.finished]
    return {
        "reward": float(np.mean(rewards)) if rewards else float("nan"),
        "gold": float(np.mean([s.gold for s in samples])),
        "response_length": float(np.mean([len(s.response_ids) for s in samples])),
        "finished": float(np.mean([s.finished for s in samples])),
        "empty": float(np.mean([len(s.response_ids) <= s.finished for s in samples])),
        "undecided": float(np.mean([s.undecided for s in samples])),
        "equal_rewards": float(np.mean([_all_equal(g.samples) for g in groups])),
        "policy_version_lag": version - float(np.mean([s.policy_version for s in samples])),
    }


def _all_equal(samples: Sequence[Sample]) -> bool:
    """Then the group has nothing to learn from. A reward of nan, of a response without an end, equals another one."""
    rewards = [s.reward for s in samples if s.finished]
    if len(samples) < 2 or 0 < len(rewards) < len(samples):
        return False
    return not rewards or max(rewards) - min(rewards) <= max(s.rounding for s in samples)
