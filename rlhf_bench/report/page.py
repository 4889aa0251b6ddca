"""Writes the report of a comparison: `summary.json` for scripts, `report.html` for people."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from rlhf_bench.core.files import number_or_nan, write_text
from rlhf_bench.core.text import in_codes
from rlhf_bench.report import tables
from rlhf_bench.report.answer import answer
from rlhf_bench.report.format import ABSENT, decimal, duration, each, quantity, visible
from rlhf_bench.report.notes import notes
from rlhf_bench.report.plots import overview as figures
from rlhf_bench.report.plots.style import Plot, plotted, style
from rlhf_bench.report.sections.base import Section
from rlhf_bench.report.sections.benchmarks import benchmarks
from rlhf_bench.report.sections.field import field_section
from rlhf_bench.report.sections.judged import judged_sections
from rlhf_bench.report.sections.pairs import displacement, ranking
from rlhf_bench.report.sections.pairwise import pairwise
from rlhf_bench.report.sections.properties import properties
from rlhf_bench.report.sections.reward_models import reward_models
from rlhf_bench.report.sections.samples import shown_seed, side_by_side
from rlhf_bench.report.sections.sensitivity import sensitivity
from rlhf_bench.report.verdict import verdict
from rlhf_bench.results.reader import RecordedComparison, numbers, read_recorded
from rlhf_bench.results.schema import REPORT, SUMMARY
from rlhf_bench.results.summary import Summary, summarize
from rlhf_bench.results.summary_json import to_json

TEMPLATE = "report.html.j2"

Properties = list[tuple[Plot, ...]]
Elsewhere = Callable[[RecordedComparison, Summary], Callable[[], Properties]]
"""Begins `draw_properties` in another process; gives a function that waits for its result."""


def write_report(directory: Path, elsewhere: Elsewhere | None = None) -> Summary:
    """Render the comparison recorded in `directory` into its `summary.json` and `report.html`.

    Figures take seconds: `elsewhere` may draw a good half of them meanwhile.

    The same records give the same bytes, and each file is replaced in one step. Raises BadInput where a record
    is missing or contradicts itself, before anything is written.
    """
    recorded = read_recorded(directory)
    summary = summarize(recorded)
    properties = elsewhere(recorded, summary) if elsewhere else partial(draw_properties, recorded, summary)
    with style():
        page = render_page(recorded, summary, properties)
    write_text(directory / SUMMARY, json.dumps(to_json(summary, verdict(summary)), indent=2, allow_nan=False) + "\n")
    write_text(directory / REPORT, page)
    return summary


def draw_properties(recorded: RecordedComparison, summary: Summary) -> Properties:
    """The plots of the sections on each property, in their order."""
    with style():
        return [section.draw() for section in properties(recorded, summary)]


def sections(recorded: RecordedComparison, summary: Summary) -> tuple[Section, ...]:
    """What the page says beyond the comparison itself, in its order."""
    return (*_evidence(summary), *properties(recorded, summary), *_further(recorded, summary))


def _evidence(summary: Summary) -> tuple[Section, ...]:
    """What others than the recipe's judge say of the policies."""
    return (*judged_sections(summary), *benchmarks(summary))


def _further(recorded: RecordedComparison, summary: Summary) -> tuple[Section, ...]:
    return (
        field_section(recorded, summary),
        ranking(recorded, summary),
        *reward_models(recorded, summary),
        displacement(recorded, summary),
        sensitivity(recorded, summary),
    )


