"""From samples to rewards: the task's judge, and the reward model."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from rlhf_bench.core.costs import Cost
from rlhf_bench.core.types import Group, Row, Sample
from rlhf_bench.methods.base import Feedback
from rlhf_bench.models.tokenizer import TextTokenizer, decode_response
from rlhf_bench.tasks import Task
from rlhf_bench.training.roles import RewardScorer


@dataclass(frozen=True)
class Judge:
    """The task's judge over token ids. A response that did not end scores 0."""

    task: Task
    tokenizer: TextTokenizer

    def __call__(self, groups: Sequence[Group]) -> tuple[list[Group], Cost]:
        judged = [replace(g, samples=self._samples(g)) for g in groups]
        return judged, Cost(judge_queries=sum(len(g.samples) for g in groups))

    def _samples(self, group: Group) -> tuple[Sample, ...]:
        known: dict[tuple[int, ...], tuple[str, float]] = {}  # a prompt's samples are often the same few responses
        out = []
        for sample in group.samples:
            if sample.response_ids not in known:
                text = decode_response(self.tokenizer, sample.response_ids)
                gold = self.task.judge(group.prompt, text).score if sample.finished else 0.0
                known[sample.response_ids] = text, gold  # a finished one ends in EOS, so the ids tell them apart
            text, gold = known[sample.response_ids]
            out.append(replace(sample, text=text, gold=gold))
        return tuple(out)


Rewarded = tuple[list[Group], Cost]
"""Groups whose samples have their `reward`, and what it cost."""


def reward_groups(groups: Sequence[Group], feedback: Feedback, scorer: RewardScorer | None) -> Rewarded:
    """Fill in `reward`: the judge's score (already there), or the reward model's. A response without EOS gets nan."""
    return reward_groups_async(groups, feedback, scorer)()


def reward_groups_async(
    groups: Sequence[Group], feedback: Feedback, scorer: RewardScorer | None
) -> Callable[[], Rewarded]:
    """The same without waiting: the reward model works, and what is returned waits for it."""
    if feedback == "judge":
        return partial(_rewarded, groups, [[s.gold for s in g.samples] for g in groups], Cost())
    assert scorer is not None, "an arm that samples with feedback: reward_model has a scorer started"
    pending = scorer.begin_score([row_of(g) for g in groups])

    def wait() -> Rewarded:
        scores, cost = pending.result()
        return _rewarded(groups, scores, cost)

    return wait


def _rewarded(groups: Sequence[Group], scores: Sequence[Sequence[float]], cost: Cost) -> Rewarded:
    out = [
        replace(
            g,
            samples=tuple(
                replace(s, reward=_reward(r) if s.finished else math.nan) for s, r in zip(g.samples, row, strict=True)
            ),
        )
        for g, row in zip(groups, scores, strict=True)
    ]
    return out, cost


def _reward(score: float) -> float:
    """Infinite where the score is not a finite number of any kind: nan says that a response did not end. Nothing learns from
    an infinite reward: see `batch.not_finite`."""
    return float(score) if math.isfinite(score) else math.inf


def row_of(group: Group) -> Row:
    """A prompt with all of its samples."""
    return Row(group.prompt.id, group.prompt.token_ids, tuple(s.response_ids for s in group.samples))


def sampled_row(group: Group) -> Row:
    """The same, with the log-probabilities that the sampling engine gave: those of the policy that drew the samples."""
    drawn = tuple(np.array(s.sampler_logprobs) for s in group.samples)
    return replace(row_of(group), extras={"sampler_logprobs": drawn})
