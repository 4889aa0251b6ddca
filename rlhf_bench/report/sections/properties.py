"""The 3D-properties of a comparison, one section each: drop of the rejected, suppression of the chosen, dispersion.

And the gradients behind them. Numbers and how to read them: docs/diagnostics.md; the properties: arXiv 2406.07327.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rlhf_bench.core.files import number_or_nan
from rlhf_bench.core.text import listed
from rlhf_bench.diagnostics.matched import Matched
from rlhf_bench.report.measures import (
    Measure,
    change,
    directions,
    judged,
    largest,
    measures,
    metric,
    remarks,
    rows_of,
    short,
    was_recorded,
)
from rlhf_bench.report.plots.likelihoods import PROBES
from rlhf_bench.report.plots.style import (
    INK,
    Plot,
    absent,
    arm_handles,
    budget_label,
    curve,
    drawn,
    panel_grid,
    plotted,
    styled,
)
from rlhf_bench.report.sections.base import Section, Table, tables_of
from rlhf_bench.report.sections.curves import MEANS, NO_PAIRS, lines
from rlhf_bench.report.sections.gradients import gradients
from rlhf_bench.report.sections.own_pairs import own_pairs
from rlhf_bench.results.claims import at_matched_margin
from rlhf_bench.results.reader import RecordedComparison
from rlhf_bench.results.summary import Summary


def properties(recorded: RecordedComparison, summary: Summary) -> tuple[Section, ...]:
    """The sections, each with a sentence in place of what was not recorded. Sentences and plots are of the recipe's own
    arms, tables also of the copies that its sweep made."""
    return (
        rejected_drop(recorded, summary),
        suppression(recorded, summary),
        *own_pairs(recorded, summary),
        dispersion(recorded, summary),
        gradients(recorded, summary),
    )


def rejected_drop(recorded: RecordedComparison, summary: Summary) -> Section:
    """How fast the rejected response loses probability: by compute, by the margin, and how far at one margin."""
    told = plotted(recorded, summary)
    by_compute, by_margin = (metric(recorded, f"{over}rejected_logprob") for over in ("slope:", "per_margin:"))
    slopes, rates, margins = judged(
        measures(told, by_compute), measures(told, by_margin, origin=-1.0), measures(told, metric(recorded, "margin"))
    )
    # Where the margin did not grow, a change per nat of it is a quotient of two noises.
    grown = [one.arm for one in margins if one.side == "above"]
    at = at_matched_margin(recorded, grown, "rejected_logratio")
    seen = [f"Not recorded: log-probabilities of held-out pairs; {NO_PAIRS}"]
    if was_recorded(recorded, "rejected_logprob"):
        seen = [*_drop_seen(slopes, rates, grown, at), *remarks(slopes, rates, margins)]
    return Section(
        "rejected",
        "Drastic drop of the rejected likelihood",
        "Losses on pairs can lower the rejected response far beyond what telling it from the chosen one takes. "
        "The slope over compute, in nats per whole budget, says how fast; the slope per nat of margin compares arms of "
        "different speed: −½ where the chosen response rises as much as the rejected one falls, below −1 where both fall.",
        tuple(seen),
        lambda: (
            lines(recorded, summary, "rejected_logprob", "Rejected log-probability against compute",
                   "A lower and steeper line is a faster drop.", "rejected log-probability (nats)"),
            lines(recorded, summary, "rejected_logprob", "Rejected log-probability against margin",
                   "At the same margin, an arm with a lower line reached it by pushing the rejected response down.",
                   "rejected log-probability (nats)", across="margin"),
        ),
        tables_of(Table(f"{MEANS}{_matched(at)}", rows_of(summary, {
            "Slope (nats per budget)": by_compute,
            "Slope per nat of margin": by_margin,
            "Change of the rejected, Δ⁻ (nats)": metric(recorded, "rejected_logratio"),
            "Margin Δ⁺ − Δ⁻ (nats)": metric(recorded, "margin"),
            f"Δ⁻ at a margin of {short(at.level)} (nats)": lambda arm: at.values.get(arm, {}),
        }))),
    )  # fmt: skip


def _drop_seen(slopes: Sequence[Measure], rates: Sequence[Measure], grown: Sequence[str], at: Matched) -> Iterator[str]:
    """Where the rejected response fell, by compute and by margin. `grown`: the arms whose margin grew."""
    if slopes:
        yield directions("The rejected response's log-probability (nats per budget)", slopes, "fell in", "rose in")
    else:
        yield "No finished arm has two evaluations, which a slope needs."
    if trusted := [one for one in rates if one.arm in grown]:
        yield directions(
            "Per nat of margin, the rejected response's log-probability",
            trusted,
            "fell by more than 1 nat, so that the chosen response fell as well, in",
            "fell by less than 1 nat, or rose, in",
            "fell by just 1 nat in",
            "changed by an amount that cannot be told from a fall of 1 nat in",
            ("most in", "least in"),
        )
    if still := [one.arm for one in slopes if one.arm not in grown]:
        yield (
            f"The margin did not grow, or its growth is not settled, in {listed(still)}: the rate per nat of margin means nothing there."
        )
    if at.why and len(grown) > 1:
        yield f"There is no comparison at matched margin. {at.why}"


def _matched(at: Matched) -> str:
    """What the column at matched margin holds; empty where there is none."""
    if at.why:
        return ""
    return (
        f" A margin of {short(at.level)} nats is the most that every seed of the arms whose margin grew reaches; Δ⁻ is read where a "
        "seed first has it, and left out for arms that were not evaluated before."
    )


def suppression(recorded: RecordedComparison, summary: Summary) -> Section:
    """Whether the chosen response lost probability as well."""
    told = plotted(recorded, summary)
    seen = [f"Not recorded: log-ratios of held-out pairs; {NO_PAIRS}"]
    if was_recorded(recorded, "chosen_logratio"):
        (found,) = judged(measures(told, metric(recorded, "chosen_logratio")))
        fallen = {one.arm for one in summary.standing.against_base if one.below}
        seen = [
            directions(
                "At the last evaluation, the chosen response (Δ⁺ in nats)",
                found,
                "lost probability in",
                "gained probability in",
            )
        ]
        lost = [one for one in found if one.side == "below"]
        harmed = [one.arm for one in lost if one.arm in fallen]
        if harmed:
            seen.append(
                f"The score fell as well in {listed(harmed)}: there, the loss is a degradation and not just a move to answers that are as good."
            )
        elif lost:
            seen.append(
                "A fall of the score is settled in none of the arms whose chosen response lost probability: a loss alone is no failure."
            )
        if displaced := measures(told, metric(recorded, "displaced")):
            seen.append(f"The largest mean share of displaced pairs (Δ⁺ < 0) is that of {largest(displaced)}.")
        seen += remarks(found)
    return Section(
        "suppression",
        "Degradation into response suppression",
        "Δ⁺ is how much log-probability the chosen response gained since the base policy; a pair is displaced where "
        "it lost some. A fall is a warning where the score falls with it, or where responses outside the pairs rise.",
        tuple(seen),
        lambda: (
            lines(recorded, summary, "chosen_logratio", "Δ⁺ against compute",
                   "Below the dashed line the preferred answers have lost probability.",
                   "Δ⁺ of the chosen response (nats)", zero=True),
            lines(recorded, summary, "displaced", "Displaced share against compute",
                   "The share of held-out pairs whose chosen response is less likely than under the base policy.",
                   "share of pairs with Δ⁺ < 0"),
        ),
        tables_of(Table(MEANS, rows_of(summary, {
            "Δ⁺ (nats)": metric(recorded, "chosen_logratio"),
            "Displaced share": metric(recorded, "displaced"),
            "Change of the score": change(recorded, "score"),
        }) if was_recorded(recorded, "chosen_logratio") else [])),
    )  # fmt: skip


def dispersion(recorded: RecordedComparison, summary: Summary) -> Section:
    """Where probability went that left the pairs."""
    told = plotted(recorded, summary)
    subjects = {f"The log-probability of “{name}” (nats per response)": metric(recorded, f"{column}_logratio")
                for column, name in PROBES.items()} | {
        "Since the base policy, the entropy per token": change(recorded, "entropy"),
        "Since the base policy, the likeliest token's probability": change(recorded, "argmax_confidence"),
    }  # fmt: skip
    groups = judged(*(measures(told, of) for of in subjects.values()))
    seen = [
        directions(subject, found, "fell in", "rose in")
        for subject, found in zip(subjects, groups, strict=True)
        if found
    ]
    if lacking := [name for column, name in PROBES.items() if not was_recorded(recorded, f"{column}_logratio")]:
        why = "the set was empty, or the run was made before these numbers were recorded."
        seen.append(f"Not recorded: {listed(lacking)}; {why}")
    seen += remarks(*groups)
    columns = {f"{name[0].upper()}{name[1:]} (nats)": metric(recorded, f"{c}_logratio") for c, name in PROBES.items()}
    own = {"Entropy (nats per token)": "entropy", "Argmax confidence": "argmax_confidence", "KL (nats)": "kl"}
    numbers = recorded.base.get("numbers") or {}
    base = {heading: number_or_nan(numbers.get(column)) for heading, column in own.items()} | dict.fromkeys(
        columns, 0.0
    )
    return Section(
        "dispersion",
        "Dispersion onto unseen responses",
        "Four sets of responses that are in no pair, the same for every arm: a set that rises has gained "
        "probability that the pairs lost. Probability can also move to responses outside these sets: entropy, the likeliest token's "
        "probability and KL are measured on the policy's own samples.",
        tuple(seen),
        lambda: (
            _probe_panels(recorded, summary),
            lines(recorded, summary, "entropy", "Entropy against compute",
                   "Falls as the policy narrows; the first point is the base policy.", "entropy (nats per token)"),
            lines(recorded, summary, "argmax_confidence", "Argmax confidence against compute",
                   "The likeliest token's probability: a rise means that probability gathers on it.", "probability"),
            lines(recorded, summary, "kl", "KL to the base model against compute",
                   "How far the policy has moved, in any direction.", "KL (nats per response)"),
        ),
        tables_of(Table(f"Change of each set's log-probability since the base policy, and the policy's own samples. {MEANS}",
                        rows_of(summary, columns | {h: metric(recorded, c) for h, c in own.items()}, base))),
    )  # fmt: skip


def _probe_panels(recorded: RecordedComparison, summary: Summary) -> Plot:
    """The change of each probe set's log-probability, one panel per set."""
    summary = plotted(recorded, summary)
    title = "Responses outside the pairs, against compute"
    how = "Change of a set's mean log-probability since the base policy: above 0 it has gained. Scales differ by panel."
    sets = {f"{c}_logratio": name for c, name in PROBES.items() if was_recorded(recorded, f"{c}_logratio")}
    if not sets:
        return Plot(title, how, None, "Not recorded: probe sets.")
    figure, panels = panel_grid(len(sets))
    there = [False] * len(summary.arms)
    for panel, (column, name) in zip(panels, sets.items(), strict=True):
        for number, (arm, look) in enumerate(styled(summary)):
            there[number] |= curve(panel, arm, look, recorded.main_split, column)
        panel.axhline(0, color=INK, linestyle="--", linewidth=1)
        panel.set_title(name, fontsize=8.5)
        panel.xaxis.set_major_formatter("{x:.0f}%")
    figure.supxlabel(budget_label(summary), color=INK, fontsize=9)
    figure.supylabel("change of log-probability (nats)", color=INK, fontsize=9)
    figure.legend(handles=arm_handles(summary), loc="outside upper center", ncols=3)
    return Plot(title, how, drawn(figure, "probes"), absent(summary, there, "probe sets"))
