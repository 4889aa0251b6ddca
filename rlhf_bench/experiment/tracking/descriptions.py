"""What MLflow shows as the description of a comparison's run and of its arms' runs: Markdown, as links and tables.

Links to `artifact:NAME` lead to the comparison's files (`Tracker.describe`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from rlhf_bench.core.text import escaped, table
from rlhf_bench.recipe import Recipe

if TYPE_CHECKING:
    from rlhf_bench.results.summary import ArmResult, SeedResult, Summary

MAX_CHARACTERS = 7500
"""Characters; MLflow takes 8000 in a tag, and addresses grow when they are filled in."""

FILES = "[The recipe](artifact:recipe.yaml) · [the report](artifact:report.html) · [the numbers](artifact:summary.json)"


def comparison_finished(summary: Summary) -> str:
    """The description of a finished comparison: its verdict, its table, and links to everything else."""
    from rlhf_bench.report import tables  # takes seconds, and a run that begins needs none of it
    from rlhf_bench.report.verdict import verdict

    about = [escaped(str(summary.recipe["description"]))] if summary.recipe.get("description") else []
    head = [*about, f"**{escaped(verdict(summary))}**"]
    rows = tables.without_empty(tables.comparison_table(summary))
    return "\n\n".join([*head, _fitting(rows, MAX_CHARACTERS - len("\n\n".join(head)) - len(FILES)), FILES])


def arm_finished(arm: ArmResult, seed: SeedResult, summary: Summary) -> str:
    """The description of one finished arm with one seed."""
    from rlhf_bench.report.format import decimal, quantity

    spent = quantity(seed.spent[summary.unit], summary.unit)
    lines = [
        f"{escaped(arm.name)}, seed {seed.seed}: **{escaped(seed.status)}**, score {decimal(seed.score)}, greedily "
        f"{decimal(seed.greedy_score)}; base policy {decimal(summary.base_of(seed.seed))}; "
        f"KL {decimal(seed.kl)} nats; {spent} spent.",
        f"Method {escaped(arm.method)}" + (f", data {escaped(arm.data)}." if arm.data else "."),
        FILES,
    ]
    return "\n\n".join(lines)


def _fitting(rows: Sequence[Mapping[str, str]], room: int) -> str:
    """As many of the first rows as there is room for."""
    left_out = 0
    while len(text := table(rows[: len(rows) - left_out])) > room and left_out < len(rows) - 1:
        left_out += 1
    return f"{text}\n\n{left_out} more rows are in the report." if left_out else text


def comparison_started(recipe: Recipe) -> str:
    """The description of a comparison that has started: what it compares."""
    arms, seeds = ", ".join(map(escaped, recipe.arms)), ", ".join(map(str, recipe.seeds))
    about = [escaped(recipe.description)] if recipe.description else []
    budget = f"{recipe.compute.limit:.3g} {escaped(recipe.compute.column)}"
    facts = f"Arms: {arms}. Seeds: {seeds}. Budget: {budget} for each. In progress, or interrupted."
    return "\n\n".join([*about, facts, "[The recipe](artifact:recipe.yaml)"])
