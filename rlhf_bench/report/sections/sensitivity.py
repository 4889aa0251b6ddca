"""How results depend on settings: the sweep's plots, and the tuning trials."""

from __future__ import annotations

import numpy as np

from rlhf_bench.core.plot_style import PALETTE
from rlhf_bench.core.text import listed
from rlhf_bench.report.measures import Measure
from rlhf_bench.report.plots.style import MARKERS, Plot, drawn, label, new_figure
from rlhf_bench.report.sections.base import Section, Table, tables_of
from rlhf_bench.report.sweeps import (
    Swept,
    sensitivity_sentences,
    sensitivity_table,
    sweeps,
    tuning_sentences,
    tuning_table,
)
from rlhf_bench.results.claims import metric_values
from rlhf_bench.results.reader import RecordedComparison
from rlhf_bench.results.summary import Summary

METRICS = {
    "score": "held-out score",
    "chosen_logratio": "Δ⁺ of the chosen response (nats)",
    "slope:rejected_logprob": "rejected log-prob. (nats per budget)",
}
"""What is drawn against a swept setting → the axis."""


def sensitivity(recorded: RecordedComparison, summary: Summary) -> Section:
    """The sweep and the trials, or that there were none."""
    found = sweeps(recorded)
    seen = sensitivity_sentences(recorded)
    if not found:
        seen = ["No setting was swept in this comparison, so nothing is known about how its scores depend on settings."]
    settings = list(dict.fromkeys(one.setting for one in found))
    tuning = tuning_table(recorded, summary)
    return Section(
        "sensitivity",
        "Sensitivity and tuning",
        "An arm may do well at one value of a setting only. The range over the values is never 0: beside it stands "
        "the range that noise alone would cause.",
        (*seen, *tuning_sentences(recorded, summary)),
        lambda: tuple(
            _plot([one for one in found if one.setting == setting], recorded, metric, words)
            for setting in settings
            for metric, words in METRICS.items()
        ),
        tables_of(
            Table("Sensitivity of the final score to each swept setting.", sensitivity_table(recorded)),
            Table("Trials before the comparison, scored on held-out prompts of their own.", tuning),
        ),
    )


def _plot(found: list[Swept], recorded: RecordedComparison, metric: str, words: str) -> Plot:
    """A metric against one setting, a line per arm: means over finished seeds, with Student's interval."""
    setting = found[0].setting
    title = f"{words[0].upper()}{words[1:]} against {setting}"
    figure, axes = new_figure()
    missing, places = [], sorted({value for one in found for value in one.arms})
    for number, one in enumerate(found):
        values = {value: metric_values(recorded, arm, metric) for value, arm in one.arms.items()}
        measured = {value: Measure(one.arm, own) for value, own in values.items() if own}
        if not measured:
            missing.append(one.arm)
            continue
        means = np.array([m.mean for m in measured.values()])
        ends = [(m.interval.low, m.interval.high) if m.interval else (np.nan, np.nan) for m in measured.values()]
        low, high = np.array(ends).T
        colour = PALETTE[number % len(PALETTE)]
        axes.errorbar(list(measured), means, yerr=np.clip([means - low, high - means], 0, None), color=colour,
                      marker=MARKERS[number % len(MARKERS)], capsize=2, elinewidth=1, label=one.arm)  # fmt: skip
    if places[0] > 0 and places[-1] / places[0] >= 5:
        axes.set_xscale("log")
    axes.set_xticks(places, [f"{value:g}" for value in places], rotation=30 if len(places) > 6 else 0)
    axes.minorticks_off()
    label(axes, setting, words)
    lost = f"Not recorded: {words} of {listed(missing)}." if missing else ""
    if len(missing) == len(found):
        return Plot(title, "", None, lost)
    figure.legend(loc="outside lower center", ncols=3)
    return Plot(
        title,
        "Points are means over finished seeds, with Student's 95% interval from three seeds on. The recipe's own value "
        "is among them.",
        drawn(figure, f"sweep-{setting}-{metric}".replace(":", "-").replace("_", "-")),
        lost,
    )
