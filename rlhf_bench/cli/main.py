"""The command line: init, check, run, manifest, report, export, schema, theory. The one place that imports `actors`, inside the command that needs them."""

from __future__ import annotations

import json
import os
import secrets
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter
from typing import Annotated, Any

BEGAN = perf_counter()

import typer  # noqa: E402
import yaml  # noqa: E402

from rlhf_bench import __version__  # noqa: E402
from rlhf_bench.core.text import one_line, printable  # noqa: E402
from rlhf_bench.core.types import BadInput, RunFailed  # noqa: E402
from rlhf_bench.experiment.shutdown import Stopped, raise_on_signals  # noqa: E402

UsageError: Any = typer.BadParameter.__base__  # typer does not export it

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, help=(
    "Compare RLHF with DPO at identical compute: one recipe file, several arms, many seeds.\n\n"
    "Exit codes: 0 done; 1 failed; 2 the recipe or the data is wrong; 130 or 143 interrupted, the same command goes on."
))  # fmt: skip

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


def _version(asked: bool) -> None:
    if asked:
        _print(f"rlhf-bench {__version__}")
        raise typer.Exit()


@app.callback()
def everywhere(
    version: Annotated[
        bool, typer.Option("--version", help="print the version", callback=_version, is_eager=True)
    ] = False,
) -> None:
    pass


@app.command()
def init(
    path: Annotated[Path, typer.Argument(help="the file to write; one that is there is left alone")] = Path(
        "recipe.yaml"
    ),
) -> None:
    """Write a recipe to begin with: few keys set, every other one as a comment with its default and its meaning.

    Example: rlhf-bench init my.yaml
    """
    from rlhf_bench.recipe.template import commented_recipe

    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(commented_recipe())
    except FileExistsError:
        raise BadInput(f"{path}: is there already; give the name of a new file") from None
    except OSError as error:
        raise BadInput(f"{path}: cannot be written: {error.strerror}; check path and permissions") from None
    _print(f"recipe: {path}\nnext: rlhf-bench check {path}")


@app.command()
def schema() -> None:
    """Print the JSON Schema of a recipe, by which an editor completes and checks one.

    Example: rlhf-bench schema > recipe.schema.json
    """
    from rlhf_bench.recipe.json_schema import json_schema

    _print(json.dumps(json_schema(), indent=1))