def render_page(recorded: RecordedComparison, summary: Summary, property_plots: Callable[[], Properties]) -> str:
    """The HTML page, one file that loads nothing and runs nothing; to be called within `plotting.style()`.

    `property_plots` gives what `draw_properties` would; it is asked last.
    """
    further = [(section, section.draw()) for section in _further(recorded, summary)]
    plots = figures.draw(recorded, summary)
    by_property = properties(recorded, summary)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_in_codes,
    )
    environment.filters |= {"decimal": decimal, "svg": lambda svg: Markup(in_codes(svg))}
    return environment.get_template(TEMPLATE).render(
        absent=ABSENT,
        name=summary.name,
        verdict=verdict(summary),
        answer=answer(summary),
        notes=notes(summary),
        budget=quantity(summary.limit, summary.unit),
        description=str(recorded.recipe.get("description") or ""),
        comparison=tables.comparison_table(summary),
        claims=tables.without_empty(tables.claims_table(summary)),
        paired=tables.without_empty(tables.paired_table(summary.comparisons)),
        baseline=summary.baseline,
        equal_kl=tables.equal_kl_table(summary),
        equal_kl_at=summary.equal_kl,
        stability=tables.stability_table(summary),
        evidence=[(section, section.draw()) for section in _evidence(summary)],
        diagnostics=[*zip(by_property, property_plots(), strict=True), *further],
        matrix=pairwise(recorded, summary),
        undrawn=len(summary.arms) - len(plotted(recorded, summary).arms),
        plots=plots,
        splits=tables.split_table(recorded, summary),
        split_names=tables.SPLIT_NAMES,
        parts=tables.part_table(recorded, summary),
        ledger=tables.ledger_table(recorded),
        questions=side_by_side(recorded, summary),
        shown_seeds={arm.name: shown_seed(arm) for arm in summary.arms},
        details=run_details(recorded, summary),
        recipe=visible(recorded.recipe_text).replace("↵\n", "\n"),
    )


def _in_codes(value: Any) -> Any:
    """Whatever the template puts in, before it is escaped for HTML. What is markup already has been through here."""
    return in_codes(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def run_details(recorded: RecordedComparison, summary: Summary) -> dict[str, str]:
    """What a reader needs to repeat or to trust the run: label → value, `ABSENT` where it was not recorded."""
    timing, reward_model = summary.timing, recorded.base.get("reward_model") or {}
    seeds = sorted({seed.seed for arm in summary.arms for seed in arm.seeds})
    return {
        "Seeds": ", ".join(map(str, seeds)) or ABSENT,
        "Wall time": duration(number_or_nan(timing.get("wall_seconds"))),
        "Time to the first update": duration(number_or_nan(timing.get("first_update_seconds"))),
        **({"Fleets, with arms side by side": str(timing["fleets"])} if timing.get("fleets", 1) > 1 else {}),
        "Driver's own share of wall time, before this report": _percent(number_or_nan(timing.get("driver_share"))),
        "Reward model's accuracy on held-out pairs": _percent(number_or_nan(reward_model.get("accuracy"))),
        **_setup(recorded.base.get("setup") or {}),
        **data_passes(recorded, summary),
        "Machine": summary.machine or ABSENT,
        "Threads of each process": each(summary.threads) or ABSENT,
        "Versions": each(summary.versions) or ABSENT,
        "Run key": summary.run_key or ABSENT,
        "Commit": summary.commit or ABSENT,
    }


def data_passes(recorded: RecordedComparison, summary: Summary) -> dict[str, str]:
    """How often each arm has used its data, mean over seeds: its pairs, and the prompts that the base policy answers for it.
    Only what was recorded."""
    found = {}
    for column, label in (("pair_passes", "Passes over each arm's pairs"), ("prompt_passes", "Over its prompts")):
        last = numbers(recorded.updates, column).groupby([recorded.updates["arm"], recorded.updates["seed"]]).max()
        means = last.groupby("arm").mean().dropna()
        if arms := [f"{arm.name} {means[arm.name]:.2g}" for arm in summary.arms if arm.name in means]:
            found[label] = ", ".join(arms)
    return found


def _setup(setup: Mapping[str, Any]) -> dict[str, str]:
    return {f"Set-up: {key.replace('_', ' ')}": str(value) for key, value in setup.items()}


def _percent(value: float) -> str:
    return ABSENT if value != value else f"{value:.1%}"
