"""`rlhf-bench theory`: fields, toy model and bandit."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rlhf_bench.cli.options import write_line

theory = typer.Typer(
    no_args_is_help=True,
    help="Draw gradient fields, or run the toy model or the bandit. Each takes seconds and needs no run.",
)

TheoryOutput = Annotated[Path, typer.Option(help="directory for figures and tables")]

TheorySeeds = Annotated[int | None, typer.Option(min=3, help="how many seeds", show_default="20, or 5 with --fast")]

Fast = Annotated[bool, typer.Option("--fast", help="a small size, to try it out")]


@theory.command("field")
def theory_field(
    output: TheoryOutput = Path("outputs/theory"),
    method: Annotated[
        list[str] | None, typer.Option(help="draw this method (repeatable)", show_default="six, or the run's arms")
    ] = None,
    run: Annotated[
        Path | None, typer.Option(help="the --output of a run: its arms, settings and measured trajectories")
    ] = None,
    chosen_start: Annotated[
        float | None,
        typer.Option(
            help="probability of the chosen response under the reference", show_default="0.2, or the run's mean"
        ),
    ] = None,
    rejected_start: Annotated[
        float | None, typer.Option(help="the same for the rejected response", show_default="0.2, or the run's mean")
    ] = None,
) -> None:
    """Draw the gradient field of losses on pairs (arXiv 2404.04626) over π/π0 of both responses.

    Example: rlhf-bench theory field --method dpo --method dpop --output outputs/theory
    """
    from rlhf_bench.theory import commands

    write_line(commands.field(output, method or [], run, chosen_start, rejected_start))


@theory.command("toy")
def theory_toy(
    output: TheoryOutput = Path("outputs/theory"),
    seeds: TheorySeeds = None,
    epochs: Annotated[
        int | None, typer.Option(min=1, help="epochs of DPO", show_default="2000, or 500 with --fast")
    ] = None,
    fast: Fast = False,
) -> None:
    """Run the toy model of 3D-Properties (arXiv 2406.07327): four scenarios, many seeds, and a tabular control.

    Example: rlhf-bench theory toy --output outputs/theory
    """
    from rlhf_bench.theory import commands

    write_line(commands.toy(output, seeds or (5 if fast else 20), epochs or (500 if fast else 2000)))


@theory.command("bandit")
def theory_bandit(output: TheoryOutput = Path("outputs/theory"), seeds: TheorySeeds = None, fast: Fast = False) -> None:
    """Run the bandit of arXiv 2404.14367: on-policy sampling and negative gradients, apart and together.

    Example: rlhf-bench theory bandit --output outputs/theory
    """
    from rlhf_bench.theory import commands

    write_line(commands.bandit(output, seeds or (5 if fast else 20), rounds=20 if fast else 100))
