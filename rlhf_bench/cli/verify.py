"""`rlhf-bench verify`."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rlhf_bench.cli import BEGAN
from rlhf_bench.cli.options import Quiet, say_aside, write_line
from rlhf_bench.cli.run import chosen, guard_local_cluster, refusing_at_once
from rlhf_bench.core.errors import BadInput, RunFailed
from rlhf_bench.core.lock import held

if TYPE_CHECKING:
    from rlhf_bench.experiment.spec import ComparisonSpec
    from rlhf_bench.recipe import Recipe
    from rlhf_bench.results.reproduction import Check
    from rlhf_bench.training.cache import Cache


def verify(
    page: Annotated[
        Path,
        typer.Argument(help="a page NAME.md with its data in data/NAME beside it, or a folder of recorded data"),
    ],
    arm: Annotated[
        list[str] | None, typer.Option(help="train this arm too (repeatable); with --seed alone, all arms")
    ] = None,
    seed: Annotated[
        list[int] | None, typer.Option(help="with this seed (repeatable); with --arm alone, all seeds")
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="keep what is made, in this new directory", show_default="a temporary one")
    ] = None,
    files: Annotated[
        bool, typer.Option("--files", help="only look whether the recorded files are whole; nothing is run")
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Say whether what was recorded is whole, and whether today's code on this machine gives the same numbers.

    First come the files: finished arms by their checksums, checkpoints by their manifests; exit code 1 where one is damaged.
    Then the recipe is run again: base policy and pairs are made anew, without the cache, and the base policy is evaluated; so
    are arms and seeds that are asked for. Each number is the same to the last bit or it differs; so does what it was made
    with. Exit code 1 where a number differs.

    Example: rlhf-bench verify docs/results/verse.md --seed 1
    """
    data = recorded_data(page)
    _verify_files(data, page)
    if files:
        return
    with _place(output) as place:
        again = [
            Again(data / label, place / (label or "now"), label, _recipe(data / label, place))
            for label in _labels(data)
        ]
        checks = _run(again, place, (arm, seed), quiet)
    write_line("\n".join(report_lines(checks)))
    differing = [check for check in checks if check.number and check.outcome == "differs"]
    if differing:
        compared = sum(check.number and check.outcome != "not recorded" for check in checks)
        raise RunFailed(f"{page}: {len(differing)} of {compared} numbers differ from what is recorded")


def _verify_files(data: Path, page: Path) -> None:
    """Print a line for every file that is damaged or missing, and how many are whole. Raises RunFailed where one is not."""
    from rlhf_bench.experiment.file_checks import file_checks

    checks = [(label, check) for label in _labels(data) for check in file_checks(data / label)]
    for label, check in checks:
        if check.wrong:
            write_line(f"DAMAGED: {Path(label, check.path)} {check.wrong}")
    damaged = sum(check.wrong is not None for _, check in checks)
    compared = sum(check.compared and not check.wrong for _, check in checks)
    write_line(
        f"{len(checks) - damaged} of {len(checks)} files are whole: {compared} by their checksums, the others can be read"
    )
    if damaged:
        raise RunFailed(
            f"{page}: {damaged} of {len(checks)} files are damaged or missing; the command that made them says what to do"
        )


@dataclass(frozen=True)
class Again:
    """A recorded comparison that is run again."""

    data: Path
    directory: Path
    label: str  # of a series' comparison; else empty
    recipe: Recipe

    def spec(self, cache: Cache, arms: list[str] | None, seeds: list[int] | None) -> ComparisonSpec:
        """What is run: no arm where neither arms nor seeds are asked for. Trials are taken as recorded."""
        from rlhf_bench.experiment.spec import ComparisonSpec
        from rlhf_bench.results.directory import first_day, open_directory
        from rlhf_bench.results.given import recorded_given
        from rlhf_bench.results.schema import FIRST_DAY, TUNING
        from rlhf_bench.training.inputs import prepare_inputs

        asked_arms, asked_seeds = chosen(arms, seeds, self.recipe)
        day = first_day(self.data)
        inputs = prepare_inputs(self.recipe, cache, day=day, before=recorded_given(self.data))
        if inputs.codec.day is not None and day is None:
            raise BadInput(
                f"{self.data}: the chat template writes the date, and {FIRST_DAY} is not there, which would say of what day the "
                "prompts are; write that day into it, such as 2026-01-31"
            )
        open_directory(self.directory, self.recipe, inputs.fingerprint["data"], inputs.codec.day, inputs.given)
        if (self.data / TUNING).exists():
            shutil.copyfile(self.data / TUNING, self.directory / TUNING)
        return ComparisonSpec(self.recipe, self.directory, inputs, asked_arms if arms or seeds else [], asked_seeds)

    def checks(self) -> list[Check]:
        """What was recorded against what this run has recorded."""
        from rlhf_bench.results.reproduction import arm_checks, base_checks, made_with
        from rlhf_bench.results.schema import BASE_JSON, RESULTS

        base, results = (
            [json.loads((folder / name).read_text(encoding="utf-8")) for folder in (self.data, self.directory)]
            for name in (BASE_JSON, RESULTS)
        )
        numbers = base_checks(*base) + arm_checks(*results)
        named = [replace(check, name=f"{self.label}: {check.name}") for check in numbers] if self.label else numbers
        return named + made_with(*results)


