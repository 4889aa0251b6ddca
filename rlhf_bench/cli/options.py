"""What several commands share: options, the cache, and the one way to print."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from rlhf_bench.core.errors import BadInput
from rlhf_bench.core.text import one_line, printable

RecipePath = Annotated[
    Path,  # whether it can be read is checked when it is read
    typer.Argument(help="a recipe file, such as recipes/quickstart.yaml", show_default=False, readable=False),
]

Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        help="key.path=value, such as seeds=[1] or data.temperature=0.7; each overrides one key of the recipe",
        show_default=False,
    ),
]

Quiet = Annotated[bool, typer.Option("--quiet", help="print only warnings and the final result")]

Json = Annotated[
    bool, typer.Option("--json", help="print the final result as one line of JSON, alone on standard output")
]


def summary_as_json(directory: Path, labels: Sequence[str]) -> str:
    """The contents of `summary.json` and its folder, on one line; for a series, of every comparison by its label."""

    def read(place: Path) -> dict[str, Any]:
        return {"output": str(place)} | json.loads((place / "summary.json").read_text(encoding="utf-8"))

    found = {label: read(directory / label) for label in labels}
    return json.dumps({"output": str(directory), "comparisons": found} if labels else read(directory))


def open_cache() -> Any:
    """The cache of base policies and reward models between runs. Every node of a cluster must see its folder."""
    from rlhf_bench.training.cache import Cache

    return Cache(Path(os.environ.get("RLHF_BENCH_CACHE", Path.home() / ".cache" / "rlhf-bench")))


def check_room(settings: Any, inputs: Any) -> None:
    """BadInput where the budget or a GPU's memory is too small for the recipe."""
    from rlhf_bench.compute.forecast import check_budget
    from rlhf_bench.compute.memory import check_gpu_memory
    from rlhf_bench.training.inputs import lengths_of

    check_gpu_memory(settings, inputs.shape, inputs.reward_shape)
    check_budget(settings, inputs.shape, lengths_of(settings, inputs), inputs.reward_shape)


def write_line(text: str) -> None:
    """Print to standard output, escaped: the text may hold the user's data or records of other programs."""
    print(printable(text), flush=True)


def say_problems(error: BadInput) -> None:
    for problem in error.problems:
        print(f"error: {one_line(problem)}", file=sys.stderr, flush=True)
