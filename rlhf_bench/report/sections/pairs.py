"""The held-out pairs one by one: which rewards rank them right, and which pairs lose their chosen response."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from rlhf_bench.core.text import listed
from rlhf_bench.core.types import HELD_OUT_SPLITS, MAIN_SPLIT, HeldOutSplit
from rlhf_bench.report.format import ABSENT
from rlhf_bench.report.measures import (
    Measure,
    Of,
    directions,
    judged,
    measures,
    metric,
    remarks,
    rows_of,
    short,
)
from rlhf_bench.report.plots.style import INK, Plot, absent, curve, drawn, label, legend, new_figure, plotted, styled
from rlhf_bench.report.plots.svg import named
from rlhf_bench.report.sections.base import Section, Table, tables_of
from rlhf_bench.report.sections.curves import MEANS, NO_PAIRS
from rlhf_bench.report.tables import SPLIT_NAMES
from rlhf_bench.results.base import recorded_seeds
from rlhf_bench.results.reader import RecordedComparison, numbers
from rlhf_bench.results.summary import Summary

OVER_PAIRS = "The reward model's interval is over pairs (Clopper and Pearson)"
PREDICTORS: Mapping[str, str] = {
    "ches": "CHES",
    "ches_normalised": "length-normalised CHES",
    "edit_distance": "edit distance",
}
"""Column of pairs.parquet, a property of the pair under the base policy → its name."""
CHANCE = 0.5
GROUPS = 5
"""Groups of pairs with as many pairs each, by a predictor that takes more values than that."""


def ranking(recorded: RecordedComparison, summary: Summary) -> Section:
    """Pairwise accuracy of the arms' implicit rewards against the reward model's explicit one, by split."""
    told = plotted(recorded, summary)
    implicit = {
        split: metric(recorded, "accuracy" if split == MAIN_SPLIT else f"accuracy/{split}") for split in HELD_OUT_SPLITS
    }
    explicit = {split: right for split in HELD_OUT_SPLITS if (right := _explicit(recorded, split)) is not None}
    to_beat = {split: explicit[split].share if split in explicit else CHANCE for split in HELD_OUT_SPLITS}
    groups = judged(*(measures(told, of, to_beat[split]) for split, of in implicit.items()))
    found = {split: own for split, own in zip(implicit, groups, strict=True) if own}
    seen = [f"Not recorded: pairwise accuracy of the implicit rewards; {NO_PAIRS}"] if not found else []
    if not explicit:
        seen.append("No reward model scored the held-out pairs, so there is no explicit reward to compare with.")
    for split, own in found.items():
        if right := explicit.get(split):
            words = f"the reward model ranks {right.cell} of {right.pairs} pairs right; {against(right, own)}."
        else:
            words = directions(
                "implicit rewards",
                own,
                "rank fewer than half of the pairs right in",
                "rank more than half of the pairs right in",
                "rank half of the pairs right in",
                "cannot be told from chance in",
            )
        seen.append(f"{SPLIT_NAMES[split]}: {words}")
    seen += remarks(*found.values())
    rows = rows_of(summary, {_heading(recorded, split): implicit[split] for split in found})
    if rows and explicit:
        cells = {_heading(recorded, split): explicit[split].cell if split in explicit else ABSENT for split in found}
        rows.append({"Arm": "reward model (explicit)"} | cells)
    return Section(
        "ranking",
        "Implicit against explicit rewards",
        "A policy trained on pairs ranks answers by its implicit reward, Δ⁺ against Δ⁻; a reward model does so "
        "explicitly. The share of held-out pairs that each ranks right: 0.5 is chance, and an implicit reward that is "
        "good on prompts like those of training only does not carry over.",
        tuple(seen),
        lambda: (_accuracy_plot(summary, recorded, found, explicit),) if found else (),
        tables_of(Table(MEANS + (f" {_over_pairs(recorded)}" if explicit else ""), rows)),
    )  # fmt: skip


def displacement(recorded: RecordedComparison, summary: Summary) -> Section:
    """How the change of a pair's chosen response depends on what the pair was like under the base policy."""
    told = plotted(recorded, summary)
    last = _last_evaluations(recorded, summary)
    known = [column for column in PREDICTORS if numbers(last, column).notna().any()]
    seen = [f"Not recorded: held-out pairs one by one; {NO_PAIRS}"] if last.empty else []
    if not last.empty and not known:
        seen = ["Not recorded: CHES and edit distance of the held-out pairs."]
    columns: dict[str, Of] = {
        f"{PREDICTORS[column]}: rank correlation with Δ⁺": _correlation(last, column) for column in known
    }
    groups = judged(*(measures(told, of) for of in columns.values()))
    for name, found in zip((PREDICTORS[column] for column in known), groups, strict=True):
        if not found:
            seen.append(
                f"{name[0].upper()}{name[1:]} is the same for all pairs, or the arms did not move: there is no correlation."
            )
            continue
        seen.append(
            directions(
                f"By rank correlation, a larger {name}",
                found,
                "goes with a lower Δ⁺ in",
                "goes with a higher Δ⁺ in",
                "goes with neither in",
                "goes with no settled change of Δ⁺ in",
            )
        )
    seen += remarks(*groups)
    return Section(
        "displacement",
        "Which pairs lose their chosen response",
        "CHES and edit distance are properties of a pair before training. If likelihood is displaced where both sides "
        "look similar to the model, Δ⁺ falls with CHES (a negative correlation), and rises with edit distance.",
        tuple(seen),
        lambda: tuple(_by_predictor(recorded, summary, last, column) for column in known if column != "ches"),
        tables_of(Table(f"Spearman's rank correlation over held-out pairs, found for each seed. {MEANS}", rows_of(summary, columns))),
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Right:
    """The share of `pairs` that the reward model ranks right, and its 95% interval over pairs."""

    share: float
    pairs: int
    low: float
    high: float

    @property
    def cell(self) -> str:
        return f"{short(self.share)} [{short(self.low)}, {short(self.high)}]"


def against(right: Right, own: Sequence[Measure]) -> str:
    """Which arms' implicit rewards rank fewer or more pairs right than the reward model. That is settled where the arm's interval over
    seeds and the reward model's over pairs do not overlap: the pairs are a sample too."""
    groups: dict[str, list[str]] = {"ranks fewer right": [], "ranks more right": [], "cannot be told from it": []}
    fewer, more, neither = groups.values()
    for one in own:
        low, high = (one.interval.low, one.interval.high) if one.interval else (one.mean, one.mean)
        (fewer if high < right.low else more if low > right.high else neither).append(one.arm)
    return "; ".join(f"the implicit reward of {listed(arms)} {words}" for words, arms in groups.items() if arms)


def _explicit(recorded: RecordedComparison, split: str) -> Right | None:
    own = explicit_margins(recorded, split)
    return None if own.empty else ranked_right(own.to_numpy())


def explicit_margins(recorded: RecordedComparison, split: str) -> pd.Series:
    """Pair → the reward model's margin, which is the same at every evaluation, of the pairs that have one."""
    return _pair_properties(recorded, "reward_margin", split)


def ranked_right(margins: np.ndarray) -> Right:
    """The share of margins [P] that are above 0; P >= 1."""
    right = stats.binomtest(int((margins > 0).sum()), len(margins))
    limits = right.proportion_ci(0.95, method="exact")
    return Right(float(right.statistic), len(margins), float(limits.low), float(limits.high))


def _pair_properties(recorded: RecordedComparison, column: str, split: str) -> pd.Series:
    """Pair → the value of a column that every evaluation repeats, of the pairs that have it."""
    pairs = recorded.fixed_pairs
    own = pairs[pairs["split"] == split]
    return own.assign(value=numbers(own, column), pair=_pair(recorded, own)).groupby("pair")["value"].first().dropna()


def _pair(recorded: RecordedComparison, rows: pd.DataFrame) -> pd.Series:
    """What tells one pair from another. Where each seed has a base policy of its own, so are its pairs and their properties."""
    if not recorded_seeds(recorded.base):
        return rows["pair_id"]
    return rows["seed"].astype(str) + " " + rows["pair_id"].astype(str)


def _over_pairs(recorded: RecordedComparison) -> str:
    """What the reward model's interval is over."""
    several = recorded_seeds(recorded.base)
    return f"{OVER_PAIRS}{', those of all seeds together' if several else ': there is one of it'}."


def _heading(recorded: RecordedComparison, split: str) -> str:
    pairs = recorded.fixed_pairs
    count = pairs.loc[pairs["split"] == split, "pair_id"].nunique()
    return f"{SPLIT_NAMES[split]} ({count} pairs)" if count else SPLIT_NAMES[split]


def _accuracy_plot(
    summary: Summary,
    recorded: RecordedComparison,
    found: Mapping[HeldOutSplit, list[Measure]],
    explicit: Mapping[HeldOutSplit, Right],
) -> Plot:
    """One place per split, in it one point per arm and the reward model's."""
    summary = plotted(recorded, summary)
    figure, axes = new_figure()
    width = 0.7 / max(len(summary.arms) + 1, 1)
    there = []
    for number, (arm, look) in enumerate(styled(summary)):
        own = [(place, one) for place, split in enumerate(found) for one in found[split] if one.arm == arm.name]
        there.append(bool(own))
        for place, one in own:
            ends = one.interval
            spread = [[max(one.mean - ends.low, 0)], [max(ends.high - one.mean, 0)]] if ends else None
            axes.errorbar([place - 0.35 + width * number], [one.mean], yerr=spread, color=look["color"],
                          marker=look["marker"], capsize=2, elinewidth=1, label=named(arm.name))  # fmt: skip
    for place, split in enumerate(found):
        if right := explicit.get(split):
            spread = [[right.share - right.low], [right.high - right.share]]
            axes.errorbar([place + 0.35], [right.share], yerr=spread, color=INK, marker="*", markersize=8, capsize=2,
                          elinewidth=1, linestyle="none", label="reward model (explicit)" if place == 0 else None)  # fmt: skip
    axes.axhline(CHANCE, color=INK, linestyle=":", linewidth=1)
    axes.set_ylim(-0.03, 1.03)
    axes.set_xticks(range(len(found)), [SPLIT_NAMES[split] for split in found])
    axes.grid(visible=False, axis="x")
    label(axes, "", "share of pairs ranked right")
    legend(figure, summary, more=axes.get_legend_handles_labels()[0])
    return Plot(
        "Pairwise accuracy by split",
        "Higher is better; the dotted line is chance. Points are means over finished seeds with Student's interval"
        + (", the star is the reward model with its interval over pairs." if explicit else "."),
        drawn(figure, "ranking"),
        absent(summary, there, "pairwise accuracy"),
    )


def _last_evaluations(recorded: RecordedComparison, summary: Summary) -> pd.DataFrame:
    """The pairs of the main split at the last mark of every finished seed, with the properties of the pair beside."""
    fixed = recorded.fixed_pairs
    pairs = fixed[(fixed["split"] == MAIN_SPLIT) & (fixed["mark"] > 0)]
    finished = {(arm.name, seed.seed) for arm in summary.arms for seed in arm.finished}
    done = [key in finished for key in zip(pairs["arm"], pairs["seed"], strict=True)]
    pairs = pairs[np.array(done, dtype=bool)]
    last = pairs[pairs["mark"] == pairs.groupby(["arm", "seed"])["mark"].transform("max")]
    known = {column: _pair_properties(recorded, column, MAIN_SPLIT) for column in PREDICTORS}
    last = last.assign(pair=_pair(recorded, last))
    return last.assign(**{column: last["pair"].map(values).astype("float64") for column, values in known.items()})


def _correlation(last: pd.DataFrame, column: str) -> Of:
    """Arm → (seed → Spearman's correlation of Δ⁺ with the predictor), where both vary over the pairs."""

    def of(arm: str) -> dict[int, float]:
        found = {}
        for seed, own in last[last["arm"] == arm].groupby("seed"):
            own = own.dropna(subset=[column, "chosen_logratio"])
            if len(own) > 2 and own[column].nunique() > 1 and own["chosen_logratio"].nunique() > 1:
                found[int(seed)] = float(stats.spearmanr(own[column], own["chosen_logratio"]).statistic)
        return {seed: value for seed, value in found.items() if math.isfinite(value)}

    return of


def _by_predictor(recorded: RecordedComparison, summary: Summary, last: pd.DataFrame, column: str) -> Plot:
    """Δ⁺ at the last evaluation against a predictor: each point is the mean over a group of pairs."""
    summary = plotted(recorded, summary)
    values = last.drop_duplicates("pair").set_index("pair")[column].dropna()
    groups = values.rank(method="dense") if values.nunique() <= GROUPS else _quantile_groups(values)
    rows = last.assign(mark=last["pair"].map(groups), place=last["pair"].map(values.groupby(groups).transform("mean")))
    rows = rows.groupby(["arm", "seed", "mark"])[["place", "chosen_logratio"]].mean().reset_index()
    rows = rows.rename(columns={"place": "predictor"})
    figure, axes = new_figure()
    there = [curve(axes, arm, look, rows, "chosen_logratio", across="predictor") for arm, look in styled(summary)]
    axes.axhline(0, color=INK, linestyle="--", linewidth=1)
    unit = "" if column == "edit_distance" else " under the base policy"
    label(axes, f"{PREDICTORS[column]}{unit}", "Δ⁺ at the last evaluation (nats)")
    legend(figure, summary)
    how = (
        f"Each point is the mean over a group of held-out pairs, at most {GROUPS} groups of alike {PREDICTORS[column]}."
    )
    return Plot(f"Δ⁺ against {PREDICTORS[column]}", how, drawn(figure, f"pairs-{column.replace('_', '-')}"),
                absent(summary, there, "pairs"))  # fmt: skip


def _quantile_groups(values: pd.Series) -> pd.Series:
    """Groups of about equal size, 1 the lowest; equal values always in one group."""
    edges = np.unique(np.quantile(values, np.linspace(0, 1, GROUPS + 1)[1:-1]))
    return pd.Series(1.0 + np.searchsorted(edges, values, side="right"), index=values.index)
