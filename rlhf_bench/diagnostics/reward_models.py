"""Whether a reward model can tell good answers from bad ones: pure functions of its scores and the judge's.

A margin here is r(better) − r(worse) of two answers to one prompt, better and worse by the judge, in the unit in which the model
was trained: by Bradley and Terry the model then says that the better one is preferred with probability σ(margin).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rlhf_bench.core.types import Row
from rlhf_bench.diagnostics.likelihood import pairwise_accuracy

MOST_BINS, PAIRS_IN_BIN = 10, 10
"""Groups of pairs of like confidence: at most so many, with at least so many pairs each."""


@dataclass(frozen=True)
class Bin:
    """Pairs of like confidence: the mean of it, the share that is ranked right, and how many there are."""

    confidence: float
    right: float
    pairs: int


def reliability(margins: np.ndarray) -> list[Bin]:
    """The reliability curve of margins [P] in log-odds, by rising confidence σ(|margin|): groups of as many pairs each (arXiv
    1904.01685), since most pairs of a good model are in the last of equal intervals. A tie is half right. Empty for no pairs."""
    if not len(margins):
        return []
    confidence = 1.0 / (1.0 + np.exp(-np.abs(margins)))
    right = (1.0 + np.sign(margins)) / 2.0
    bins = min(MOST_BINS, max(1, len(margins) // PAIRS_IN_BIN))
    groups = np.array_split(np.argsort(confidence, kind="stable"), bins)
    return [Bin(float(confidence[g].mean()), float(right[g].mean()), len(g)) for g in groups]


def calibration_error(margins: np.ndarray) -> float:
    """Expected calibration error of margins [P] in log-odds: the mean over pairs of the gap between a bin's share of right
    pairs and its confidence (arXiv 1706.04599, eq. 3). nan for no pairs. Few pairs make it too large: the gap of each bin has
    noise, and no sign."""
    bins = reliability(margins)
    total = sum(one.pairs for one in bins)
    return sum(one.pairs * abs(one.right - one.confidence) for one in bins) / total if total else float("nan")


@dataclass(frozen=True)
class ScoredSamples:
    """N samples of one policy: the prompt that each answers, what reward model and judge say of it, and its tokens."""

    prompts: np.ndarray
    scores: np.ndarray
    judged: np.ndarray
    lengths: np.ndarray

    @classmethod
    def of(cls, rows: Sequence[Row], scores: np.ndarray, judged: np.ndarray) -> ScoredSamples:
        """Of rows, with a number [N] per response in row order."""
        prompts = np.repeat(np.arange(len(rows)), [len(row.responses) for row in rows])
        lengths = np.array([len(a) for row in rows for a in row.responses], dtype=float)
        return cls(prompts, scores, judged, lengths)

    def margins(self) -> np.ndarray:
        """Of all pairs of a prompt's samples that the judge tells apart, in the scores' unit [P]."""
        found = []
        for prompt in np.unique(self.prompts):
            of_prompt = self.prompts == prompt
            scores, judged = self.scores[of_prompt], self.judged[of_prompt]
            better, worse = np.nonzero(judged[:, None] > judged[None, :])
            found.append(scores[better] - scores[worse])
        return np.concatenate(found) if found else np.array([])

    def numbers(self, scale: float) -> dict[str, float]:
        """Mean score, how well pairs of the policy's own samples are ranked, and what length has to do with it. `scale`: of the
        scores, as a multiple of the unit that the model was trained in. nan for what these samples cannot say."""
        margins = self.margins()
        return {
            "score": float(self.scores.mean()) if len(self.scores) else float("nan"),
            "pairs": float(len(margins)),
            "accuracy": pairwise_accuracy(margins, np.zeros(len(margins))) if len(margins) else float("nan"),
            "calibration_error": calibration_error(margins / scale),
            "length_correlation": self._with_length(self.scores),
            "judge_length_correlation": self._with_length(self.judged),
        }

    def _with_length(self, values: np.ndarray) -> float:
        """Pearson's correlation with length among the answers to one prompt: both less the prompt's mean."""
        left, right = self._centred(values), self._centred(self.lengths)
        size = float(np.sqrt((left**2).sum() * (right**2).sum()))
        return float((left * right).sum()) / size if size > 1e-9 else float("nan")

    def _centred(self, values: np.ndarray) -> np.ndarray:
        if not len(values):
            return values
        counts = np.bincount(self.prompts)
        return values - (np.bincount(self.prompts, values) / np.maximum(counts, 1))[self.prompts]
