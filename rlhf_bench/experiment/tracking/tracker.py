"""MLflow: one experiment per recipe, a parent run per comparison, a nested child per arm and seed.

    driver ── start_comparison, start_arm, log, end_arm ──> outbox on disk ──> one thread ──> MLflow

The driver only appends to the outbox. To import MLflow and to make a new sqlite store takes seconds, and a server may be
slow or away for days: the thread waits for that, keeps the order, and retries while the run continues. What MLflow has
not received by the end, or when the driver is killed, waits in the outbox for the next run in the same directory. What
MLflow refuses is named by `Tracker.finish`, never dropped in silence.
"""

from __future__ import annotations

import math
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rlhf_bench.core.text import without_passwords
from rlhf_bench.experiment.tracking.mlflow_store import MAX_METRICS, Store, refused
from rlhf_bench.experiment.tracking.outbox import (
    AliasSet,
    ArtifactAdded,
    DatasetUsed,
    DescriptionSet,
    Item,
    MetricsLogged,
    ModelRegistered,
    Outbox,
    Run,
    RunEnded,
    RunStarted,
    Status,
)

NOT_FINITE = "numbers/not_finite"
FLUSH_SECONDS = 5.0
RETRY_SECONDS = 15.0
PATIENCE_SECONDS = 15.0  # how long `finish` retries while the store is away
FINISH_SECONDS = 120.0  # the longest that `finish` waits for a store that is there but slow


def tracking_uri(uri: str | None, directory: Path) -> str:
    """The store to use: `uri`, else MLFLOW_TRACKING_URI, else a sqlite file beside the run's output `directory`."""
    return uri or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{directory.resolve().parent / 'mlflow.db'}"


def how_to_open(uri: str) -> str:
    """How a reader opens the store: a server's own address, or the command that serves it. Without credentials."""
    shown = without_passwords(uri)
    return shown if uri.startswith(("http://", "https://")) else f".venv/bin/mlflow ui --backend-store-uri '{shown}'"


@dataclass(frozen=True)
class Dataset:
    """Some of the data of a comparison. `digest` tells it from another of that name; `source`, as JSON, what it is made of."""

    name: str
    digest: str
    context: Literal["training", "evaluation"]
    source: str
    columns: Mapping[str, str]  # name -> MLflow's name of its type
    rows: int


