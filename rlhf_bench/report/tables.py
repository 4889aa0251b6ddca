"""The tables of the report, as rows of finished cells: the page and the terminal show the same ones."""

from __future__ import annotations

import io
import math
from collections.abc import Collection, Sequence

import pandas as pd
from rich import box
from rich.console import Console
from rich.table import Table

from rlhf_bench.core.costs import COLUMNS, UNCHARGED_PHASES, Phase
from rlhf_bench.core.files import number_or_nan
from rlhf_bench.core.types import HELD_OUT_SPLITS, MAIN_SPLIT
from rlhf_bench.diagnostics import statistics
from rlhf_bench.report.cells import difference_cell, estimate_cell, kl_cell, p_cell, seeds_cell
from rlhf_bench.report.format import ABSENT, UNIT_NAMES, decimal, quantity
from rlhf_bench.report.verdict import baseline_lines, claim_lines
from rlhf_bench.results.claims import PairedComparison
from rlhf_bench.results.final_scores import base_interval, final_scores
from rlhf_bench.results.metrics import GREEDY_SCORE, SCORE
from rlhf_bench.results.reader import RecordedComparison, numbers
from rlhf_bench.results.schema import BASE, SHARED
from rlhf_bench.results.summary import ArmResult, BaseResult, Summary

TRIALS: Phase = "tuning"

Row = dict[str, str]
"""One row: column heading → finished cell. All rows of a table have the same headings."""

SPLIT_NAMES = {
    "in_distribution": "In distribution",
    "out_of_distribution": "Out of distribution",
    "unseen": "Unseen elements",
}


SCORE_HEADING, GREEDY_HEADING = "Score [95% interval]", "Greedy [95% interval]"


def comparison_table(summary: Summary) -> list[Row]:
    """One row per arm, best mean score first, arms without a finished seed last. The base policy's rows end it: as arms begin
    with it, and at other temperatures, which show what sharpness alone gives."""
    ranked = sorted(summary.arms, key=lambda arm: -math.inf if math.isnan(arm.mean) else arm.mean, reverse=True)
    return [arm_row(arm, summary) for arm in ranked] + [_base_row(b, summary) for b in (summary.base, *summary.base_at)]


def text_table(rows: Sequence[Row], title: str, left: Collection[str]) -> list[str]:
    """Lines of a table without colours, as wide as its cells need. `left`: headings of columns of words."""
    table = Table(box=box.SIMPLE_HEAD, title=title, pad_edge=False, title_justify="left")
    for heading in rows[0]:
        table.add_column(heading.replace(" ", "\n", 1), justify="left" if heading in left else "right", no_wrap=True)
    for row in rows:
        table.add_row(*row.values())
    out = io.StringIO()
    # Wide enough for any table: a job log has no width, and wrapped cells are harder to read than long lines.
    Console(file=out, width=400, color_system=None, markup=False, highlight=False).print(table)
    return [line.rstrip() for line in out.getvalue().strip("\n").splitlines()]


def render_text_table(summary: Summary) -> str:
    """The comparison table as text for the end of a run, without colours, as wide as its cells need; under it the
    arms against the baseline and the claims' verdicts, where the recipe asks for them."""
    rows = without_empty(comparison_table(summary))
    lines = text_table(rows, f"{summary.name}: held-out score at equal compute", ("Arm", "Method", "Data"))
    for block in (baseline_lines(summary), claim_lines(summary)):
        lines += ["", *block] if block else []
    return "\n".join(lines)


def paired_table(comparisons: Sequence[PairedComparison]) -> list[Row]:
    """One row per comparison, in order; intervals and p (Holm) are corrected for the whole family."""
    return [
        {
            "Arm": one.more,
            "Against": one.less,
            "Difference [95% interval]": difference_cell(one),
            "p (Holm)": p_cell(one.adjusted.p if one.adjusted else float("nan")),
            "p (t)": p_cell(one.paired.p_t if one.paired else float("nan")),
            "p (sign flips)": p_cell(one.paired.p_permutation if one.paired else float("nan")),
            "P(improvement) [95% interval]": _improvement_cell(one),
            "Common seeds": seeds_cell(one),
            "Arm has more": one.verdict,
            "Remark": one.why,
        }
        for one in comparisons
    ]


