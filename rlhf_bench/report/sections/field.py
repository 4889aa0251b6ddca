"""The gradient field of every arm's own loss, with the trajectory of its policies."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure

from rlhf_bench.core.errors import BadInput
from rlhf_bench.core.text import listed
from rlhf_bench.core.types import MAIN_SPLIT
from rlhf_bench.report.format import quantity
from rlhf_bench.report.plots.style import Plot, drawn, plotted
from rlhf_bench.report.plots.svg import named
from rlhf_bench.report.sections.base import Section
from rlhf_bench.results.reader import RecordedComparison
from rlhf_bench.results.summary import Summary
from rlhf_bench.theory.field_figures import draw_fields
from rlhf_bench.theory.trajectories import RecordedRun, Trajectory, read_run

MAX_FIELDS = 12
"""A field is a large drawing: with more arms the page would be too large to read."""


def field_section(recorded: RecordedComparison, summary: Summary) -> Section:
    """One field per arm in log-probability space, all with the same axes."""
    about = (
        "Where each loss pushes a pair, by its log-ratios of chosen (across) and rejected (up): arrows show the direction "
        "of descent in log-probability space, their colour how strong it is. Grey is out of reach, since no probability "
        "exceeds 1. The arms' own losses and settings, the pairs' mean start, and the measured "
        "trajectory of the held-out pairs. For probability space: rlhf-bench theory field --run DIR."
    )
    run, seen = _read(recorded, {arm.name for arm in plotted(recorded, summary).arms})
    if run is None:
        return Section("field", "Gradient field", about, tuple(seen))
    seen = [_ends(run.trajectories[field.name], field.name) for field in run.fields]
    if len(run.fields) > MAX_FIELDS:
        seen.append(f"Drawn are the first {MAX_FIELDS} arms of {len(run.fields)}.")
    return Section("field", "Gradient field", about, tuple(seen), lambda: _plots(run))


def _plots(run: RecordedRun) -> tuple[Plot, ...]:
    return tuple(
        Plot(
            f"Gradient field: {field.name}",
            field.caption
            if field.loss
            else "This method has no loss on pairs, so there is no field but only the trajectory.",
            drawn(_alone(draw_fields([field], run.start, "log", run.trajectories)), f"field-{number}"),
            on_white=True,
        )
        for number, field in enumerate(run.fields[:MAX_FIELDS])
    )


def _read(recorded: RecordedComparison, arms: set[str]) -> tuple[RecordedRun | None, list[str]]:
    """The run's fields and trajectories, without the sweep's copies; or a sentence on why there are none."""
    pairs = recorded.fixed_pairs
    if not ((pairs["split"] == MAIN_SPLIT) & (pairs["arm"].isin(list(arms))) & (pairs["mark"] > 0)).any():
        return None, ["Not recorded: held-out pairs one by one (pairs.parquet), so no trajectory can be drawn."]
    try:
        run = read_run(recorded.directory)
    except BadInput as error:
        return None, [f"No field can be drawn: {_without(recorded.directory, error)}."]
    return RecordedRun([field for field in run.fields if field.name in arms], run.trajectories, run.start), []


def _without(directory: Path, error: BadInput) -> str:
    """The first problem, without the directory's own path: the page does not depend on where it lies."""
    return error.problems[0].replace(f"{directory}/", "").replace(str(directory), "DIR")


def _ends(trajectory: Trajectory, arm: str) -> str:
    """Where an arm's held-out pairs went, in words: by the mean of their last evaluation."""
    chosen, rejected = trajectory.mean[-1]
    moves = [f"{name} {'lost' if value < 0 else 'gained'} {quantity(abs(value))} nats"
             for name, value in (("the chosen", chosen), ("the rejected", rejected))]  # fmt: skip
    return f"{arm}: {listed(moves)} on average."


def _alone(figure: Figure) -> Figure:
    """A single panel is too narrow for the headings and legend of many panels. The caption has the headings, and the legend
    gets a row for every entry."""
    figure.suptitle("")
    figure.axes[0].set_title("")
    for container in figure.axes[0].containers:
        container.set_label(named("measured mean"))
    (many,) = figure.legends
    handles, names = many.legend_handles, [text.get_text() for text in many.get_texts()]
    many.remove()
    figure.set_size_inches(4.6, 5.2)
    figure.legend(handles=handles, labels=names, loc="outside lower center", ncols=1)
    return figure