def _run(again: list[Again], place: Path, asked: tuple[list[str] | None, list[int] | None], quiet: bool) -> list[Check]:
    """With a cache of its own, which is empty: in the user's, other code may have made what is to be checked."""
    guard_local_cluster()
    from actors.ray_cluster import cluster

    with cluster() as ready, refusing_at_once():
        from rlhf_bench.training.cache import Cache

        cache, began = Cache(place / "cache"), BEGAN
        specs = [one.spec(cache, *asked) for one in again]

        from actors.driver import Job, run_on_cluster

        ready()
        for spec in specs:
            run_on_cluster(Job(spec=spec, cache=cache, began=began, quiet=quiet, reported=False))
            began = perf_counter()
    return [check for one in again for check in one.checks()]


def recorded_data(page: Path) -> Path:
    """The folder of what was recorded for a page, or the folder that is given."""
    data = page if page.is_dir() else page.parent / "data" / page.stem
    if not data.is_dir():
        raise BadInput(
            f"{page}: there is no folder {data} with its recorded data; name a page that `report --page` wrote"
        )
    return data


def report_lines(checks: list[Check]) -> list[str]:
    """A line for every number, then for all that differs in what they were made with, then how it ends."""
    numbers, made = [c for c in checks if c.number], [c for c in checks if not c.number]
    found = [check.line for check in numbers]
    other = list(dict.fromkeys(check.line for check in made if check.outcome != "same"))
    found += other or ["same: commit, machine, threads and versions"]
    same = sum(check.outcome == "same" for check in numbers)
    unknown = sum(check.outcome == "not recorded" for check in numbers)
    compared = len(numbers) - unknown
    ending = f"{same} of {compared} numbers are the same to the last bit"
    return [*found, ending + (f"; {unknown} more were not recorded" if unknown else "")]


@contextmanager
def _place(output: Path | None) -> Iterator[Path]:
    """A directory for what is made, with nothing in it: whatever was made before, other code may have made."""
    if output is None:
        aside = Path(tempfile.mkdtemp(prefix="rlhf-verify-"))
        try:
            yield aside
        finally:
            shutil.rmtree(aside, ignore_errors=True)
        return
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise BadInput(f"--output {output}: is not empty, and everything is made anew; choose another directory")
    with held(output, say_aside):
        yield output.resolve()


def _labels(data: Path) -> list[str]:
    """The comparisons of a series; one without a label where it is none."""
    from rlhf_bench.report.series import series_labels

    return series_labels(data) or [""]


def _recipe(data: Path, place: Path) -> Recipe:
    """As it was recorded, but that MLflow's store is in `place`: a check is no run of the user's."""
    from rlhf_bench.core.yaml import read_yaml
    from rlhf_bench.recipe import parse_recipe
    from rlhf_bench.results.reader import read_recorded
    from rlhf_bench.results.schema import RECIPE

    commit = read_recorded(data).results.get("commit") or "not recorded"
    recorded: dict[str, Any] = read_yaml((data / RECIPE).read_text(encoding="utf-8"))
    try:
        return parse_recipe(recorded | {"tracking": {"uri": f"sqlite:///{place / 'mlflow.db'}"}})
    except BadInput as error:
        remedy = (
            f"another version of rlhf-bench recorded it (commit {commit}): verify it with that one, or run it again"
        )
        raise BadInput(*(f"{data / RECIPE}: {problem}" for problem in error.problems), f"{data}: {remedy}") from None