def claims_table(summary: Summary) -> list[Row]:
    """One row per claim of the recipe, in its order; no rows where it makes none."""
    rows = zip(summary.claims, paired_table([claim.comparison for claim in summary.claims]), strict=True)
    return [
        {"Claim": claim.statement, "Verdict": claim.verdict, "Metric": claim.comparison.metric}
        | {heading: cell for heading, cell in row.items() if heading != "Arm has more"}
        for claim, row in rows
    ]


def without_empty(rows: Sequence[Row]) -> list[Row]:
    """The rows without the columns that say nothing in any of them."""
    said = {heading for row in rows for heading, cell in row.items() if cell not in ("", ABSENT)}
    return [{heading: cell for heading, cell in row.items() if heading in said} for row in rows]


def equal_kl_table(summary: Summary) -> list[Row]:
    """Each arm's score at the common KL; no rows where there is none, and `summary.equal_kl.why` says why."""
    rows = []
    for arm, scores in summary.equal_kl.scores.items():
        values = list(scores.values())
        cell = estimate_cell(statistics.mean(values), statistics.share_interval(values))
        rows.append({"Arm": arm, "Score at equal KL [95% interval]": cell, "Seeds": str(len(values))})
    if rows:
        absent = {"Score at equal KL [95% interval]": ABSENT, "Seeds": ABSENT}
        rows += [{"Arm": arm, **absent} for arm in summary.equal_kl.left_out]
    return rows


def stability_table(summary: Summary) -> list[Row]:
    """Final and best score, and how steadily each arm got there, in the recipe's order."""
    return [
        {
            "Arm": arm.name,
            "Final score [95% interval]": estimate_cell(arm.mean, arm.interval),
            "Interquartile mean [95% interval]": estimate_cell(arm.iqm, arm.iqm_interval),
            "Best score": decimal(arm.best_score),
            "Worst drop": decimal(arm.drawdown),
            "Seed spread": decimal(arm.seed_spread),
            "Gradient spikes": ABSENT if arm.gradient_norm_spikes is None else str(arm.gradient_norm_spikes),
            "Diverged": str(arm.diverged),
        }
        for arm in summary.arms
    ]


def _improvement_cell(comparison: PairedComparison) -> str:
    found = comparison.improvement
    return estimate_cell(found.probability, found.interval, 2) if found else ABSENT


def arm_row(arm: ArmResult, summary: Summary) -> Row:
    return {
        "Arm": arm.name,
        "Method": arm.method,
        "Data": arm.data or "",
        SCORE_HEADING: estimate_cell(arm.mean, arm.interval),
        GREEDY_HEADING: estimate_cell(arm.greedy, arm.greedy_interval),
        **({f"Best of {summary.best_of}": decimal(arm.best_of_score)} if summary.best_of else {}),
        "Against base": decimal(arm.mean - summary.base.score, sign=True),
        "Entropy (nats per token)": decimal(arm.entropy),
        "KL (nats)": kl_cell(arm.kl, arm.kl_error),
        "Worst drop": decimal(arm.drawdown),
        "Seeds finished": _seeds_cell(arm),
        "Budget spent": _budget_cell(arm, summary),
    }


def _base_row(base: BaseResult, summary: Summary) -> Row:
    at = "" if base is summary.base else f" at temperature {base.temperature:g}"
    own = {
        "Arm": f"base{at}",
        "Method": "no training" if at else "starting point",
        SCORE_HEADING: estimate_cell(base.score, base.interval),
        GREEDY_HEADING: estimate_cell(base.greedy, base.greedy_interval),
        "Against base": decimal(base.score - summary.base.score, sign=True) if at else "",
        "Entropy (nats per token)": decimal(base.entropy),
        "KL (nats)": decimal(base.kl, 2) if at else "",
    }
    if summary.best_of:
        own[f"Best of {summary.best_of}"] = decimal(base.best_of_score)
    return {heading: own.get(heading, "") for heading in arm_row(_NO_ARM, summary)}


_NAN = float("nan")
_NO_ARM = ArmResult("", "", None, (), _NAN, _NAN, None, None, _NAN, None)


