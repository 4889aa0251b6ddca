"""What MLflow has yet to be told, on disk: DIR/tracking.jsonl, a line each, in the order of the run.

The operating system has a line before the call that writes it returns, so a killed driver loses none. Lines of another
kind, `{"delivered": BYTES}`, say how far MLflow has everything. What follows the last of them waits for this process or
for the next one that works in DIR.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from rlhf_bench.core.errors import BadInput, RunFailed
from rlhf_bench.results.schema import OUTBOX

Status = Literal["done", "diverged", "failed", "interrupted"]


class Run(NamedTuple):
    """A run in MLflow: the comparison's own, known by its key, or that of one of its arms with one seed."""

    run_key: str
    arm: str | None = None
    seed: int | None = None

    @property
    def title(self) -> str:
        return "comparison" if self.arm is None else f"{self.arm} · seed {self.seed}"

    @property
    def parent(self) -> Run:
        return Run(self.run_key)

    def __str__(self) -> str:
        return "the comparison" if self.arm is None else self.title


@dataclass(frozen=True)
class RunStarted:
    """A run begins or is resumed. `milliseconds` here and below: since 1970, when it happened."""

    run: Run
    milliseconds: int
    params: Mapping[str, str]
    tags: Mapping[str, str]

    def __str__(self) -> str:
        return f"the run of {self.run}"


@dataclass(frozen=True)
class MetricsLogged:
    """The metrics of one step of a run."""

    run: Run
    milliseconds: int
    step: int
    metrics: Mapping[str, float]

    def __str__(self) -> str:
        return f"metrics of {self.run}, step {self.step}"


@dataclass(frozen=True)
class RunEnded:
    """A run ends."""

    run: Run
    milliseconds: int
    status: Status
    tags: Mapping[str, str]

    def __str__(self) -> str:
        return f"the end of {self.run}"


@dataclass(frozen=True)
class RunRecorded:
    """An arm and seed has ended, and DIR has all of it: what MLflow lacks of it is to be sent."""

    run: Run

    def __str__(self) -> str:
        return f"what is recorded of {self.run}"


@dataclass(frozen=True)
class ArtifactAdded:
    """A file to attach to a run; `path` is relative to DIR."""

    run: Run
    path: str

    def __str__(self) -> str:
        return f"the file {Path(self.path).name}"


@dataclass(frozen=True)
class DescriptionSet:
    """A run's description in Markdown, in place of the one before. A link to `artifact:NAME` leads to that file of the
    comparison's run."""

    run: Run
    text: str

    def __str__(self) -> str:
        return f"the description of {self.run}"


@dataclass(frozen=True)
class DatasetUsed:
    """Data that a run uses. `context`: training or evaluation; `source`: what it is made of, as JSON."""

    run: Run
    name: str
    digest: str
    context: str
    source: str
    columns: Mapping[str, str]  # name -> type, as MLflow calls it
    rows: int

    def __str__(self) -> str:
        return f"the dataset {self.name} of {self.run}"


@dataclass(frozen=True)
class ModelRegistered:
    """The folder of an arm's finished policy, for the registered model `model`; `path` is relative to DIR."""

    run: Run
    model: str
    path: str
    tags: Mapping[str, str]

    def __str__(self) -> str:
        return f"the version of {self.model} by {self.run}"


@dataclass(frozen=True)
class AliasSet:
    """A name for the version that `run` has made of the registered model `model`."""

    run: Run
    model: str
    alias: str

    def __str__(self) -> str:
        return f"the alias {self.alias} of {self.model}"


Item = (
    RunStarted
    | MetricsLogged
    | RunEnded
    | RunRecorded
    | ArtifactAdded
    | DescriptionSet
    | DatasetUsed
    | ModelRegistered
    | AliasSet
)
KINDS: Mapping[str, type[Item]] = {
    "start": RunStarted,
    "points": MetricsLogged,
    "end": RunEnded,
    "recorded": RunRecorded,
    "file": ArtifactAdded,
    "note": DescriptionSet,
    "input": DatasetUsed,
    "version": ModelRegistered,
    "alias": AliasSet,
}
"""By what a line of the file calls them: written down, so that a class may get another name and old files stay readable."""
_KIND_OF = {item: kind for kind, item in KINDS.items()}


