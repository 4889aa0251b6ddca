"""MLflow: one experiment per recipe, a parent run per comparison, a nested child per arm and seed.

    driver ── start_comparison, start_arm, log, end_arm ──> queue ──> one thread ──> MLflow

The driver only ever puts into the queue. Importing MLflow and making a new sqlite store take seconds, and a server
may be slow or away: the thread bears that, in order, and tries again while the run goes on. What could not be
logged by the end is named by `Tracker.finish`, never dropped in silence.
"""

from __future__ import annotations

import logging
import math
import os
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Status = Literal["done", "diverged", "failed", "interrupted"]
MLFLOW_STATUS: Mapping[Status, str] = {
    "done": "FINISHED",
    "diverged": "FAILED",
    "failed": "FAILED",
    "interrupted": "KILLED",
}

RUN_KEY, ARM, SEED, STATUS = "rlhf_bench.run_key", "rlhf_bench.arm", "rlhf_bench.seed", "rlhf_bench.status"
NOT_FINITE = "numbers/not_finite"
FLUSH_SECONDS = 5.0
RETRY_SECONDS = 15.0
MOST_METRICS, MOST_PARAMS, MOST_TAGS = 1000, 100, 100  # of one log_batch request: MLflow's limits

ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    # MLflow would try for minutes before it says that a server is away.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
}
"""Set where the user has not set them, before MLflow is imported."""


def tracking_uri(uri: str | None, directory: Path) -> str:
    """The store to use: `uri`, else MLFLOW_TRACKING_URI, else a sqlite file beside the run's output `directory`."""
    return uri or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{directory.resolve().parent / 'mlflow.db'}"


def how_to_open(uri: str) -> str:
    """How a reader opens the store: a server's own address, or the command that serves it."""
    return uri if uri.startswith(("http://", "https://")) else f".venv/bin/mlflow ui --backend-store-uri '{uri}'"


def arm_title(arm: str, seed: int) -> str:
    return f"{arm} · seed {seed}"


@dataclass(frozen=True, slots=True)
class Points:
    """The metrics of one step of one arm, waiting to be logged."""

    arm: str
    seed: int
    step: int
    milliseconds: int
    metrics: Mapping[str, float]

    def __str__(self) -> str:
        return f"metrics of {arm_title(self.arm, self.seed)}, step {self.step}"


@dataclass(frozen=True, slots=True)
class Action:
    """Anything else that waits to be done at the store; `what` names it for a reader."""

    what: str
    do: Callable[[Store], None]

    def __str__(self) -> str:
        return self.what


