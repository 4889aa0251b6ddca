"""`rlhf-bench report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rlhf_bench.cli.options import Json, summary_as_json, write_line


def report(
    directory: Annotated[Path, typer.Argument(help="the --output of a run, or a folder data/NAME that --page wrote")],
    page: Annotated[
        Path | None,
        typer.Option(
            help="write a page NAME.md with its figure in place of the report, and copy its data to data/NAME beside it"
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Render report.html and summary.json again from the recorded files, for example after an upgrade, and print the verdict.

    Example: rlhf-bench report outputs/data_scenarios --page docs/results/data_scenarios.md
    """
    from rlhf_bench.report import write_report
    from rlhf_bench.report.archive import archive
    from rlhf_bench.report.docs_page import write_page
    from rlhf_bench.report.series import series_labels, write_series
    from rlhf_bench.report.terminal import closing_text

    if page is not None:
        kept = page.parent / "data" / page.stem
        if kept.resolve() != directory.resolve():
            archive(directory, kept)
        write_page(kept, page)  # from the copy, so that the page can be written again from it
        write_line(f"page: {page.resolve()}")
        return
    labels = series_labels(directory)
    if labels:
        table = write_series(directory, labels)
    else:
        table = f"{closing_text(write_report(directory))}\n\nreport: {(directory / 'report.html').resolve()}"
    write_line(summary_as_json(directory.resolve(), labels or []) if as_json else table)
