"""`rlhf-bench run`."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Annotated

import typer

from rlhf_bench.cli import BEGAN
from rlhf_bench.cli.options import (
    Json,
    Overrides,
    Quiet,
    RecipePath,
    check_room,
    open_cache,
    say_problems,
    summary_as_json,
    write_line,
)
from rlhf_bench.core.errors import BadInput

if TYPE_CHECKING:
    from rlhf_bench.recipe import Recipe


def run(
    recipe: RecipePath,
    overrides: Overrides = None,
    output: Annotated[
        Path | None,
        typer.Option(
            help="directory for all results (DIR); default outputs/NAME. A DIR with an unfinished run is resumed"
        ),
    ] = None,
    arm: Annotated[list[str] | None, typer.Option(help="run only this arm (repeatable)", show_default="all")] = None,
    seed: Annotated[
        list[int] | None, typer.Option(help="run only this seed (repeatable)", show_default="the recipe's")
    ] = None,
    fast: Annotated[
        bool, typer.Option("--fast", help="run the small size that the recipe's section `fast` describes")
    ] = False,
    profile: Annotated[
        bool,
        typer.Option("--profile", help="write DIR/profile.json: what every process did and when, as a Chrome trace"),
    ] = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Run a comparison, or resume the one in DIR: arms and seeds that are done are not run again.

    A recipe with `vary` is a series: one comparison for each value, each in its own directory below DIR.

    Example: rlhf-bench run recipes/quickstart.yaml seeds=[1] --output outputs/try
    """
    guard_local_cluster()
    from actors.ray_cluster import cluster

    began, todo = BEGAN, []
    with cluster() as ready, _refusing_at_once():  # Ray takes seconds to start, and the checks below run meanwhile
        from rlhf_bench.experiment.spec import ComparisonSpec
        from rlhf_bench.recipe import load_series
        from rlhf_bench.results.store import open_directory
        from rlhf_bench.training.checkpoints import check_writable
        from rlhf_bench.training.inputs import prepare_inputs

        variants, cache = load_series(recipe, overrides or [], fast), open_cache()
        chosen = [_chosen(arm, seed, variant.recipe) for variant in variants]
        directory = (output or Path("outputs") / variants[0].recipe.name).resolve()
        for variant, (arms, seeds) in zip(
            variants, chosen, strict=True
        ):  # check all of them before the first one starts
            settings = variant.recipe
            inputs = prepare_inputs(settings, cache)
            check_room(settings, inputs)
            open_directory(directory / variant.label, settings, inputs.fingerprint["data"])
            if settings.reliability.checkpoint_place is not None:
                check_writable(settings.reliability.checkpoint_place)
            todo.append(ComparisonSpec(settings, directory / variant.label, inputs, arms, seeds))

        from actors.driver import Job, run_on_cluster

        ready()
        for spec in todo:
            ending = run_on_cluster(Job(spec=spec, cache=cache, began=began, profile=profile, quiet=quiet))
            if not as_json:
                write_line(ending)
            began = perf_counter()
    labels = [v.label for v in variants if v.label]
    if labels:
        from rlhf_bench.report.series import write_series

        table = write_series(directory, labels)
        if not as_json:
            write_line(table)
    if as_json:
        write_line(summary_as_json(directory, labels))


def _chosen(arms: list[str] | None, seeds: list[int] | None, recipe: Recipe) -> tuple[list[str], list[int]]:
    """The recipe's arms and seeds that are asked for; all where none is. BadInput with a line for each that it lacks."""
    unknown = [f"--arm {a}: the recipe has {', '.join(recipe.arms)}" for a in arms or [] if a not in recipe.arms]
    known_seeds = ", ".join(map(str, recipe.seeds))
    unknown += [f"--seed {s}: the recipe has {known_seeds}" for s in seeds or [] if s not in recipe.seeds]
    if unknown:
        raise BadInput(*(f"{problem}; choose among them" for problem in unknown))
    return [a for a in recipe.arms if not arms or a in arms], [s for s in recipe.seeds if not seeds or s in seeds]


def guard_local_cluster() -> None:
    """Protect a local cluster by a token. Ray reads these variables when it is imported, so call this before."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if os.environ.get("RAY_ADDRESS") in ("", "local"):  # in Ray these mean a local cluster, so it gets a token too
        del os.environ["RAY_ADDRESS"]
    if "RAY_ADDRESS" not in os.environ and "RAY_AUTH_MODE" not in os.environ:
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}


@contextmanager
def _refusing_at_once() -> Iterator[None]:
    """Report bad input at once: Ray, which is still starting, takes seconds to stop."""
    try:
        yield
    except BadInput as error:
        say_problems(error)
        raise SystemExit(2) from None
