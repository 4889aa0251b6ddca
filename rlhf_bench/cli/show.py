"""`rlhf-bench show`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rlhf_bench.cli.options import write_line


def show(
    directory: Annotated[Path, typer.Argument(help="the --output of a run, or a folder data/NAME that --page wrote")],
) -> None:
    """Show a comparison in the terminal: verdict, table, final scores with their intervals, and what limits it. Of one that is
    not done, the arms that are. Nothing is written.

    Example: rlhf-bench show outputs/quickstart
    """
    from rlhf_bench.core.errors import BadInput
    from rlhf_bench.report.terminal import closing_text, score_plot
    from rlhf_bench.results.progress import progress_of
    from rlhf_bench.results.reader import read_recorded
    from rlhf_bench.results.schema import RECIPE, RESULTS
    from rlhf_bench.results.summary import summarize

    progress = progress_of(directory) if (directory / RECIPE).is_file() else None
    if progress is not None and not (directory / RESULTS).exists():
        raise BadInput(f"{directory}: no arm has ended yet, {progress.ended} of {progress.runs} runs; {progress.state}")
    summary = summarize(read_recorded(directory))
    plot = score_plot(summary)
    write_line("\n".join([closing_text(summary), *(["", *plot] if plot else [])]))
    if progress is not None and progress.ended < progress.runs:
        write_line(f"\n{progress.ended} of {progress.runs} runs have ended; {progress.state}")
