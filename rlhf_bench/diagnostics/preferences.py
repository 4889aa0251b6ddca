"""What verdicts on pairs of responses say: win rate, win rate at equal length, effect of the order, agreement with people.

A preference is a number from 0 (the other response is better) to 1 (the own one is), see `core.contests`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import special

from rlhf_bench.core.contests import Judged
from rlhf_bench.diagnostics.crossed import crossed_mean, mean_over_prompts
from rlhf_bench.diagnostics.intervals import CONFIDENCE, Estimate, Interval
from rlhf_bench.diagnostics.resampling import BOOTSTRAP_SEED, RESAMPLES

PRIOR_DEVIATION = 10.0
"""Of the coefficients below, in logits: so weak that it only keeps them finite where lengths, or the arm alone, decide all."""
MAX_STEPS = 100


def win_rate(preferences: np.ndarray) -> Estimate:
    """The mean of `preferences` [S seeds, P prompts], and its uncertainty over seeds and prompts; over prompts alone with one
    seed, and none with a single prompt."""
    seeds, prompts = preferences.shape
    if prompts < 2:
        return Estimate(float(preferences.mean()))
    return crossed_mean(preferences) if seeds > 1 else mean_over_prompts(preferences[0])


@dataclass(frozen=True, slots=True)
class AtEqualLength:
    """The win rate had both responses been of the same length; its interval; and the coefficient of length, in logits: above 0
    where the judge prefers the longer response. The interval is None with a single prompt."""

    win_rate: float
    interval: Interval | None
    length_coefficient: float


def length_controlled(preferences: np.ndarray, extra_length: np.ndarray) -> AtEqualLength:
    """The length-controlled win rate (Dubois et al. 2024, arXiv 2404.04475, eq. 2 without its term for the difficulty of an
    instruction, which takes many models to estimate). `preferences` and `extra_length` (own less other) are [S, P].

        logit P(own is preferred) = θ + φ tanh( extra length / its standard deviation )

    fitted by maximum likelihood with a normal prior of `PRIOR_DEVIATION`; the win rate at equal length is σ(θ). Own and other
    exchanged give one less it. The interval is that of θ by the influence of every cell on it, over seeds and prompts.
    """
    scale = float(extra_length.std())
    lengths = np.tanh(extra_length / scale) if scale else np.zeros_like(extra_length, dtype=np.float64)
    x = np.stack([np.ones(lengths.size), lengths.ravel()], axis=1)
    y = preferences.ravel()
    coefficients, hessian = _logistic(x, y)
    residuals = y - special.expit(x @ coefficients)
    influence = (x * residuals[:, None]) @ np.linalg.inv(hessian) * y.size  # [S P, 2]
    spread = win_rate(influence[:, 0].reshape(preferences.shape))
    theta = replace(spread, mean=float(coefficients[0]))
    interval = None
    if theta.parts:
        ends = theta.interval()
        interval = Interval(float(special.expit(ends.low)), float(special.expit(ends.high)), ends.method)
    return AtEqualLength(float(special.expit(coefficients[0])), interval, float(coefficients[1]))


def _logistic(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Coefficients [K] of the penalised logistic regression of shares `y` [n] on `x` [n, K], and the Hessian [K, K] there, by
    Newton's method with halved steps: the function is convex, so it has one minimum."""
    penalty = 1 / PRIOR_DEVIATION**2

    def loss(w: np.ndarray) -> float:
        z = x @ w
        return float((np.logaddexp(0, z) - y * z).sum() + penalty / 2 * (w @ w))

    found = np.zeros(x.shape[1])
    for _ in range(MAX_STEPS):
        p = special.expit(x @ found)
        gradient = x.T @ (p - y) + penalty * found
        hessian = (x * (p * (1 - p))[:, None]).T @ x + penalty * np.eye(x.shape[1])
        step = np.linalg.solve(hessian, gradient)
        size = 1.0
        while loss(found - size * step) > loss(found) and size > 1e-8:
            size /= 2
        found = found - size * step
        if float(np.abs(size * step).max()) < 1e-10:
            break
    p = special.expit(x @ found)
    return found, (x * (p * (1 - p))[:, None]).T @ x + penalty * np.eye(x.shape[1])


