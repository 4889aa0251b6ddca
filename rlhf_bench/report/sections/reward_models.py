"""The reward models themselves: whether they tell good answers from bad ones, and what becomes of that as policies train."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from rlhf_bench.core.files import number_or_nan
from rlhf_bench.core.plot_style import PALETTE
from rlhf_bench.core.text import listed
from rlhf_bench.core.types import HELD_OUT_SPLITS, MAIN_SPLIT
from rlhf_bench.diagnostics.reward_models import calibration_error, reliability
from rlhf_bench.report.measures import (
    Of,
    change,
    directions,
    judged,
    measures,
    metric,
    remarks,
    rows_of,
    short,
    was_recorded,
)
from rlhf_bench.report.plots.style import (
    INK,
    MARKERS,
    Plot,
    absent,
    arm_handles,
    curve,
    drawn,
    label,
    new_figure,
    panel_grid,
    plotted,
    styled,
)
from rlhf_bench.report.sections.base import Section, Table, tables_of
from rlhf_bench.report.sections.curves import MEANS, lines
from rlhf_bench.report.sections.pairs import explicit_margins, ranked_right
from rlhf_bench.report.tables import SPLIT_NAMES
from rlhf_bench.results.base import recorded_seeds
from rlhf_bench.results.metrics import SCORE
from rlhf_bench.results.reader import RecordedComparison, numbers
from rlhf_bench.results.summary import Summary

PROXY, GOLD = "reward_model/score", "gold_reward_model/score"
CURVES: Mapping[str, str] = {PROXY: "reward model", GOLD: "gold reward model", SCORE: "judge's score"}
"""Column of the evaluations → what it is, in the order in which they are drawn."""
MIDDLE = 0.5


def reward_models(recorded: RecordedComparison, summary: Summary) -> tuple[Section, ...]:
    """Both sections, each where the run recorded what it is about."""
    margins: dict[str, np.ndarray] = {s: own for s in HELD_OUT_SPLITS if len(own := _log_odds(recorded, s))}
    found = list[Section]()
    if margins or was_recorded(recorded, "reward_model/accuracy"):
        found.append(_telling(recorded, summary, margins))
    if was_recorded(recorded, PROXY, GOLD):
        found.append(_overoptimisation(recorded, summary))
    return tuple(found)


def _telling(recorded: RecordedComparison, summary: Summary, margins: Mapping[str, np.ndarray]) -> Section:
    told = plotted(recorded, summary)
    (moved,) = judged(measures(told, change(recorded, "reward_model/accuracy")))
    seen = [_calibration(margins[MAIN_SPLIT])] if MAIN_SPLIT in margins else []
    if moved:
        subject = (
            "Since the base policy, the share of the arms' own pairs that the reward model ranks as the judge does"
        )
        seen.append(directions(subject, moved, "fell in", "rose in"))
    seen += remarks(moved)
    columns: dict[str, Of] = {
        "own pairs ranked right": metric(recorded, "reward_model/accuracy"),
        "calibration error": metric(recorded, "reward_model/calibration_error"),
        "reward's correlation with length": metric(recorded, "reward_model/length_correlation"),
        "the judge's": metric(recorded, "reward_model/judge_length_correlation"),
    }
    own = "On pairs of each arm's own samples, at the last evaluation."
    return Section(
        "reward-model",
        "Can the reward model tell?",
        "An arm that learns from a reward model can be no better than what that one tells apart. It is asked about held-out "
        "pairs, on which the judge's preference is known, and about pairs of each policy's own samples as training goes on: "
        "there it meets answers that it was not trained on.",
        tuple(seen),
        lambda: (
            _reliability_plot(margins),
            lines(
                recorded, summary, "reward_model/accuracy", "Own samples ranked right, against compute",
                "A line that falls towards ½ says that the reward model no longer tells this policy's good answers from its bad ones.",
                "pairs of own samples ranked right",
            ),
            lines(
                recorded, summary, "reward_model/length_correlation", "Correlation of reward and length, against compute",
                "Among answers to one prompt. Above the judge's own, in the table, the reward pays for length itself.",
                "correlation of reward with length", zero=True,
            ),
        ),
        tables_of(
            Table("On held-out pairs. The interval is over pairs (Clopper and Pearson).", _by_split(margins)),
            Table(f"{own} {MEANS}", rows_of(summary, columns)),
        ),
    )  # fmt: skip


def _log_odds(recorded: RecordedComparison, split: str) -> np.ndarray:
    """The reward model's margins on held-out pairs, in the unit that it was trained in; older runs did not record that."""
    scales = {0: recorded.base, **recorded_seeds(recorded.base)}
    known = {seed: number_or_nan((base.get("reward_model") or {}).get("scale")) for seed, base in scales.items()}
    margins = explicit_margins(recorded, split)
    seeds = [int(name.partition(" ")[0]) if recorded_seeds(recorded.base) else 0 for name in margins.index]
    found = margins.to_numpy() / np.array([known.get(seed, math.nan) for seed in seeds], dtype=float)
    return found[np.isfinite(found)]


