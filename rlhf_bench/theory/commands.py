"""What `rlhf-bench theory` does: compute, write figures and tables into a directory, return what is to be printed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from rlhf_bench.core.errors import BadInput
from rlhf_bench.theory import curve_figures, tables
from rlhf_bench.theory.bandit import BanditSettings, run_bandit
from rlhf_bench.theory.field import (
    DEFAULT_METHODS,
    DEFAULT_PROBABILITY,
    Start,
    default_fields,
    pair_loss_of,
    render_table,
)
from rlhf_bench.theory.field_figures import draw_fields
from rlhf_bench.theory.style import save
from rlhf_bench.theory.toy import run_toy
from rlhf_bench.theory.trajectories import read_run


def field(
    directory: Path, methods: Sequence[str], run: Path | None, chosen_start: float | None, rejected_start: float | None
) -> str:
    """Draw the fields of `methods` at their defaults, or of a run's arms with their settings and trajectories.

    The starts are π0(a⁺) and π0(a⁻); where they are None, a run's own means, or else DEFAULT_PROBABILITY.
    """
    for name in methods:
        pair_loss_of(name)  # refuse before anything is read
    for option, value in (("--chosen-start", chosen_start), ("--rejected-start", rejected_start)):
        if value is not None and not 0 < value < 1:
            raise BadInput(f"{option} {value:g}: a probability lies between 0 and 1, both excluded; choose such a one")
    if run is None:
        recorded, fields = None, default_fields(methods or DEFAULT_METHODS)
        start = Start(float(np.log(DEFAULT_PROBABILITY)), float(np.log(DEFAULT_PROBABILITY)))
    else:
        recorded = read_run(run, methods)
        fields, start = recorded.fields, recorded.start
    start = Start(
        start.chosen_logprob if chosen_start is None else float(np.log(chosen_start)),
        start.rejected_logprob if rejected_start is None else float(np.log(rejected_start)),
        start.chosen_tokens,
        start.rejected_tokens,
    )
    trajectories = recorded.trajectories if recorded else None
    files = []
    for space in ("linear", "log"):
        files += save(draw_fields(fields, start, space, trajectories), directory, f"field-{space}")
    return "\n".join([render_table(fields, start), *_written(files)])


def toy(directory: Path, seeds: int, epochs: int) -> str:
    """Run the toy model; write its figure, its table and the outcome of every seed."""
    _one_thread()
    done = run_toy(range(1, seeds + 1), epochs)
    files = save(curve_figures.draw_toy(done), directory, "toy")
    return _finish(directory, "toy", tables.toy_table(done), tables.toy_records(done), files)


def bandit(directory: Path, seeds: int, rounds: int) -> str:
    """Run the bandit; write its figure, its table and the outcome of every seed."""
    _one_thread()
    done = run_bandit(range(1, seeds + 1), BanditSettings(rounds=rounds))
    files = save(curve_figures.draw_bandit(done), directory, "bandit")
    return _finish(directory, "bandit", tables.bandit_table(done), tables.bandit_records(done), files)


def _one_thread() -> None:
    """These tensors are too small to share out: more threads only wait for each other."""
    torch.set_num_threads(1)


def _finish(directory: Path, name: str, table: str, records: Sequence[dict], files: list[Path]) -> str:
    (directory / f"{name}.md").write_text(table + "\n", encoding="utf-8")
    pd.DataFrame(records).to_csv(directory / f"{name}.csv", index=False)
    return "\n".join([table, *_written([*files, directory / f"{name}.md", directory / f"{name}.csv"])])


def _written(files: Sequence[Path]) -> list[str]:
    return ["", *(f"written: {path}" for path in files)]
