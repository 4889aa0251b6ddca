"""What MLflow can be told of a comparison."""

from __future__ import annotations

import math
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rlhf_bench.core.text import without_passwords
from rlhf_bench.experiment.tracking.outbox import (
    AliasSet,
    ArtifactAdded,
    DatasetUsed,
    DescriptionSet,
    Item,
    MetricsLogged,
    ModelRegistered,
    Run,
    RunEnded,
    RunRecorded,
    RunStarted,
    Status,
)

NOT_FINITE = "numbers/not_finite"


@dataclass(frozen=True)
class Dataset:
    """Some of the data of a comparison. `digest` tells it from another of that name; `source`, as JSON, what it is made of."""

    name: str
    digest: str
    context: Literal["training", "evaluation"]
    source: str
    columns: Mapping[str, str]  # name -> MLflow's name of its type
    rows: int


class Telling(ABC):
    """Each method tells MLflow one thing. How it gets there is the subclass's."""

    def __init__(self, directory: Path, run_key: str = ""):
        self._directory, self._run_key = directory, run_key
        self._open: set[tuple[str, int]] = set()

    @abstractmethod
    def _tell(self, item: Item) -> None: ...

    def start_comparison(self, run_key: str, params: Mapping[str, Any], tags: Mapping[str, Any]) -> None:
        """Begin the parent run, or resume the one that has this `run_key`. Must be called first."""
        self._run_key = run_key
        self._tell(RunStarted(Run(run_key), now(), _text(params), _text(tags)))

    def start_arm(self, name: str, seed: int, params: Mapping[str, Any], tags: Mapping[str, Any]) -> None:
        """Begin the nested run of one arm and seed, or resume the one that the comparison already has."""
        self._open.add((name, seed))
        self._tell(RunStarted(self._run(name, seed), now(), _text(params), _text(tags)))

    def log(self, arm: str | None, seed: int | None, step: int, metrics: Mapping[str, float]) -> None:
        """Log one step of an arm, or of the comparison where no arm is named. Values that are not finite are left out, and
        their number is logged as numbers/not_finite.

        A metric has every step once: what comes again, from this attempt or a later one of the same run, is left out.
        """
        finite = {name: float(value) for name, value in metrics.items() if math.isfinite(value)}
        if len(finite) < len(metrics):
            finite[NOT_FINITE] = float(len(metrics) - len(finite))
        self._tell(MetricsLogged(self._run(arm, seed), now(), step, finite))

    def end_arm(self, arm: str, seed: int, status: Status, tags: Mapping[str, Any]) -> None:
        """Close an arm's run as finished, failed (also where it diverged) or killed; the tag keeps the exact word."""
        self._open.discard((arm, seed))
        self._tell(RunEnded(self._run(arm, seed), now(), status, _text(tags)))

    def complete(self, arm: str | None = None, seed: int | None = None) -> None:
        """Say that an arm with a seed, or the comparison, has ended and DIR has all of it: what MLflow lacks of it is sent."""
        self._tell(RunRecorded(self._run(arm, seed)))

    def artifact(self, path: Path, arm: str | None = None, seed: int | None = None) -> None:
        """Attach a file to an arm's run, or to the comparison's where no arm is named. Read when its turn comes."""
        self._tell(ArtifactAdded(self._run(arm, seed), os.path.relpath(path, self._directory)))

    def describe(self, text: str, arm: str | None = None, seed: int | None = None) -> None:
        """Set the description of an arm's run, or of the comparison's: Markdown, in which a link to `artifact:NAME` leads
        to a file that is attached to the comparison."""
        self._tell(DescriptionSet(self._run(arm, seed), text))

    def uses(self, dataset: Dataset, arm: str | None = None, seed: int | None = None) -> None:
        """Say what data a run uses."""
        self._tell(DatasetUsed(self._run(arm, seed), **vars(dataset)))

    def register(self, model: str, policy: Path, arm: str, seed: int, tags: Mapping[str, Any]) -> None:
        """Attach a finished policy's folder to its arm's run, and make it a version of the registered model `model`: one
        per run, however often this is called. Read when its turn comes."""
        path = os.path.relpath(policy, self._directory)
        self._tell(ModelRegistered(self._run(arm, seed), model, path, _text(tags)))

    def alias(self, model: str, alias: str, arm: str, seed: int) -> None:
        """Name the version that was registered for an arm and seed. Takes the name from the version that had it."""
        self._tell(AliasSet(self._run(arm, seed), model, alias))

    def _run(self, arm: str | None, seed: int | None) -> Run:
        return Run(self._run_key, arm, seed)


def now() -> int:
    return int(time.time() * 1000)


def _text(values: Mapping[str, Any]) -> dict[str, str]:
    return {name: str(value) for name, value in values.items()}


def first_line(error: Exception) -> str:
    """Of its message, without passwords; or its type."""
    lines = str(error).strip().splitlines()
    return without_passwords(lines[0]) if lines else type(error).__name__