@app.command()
def run(
    recipe: RecipePath,
    overrides: Overrides = None,
    output: Annotated[Path | None, typer.Option(help="directory for all results; default outputs/NAME")] = None,
    arm: Annotated[list[str] | None, typer.Option(help="run only this arm (repeatable)", show_default="all")] = None,
    seed: Annotated[
        list[int] | None, typer.Option(help="run only this seed (repeatable)", show_default="the recipe's")
    ] = None,
    fast: Annotated[
        bool, typer.Option("--fast", help="the recipe's small size: its section `fast` laid over it")
    ] = False,
    profile: Annotated[
        bool, typer.Option("--profile", help="write DIR/profile.json: what every process was at, as a Chrome trace")
    ] = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Run a comparison, or carry on with the one in DIR: arms and seeds that are done are kept.

    A recipe that varies a shared key (`vary`) is a series: one comparison for each value, each in a directory of its own.

    Example: rlhf-bench run recipes/quickstart.yaml seeds=[1] --output outputs/try
    """
    _guard_local_cluster()
    from actors.ray_cluster import cluster

    began, todo = BEGAN, []
    with cluster() as ready, _refusing_at_once():  # Ray takes seconds to start, and what follows here too
        from rlhf_bench.recipe import load_series
        from rlhf_bench.results.store import open_directory
        from rlhf_bench.training.checkpoints import refuse_unwritable
        from rlhf_bench.training.inputs import prepare

        variants, cache = load_series(recipe, overrides or [], fast), _cache()
        chosen = [
            (_chosen("--arm", arm, list(v.recipe.arms)), _chosen("--seed", seed, list(v.recipe.seeds)))
            for v in variants
        ]
        directory = (output or Path("outputs") / variants[0].recipe.name).resolve()
        for variant, (arms, seeds) in zip(variants, chosen, strict=True):  # all are checked before the first one starts
            settings = variant.recipe
            material = prepare(settings, cache)
            _refuse_what_has_no_room(settings, material)
            open_directory(directory / variant.label, settings, material.fingerprint["data"])
            if settings.reliability.checkpoint_place is not None:
                refuse_unwritable(settings.reliability.checkpoint_place)
            todo.append((settings, material, directory / variant.label, arms, seeds))

        from actors.driver import drive

        ready()
        for settings, material, place, arms, seeds in todo:
            ending = drive(settings, material, cache, place, arms, seeds, began, profile, quiet)
            if not as_json:
                _print(ending)
            began = perf_counter()
    labels = [v.label for v in variants if v.label]
    if labels:
        from rlhf_bench.report.series import write_series

        table = write_series(directory, labels)
        if not as_json:
            _print(table)
    if as_json:
        _print(_as_json(directory, labels))


@app.command()
def check(
    recipe: RecipePath,
    overrides: Overrides = None,
    fast: Annotated[bool, typer.Option("--fast", help="check the recipe's small size")] = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Validate a recipe; print it in full, its data, and FLOPs, memory and time. Nothing is started.

    Example: rlhf-bench check recipes/gsm8k.yaml task.folder=openai/gsm8k
    """
    from rlhf_bench.cli.check import as_data, lines
    from rlhf_bench.recipe import load_series
    from rlhf_bench.training.inputs import prepare

    found = {}
    for variant in load_series(recipe, overrides or [], fast):
        settings = variant.recipe
        material = prepare(settings, _cache())
        _refuse_what_has_no_room(settings, material)
        if as_json:
            found[variant.label] = as_data(settings, material)
        elif not quiet:
            if variant.label:
                _print(f"# {variant.label}")
            _print(yaml.safe_dump(settings.resolved(), sort_keys=False, allow_unicode=True))
            for line in lines(settings, material):
                _print(line)
    if as_json:
        _print(json.dumps(found[""] if "" in found else {"comparisons": found}))
    else:
        _print(f"{recipe}: valid")


@app.command()
def manifest(
    recipe: RecipePath,
    image: Annotated[str, typer.Option(help="of all pods, such as registry.example.org/rlhf-bench:0.1.0-gpu")],
    overrides: Overrides = None,
    fast: Annotated[bool, typer.Option("--fast", help="the recipe's small size")] = False,
    gpus_per_node: Annotated[int, typer.Option(min=1, help="actors with GPUs share pods of at most so many")] = 8,
    output: Annotated[Path | None, typer.Option(help="file to write", show_default="standard output")] = None,
) -> None:
    """Render a RayJob for KubeRay whose worker groups fit the recipe's placement. Nothing is started.

    Example: rlhf-bench manifest recipes/scale/cpu.yaml --image IMAGE | kubectl apply -f -
    """
    from rlhf_bench.compute.kubernetes import as_yaml, rayjob
    from rlhf_bench.recipe import load_series, recipe_data

    variants = load_series(recipe, overrides or [], fast)
    job = rayjob(recipe_data(recipe, overrides or [], fast), [v.recipe for v in variants], image, gpus_per_node)
    if output is None:
        _print(as_yaml(job).rstrip())
        return
    try:
        output.write_text(as_yaml(job), encoding="ascii")
    except OSError as error:
        raise BadInput(f"--output {output}: cannot be written ({error.strerror}); choose another file") from None


@app.command()
def report(
    directory: Annotated[Path, typer.Argument(help="the --output of a run, or a folder that --page kept")],
    page: Annotated[
        Path | None,
        typer.Option(help="also write a page NAME.md with its figure, and keep its data in data/NAME beside it"),
    ] = None,
    as_json: Json = False,
) -> None:
    """Render report.html and summary.json again from what was recorded.

    Example: rlhf-bench report outputs/data_scenarios --page docs/results/data_scenarios.md
    """
    from rlhf_bench.report import render_text_table, write_report
    from rlhf_bench.report.archive import keep
    from rlhf_bench.report.docs_page import write_page
    from rlhf_bench.report.series import series_labels, write_series

    if page is not None:
        kept = page.parent / "data" / page.stem
        if kept.resolve() != directory.resolve():
            keep(directory, kept)
        write_page(kept, page)  # from what was kept: whoever has that can write the page again
        _print(f"page: {page.resolve()}")
        return
    labels = series_labels(directory)
    if labels:
        table = write_series(directory, labels)
    else:
        table = f"{render_text_table(write_report(directory))}\nreport: {(directory / 'report.html').resolve()}"
    _print(_as_json(directory.resolve(), labels or []) if as_json else table)


@app.command()
def export(
    directory: Annotated[Path, typer.Argument(help="the --output of a run, or a folder that `report --page` kept")],
    output: Annotated[Path, typer.Option(help="folder for the files", show_default=False)],
) -> None:
    """Write what a paper takes: every plot as SVG with its numbers as CSV beside it, the tables as LaTeX (booktabs).

    Example: rlhf-bench export outputs/quickstart --output paper/figures
    """
    from rlhf_bench.report.export import write_export

    files = write_export(directory, output)
    _print(f"export: {len(files)} files in {output.resolve()}")


theory = typer.Typer(
    no_args_is_help=True, help="Gradient fields, the toy model and the bandit: seconds each, no run needed."
)
app.add_typer(theory, name="theory")

TheoryOutput = Annotated[Path, typer.Option(help="directory for figures and tables")]
TheorySeeds = Annotated[int | None, typer.Option(min=3, help="how many seeds", show_default="20, or 5 with --fast")]
Fast = Annotated[bool, typer.Option("--fast", help="a small size, for trying out")]


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
        float | None, typer.Option(help="the same of the rejected response", show_default="0.2, or the run's mean")
    ] = None,
) -> None:
    """Draw the gradient field of losses on pairs (arXiv 2404.04626) over π/π0 of both responses.

    Example: rlhf-bench theory field --method dpo --method dpop --output outputs/theory
    """
    from rlhf_bench.theory import commands

    _print(commands.field(output, method or [], run, chosen_start, rejected_start))


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

    _print(commands.toy(output, seeds or (5 if fast else 20), epochs or (500 if fast else 2000)))


