"""`rlhf-bench ls`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from rlhf_bench.cli.options import write_line
from rlhf_bench.core.errors import BadInput


def ls(
    folder: Annotated[Path, typer.Argument(help="where to look, three folders deep")] = Path("outputs"),
) -> None:
    """List comparisons: where they are, how far they are, how they ended, and which arm leads. Nothing is changed.

    Example: rlhf-bench ls outputs
    """
    from rlhf_bench.report.format import ABSENT
    from rlhf_bench.report.tables import text_table
    from rlhf_bench.results.progress import comparisons_below

    if not folder.is_dir():
        raise BadInput(f"{folder}: no such folder; name the one that runs were told to write to (--output)")
    rows = [
        {
            "Directory": os.path.relpath(found.directory),
            "Recipe": found.name,
            "Runs": f"{found.ended} of {found.runs}",
            "Leader": f"{found.leader[0]} {found.leader[1]:.3f}" if found.leader else ABSENT,
            "Changed": f"{found.changed:%Y-%m-%d %H:%M}",
            "State": found.state,
        }
        for found in comparisons_below(folder.resolve())
    ]
    if not rows:
        raise BadInput(
            f"{folder}: holds no comparison, three folders deep; name the folder that runs were told to write to"
        )
    title = f"{len(rows)} comparison{'s' * (len(rows) != 1)} below {folder}; a run is an arm with a seed"
    write_line("\n".join(text_table(rows, title, ("Directory", "Recipe", "Leader", "Changed", "State"))))
