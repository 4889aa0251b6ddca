"""`rlhf-bench run`."""

from __future__ import annotations

import getpass
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
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
    open_cache,
    prepared,
    say_aside,
    say_problems,
    summary_as_json,
    write_line,
)
from rlhf_bench.core.errors import BadInput, Problems
from rlhf_bench.core.lock import held
from rlhf_bench.core.ray_folder import ON_LOOPBACK, closed_cluster

if TYPE_CHECKING:
    from rlhf_bench.experiment.spec import ComparisonSpec
    from rlhf_bench.recipe import Draft, Recipe
    from rlhf_bench.training.cache import Cache


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

    began = BEGAN
    # Ray takes seconds to start, and the checks below run meanwhile.
    with cluster() as ready, refusing_at_once(), ExitStack() as locks:
        from rlhf_bench.recipe import read_series
        from rlhf_bench.results.directory import open_directory

        drafts, cache = read_series(recipe, overrides or [], fast), open_cache()
        named = next((draft.recipe.name for draft in drafts.values() if draft.recipe is not None), "unnamed")
        directory = (output or Path("outputs") / named).resolve()
        todo = _checked(drafts, directory, arm, seed, cache)
        for place in dict.fromkeys((directory, *(spec.directory for spec in todo))):
            locks.enter_context(held(place, say_aside))
        for spec in todo:
            used = spec.inputs
            open_directory(spec.directory, spec.recipe, used.fingerprint["data"], used.codec.day, used.given)

        from actors.driver import Job, run_on_cluster

        ready()
        for spec in todo:
            ending = run_on_cluster(Job(spec=spec, cache=cache, began=began, profile=profile, quiet=quiet))
            if not as_json:
                write_line(ending)
            began = perf_counter()
        labels = [label for label in drafts if label]
        if labels:
            from rlhf_bench.report.series import write_series

            table = write_series(directory, labels)
            if not as_json:
                write_line(table)
    if as_json:
        write_line(summary_as_json(directory, labels))


def _checked(
    drafts: Mapping[str, Draft], directory: Path, arms: list[str] | None, seeds: list[int] | None, cache: Cache
) -> list[ComparisonSpec]:
    """The comparisons to run, all of them checked before anything is written. Raises BadInput with all problems."""
    from rlhf_bench.experiment.spec import ComparisonSpec
    from rlhf_bench.experiment.tracking.mlflow_store import check_not_deleted
    from rlhf_bench.experiment.tracking.tracker import tracking_uri
    from rlhf_bench.training.checkpoints import check_writable

    problems, picked, todo = Problems(), dict[str, tuple[list[str], list[int]]](), []
    for label, draft in drafts.items():
        with problems.step():
            if draft.recipe is not None and not draft.wrong & {"arms", "seeds"}:
                picked[label] = chosen(arms, seeds, draft.recipe)
    for label, inputs in prepared(drafts, cache, problems, directory).items():
        settings = drafts[label].recipe
        assert settings is not None, "what has inputs has a recipe"
        with problems.step():
            check_not_deleted(tracking_uri(settings.tracking.uri, directory / label), settings.name)
        with problems.step():
            if settings.reliability.checkpoint_place is not None:
                check_writable(settings.reliability.checkpoint_place)
        if label in picked:
            todo.append(ComparisonSpec(settings, directory / label, inputs, *picked[label]))
    problems.refuse()
    return todo


def chosen(arms: list[str] | None, seeds: list[int] | None, recipe: Recipe) -> tuple[list[str], list[int]]:
    """The recipe's arms and seeds that are asked for; all where none is. BadInput with a line for each that it lacks."""
    unknown = [f"--arm {a}: the recipe has {', '.join(recipe.arms)}" for a in arms or [] if a not in recipe.arms]
    known_seeds = ", ".join(map(str, recipe.seeds))
    unknown += [f"--seed {s}: the recipe has {known_seeds}" for s in seeds or [] if s not in recipe.seeds]
    if unknown:
        raise BadInput(*(f"{problem}; choose among them" for problem in unknown))
    return [a for a in recipe.arms if not arms or a in arms], [s for s in recipe.seeds if not seeds or s in seeds]


def name_user() -> None:
    """See that this user, who in a container may be a number alone, has a home directory and a name."""
    if not Path(os.path.expanduser("~")).is_absolute():
        raise BadInput(
            "HOME: is not set, and this user has no home directory; set it to a folder that you can write to"
        )
    try:
        getpass.getuser()
    except (KeyError, OSError):
        os.environ["USER"] = f"user-{os.getuid()}"


def guard_local_cluster() -> None:
    """Protect a local cluster by a token, and keep it on loopback. Ray reads these variables when it is imported, so call this before. BadInput where
    the user has no home directory, in which Ray, vLLM and Hugging Face's libraries keep files."""
    name_user()
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if os.environ.get("RAY_ADDRESS") in ("", "local"):  # in Ray these mean a local cluster, so it gets a token too
        del os.environ["RAY_ADDRESS"]
    if "RAY_ADDRESS" in os.environ:
        return
    os.environ |= ON_LOOPBACK
    if "RAY_AUTH_MODE" not in os.environ:
        os.environ |= closed_cluster()


@contextmanager
def refusing_at_once() -> Iterator[None]:
    """Report bad input at once: Ray, which is still starting, takes seconds to stop."""
    try:
        yield
    except BadInput as error:
        say_problems(error)
        raise SystemExit(2) from None
