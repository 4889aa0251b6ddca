"""Scores of held-out prompts: from judged responses to a prompt's numbers, and which responses an evaluation draws."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from math import comb

import numpy as np

from rlhf_bench.core.types import Judgement, PromptScore


def prompt_scores(
    ids: Sequence[str], sampled: np.ndarray, greedy: np.ndarray, best_of: int | None, expected: np.ndarray | None
) -> tuple[PromptScore, ...]:
    """Of P prompts, from the scores of k sampled responses each [P, k] and of the greedy ones [P]. `expected` [P]: known
    expected scores, which then stand in place of the samples' means."""
    means = sampled.mean(axis=1) if expected is None else expected
    best = np.full(len(ids), np.nan) if best_of is None else expected_best(sampled, best_of)
    numbers = zip(means.tolist(), greedy.tolist(), best.tolist(), strict=True)
    return tuple(PromptScore(prompt, *found) for prompt, found in zip(ids, numbers, strict=True))


def mean_parts(judgements: Sequence[Judgement]) -> dict[str, float]:
    """The means of the parts over responses, by name, each response by its part's weight; a part that it lacks is 0."""
    names = sorted({name for judgement in judgements for name in judgement.parts})
    return {
        name: float(
            np.average(
                [j.parts.get(name, 0.0) for j in judgements], weights=[j.weights.get(name, 1.0) for j in judgements]
            )
        )
        for name in names
    }


def expected_best(scores: np.ndarray, n: int) -> np.ndarray:
    """The expected score of the best of n responses, from k >= n scored ones a prompt: [P, k] -> [P]. Raises ValueError for
    fewer.

    The mean of the maximum over all subsets of n of the k responses, which has no bias. The i-th smallest is the maximum
    of C(i − 1, n − 1) of the C(k, n) subsets.
    """
    k = scores.shape[1]
    if k < n:
        raise ValueError(f"the best of {n} needs as many scored responses, and there are {k}")
    return np.sort(scores, axis=1) @ np.array([comb(i, n - 1) / comb(k, n) for i in range(k)])


def draws_seed(name: str) -> int:
    """The seed of an evaluation's samples: as good as independent for every name, such as that of an arm, a seed and an
    update. Noise that arms and seeds shared would look like certainty."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=4).digest(), "big")
