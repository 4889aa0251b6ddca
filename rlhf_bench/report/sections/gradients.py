"""The section on gradients."""

from __future__ import annotations

from rlhf_bench.core.text import listed
from rlhf_bench.report.measures import (
    Measure,
    Of,
    change,
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
from rlhf_bench.report.sections.curves import MEANS, lines, two_lines
from rlhf_bench.results.reader import RecordedComparison
from rlhf_bench.results.summary import Summary

AGREEMENT = 0.01
"""Nats within which a measured ratio of gradients is said to agree with the theoretical one."""


def gradients(recorded: RecordedComparison, summary: Summary) -> Section:
    """Norms and angle of both sides' gradients, and the loss's own ratio against theory."""
    told = plotted(recorded, summary)
    measured, predicted = (metric(recorded, f"partial/pi_log_ratio{end}") for end in ("", "_theory"))
    seen = []
    (norms,) = judged(measures(told, change(recorded, "gradient/rejected_norm")))
    if norms:
        seen.append(
            directions("Since the base policy, the rejected side's gradient norm", norms, "shrank in", "grew in")
        )
        if falling := measures(told, metric(recorded, "gradient/falling")):
            seen.append(
                f"At the last evaluation, the largest mean share of pairs whose chosen response a small step of plain DPO would lower is that of {largest(falling)}."
            )
    else:
        seen.append(
            "Not recorded: gradients in parameter space; evaluation.gradient_pairs was 0, or the run was made before these numbers were recorded."
        )
    ratios = measures(told, measured)
    if ratios:
        seen += _against_theory(ratios, measures(told, _gap(measured, predicted)))
    else:
        seen.append(
            "Not recorded: partial derivatives of the loss; no arm has a loss on pairs, or the run was made before these numbers were recorded."
        )
    seen += remarks(norms)
    return Section(
        "gradients",
        "Gradients",
        "g⁺ and g⁻ are one pair's own gradients in parameter space, before any β. Where they point the same way, "
        "pushing the rejected response down takes the chosen one with it: it falls where ⟨g⁺, g⁻⟩ > ‖g⁺‖². In "
        "probability space the loss's derivative towards the rejected response exceeds the one towards the chosen by "
        "(β⁻/β⁺)(π⁺/π⁻), which explodes as the pair comes apart; it says nothing about the step in parameters.",
        tuple(seen),
        lambda: (
            _norms(recorded, summary),
            lines(recorded, summary, "gradient/cosine", "Cosine between both sides",
                   "Near 1, both sides use the same parameters.", "mean cosine of g⁺ and g⁻"),
            lines(recorded, summary, "gradient/falling", "Share of pairs that plain DPO would lower",
                   "⟨g⁺, g⁻⟩ > ‖g⁺‖²: a small step of DPO on the pair lowers its own chosen response.", "share of pairs"),
            _ratios(recorded, summary),
        ),
        tables_of(Table(f"At the last evaluation. {MEANS}", rows_of(summary, {
            "‖g⁺‖": metric(recorded, "gradient/chosen_norm"),
            "‖g⁻‖": metric(recorded, "gradient/rejected_norm"),
            "Cosine": metric(recorded, "gradient/cosine"),
            "Falling share": metric(recorded, "gradient/falling"),
            "Rejected over chosen, log π space": metric(recorded, "partial/log_ratio"),
            "Its log in π space, measured": measured,
            "The same, theory": predicted,
        }))),
    )  # fmt: skip


def _against_theory(ratios: list[Measure], gaps: list[Measure]) -> list[str]:
    """How far the measured ratios lie from the predicted ones, and which losses have no prediction."""
    close = [one.arm for one in gaps if one.mean <= AGREEMENT]
    apart = [f"{one.arm} ({short(one.mean)} nats)" for one in gaps if one.mean > AGREEMENT]
    told = []
    if close:
        told.append(
            f"The measured ratio in probability space agrees with theory, within {AGREEMENT:g} nats, in {listed(close)}."
        )
    if apart:
        told.append(f"It differs from theory in {listed(apart)}.")
    if without := [one.arm for one in ratios if one.arm not in {gap.arm for gap in gaps}]:
        told.append(f"Theory has no ratio for the loss of {listed(without)}.")
    return told


def _gap(measured: Of, predicted: Of) -> Of:
    """Arm → (seed → distance of the two numbers), of the seeds that have both."""

    def of(arm: str) -> dict[int, float]:
        ours, theirs = measured(arm), predicted(arm)
        return {seed: abs(ours[seed] - theirs[seed]) for seed in ours.keys() & theirs.keys()}

    return of


def _norms(recorded: RecordedComparison, summary: Summary) -> Plot:
    return two_lines(
        recorded, summary, "gradient/chosen_norm", "gradient/rejected_norm", ("chosen", "rejected"),
        "Gradient norms against compute", "Solid: chosen side, dashed: rejected side. A dashed line that grows means a "
        "rejected response that pulls harder the further it falls.", "mean norm of ∇θ log π", "gradient norms",
    )  # fmt: skip


def _ratios(recorded: RecordedComparison, summary: Summary) -> Plot:
    return two_lines(
        recorded, summary, "partial/pi_log_ratio", "partial/pi_log_ratio_theory", ("measured", "theory"),
        "Rejected over chosen gradient in probability space", "Above 0 the rejected side has the larger derivative. "
        "Solid: measured on the loss, dashed: (β⁻/β⁺)(π⁺/π⁻), where the loss has that form; one line where they agree.",
        "log of the ratio (nats)", "partial derivatives",
    )  # fmt: skip
