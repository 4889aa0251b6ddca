"""Write the tables in docs/experiments.md from the data beside the result pages, so that they cannot contradict them.

Usage, from the repository root: .venv/bin/python -m docs.generate_experiments
"""

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

import numpy as np
from scipy import stats

from rlhf_bench.diagnostics.intervals import Estimate, Interval, Part, part_of
from rlhf_bench.results.claims import SCORE, Claim, PairedComparison, evaluate_claims, metric_values
from rlhf_bench.results.reader import RecordedComparison, read_recorded

PAGE = Path(__file__).with_name("experiments.md")
DATA = PAGE.with_name("results") / "data"
BEGIN, END = (
    "<!-- Written by docs/generate_experiments.py -->",
    "<!-- End of what docs/generate_experiments.py writes -->",
)
CLAIMED = (
    "data_scenarios",
    "rejected_strength_arithmetic",
    "rejected_strength_verse",
    "methods_arithmetic",
    "methods_verse",
    "edit_distance",
    "transfer",
)
"""The experiments whose recipes make claims, in the order of the questions."""
DESCRIBED = ("rejected_strength_arithmetic", "rejected_strength_verse", "methods_arithmetic", "methods_verse")
"""The experiments with enough arms to rank them by two numbers."""
HEAD = """| Page | Claim | Verdict by the rule | Difference [interval] | With the noise of prompts and draws |
| --- | --- | --- | --- | --- |"""
CAPTION = """Descriptive, over the arms' means: Spearman's correlation of the score with the entropy per token and with Δ⁻, the change of
the rejected log-probability, both at the last evaluation."""
DESCRIPTION = """| Page | Arms | Score and entropy | Score and Δ⁻ | Tuned to the lowest rate tried | Tuned to the highest |
| --- | --- | --- | --- | --- | --- |"""


def page() -> str:
    """The whole page: what is written by hand, with the tables in their place."""
    before, _, rest = PAGE.read_text("utf-8").partition(BEGIN)
    return f"{before}{BEGIN}\n\n{verdicts()}\n\n{CAPTION}\n\n{description()}\n\n{END}{rest.partition(END)[2]}"


def verdicts() -> str:
    return "\n".join([HEAD, *(row for name in CLAIMED for row in rows(name))])


def description() -> str:
    return "\n".join([DESCRIPTION, *map(described, DESCRIBED)])


def described(name: str) -> str:
    """Spearman's correlations over the arms' means, and the arms whose tuned learning rate is at an edge of what was tried."""
    recorded = read_recorded(DATA / name)
    arms = list(recorded.results["arms"])
    scores, entropies, changes = (
        [mean_of(recorded, arm, metric) for arm in arms] for metric in (SCORE, "entropy", "rejected_logratio")
    )
    correlations = [f"{stats.spearmanr(scores, other).statistic:+.2f}" for other in (entropies, changes)]
    edges = [", ".join(arm for arm in arms if kept(recorded, arm) == edge) or "–" for edge in (0.0, 1.0)]
    return f"| [{name}](results/{name}.md) | {len(arms)} | {' | '.join([*correlations, *edges])} |"


def kept(recorded: RecordedComparison, arm: str) -> float | None:
    """Where the learning rate of the arm's best trial lies among those tried: 0 lowest, 1 highest; None without trials."""
    trials = [trial for trial in recorded.tuning.get(arm, []) if trial["score"] is not None]
    if not trials:
        return None
    best = max(trials, key=lambda trial: trial["score"])["settings"]["learning_rate"]
    rates = [trial["settings"]["learning_rate"] for trial in recorded.tuning[arm]]
    return 0.0 if best == min(rates) else 1.0 if best == max(rates) else 0.5


def rows(name: str) -> list[str]:
    """One row for each claim of the recipe."""
    recorded = read_recorded(DATA / name)
    claims = evaluate_claims(recorded)
    return [f"| [{name}](results/{name}.md) | {row(recorded, claim, len(claims))} |" for claim in claims]


def row(recorded: RecordedComparison, claim: Claim, family: int) -> str:
    compared = claim.comparison
    interval = compared.adjusted.interval if compared.adjusted else None
    digits = 3 if compared.metric.startswith(SCORE) else 4
    rule = "–" if interval is None else between(compared.difference, interval.low, interval.high, digits)
    return f"{claim.statement} | {claim.verdict} | {rule} | {wider(recorded, compared, family)}"


def wider(recorded: RecordedComparison, compared: PairedComparison, family: int) -> str:
    """The last column of the first table; "–" where there is nothing to widen. A run that recorded the scores of every prompt
    has drawn anew for every arm and seed, and its interval by the rule holds that noise."""
    if not recorded.scores.empty or compared.metric.split("/")[0] != SCORE or not compared.paired:
        return "–"
    means = [mean_of(recorded, arm, compared.metric) for arm in (compared.more, compared.less)]
    found = widened(compared.paired.differences, means, recorded.recipe["evaluation"]["prompts"], family)
    return f"[{found.low:+.3f}, {found.high:+.3f}]: {'open' if found.contains(0) else 'holds'}"


def widened(differences: Sequence[float], means: Sequence[float], prompts: int, family: int = 1) -> Interval:
    """The interval of the mean of `differences` [seeds] in score, where all seeds were scored on the same prompts with the
    same draws, so that their spread does not hold the noise of either.

    A score in [0, 1] of mean m has a variance of at most m (1 - m) a prompt, over prompts and draws. That of both arms'
    `means` is the prompts' part, as if nothing of it were common to the arms: an upper bound. Bonferroni over a `family` of
    that many.
    """
    noise = Part(sum(m * (1 - m) for m in means) / prompts, prompts - 1)
    return Estimate(fmean(differences), part_of(np.array(differences)), noise).interval(1 - 0.05 / family)


def mean_of(recorded: RecordedComparison, arm: str, metric: str) -> float:
    """Over finished seeds."""
    return fmean(metric_values(recorded, arm, metric).values())


def between(difference: float, low: float, high: float, digits: int) -> str:
    return f"{difference:+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}]"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
