"""From samples to rewards: the task's judge, and the reward model."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from rlhf_bench.core.costs import Cost
from rlhf_bench.core.types import Group, Judgement, Prompt, Row, Sample
from rlhf_bench.methods.base import Feedback
from rlhf_bench.models.codec import Codec
from rlhf_bench.tasks import Task
from rlhf_bench.training.roles import RewardScorer


@dataclass(frozen=True)
class Judge:
    """The task's judge over token ids. A response that did not end, by any of the codec's end tokens, scores 0. What is judged
    is the whole answer: where the prompt ends with what the assistant has begun to say, that and the response."""

    task: Task
    codec: Codec

    def of(self, prompt: Prompt, response: str) -> Judgement:
        """Of a response's text."""
        return self.task.judge(prompt, self.codec.whole(prompt, response))

    def settle(self, asked: Sequence[tuple[Prompt, str]]) -> None:
        """Before `of` is asked for all of these: see `Task`."""
        if self.task.settle is not None:
            self.task.settle([(prompt, self.codec.whole(prompt, response)) for prompt, response in asked])

    def __call__(self, groups: Sequence[Group]) -> tuple[list[Group], Cost]:
        if self.task.settle is not None:
            asked = ((g.prompt, s.response_ids) for g in groups for s in g.samples if s.finished)
            self.settle([(prompt, self.codec.decode(ids)) for prompt, ids in asked])
        judged = [replace(g, samples=self._samples(g)) for g in groups]
        return judged, Cost(judge_queries=sum(len(g.samples) for g in groups))

    def _samples(self, group: Group) -> tuple[Sample, ...]:
        # A prompt's samples are often the same few responses. A finished one ends in an end token, so the ids tell them apart.
        known: dict[tuple[int, ...], tuple[str, Judgement]] = {}
        out = []
        for sample in group.samples:
            if sample.response_ids not in known:
                text = self.codec.decode(sample.response_ids)
                judgement = self.of(group.prompt, text) if sample.finished else Judgement(0.0)
                known[sample.response_ids] = (text, judgement)
            text, judgement = known[sample.response_ids]
            out.append(replace(sample, text=text, gold=judgement.score, undecided=judgement.undecided))
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
        return partial(_rewarded, groups, [[s.gold for s in g.samples] for g in groups], Cost(), lambda _: 0.0)
    assert scorer is not None, "an arm that samples with feedback: reward_model has a scorer started"
    pending = scorer.begin_score([row_of(g) for g in groups])

    def wait() -> Rewarded:
        scores, cost = pending.result()
        return _rewarded(groups, scores, cost, scorer.rounding)

    return wait


def _rewarded(
    groups: Sequence[Group], scores: Sequence[Sequence[float]], cost: Cost, rounding: Callable[[float], float]
) -> Rewarded:
    def rewarded(sample: Sample, score: float) -> Sample:
        if not sample.finished:
            return replace(sample, reward=math.nan)
        return replace(sample, reward=_reward(score), rounding=rounding(score))

    out = [
        replace(g, samples=tuple(rewarded(s, r) for s, r in zip(g.samples, row, strict=True)))
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
    """The same, with the log-probabilities that the sampling engine gave, those of the policy that drew the samples; and with
    the rounding of the rewards."""
    drawn = tuple(np.array(s.sampler_logprobs) for s in group.samples)
    rounding = tuple(np.array([s.rounding]) for s in group.samples)
    return replace(row_of(group), extras={"sampler_logprobs": drawn, "reward_rounding": rounding})