class Tracker:
    """The driver's side. Only `finish` waits for MLflow, for a bounded time; no method raises because of
    it. All methods that tell MLflow something raise RunFailed where the outbox in `directory` cannot be written.

    `on_warning` gets one line when the store first fails, and one when it first refuses something; it is called from
    the tracker's thread, and not after `finish`. What an earlier run left in the outbox is delivered first.
    """

    def __init__(self, uri: str | None, experiment: str, directory: Path, on_warning: Callable[[str], None] = print):
        self.uri = tracking_uri(uri, directory)
        self._experiment = experiment
        self._directory = directory
        self._on_warning = on_warning
        self._outbox = Outbox(directory)
        self._run_key = ""
        self._open: set[tuple[str, int]] = set()
        self._warned: set[str] = set()
        self._lost: list[str] = []
        self._finishing, self._patience_ends = threading.Event(), math.inf
        self._given_up = False
        # A daemon, so that a driver that dies does not wait for a server that is away.
        self._thread = threading.Thread(target=self._work, name="tracking", daemon=True)
        self._thread.start()

    def start_comparison(self, run_key: str, params: Mapping[str, Any], tags: Mapping[str, Any]) -> None:
        """Begin the parent run, or resume the one that has this `run_key`. Must be called first."""
        self._run_key = run_key
        self._outbox.append(RunStarted(Run(run_key), _now(), _text(params), _text(tags)))

    def start_arm(self, name: str, seed: int, params: Mapping[str, Any], tags: Mapping[str, Any]) -> None:
        """Begin the nested run of one arm and seed, or resume the one that the comparison already has."""
        self._open.add((name, seed))
        self._outbox.append(RunStarted(self._run(name, seed), _now(), _text(params), _text(tags)))

    def log(self, arm: str | None, seed: int | None, step: int, metrics: Mapping[str, float]) -> None:
        """Log one step of an arm, or of the comparison where no arm is named. Values that are not finite are left out, and
        their number is logged as numbers/not_finite.

        A metric has every step once: what comes again, from this attempt or a later one of the same run, is left out.
        """
        finite = {name: float(value) for name, value in metrics.items() if math.isfinite(value)}
        if len(finite) < len(metrics):
            finite[NOT_FINITE] = float(len(metrics) - len(finite))
        self._outbox.append(MetricsLogged(self._run(arm, seed), _now(), step, finite))

    def end_arm(self, arm: str, seed: int, status: Status, tags: Mapping[str, Any]) -> None:
        """Close an arm's run as finished, failed (also where it diverged) or killed; the tag keeps the exact word."""
        self._open.discard((arm, seed))
        self._outbox.append(RunEnded(self._run(arm, seed), _now(), status, _text(tags)))

    def artifact(self, path: Path, arm: str | None = None, seed: int | None = None) -> None:
        """Attach a file to an arm's run, or to the comparison's where no arm is named. Read when its turn comes."""
        self._outbox.append(ArtifactAdded(self._run(arm, seed), os.path.relpath(path, self._directory)))

    def describe(self, text: str, arm: str | None = None, seed: int | None = None) -> None:
        """Set the description of an arm's run, or of the comparison's: Markdown, in which a link to `artifact:NAME` leads
        to a file that is attached to the comparison."""
        self._outbox.append(DescriptionSet(self._run(arm, seed), text))

    def uses(self, dataset: Dataset, arm: str | None = None, seed: int | None = None) -> None:
        """Say what data a run uses."""
        self._outbox.append(DatasetUsed(self._run(arm, seed), **vars(dataset)))

    def register(self, model: str, policy: Path, arm: str, seed: int, tags: Mapping[str, Any]) -> None:
        """Attach a finished policy's folder to its arm's run, and make it a version of the registered model `model`: one
        per run, however often this is called. Read when its turn comes."""
        path = os.path.relpath(policy, self._directory)
        self._outbox.append(ModelRegistered(self._run(arm, seed), model, path, _text(tags)))

    def alias(self, model: str, alias: str, arm: str, seed: int) -> None:
        """Name the version that was registered for an arm and seed. Takes the name from the version that had it."""
        self._outbox.append(AliasSet(self._run(arm, seed), model, alias))

    def finish(self, status: Status) -> list[str]:
        """Close every run that is open, wait until MLflow has it all, and say what it has not got, a line each.

        Waits PATIENCE_SECONDS and one request for a store that is away, FINISH_SECONDS for one that is slow.
        """
        for arm, seed in sorted(self._open):
            self.end_arm(arm, seed, "interrupted" if status == "done" else status, {})
        self._outbox.append(RunEnded(Run(self._run_key), _now(), status, {}))
        self._patience_ends = time.monotonic() + PATIENCE_SECONDS
        self._finishing.set()
        self._thread.join(FINISH_SECONDS)
        self._given_up = True
        waiting = sum(1 for _ in self._outbox.waiting())
        if not waiting:
            self._outbox.remove()
            return self._lost
        return [
            *self._lost,
            f"{waiting} records, which wait in {self._outbox.path}: the same command with the same --output delivers "
            f"them; no result in {self._directory} needs them",
        ]

    def _run(self, arm: str | None, seed: int | None) -> Run:
        return Run(self._run_key, arm, seed)

    # Below: the tracker's thread.

    def _work(self) -> None:
        store: Store | None = None
        pause = FLUSH_SECONDS
        while not self._given_up:
            finishing = self._finishing.wait(pause)  # which cuts the pause short
            try:
                store = store or Store(self.uri, self._experiment, self._directory)
                self._deliver(store)
            except Exception as error:  # whatever MLflow, its store or the network raises: the run continues
                self._warn(
                    "away",
                    f"MLflow at {self.uri} cannot be reached for now: {_line(error)}; the run continues, and what MLflow is to "
                    f"get waits in {self._outbox.path}",
                )
                pause = RETRY_SECONDS
                if store:
                    store.forget()
                if finishing and time.monotonic() > self._patience_ends:
                    return
                if finishing:
                    time.sleep(min(1.0, RETRY_SECONDS))
            else:
                pause = FLUSH_SECONDS
                if finishing:
                    return

    def _deliver(self, store: Store) -> None:
        """Send what waits, in order, and mark what is sent or refused for good. Raises where the store is away."""
        for batches, end in _lots(self._outbox.waiting()):
            for batch in batches:
                if self._given_up:
                    return
                self._send(store, batch)
            self._outbox.delivered(end)

    def _send(self, store: Store, batch: list[Item]) -> None:
        try:
            store.send(batch)
        except Exception as error:
            if not refused(error):
                raise
            if len(batch) > 1:  # one by one, so that what is wrong with one step costs no other
                for item in batch:
                    self._send(store, [item])
                return
            self._warn("refused", f"MLflow refused {batch[0]}: {_line(error)}")
            self._lost.append(f"{batch[0]}: {_line(error)}")

    def _warn(self, kind: str, line: str) -> None:
        if kind not in self._warned and not self._given_up:
            self._warned.add(kind)
            self._on_warning(without_passwords(line))


def _lots(items: Iterable[tuple[Item, int]]) -> Iterator[tuple[list[list[Item]], int]]:
    """Items as they are sent, in batches: points of one run together, as many as fit into one request, also where those of
    arms beside each other come in turn; anything else alone. Each lot of batches with the outbox's byte behind it."""
    lot: dict[Run, list[Item]] = {}
    metrics: Counter[Run] = Counter()
    end = 0
    for item, after in items:
        own = len(item.metrics) if isinstance(item, MetricsLogged) else MAX_METRICS + 1
        if lot and metrics[item.run] + own > MAX_METRICS:
            yield list(lot.values()), end
            lot, metrics = {}, Counter()
        if not isinstance(item, MetricsLogged):
            yield [[item]], after
            continue
        lot.setdefault(item.run, []).append(item)
        metrics[item.run] += own
        end = after
    if lot:
        yield list(lot.values()), end


def _line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return without_passwords(lines[0]) if lines else type(error).__name__


def _now() -> int:
    return int(time.time() * 1000)


def _text(values: Mapping[str, Any]) -> dict[str, str]:
    return {name: str(value) for name, value in values.items()}
