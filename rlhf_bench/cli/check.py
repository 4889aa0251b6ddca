"""`rlhf-bench check`."""

from __future__ import annotations

import json
import sys
from contextlib import redirect_stdout
from typing import Annotated

import typer
import yaml

from rlhf_bench.cli.options import Json, Overrides, Quiet, RecipePath, open_cache, prepared, write_line
from rlhf_bench.core.errors import Problems


def check(
    recipe: RecipePath,
    overrides: Overrides = None,
    fast: Annotated[
        bool, typer.Option("--fast", help="check the small size that the recipe's section `fast` describes")
    ] = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Validate a recipe, and print it with all defaults, statistics of its data, and a forecast of FLOPs, memory and time.

    Nothing is started.

    Example: rlhf-bench check recipes/gsm8k.yaml task.folder=openai/gsm8k
    """
    from rlhf_bench.cli.overview import as_data, lines
    from rlhf_bench.recipe import read_series

    drafts, problems = read_series(recipe, overrides or [], fast), Problems()
    inputs_of = prepared(drafts, open_cache(), problems)
    problems.refuse()
    found = {}
    for label, inputs in inputs_of.items():
        settings = drafts[label].recipe
        assert settings is not None
        if as_json:
            with redirect_stdout(sys.stderr):  # what libraries print
                found[label] = as_data(settings, inputs)
        elif not quiet:
            if label:
                write_line(f"# {label}")
            write_line(yaml.safe_dump(settings.resolved(), sort_keys=False, allow_unicode=True))
            for line in lines(settings, inputs):
                write_line(line)
    if as_json:
        write_line(json.dumps(found[""] if "" in found else {"comparisons": found}))
    else:
        write_line(f"{recipe}: valid")
