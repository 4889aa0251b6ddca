"""A series of comparisons side by side: the same arms, one shared key varied (`vary` in the recipe)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from rlhf_bench.core.errors import BadInput
from rlhf_bench.core.files import finite_or_null, number_or_nan, write_json, written_aside
from rlhf_bench.core.plot_style import PALETTE
from rlhf_bench.recipe.loading import is_label
from rlhf_bench.report.format import decimal
from rlhf_bench.report.page import write_report
from rlhf_bench.report.plots.style import INK, MARKERS, style
from rlhf_bench.results.schema import SERIES, SERIES_FIGURE
from rlhf_bench.results.summary import Summary


def write_series(directory: Path, labels: Sequence[str]) -> str:
    """Render every comparison in DIR again, write `series.json` and `series.png`, and return the table as text."""
    summaries = {label: write_report(directory / label) for label in labels}
    rows = [row for label, summary in summaries.items() for row in series_rows(label, summary)]
    write_json(directory / SERIES, {"labels": list(labels), "rows": rows})
    with style(), written_aside(directory / SERIES_FIGURE) as aside:
        series_figure(summaries).savefig(aside, dpi=150, format="png")
    return series_text(rows)


def series_labels(directory: Path) -> list[str] | None:
    """The comparisons of the series in DIR, or None where DIR is no series."""
    path = directory / SERIES
    if not path.exists():
        return None
    try:
        labels = [str(label) for label in json.loads(path.read_text(encoding="utf-8"))["labels"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadInput(
            f"{path}: cannot be read ({error}): resume it with `rlhf-bench run` to write it again"
        ) from error
    for label in labels:  # folders that are read and written
        if not is_label(label):
            raise BadInput(
                f"{path}: {label!r} is no comparison of a series: resume it with `rlhf-bench run` to write it again"
            )
    return labels


def series_rows(label: str, summary: Summary) -> list[dict[str, Any]]:
    """One row an arm: where it started from, where it ended (mean over seeds), and the 95 % interval; null where an
    arm finished no seed, or has no interval."""
    return [
        {
            "label": label, "arm": arm.name, "base": summary.base.score, "score": finite_or_null(arm.mean),
            "gain": finite_or_null(arm.mean - summary.base.score),
            "low": arm.interval.low if arm.interval else None, "high": arm.interval.high if arm.interval else None,
            "kl": finite_or_null(arm.kl), "seeds": len(arm.finished),
        }
        for arm in summary.arms
    ]  # fmt: skip


def series_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows as aligned text."""
    cells = [list(series_cells(rows[0]))] if rows else []
    cells += [list(series_cells(row).values()) for row in rows]
    widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))] if cells else []
    return "\n".join(
        "  ".join(cell.ljust(width) if i < 2 else cell.rjust(width) for i, (cell, width) in enumerate(zip(line, widths, strict=True)))
        for line in cells
    )  # fmt: skip


def series_cells(row: Mapping[str, Any]) -> dict[str, str]:
    """One row as finished cells: heading → cell."""
    ends = None if row["low"] is None else f" [{row['low']:.3f}, {row['high']:.3f}]"
    return {
        "Comparison": row["label"],
        "Arm": row["arm"],
        "Base": decimal(row["base"]),
        "Score [95% interval]": decimal(number_or_nan(row["score"])) + (ends or ""),
        "Gain": decimal(number_or_nan(row["gain"]), sign=True),
        "KL (nats)": decimal(number_or_nan(row["kl"]), 2),
        "Seeds": str(row["seeds"]),
    }


def series_figure(summaries: Mapping[str, Summary]) -> Figure:
    """Score of every arm, and the base policy's, against the varied key; call within `style()`."""
    labels = list(summaries)
    figure = Figure(figsize=(6.4, 4.4), layout="constrained")
    axes = figure.subplots()
    arms = list(dict.fromkeys(arm.name for summary in summaries.values() for arm in summary.arms))
    for number, name in enumerate(arms):
        points = [
            (place, arm)
            for place, summary in enumerate(summaries.values())
            for arm in summary.arms
            if arm.name == name and arm.finished
        ]
        at = [place + 0.06 * (number - (len(arms) - 1) / 2) for place, _ in points]
        means = [arm.mean for _, arm in points]
        spread = [
            [max(arm.mean - arm.interval.low, 0.0) if arm.interval else 0.0 for _, arm in points],
            [max(arm.interval.high - arm.mean, 0.0) if arm.interval else 0.0 for _, arm in points],
        ]
        axes.errorbar(at, means, yerr=spread, color=PALETTE[number % len(PALETTE)], capsize=3, elinewidth=1, label=name,
                      marker=MARKERS[number % len(MARKERS)])  # fmt: skip
    bases = [summary.base.score for summary in summaries.values()]
    axes.plot(range(len(labels)), bases, color=INK, linestyle="--", linewidth=1.2, label="base policy")
    axes.set_xticks(range(len(labels)), [label.rpartition("=")[2] for label in labels])
    axes.set_xlabel(labels[0].partition("=")[0])
    axes.set_ylabel("held-out score (mean over seeds, 95% interval)")
    figure.legend(loc="outside lower center", ncols=3)
    return figure