def _seeds_cell(arm: ArmResult) -> str:
    failed = sum(seed.status == "failed" for seed in arm.seeds)
    losses = [f"{count} {what}" for count, what in ((arm.diverged, "diverged"), (failed, "failed")) if count]
    return ", ".join([f"{len(arm.finished)} of {len(arm.seeds)}", *losses])


def _budget_cell(arm: ArmResult, summary: Summary) -> str:
    spent = arm.spent(summary.unit)
    return ABSENT if math.isnan(spent) else f"{spent / summary.limit:.1%} = {quantity(spent, summary.unit)}"


def final_evaluations(recorded: RecordedComparison, summary: Summary) -> pd.DataFrame:
    """The last evaluation rows of every finished seed, one per arm, seed and split."""
    finished = {(arm.name, seed.seed) for arm in summary.arms for seed in arm.finished}
    evaluations = recorded.evaluations
    own = [key in finished for key in zip(evaluations["arm"], evaluations["seed"], strict=True)]
    return evaluations.loc[own].groupby(["arm", "seed", "split"], sort=False).tail(1)


def split_table(recorded: RecordedComparison, summary: Summary) -> list[Row]:
    """Final score of each arm on every held-out split, sampled and greedily, with intervals, and the base policy's."""
    rows: list[Row] = [{"Arm": name} for name in (*(arm.name for arm in summary.arms), BASE)]
    for split in HELD_OUT_SPLITS:
        for column, how in ((SCORE, ""), (GREEDY_SCORE, ", greedily")):
            scores = final_scores(recorded, split, column)
            base = number_or_nan((recorded.base.get(column) or {}).get(split))
            found = {name: estimate_cell(one.final.mean, one.final.interval) for name, one in scores.items()}
            found[BASE] = estimate_cell(base, base_interval(recorded, split=split, column=column))
            for row in rows:
                row[f"{SPLIT_NAMES[split]}{how}"] = found.get(row["Arm"], ABSENT)
    return without_empty(rows)


def part_table(recorded: RecordedComparison, summary: Summary) -> list[Row]:
    """The named parts of the judge's score on the in-distribution split; no rows where the judge has no parts."""
    final = final_evaluations(recorded, summary)
    parts = [c for c in final.columns if c.startswith("part/") and numbers(final, c).notna().any()]
    if not parts:
        return []
    return [
        {"Arm": arm.name}
        | {part.removeprefix("part/"): _over_seeds(final, arm.name, MAIN_SPLIT, part) for part in parts}
        for arm in summary.arms
    ]


def _over_seeds(final: pd.DataFrame, arm: str, split: str, column: str) -> str:
    own = final[(final["arm"] == arm) & (final["split"] == split)]
    values = numbers(own, column).dropna().tolist()
    return estimate_cell(statistics.mean(values), statistics.share_interval(values))


def phase_means(recorded: RecordedComparison) -> pd.DataFrame:
    """The ledger, mean per seed: one row per arm and phase, the columns of the ledger; first seen, first listed. Of trials,
    whose seeds are their own, it is the sum over all of an arm's."""
    per_seed = recorded.ledger.groupby(["arm", "seed", "phase"], sort=False, dropna=False)[list(COLUMNS)].sum()
    totals = per_seed.groupby(["arm", "phase"], sort=False).sum()
    compared = recorded.ledger[recorded.ledger["phase"] != TRIALS]
    seeds = compared.groupby("arm", sort=False)["seed"].nunique(dropna=False)
    divided_by = seeds.reindex(totals.index.get_level_values("arm")).fillna(1).to_numpy(copy=True)
    divided_by[totals.index.get_level_values("phase") == TRIALS] = 1
    return totals.div(divided_by, axis=0).reset_index()


def ledger_table(recorded: RecordedComparison) -> list[Row]:
    """What each phase of each arm cost, mean per seed, and whether the arm's budget paid for it."""
    return [
        {
            "Arm": row["arm"],
            "Phase": row["phase"],
            "Charged": "yes" if is_charged(row["arm"], row["phase"]) else "no",
            **{UNIT_NAMES[column].capitalize(): quantity(row[column]) for column in COLUMNS},
        }
        for row in phase_means(recorded).to_dict("records")
    ]


def is_charged(arm: str, phase: str) -> bool:
    """False for what is metered apart (evaluation, trials), and for the stages that all arms share."""
    return phase not in UNCHARGED_PHASES and arm != SHARED