@dataclass(frozen=True, slots=True)
class OrderEffect:
    """How far the order in which two responses are shown decides. `consistent`: the share of contests with the same outcome in
    both orders; chance does not make it high. `first`: of the verdicts that name a response, the share that names the one shown
    first, .5 without a bias; nan where none does. Over contests with both verdicts."""

    contests: int
    consistent: float
    first: float


def order_effect(judged: Sequence[Judged]) -> OrderEffect:
    both = [one for one in judged if not math.isnan(one.preference)]
    same = sum(one.own_second == _SHOWN_THE_OTHER_WAY[one.own_first] for one in both if one.own_first)
    verdicts = Counter(verdict for one in both for verdict in (one.own_first, one.own_second))
    named = verdicts["first"] + verdicts["second"]
    return OrderEffect(
        len(both), same / len(both) if both else math.nan, verdicts["first"] / named if named else math.nan
    )


_SHOWN_THE_OTHER_WAY = {"first": "second", "second": "first", "tie": "tie"}


@dataclass(frozen=True, slots=True)
class Agreement:
    """A judge's preferences beside people's, over the pairs with both. `share`: the mean credit per pair, 1 where both of the
    judge's verdicts name what people named, half for every tie that people did not see: .5 is chance. `kappa`: Cohen's, of the
    outcome over both orders (a, b or tie) and people's, 0 is chance. `same`, `opposite`, `undecided`: pairs whose outcome is
    people's, the other response, or a tie on one side only."""

    pairs: int
    share: float
    interval: Interval | None
    kappa: float
    kappa_interval: Interval | None
    same: int
    opposite: int
    undecided: int


def agreement(preferences: Sequence[float], labels: Sequence[float]) -> Agreement:
    """Of `preferences` [n] with people's `labels` [n] (1: own, 0: other, .5: tie), all finite, n >= 1."""
    found, given = np.asarray(preferences, dtype=np.float64), np.asarray(labels, dtype=np.float64)
    credit = 1 - np.abs(found - given)
    outcome = np.sign(found - 0.5).astype(int)  # over both orders: -1, 0, 1
    truth = np.sign(given - 0.5).astype(int)
    table = np.zeros((3, 3))
    np.add.at(table, (outcome + 1, truth + 1), 1)
    estimate = win_rate(credit[None])
    return Agreement(
        pairs=found.size,
        share=estimate.mean,
        interval=estimate.interval().within(0.0, 1.0) if estimate.parts else None,
        kappa=float(cohens_kappa(table)),
        kappa_interval=_kappa_interval(table),
        same=int((outcome == truth).sum()),
        opposite=int((outcome * truth == -1).sum()),
        undecided=int(((outcome == 0) != (truth == 0)).sum()),
    )


def cohens_kappa(table: np.ndarray) -> np.ndarray:
    """Cohen's kappa (1960) of counts [..., K, K] of two raters' classes: agreement beyond chance, over what is possible beyond
    chance. 0 where one rater's classes leave nothing beyond chance."""
    total = table.sum((-2, -1))
    agreed = np.trace(table, axis1=-2, axis2=-1) / total
    chance = (table.sum(-1) * table.sum(-2)).sum(-1) / total**2
    return np.where(chance < 1, (agreed - chance) / np.where(chance < 1, 1 - chance, 1.0), 0.0)


def _kappa_interval(table: np.ndarray) -> Interval | None:
    """Percentile bootstrap over pairs; None for fewer than two of them."""
    count = int(table.sum())
    if count < 2:
        return None
    redrawn = np.random.default_rng(BOOTSTRAP_SEED).multinomial(count, table.ravel() / count, size=RESAMPLES)
    low, high = np.quantile(cohens_kappa(redrawn.reshape(-1, 3, 3)), [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Interval(float(low), float(high), "percentile")
