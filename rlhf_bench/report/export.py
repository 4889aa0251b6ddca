"""What a paper takes from a comparison: every plot as SVG with its numbers as CSV beside it, and its tables as LaTeX."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path

from rlhf_bench.core.errors import BadInput
from rlhf_bench.report import tables
from rlhf_bench.report.latex import latex_table
from rlhf_bench.report.page import sections
from rlhf_bench.report.plots import overview as figures
from rlhf_bench.report.plots.style import Plot, style
from rlhf_bench.report.series import series_labels
from rlhf_bench.results.reader import RecordedComparison, read_recorded
from rlhf_bench.results.summary import Summary, summarize

INDEX = "plots.csv"


def write_export(directory: Path, output: Path) -> list[Path]:
    """Write the comparison recorded in `directory` to the folder `output`; of a series, each to a folder of its own.

    NAME.svg and NAME.csv for every plot that was drawn, `plots.csv` with what each one shows, and comparison.tex,
    against_baseline.tex and claims.tex where there are such tables. Returns the files. Raises BadInput where a record
    is missing or contradicts itself, or the folder cannot be written.
    """
    if labels := series_labels(directory):
        return [path for label in labels for path in write_export(directory / label, output / label)]
    recorded = read_recorded(directory)
    summary = summarize(recorded)
    texts = dict(_texts(recorded, summary))
    try:
        output.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            (output / name).write_text(text, encoding="utf-8")
    except OSError as error:
        raise BadInput(f"--output {output}: {error.strerror}; give a folder that can be written") from None
    return [output / name for name in texts]


def all_plots(recorded: RecordedComparison, summary: Summary) -> list[Plot]:
    """Every plot of the report, in its order but for those under "During training", which come with the first ones."""
    with style():
        own = figures.draw(recorded, summary)
        further = [plot for section in sections(recorded, summary) for plot in section.draw()]
    return [own.final, *own.comparison, *own.training, own.compute, own.time, *further]


def _texts(recorded: RecordedComparison, summary: Summary) -> Iterator[tuple[str, str]]:
    index = io.StringIO()
    listing = csv.writer(index, lineterminator="\n")
    listing.writerow(["name", "title", "x", "y", "how_to_read"])
    for plot in all_plots(recorded, summary):
        if drawing := plot.drawing:
            yield f"{drawing.name}.svg", standalone(drawing.svg)
            yield f"{drawing.name}.csv", drawing.to_csv()
            listing.writerow([drawing.name, plot.title, drawing.x_axis, drawing.y_axis, plot.how_to_read])
    yield INDEX, index.getvalue()
    found = {
        "comparison": tables.comparison_table(summary),
        "against_baseline": tables.paired_table(summary.comparisons),
        "claims": tables.claims_table(summary),
    }
    for name, rows in found.items():
        if rows:
            yield f"{name}.tex", latex_table(tables.without_empty(rows))


def standalone(svg: str) -> str:
    """The page's element as a file: black where the page would give its own colour."""
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + svg.replace("currentColor", "#000000") + "\n"
