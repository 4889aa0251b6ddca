"""What a comparison is asked for, and what it works with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rlhf_bench.experiment.progress import ProgressDisplay
from rlhf_bench.experiment.scheduler import Worker
from rlhf_bench.experiment.tracking.tracker import Tracker
from rlhf_bench.recipe import Recipe
from rlhf_bench.training.cache import Cache
from rlhf_bench.training.inputs import Inputs

if TYPE_CHECKING:
    from rlhf_bench.report.page import Elsewhere


@dataclass(frozen=True)
class ComparisonSpec:
    """What is asked: these arms and seeds of a recipe, compared on these inputs, into one directory."""

    recipe: Recipe
    directory: Path
    inputs: Inputs
    arms: Sequence[str]
    seeds: Sequence[int]

    @property
    def runs(self) -> list[tuple[str, int]]:
        """Arm and seed of every run, seed by seed: a comparison that is cut short has still compared all arms."""
        return [(arm, seed) for seed in self.seeds for arm in self.arms]


@dataclass(frozen=True)
class Runtime:
    """What a comparison works with: its workers, and where its results and messages go."""

    first: Worker  # does all the work before the arms
    others: Sequence[
        Callable[[], Worker | None]
    ]  # each waits until its worker is ready; None if there was no room for it
    end_workers: Callable[[], None]  # makes every wait for an engine raise an error
    cache: Cache
    tracker: Tracker
    display: ProgressDisplay
    tags: Mapping[str, str]  # run_key, commit, ray_submission_id, recipe, machine: on every run in MLflow
    versions: Mapping[str, str]  # of what computes, by package
    threads: Callable[[], Mapping[str, str]]  # asks the first worker's processes with how many they compute, by role
    began: float  # when the program started, in seconds of `perf_counter`
    # Starts the process that draws a part of the report, some time before it is needed. None: no report is written.
    begin_report: Callable[[], Elsewhere] | None
