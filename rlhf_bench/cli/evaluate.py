"""`rlhf-bench evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rlhf_bench.cli.options import open_cache, say_aside, write_line
from rlhf_bench.cli.track import send
from rlhf_bench.core.errors import BadInput, Problems
from rlhf_bench.core.lock import held

if TYPE_CHECKING:
    from rlhf_bench.results.reader import RecordedComparison


def evaluate(
    directory: Annotated[Path, typer.Argument(help="the --output of a run that has ended")],
    tasks: Annotated[
        str,
        typer.Option(help="tasks, groups or tags of lm-eval, with commas between: ifeval,gsm8k", show_default=False),
    ],
    include_path: Annotated[
        Path | None,
        typer.Option(
            help="a folder with tasks of your own as lm-eval's YAML, which may read local files", show_default=False
        ),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(min=1, help="ask only the first so many prompts of each task, to try it out", show_default="all"),
    ] = None,
    arm: Annotated[
        list[str] | None,
        typer.Option(help="this arm, or `base` (repeatable)", show_default="the base policy and all arms"),
    ] = None,
    seed: Annotated[list[int] | None, typer.Option(help="this seed (repeatable)", show_default="all seeds")] = None,
) -> None:
    r"""Measure finished policies and the base policy on outside benchmarks, by lm-eval.

    It needs an extra: python -m pip install --editable '.\[benchmarks]'.

    The numbers go to benchmarks.json, summary.json, the report and MLflow, with intervals over seeds and prompts. What was measured
    before, of the same weights on the same prompts, is not measured again: a command that was cut short goes on where it was.
    Prompts are put in the chat template where the recipe uses one. A task whose data set is not within reach is refused before
    anything is loaded; docs/mlflow.md shows a task that reads a local file.

    Tasks may bring code, which runs with your rights: lm-eval's own, and what a YAML file of yours names.

    Example: rlhf-bench evaluate outputs/quickstart --tasks ifeval --limit 20
    """
    from rlhf_bench.experiment.harness import check_installed
    from rlhf_bench.report.series import series_labels
    from rlhf_bench.results.reader import read_recorded

    check_installed()
    places = {label: directory / label for label in series_labels(directory) or [""]}
    recorded = {label: read_recorded(place) for label, place in places.items()}
    with held(directory, say_aside):
        _measure(recorded, _names(tasks), include_path, limit, (arm or [], seed or []))
    _write_reports(directory, list(places))
    send(places)


def _names(tasks: str) -> list[str]:
    names = [name.strip() for name in tasks.split(",") if name.strip()]
    if not names:
        raise BadInput("--tasks: name one task or more, such as ifeval; `lm-eval ls tasks` shows all")
    return names


def _measure(
    recorded: dict[str, RecordedComparison],
    names: list[str],
    include: Path | None,
    limit: int | None,
    chosen: tuple[list[str], list[int]],
) -> None:
    """BadInput with all that is wrong, before a policy is loaded."""
    from rlhf_bench.experiment.benchmarking import measure_policies
    from rlhf_bench.experiment.harness import Harness
    from rlhf_bench.experiment.policies import policies

    problems, cache, found = Problems(), open_cache(), {}
    if include is not None and not include.is_dir():
        problems.add(f"--include-path {include}: no such folder; name one that holds YAML files of tasks")
        include = None
    for label, one in recorded.items():
        with problems.step():
            found[label] = policies(one, cache, *chosen)
    say_aside("evaluate: lm-eval reads its tasks")
    model: dict[str, Any] = next(iter(recorded.values())).recipe["model"]  # the same in all comparisons of a series
    harness = Harness(include, limit, bool(model["tokenizer"].get("chat_template")), model["dtype"])
    benchmarks = []
    with problems.step():
        benchmarks = harness.benchmarks(names)
    problems.refuse()
    for label, own in found.items():
        measure_policies(recorded[label].directory, harness, own, benchmarks, write_line)


def _write_reports(directory: Path, labels: list[str]) -> None:
    from rlhf_bench.report import write_report
    from rlhf_bench.report.sections.benchmarks import benchmark_rows
    from rlhf_bench.report.series import write_series
    from rlhf_bench.report.tables import text_table

    if labels != [""]:
        write_series(directory, labels)
        return
    if rows := benchmark_rows(write_report(directory)):
        write_line("\n".join(text_table(rows, "outside benchmarks [95% interval]", ("Task", "Metric"))))
    write_line(f"report: {(directory / 'report.html').resolve()}")
