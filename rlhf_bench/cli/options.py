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
    Path,  # whether it can be read is said when it is read, in one line
    typer.Argument(help="a recipe file, such as recipes/quickstart.yaml", show_default=False, readable=False),
]

Overrides = Annotated[
    list[str] | None, typer.Argument(help="key.path=value, each overriding one key of the recipe", show_default=False)
]

Quiet = Annotated[bool, typer.Option("--quiet", help="say nothing but warnings and what the command ends with")]

Json = Annotated[
    bool, typer.Option("--json", help="end with one line of JSON in place of text, alone on standard output")
]


def summary_as_json(directory: Path, labels: Sequence[str]) -> str:
    """What `summary.json` holds and where it is, on one line; of a series, that of every comparison by its label."""

    def read(place: Path) -> dict[str, Any]:
        return {"output": str(place)} | json.loads((place / "summary.json").read_text(encoding="utf-8"))

    found = {label: read(directory / label) for label in labels}
    return json.dumps({"output": str(directory), "comparisons": found} if labels else read(directory))


def open_cache() -> Any:
    """Where base models and reward models are kept between runs; every node of a cluster must see it."""
    from rlhf_bench.training.cache import Cache

    return Cache(Path(os.environ.get("RLHF_BENCH_CACHE", Path.home() / ".cache" / "rlhf-bench")))


def check_room(settings: Any, inputs: Any) -> None:
    from rlhf_bench.compute.forecast import check_budget
    from rlhf_bench.compute.memory import check_gpu_memory
    from rlhf_bench.training.inputs import lengths_of

    check_gpu_memory(settings, inputs.shape, inputs.reward_shape)
    check_budget(settings, inputs.shape, lengths_of(settings, inputs), inputs.reward_shape)


def write_line(text: str) -> None:
    """The one way to standard output: what is printed may hold the user's data, or records that came from elsewhere."""
    print(printable(text), flush=True)


def say_problems(error: BadInput) -> None:
    for problem in error.problems:
        print(f"error: {one_line(problem)}", file=sys.stderr, flush=True)