@theory.command("bandit")
def theory_bandit(output: TheoryOutput = Path("outputs/theory"), seeds: TheorySeeds = None, fast: Fast = False) -> None:
    """Run the bandit of arXiv 2404.14367: on-policy sampling and negative gradients, apart and together.

    Example: rlhf-bench theory bandit --output outputs/theory
    """
    from rlhf_bench.theory import commands

    _print(commands.bandit(output, seeds or (5 if fast else 20), rounds=20 if fast else 100))


def _as_json(directory: Path, labels: Sequence[str]) -> str:
    """What `summary.json` holds and where it is, on one line; of a series, that of every comparison by its label."""

    def read(place: Path) -> dict[str, Any]:
        return {"output": str(place)} | json.loads((place / "summary.json").read_text(encoding="utf-8"))

    found = {label: read(directory / label) for label in labels}
    return json.dumps({"output": str(directory), "comparisons": found} if labels else read(directory))


def _cache() -> Any:
    """Where base models and reward models are kept between runs; every node of a cluster must see it."""
    from rlhf_bench.training.inputs import Cache

    return Cache(Path(os.environ.get("RLHF_BENCH_CACHE", Path.home() / ".cache" / "rlhf-bench")))


def _chosen(option: str, asked: list[Any] | None, known: list[Any]) -> list[Any]:
    for one in asked or []:
        if one not in known:
            raise BadInput(f"{option} {one}: the recipe has {', '.join(map(str, known))}; choose among them")
    return [k for k in known if not asked or k in asked]


def _refuse_what_has_no_room(settings: Any, material: Any) -> None:
    from rlhf_bench.compute.forecast import lengths_of, refuse_small_budget, refuse_small_gpus

    refuse_small_gpus(settings, material.shape, material.reward_shape)
    refuse_small_budget(settings, material.shape, lengths_of(settings, material), material.reward_shape)


def _guard_local_cluster() -> None:
    """Close a cluster of our own to others by a token. Ray reads this as it is imported, so it must be set before."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if os.environ.get("RAY_ADDRESS") in ("", "local"):  # Ray's own words for none: one of our own, and closed as such
        del os.environ["RAY_ADDRESS"]
    if "RAY_ADDRESS" not in os.environ and "RAY_AUTH_MODE" not in os.environ:
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}


def _print(text: str) -> None:
    """The one way to standard output: what is printed may hold the user's data, or records that came from elsewhere."""
    print(printable(text), flush=True)


@contextmanager
def _refusing_at_once() -> Iterator[None]:
    """What is wrong with the input is said before Ray, which is starting meanwhile, has ended again."""
    try:
        yield
    except BadInput as error:
        _say(error)
        raise SystemExit(2) from None


def _say(error: BadInput) -> None:
    for problem in error.problems:
        print(f"error: {one_line(problem)}", file=sys.stderr, flush=True)


def _exit_code(command: Callable[[], Any]) -> int:
    """Run a command; its last line on failure names the cause."""
    try:
        command()
    except BadInput as error:
        _say(error)
        return 2
    except RunFailed as error:
        print(f"failed: {one_line(str(error))}", file=sys.stderr)
        return 1
    except UsageError as error:
        error.show()
        return error.exit_code
    except Stopped as stop:
        print(
            f"stopped by {stop}: the same command with the same --output goes on from the last checkpoint",
            file=sys.stderr,
        )
        return 128 + stop.number
    return 0


def _traceback(*raised: Any) -> None:
    """A defect of the program: where it was, and what was wrong, which may quote data."""
    print(printable("".join(traceback.format_exception(*raised))), end="", file=sys.stderr)


def main() -> None:
    raise_on_signals()
    sys.excepthook = _traceback
    os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    sys.exit(_exit_code(lambda: app(standalone_mode=False)))
