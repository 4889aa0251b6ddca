"""`rlhf-bench export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rlhf_bench.cli.options import write_line


def export(
    directory: Annotated[
        Path, typer.Argument(help="the --output of a run, or a folder data/NAME that `report --page` wrote")
    ],
    output: Annotated[Path, typer.Option(help="folder for the files", show_default=False)],
) -> None:
    """Write figures and tables for a paper: plots as SVG, their numbers as CSV, tables as LaTeX (booktabs).

    Example: rlhf-bench export outputs/quickstart --output paper/figures
    """
    from rlhf_bench.report.export import write_export

    files = write_export(directory, output)
    write_line(f"export: {len(files)} files in {output.resolve()}")
