"""What several commands share: options, the cache, and the one way to print."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rlhf_bench.core.errors import BadInput, Problems
from rlhf_bench.core.text import one_line, printable

if TYPE_CHECKING:
    from rlhf_bench.recipe import Draft
    from rlhf_bench.training.cache import Cache
    from rlhf_bench.training.inputs import Inputs

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

    return Cache(cache_folder())


def cache_folder() -> Path:
    """Where RLHF_BENCH_CACHE says, `~` as a shell reads it; where it is empty or not set, below the home directory. BadInput
    where that cannot be found: a user of a container may have none."""
    named = os.environ.get("RLHF_BENCH_CACHE", "").strip()
    try:
        folder = Path(named).expanduser() if named else Path.home() / ".cache" / "rlhf-bench"
    except RuntimeError:
        folder = Path()
    if not folder.is_absolute() and (not named or named.startswith("~")):
        shown = f"{named} cannot be resolved" if named else "is not set, and this user has no home directory"
        raise BadInput(f"RLHF_BENCH_CACHE: {shown}; set it to a folder that you can write to")
    return folder


def prepared(
    drafts: Mapping[str, Draft], cache: Cache, problems: Problems, directory: Path | None = None
) -> dict[str, Inputs]:
    """The inputs of every comparison of a series, by label. All that is wrong with a recipe, its data, model, budget or memory is
    added to `problems`. `directory`: where the series is resumed, if it has begun there."""
    from rlhf_bench.results.directory import first_day
    from rlhf_bench.results.given import recorded_given
    from rlhf_bench.training.inputs import check_inputs, prepare_inputs

    found: dict[str, Inputs] = {}
    for label, draft in drafts.items():
        problems.add(*draft.problems)
        # Standard output is the command's own, JSON perhaps: what libraries print goes aside.
        with redirect_stdout(sys.stderr), problems.step():
            if draft.recipe is None:
                continue
            if draft.problems:
                check_inputs(draft.recipe, draft.wrong, cache, say_aside)
                continue
            day, before = None, None
            if directory is not None:
                day, before = first_day(directory / label), recorded_given(directory / label)
            found[label] = prepare_inputs(draft.recipe, cache, say_aside, day, before, room=True)
    return found


def say_aside(text: str) -> None:
    """Print to standard error, escaped: what takes long, and is no part of the result."""
    print(one_line(text), file=sys.stderr, flush=True)


def write_line(text: str) -> None:
    """Print to standard output, escaped: the text may hold the user's data or records of other programs."""
    print(printable(text), flush=True)


def say_problems(error: BadInput) -> None:
    for problem in error.problems:
        print(f"error: {one_line(problem)}", file=sys.stderr, flush=True)