class Tracker:
    """The driver's side. No method waits for MLflow, but for `finish`; none raises because of it.

    `on_warning` gets one line when the store first fails, and one when it first refuses something; it is called
    from the tracker's thread.
    """

    def __init__(self, uri: str | None, experiment: str, directory: Path, on_warning: Callable[[str], None] = print):
        self.uri = tracking_uri(uri, directory)
        self._experiment = experiment
        self._artifacts = directory.resolve().parent / "mlartifacts"
        self._on_warning = on_warning
        self._warned: set[str] = set()
        self._queue: queue.SimpleQueue[Points | Action | None] = queue.SimpleQueue()
        self._lost: list[str] = []
        self._open: set[tuple[str, int]] = set()
        # A daemon, so that a driver that dies does not hang on a server that is away.
        self._thread = threading.Thread(target=self._work, name="tracking", daemon=True)
        self._thread.start()

    def start_comparison(self, run_key: str, params: Mapping[str, Any], tags: Mapping[str, Any]) -> None:
        """Begin the parent run, or carry on with the one that has this `run_key`."""
        self._do("the comparison's run", lambda store: store.start_parent(run_key, params, tags))

    def start_arm(self, name: str, seed: int, params: Mapping[str, Any], tags: Mapping[str, Any]) -> None:
        """Begin the nested run of one arm and seed, or carry on with the one the comparison already has."""
        self._open.add((name, seed))
        self._do(f"the run of {arm_title(name, seed)}", lambda store: store.start_child(name, seed, params, tags))

    def log(self, arm: str, seed: int, step: int, metrics: Mapping[str, float]) -> None:
        """Log one step. Values that are not finite are left out; their number is logged as numbers/not_finite.

        A step that an earlier attempt of the same arm logged already is not logged twice.
        """
        finite = {name: float(value) for name, value in metrics.items() if math.isfinite(value)}
        if len(finite) < len(metrics):
            finite[NOT_FINITE] = float(len(metrics) - len(finite))
        self._queue.put(Points(arm, seed, step, int(time.time() * 1000), finite))

    def end_arm(self, arm: str, seed: int, status: Status, tags: Mapping[str, Any]) -> None:
        """Close an arm's run as finished, failed (also where it diverged) or killed; the tag keeps the exact word."""
        self._open.discard((arm, seed))
        self._do(f"the end of {arm_title(arm, seed)}", lambda store: store.end((arm, seed), status, tags))

    def artifact(self, path: Path, arm: str | None = None, seed: int | None = None) -> None:
        """Attach a file to an arm's run, or to the comparison's where no arm is named. Read when its turn comes."""
        run = None if arm is None or seed is None else (arm, seed)
        self._do(f"the file {path.name}", lambda store: store.artifact(run, path))

    def finish(self, status: Status) -> list[str]:
        """Log what still waits, close every run that is open, and say what could not be logged, a line each."""
        for arm, seed in sorted(self._open):
            self.end_arm(arm, seed, "interrupted" if status == "done" else status, {})
        self._do("the end of the comparison", lambda store: store.end(None, status, {}))
        self._queue.put(None)
        self._thread.join()
        return self._lost

    def _do(self, what: str, do: Callable[[Store], None]) -> None:
        self._queue.put(Action(what, do))

    # Below: the tracker's thread.

    def _work(self) -> None:
        waiting: deque[Points | Action] = deque()
        store: Store | None = None
        pause, ending = FLUSH_SECONDS, False
        while not ending:
            ending = self._collect(waiting, pause)
            try:
                store = store or Store(self.uri, self._experiment, self._artifacts)
                self._log_all(store, waiting)
                pause = FLUSH_SECONDS
            except Exception as error:  # whatever MLflow, its store or the network raises: the run goes on
                self._warn("away", f"MLflow at {self.uri} is not to be had; the run goes on: {_line(error)}")
                pause = RETRY_SECONDS
        self._lost += [str(item) for item in waiting]

    def _collect(self, waiting: deque[Points | Action], seconds: float) -> bool:
        """Move what the driver puts into `waiting` for so many seconds. True, at once, when `finish` was called."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            try:
                item = self._queue.get(timeout=left)
            except queue.Empty:
                return False
            if item is None:
                return True
            waiting.append(item)
        return False

    def _log_all(self, store: Store, waiting: deque[Points | Action]) -> None:
        """Log `waiting` in order; what is logged, or refused for good, leaves it. Raises where the store is away."""
        while waiting:
            batch = _next(waiting)
            try:
                if isinstance(batch[0], Action):
                    batch[0].do(store)
                else:
                    store.log(batch)
            except Exception as error:
                if not _refused(error):
                    raise
                self._warn("refused", f"MLflow refused {batch[0]}: {_line(error)}")
                self._lost += [f"{item}: {_line(error)}" for item in batch]
            for _ in batch:
                waiting.popleft()

    def _warn(self, kind: str, line: str) -> None:
        if kind not in self._warned:
            self._warned.add(kind)
            self._on_warning(line)


def _next(waiting: deque[Points | Action]) -> list:
    """The next action alone, or the next points of one arm that fit into one request."""
    first = waiting[0]
    if isinstance(first, Action):
        return [first]
    batch: list[Points] = []
    metrics = 0
    for item in waiting:
        if isinstance(item, Action) or (item.arm, item.seed) != (first.arm, first.seed):
            break
        metrics += len(item.metrics)
        if batch and metrics > MOST_METRICS:
            break
        batch.append(item)
    return batch


def _refused(error: Exception) -> bool:
    """Would the same request fail again? So if the server calls it wrong, the file cannot be read, or its run
    never began. (Not OSError at large: a lost connection is one too.)"""
    from mlflow.exceptions import MlflowException

    if isinstance(error, MlflowException):
        return 400 <= error.get_http_status_code() < 500 and error.get_http_status_code() != 429
    return isinstance(error, (FileNotFoundError, IsADirectoryError, PermissionError, KeyError, TypeError, ValueError))


def _line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


class Store:
    """The tracking thread's side: MLflow calls, and the ids of the runs. `None` stands for the comparison's own run."""

    def __init__(self, uri: str, experiment: str, artifacts: Path):
        for name, value in ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        from mlflow.tracking import MlflowClient

        logging.getLogger("alembic").setLevel(logging.WARNING)  # a line per migration of a new sqlite store
        self._client = MlflowClient(tracking_uri=uri)
        found = self._client.get_experiment_by_name(experiment)
        # A server knows where its artifacts go. Without one it would be the working directory: name a lasting place.
        location = None if uri.startswith(("http://", "https://")) else artifacts.as_uri()
        self._experiment = found.experiment_id if found else self._client.create_experiment(experiment, location)
        self._runs: dict[tuple[str, int] | None, str] = {}
        self._logged: dict[tuple[str, int], dict[str, int]] = {}

    def start_parent(self, run_key: str, params: Mapping[str, Any], tags: Mapping[str, Any]) -> None:
        run = self._find(f"tags.`{RUN_KEY}` = '{run_key}' and tags.`{ARM}` = ''")
        self._begin(None, run, "comparison", params, {**tags, RUN_KEY: run_key, ARM: ""})

    def start_child(self, arm: str, seed: int, params: Mapping[str, Any], tags: Mapping[str, Any]) -> None:
        parent = self._runs[None]
        own = {**tags, "mlflow.parentRunId": parent, ARM: arm, SEED: seed}
        same_arm = f"tags.`{ARM}` = '{arm}' and tags.`{SEED}` = '{seed}'"
        run = self._find(f"tags.`mlflow.parentRunId` = '{parent}' and {same_arm}")
        self._begin((arm, seed), run, arm_title(arm, seed), params, own)

    def log(self, batch: list[Points]) -> None:
        from mlflow.entities import Metric

        run = (batch[0].arm, batch[0].seed)
        last = {name: self._last_step(run, name) for points in batch for name in points.metrics}
        metrics = [
            Metric(name, value, points.milliseconds, points.step)
            for points in batch
            for name, value in points.metrics.items()
            if points.step > last[name]
        ]
        if metrics:
            self._client.log_batch(self._runs[run], metrics=metrics)

    def end(self, run: tuple[str, int] | None, status: Status, tags: Mapping[str, Any]) -> None:
        self._describe(self._runs[run], {}, {**tags, STATUS: status})
        self._client.set_terminated(self._runs[run], MLFLOW_STATUS[status])

    def artifact(self, run: tuple[str, int] | None, path: Path) -> None:
        self._client.log_artifact(self._runs[run], str(path))

    def _find(self, condition: str) -> Any:
        return next(iter(self._client.search_runs([self._experiment], condition, max_results=1)), None)

    def _begin(self, key: tuple[str, int] | None, found: Any, title: str, params: Mapping, tags: Mapping) -> None:
        if found is None:
            run = self._client.create_run(self._experiment, tags=_text(tags), run_name=title)
        else:
            run = found
            self._client.update_run(run.info.run_id, status="RUNNING")
            if key is not None:  # its metrics stand already up to some step: looked up when one is next logged
                self._logged[key] = {}
        self._runs[key] = run.info.run_id
        self._describe(run.info.run_id, params, tags)

    def _last_step(self, run: tuple[str, int], metric: str) -> int:
        """The last step that an earlier attempt logged of `metric`; -1 where there was none."""
        if run not in self._logged:
            return -1
        if metric not in self._logged[run]:
            history = self._client.get_metric_history(self._runs[run], metric)
            self._logged[run][metric] = max((point.step for point in history), default=-1)
        return self._logged[run][metric]

    def _describe(self, run_id: str, params: Mapping[str, Any], tags: Mapping[str, Any]) -> None:
        from mlflow.entities import Param, RunTag

        all_params = [Param(name, value) for name, value in _text(params).items()]
        all_tags = [RunTag(name, value) for name, value in _text(tags).items()]
        for start in range(0, len(all_params), MOST_PARAMS):
            self._client.log_batch(run_id, params=all_params[start : start + MOST_PARAMS])
        for start in range(0, len(all_tags), MOST_TAGS):
            self._client.log_batch(run_id, tags=all_tags[start : start + MOST_TAGS])


def _text(values: Mapping[str, Any]) -> dict[str, str]:
    return {name: str(value) for name, value in values.items()}
