"""The drop of the rejected and the suppression of the chosen, on held-out pairs of the kind that each arm trains on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rlhf_bench.core.text import listed
from rlhf_bench.core.types import OWN
from rlhf_bench.diagnostics.matched import Matched
from rlhf_bench.report.measures import (
    Measure,
    Of,
    directions,
    judged,
    largest,
    measures,
    metric,
    remarks,
    rows_of,
    short,
)
from rlhf_bench.report.plots.style import Plot, plotted
from rlhf_bench.report.sections.base import Section, Table, tables_of
from rlhf_bench.report.sections.curves import MEANS, lines
from rlhf_bench.results.claims import PER_MARGIN, at_matched_margin
from rlhf_bench.results.reader import RecordedComparison
from rlhf_bench.results.summary import Summary


def own_pairs(recorded: RecordedComparison, summary: Summary) -> tuple[Section, ...]:
    """The section; none where every arm's own pairs are the fixed ones, of which the other sections are, or where none were
    recorded."""
    if not recorded.own_kinds:
        return ()
    kinds = _kinds(recorded, summary)
    told = plotted(recorded, summary)
    found = judged(
        measures(told, metric(recorded, f"{OWN}margin")),
        measures(told, metric(recorded, f"{PER_MARGIN}{OWN}rejected_logprob"), origin=-1.0),
        measures(told, metric(recorded, f"{OWN}chosen_logratio")),
    )
    grown = [one.arm for one in found[0] if one.side == "above"]  # else a change per nat is a quotient of two noises
    at = {
        kind: at_matched_margin(recorded, several, f"{OWN}rejected_logratio")
        for kind, arms in kinds.items()
        if len(several := [arm for arm in arms if arm in grown]) > 1
    }
    columns = _columns(recorded, at)
    rows = [
        {"Arm": row["Arm"], "Pairs": recorded.own_kinds.get(row["Arm"], "")} | row for row in rows_of(summary, columns)
    ]
    section = Section(
        "own-pairs",
        "Drop and suppression on pairs of each arm's own kind",
        "The fixed held-out pairs are off-policy, and an arm that learns from its own answers never trains on such a pair. "
        "Here each arm is measured on held-out pairs of the kind that it trains on: the base policy's answers to held-out "
        "prompts, ranked as the arm's own are. Arms of different kinds are on different pairs: compare their levels "
        "within a kind, and their changes per nat of margin with care.",
        (*_seen(kinds, grown, *found), *_unmatched(at), *_displaced(recorded, told), *remarks(*found)),
        lambda: _plots(recorded, summary),
        tables_of(Table(f"At the last evaluation, on the pairs named. {MEANS}{_matched(at)}", rows)),
    )  # fmt: skip
    return (section,)


_NONE = Matched(float("nan"), {})


def _columns(recorded: RecordedComparison, at: Mapping[str, Matched]) -> dict[str, Of]:
    return {
        "Margin Δ⁺ − Δ⁻ (nats)": metric(recorded, f"{OWN}margin"),
        "Δ⁻ (nats)": metric(recorded, f"{OWN}rejected_logratio"),
        "Δ⁺ (nats)": metric(recorded, f"{OWN}chosen_logratio"),
        "Displaced share": metric(recorded, f"{OWN}displaced"),
        "Rejected, per nat of margin": metric(recorded, f"{PER_MARGIN}{OWN}rejected_logprob"),
        "Chosen, per nat of margin": metric(recorded, f"{PER_MARGIN}{OWN}chosen_logprob"),
        "Δ⁻ at matched margin (nats)": lambda arm: at.get(recorded.own_kinds.get(arm, ""), _NONE).values.get(arm, {}),
        "Rejected over chosen gradient, log in π space": metric(recorded, f"{OWN}partial/pi_log_ratio"),
    }


def _kinds(recorded: RecordedComparison, summary: Summary) -> dict[str, list[str]]:
    """Kind → its arms, of those that the page draws."""
    own = {
        arm.name: recorded.own_kinds[arm.name]
        for arm in plotted(recorded, summary).arms
        if arm.name in recorded.own_kinds
    }
    return {kind: [arm for arm, found in own.items() if found == kind] for kind in dict.fromkeys(own.values())}


def _matched(at: Mapping[str, Matched]) -> str:
    """What the column at matched margin holds; empty where there is none."""
    levels = [f"{short(found.level)} nats on {kind} pairs" for kind, found in at.items() if not found.why]
    return (
        f" Matched margin: the most that every seed of those arms of a kind reaches whose margin grew, {listed(levels)}."
        if levels
        else ""
    )


def _unmatched(at: Mapping[str, Matched]) -> list[str]:
    return [f"No comparison at matched margin on {kind} pairs. {found.why}" for kind, found in at.items() if found.why]


def _displaced(recorded: RecordedComparison, told: Summary) -> list[str]:
    displaced = measures(told, metric(recorded, f"{OWN}displaced"))
    return [f"The largest mean share of displaced pairs (Δ⁺ < 0) is that of {largest(displaced)}."] if displaced else []


def _seen(
    kinds: Mapping[str, list[str]],
    grown: Sequence[str],
    margin: Sequence[Measure],
    rates: Sequence[Measure],
    chosen: Sequence[Measure],
) -> list[str]:
    seen = [f"Pairs of kind {kind}: {listed(arms)}." for kind, arms in kinds.items()]
    if trusted := [one for one in rates if one.arm in grown]:
        seen.append(
            directions(
                "Per nat of its own margin, the rejected response's log-probability",
                trusted,
                "fell by more than 1 nat, so that the chosen response fell as well, in",
                "fell by less than 1 nat, or rose, in",
                "fell by just 1 nat in",
                "changed by an amount that cannot be told from a fall of 1 nat in",
            )
        )
    if still := [one.arm for one in margin if one.arm not in grown]:
        seen.append(f"The growth of the margin is not settled in {listed(still)}: a rate per nat means nothing there.")
    if chosen:
        subject = "At the last evaluation, the chosen response (Δ⁺ in nats)"
        seen.append(directions(subject, chosen, "lost probability in", "gained probability in"))
    return seen


def _plots(recorded: RecordedComparison, summary: Summary) -> tuple[Plot, ...]:
    return (
        lines(recorded, summary, f"{OWN}rejected_logratio", "Δ⁻ against margin",
               "Pairs of each arm's own kind. At the same margin, an arm with a lower line reached it by pushing the rejected "
               "response down.", "Δ⁻ of the rejected response (nats)", across=f"{OWN}margin", zero=True),
        lines(recorded, summary, f"{OWN}chosen_logratio", "Δ⁺ against margin",
               "Pairs of each arm's own kind. Below the dashed line the preferred answers have lost probability.",
               "Δ⁺ of the chosen response (nats)", across=f"{OWN}margin", zero=True),
    )  # fmt: skip