class Outbox:
    """Any thread may append; one thread reads and marks. Only one process may work in a directory at a time."""

    def __init__(self, directory: Path):
        """Open DIR's outbox, or begin one. A last line that was cut short, by a kill in the middle of a write, is
        dropped. Raises BadInput where another line cannot be read, RunFailed where the file cannot be written."""
        self.path = directory / OUTBOX
        self._lock = threading.Lock()
        self._delivered = 0
        try:
            self._file = self.path.open("ab", buffering=0)
        except OSError as error:
            raise self._unwritable(error) from error
        self._file.truncate(self._end_of_what_counts())

    def append(self, item: Item) -> None:
        """Add a line. Raises RunFailed where it cannot be written; the outbox is then as it was before."""
        self._write({"kind": _KIND_OF[type(item)], **vars(item)})

    def waiting(self) -> Iterator[tuple[Item, int]]:
        """What is not delivered, in order, each with the byte behind it. Read as it is asked for, never held at once."""
        for line, end in self._lines(self._delivered):
            if "delivered" not in line:
                yield _item(line), end

    def start_of(self, run: Run) -> RunStarted | None:
        """How that run began last, delivered or not; None where the file has nothing of it."""
        found = None
        for line, _ in self._lines(0):
            if line.get("kind") == "start" and Run(*line["run"]) == run:
                found = _item(line)
        return found if isinstance(found, RunStarted) else None

    def delivered(self, end: int) -> None:
        """Mark all before byte `end` as delivered. Raises RunFailed where that cannot be written."""
        self._write({"delivered": end})
        self._delivered = end

    def close(self) -> None:
        """Keep the file, for a reader."""
        self._file.close()

    def remove(self) -> None:
        """Delete the outbox, once everything is delivered."""
        self.close()
        self.path.unlink()

    def _write(self, line: Mapping[str, Any]) -> None:
        left = json.dumps(line, ensure_ascii=False).encode() + b"\n"
        with self._lock:
            size = os.fstat(self._file.fileno()).st_size
            try:
                while left:
                    left = left[self._file.write(left) :]
            except OSError as error:
                self._file.truncate(size)
                raise self._unwritable(error) from error

    def _unwritable(self, error: OSError) -> RunFailed:
        return RunFailed(
            f"{self.path}: cannot be written: {error.strerror}; it keeps what MLflow has yet to be told: make room, then "
            f"resume by the same command with the same --output"
        )

    def _lines(self, start: int) -> Iterator[tuple[dict[str, Any], int]]:
        """Lines from byte `start` on, each with the byte behind it; one that is being written is not there yet."""
        with self.path.open("rb") as file:
            file.seek(start)
            for line in file:
                if not line.endswith(b"\n"):
                    return
                start += len(line)
                yield json.loads(line), start

    def _end_of_what_counts(self) -> int:
        """The byte after the last whole line; 0 where nothing waits. Also finds what is delivered."""
        end = last_item = 0
        number = 1
        try:
            for line, after in self._lines(0):
                if "delivered" in line:
                    self._delivered = int(line["delivered"])
                else:
                    _item(line)
                    last_item = after
                end, number = after, number + 1
        except (ValueError, KeyError, TypeError) as error:
            with self.path.open("rb") as file:
                file.seek(end)
                file.readline()
                if file.read(1):
                    raise BadInput(
                        f"{self.path}: line {number} cannot be read; remove that line: MLflow will lack what it held"
                    ) from error
        if last_item <= self._delivered:
            self._delivered = end = 0
        return end


def _item(line: dict[str, Any]) -> Item:
    return KINDS[line.pop("kind")](**{**line, "run": Run(*line["run"])})
