"""`rlhf-bench compare`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rlhf_bench.cli.options import write_line


def compare(
    directories: Annotated[
        list[Path], typer.Argument(help="two or more, each the --output of a run", show_default=False)
    ],
) -> None:
    """Compare arms of several runs: one table, and every difference between arms of two runs. Refused where their scores do not
    mean the same (another task, model, start or evaluation), key by key. Nothing is written.

    Example: rlhf-bench compare outputs/mine outputs/mine_with_larger_batches
    """
    from rlhf_bench.report.terminal import together_text
    from rlhf_bench.results.across import together

    write_line(together_text(together(directories)))