def _calibration(margins: np.ndarray) -> str:
    sure = float((1 / (1 + np.exp(-np.abs(margins)))).mean())
    right = ranked_right(margins)
    side = (
        "more sure than right"
        if sure > right.high
        else "less sure than right"
        if sure < right.low
        else "as sure as right"
    )
    return (
        f"On the {right.pairs} held-out pairs of the main split the reward model is {side}: its mean confidence is {short(sure)}, "
        f"and it ranks {right.cell} of them right."
    )


def _by_split(margins: Mapping[str, np.ndarray]) -> list[dict[str, str]]:
    return [
        {
            "Split": SPLIT_NAMES[split],
            "pairs": str(len(own)),
            "ranked right": ranked_right(own).cell,
            "mean confidence": short(float((1 / (1 + np.exp(-np.abs(own)))).mean())),
            "calibration error": short(calibration_error(own)),
        }
        for split, own in margins.items()
    ]


def _reliability_plot(margins: Mapping[str, np.ndarray]) -> Plot:
    title = "Reliability of the reward model"
    how = (
        "Held-out pairs in groups of like confidence σ(margin). On the dashed line it is right as often as it is sure; below "
        "it is too sure."
    )
    if not margins:
        return Plot(title, how, None, "Not recorded: the reward model's margins in its own unit.")
    figure, axes = new_figure()
    axes.plot([0.5, 1.0], [0.5, 1.0], color=INK, linestyle="--", linewidth=1)
    for index, (split, own) in enumerate(margins.items()):
        bins = reliability(own)
        axes.plot(
            [one.confidence for one in bins], [one.right for one in bins], label=SPLIT_NAMES[split], color=PALETTE[index],
            marker=MARKERS[index],
        )  # fmt: skip
    label(axes, "confidence σ(|margin|)", "share ranked right")
    figure.legend(loc="outside lower center", ncols=3)
    return Plot(title, how, drawn(figure, "reward-model-reliability"))


def _overoptimisation(recorded: RecordedComparison, summary: Summary) -> Section:
    """Proxy and gold against √KL, as arXiv 2210.10760 draws them for best of n and PPO, and arXiv 2406.02900 for DPO."""
    told = plotted(recorded, summary)
    there = [column for column in CURVES if was_recorded(recorded, column)]
    groups = judged(*(measures(told, _later(recorded, column)) for column in there))
    late = dict(zip(there, groups, strict=True))
    seen = [
        directions(f"From the middle of the budget on, the {CURVES[column]}", found, "fell in", "rose in")
        for column, found in late.items()
        if found
    ]
    rose = {one.arm for one in late.get(PROXY, ()) if one.side == "above"}
    for column in (column for column in (GOLD, SCORE) if column in late):
        both = [one.arm for one in late[column] if one.side == "below" and one.arm in rose]
        if both:
            seen.append(
                f"Over-optimised by the {CURVES[column]}, which falls while the reward model's rises: {listed(both)}."
            )
    return Section(
        "over-optimisation",
        "Proxy and gold",
        "A reward model stands for something else, and a policy that is trained by it finds where the two part: with growing KL "
        "its score, the proxy, goes on rising while the gold score levels off and falls (arXiv 2210.10760). All are measured on "
        "the same samples; the reward models' are of those that ended, in deviations of the base policy's.",
        (*seen, *remarks(*groups)),
        lambda: (_by_root_kl(recorded, summary, there),),
        tables_of(Table(f"At the last evaluation. {MEANS}", rows_of(summary, {CURVES[c]: metric(recorded, c) for c in there}))),
    )  # fmt: skip


def _later(recorded: RecordedComparison, column: str) -> Of:
    """The last evaluation's value less that of the last one in the first half of the budget."""

    def of(arm: str) -> dict[int, float]:
        by_seed, early = recorded.evaluations_by_seed.get((arm, MAIN_SPLIT), {}), {}
        for seed, rows in by_seed.items():
            values = numbers(rows[rows["mark"] <= MIDDLE], column).dropna()
            if len(values):
                early[seed] = float(values.iloc[-1])
        last = metric(recorded, column)(arm)
        return {seed: value - early[seed] for seed, value in last.items() if seed in early}

    return of


def _by_root_kl(recorded: RecordedComparison, summary: Summary, columns: list[str]) -> Plot:
    told = plotted(recorded, summary)
    rows = recorded.main_split
    rows = rows.assign(root_kl=np.sqrt(numbers(rows, "kl").clip(lower=0)))
    figure, panels = panel_grid(len(columns), columns=1)
    there = [False] * len(told.arms)
    for panel, column in zip(panels, columns, strict=True):
        panel.set_title(CURVES[column], fontsize=9)
        drawn_here = [curve(panel, arm, look, rows, column, across="root_kl") for arm, look in styled(told)]
        if column != SCORE:
            there = [one or other for one, other in zip(there, drawn_here, strict=True)]
    figure.supxlabel("√KL to the base model (√nats per response)", color=INK, fontsize=9)
    figure.legend(
        handles=arm_handles(told), loc="outside upper center", ncols=3
    )  # below it would hide the axis's title
    return Plot(
        "Proxy and gold against √KL",
        "Each point is an evaluation. Where the upper line rises and a lower one falls, the policy is better at pleasing the reward "
        "model only.",
        drawn(figure, "over-optimisation") if any(there) else None,
        absent(told, there, "a reward model's score with KL"),
    )
