"""The calls to MLflow: what is in the outbox becomes runs, metrics, tags and artifacts.

Every item may come a second time: after a crash, or when an answer was lost, it is not known what arrived. So the store
searches for a run's tags before it makes the run, and for a metric's step before it logs one.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import sqlite3
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from rlhf_bench.core.errors import BadInput
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
from rlhf_bench.experiment.tracking.recorded import Records

MLFLOW_STATUS: Mapping[Status, str] = {
    "done": "FINISHED",
    "diverged": "FAILED",
    "failed": "FAILED",
    "interrupted": "KILLED",
}

RUN_KEY, ARM, SEED, STATUS = "rlhf_bench.run_key", "rlhf_bench.arm", "rlhf_bench.seed", "rlhf_bench.status"
NOTE = "mlflow.note.content"  # the tag that MLflow's pages show as a run's description
ARTIFACT_LINK = "](artifact:"
FILES = "rlhf_bench.files"  # the tag with the SHA-256 of every file that a run has
POLICY = "policy"  # folder of a finished policy among its run's artifacts
MAX_METRICS, MAX_PARAMS, MAX_TAGS = 1000, 100, 100  # of one log_batch request: MLflow's limits

ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",  # seconds; a server that takes longer counts as away
}
"""Set where the user has not set them, before MLflow is imported."""


class Store:
    """An MLflow store. What it keeps of runs and steps saves requests, and is found again where it is not there."""

    def __init__(self, uri: str, experiment: str, directory: Path, start_of: Callable[[Run], RunStarted]):
        """`start_of`: how a run began that the store does not know; LookupError or FileNotFoundError where that is not known."""
        for name, value in ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        # The tracker tries again itself, after it has checked what arrived. If MLflow's client repeated a request whose
        # answer was lost, there could be a second run.
        os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "0"
        from mlflow.tracking import MlflowClient

        logging.getLogger("alembic").setLevel(logging.WARNING)  # a line per migration of a new sqlite store
        logging.getLogger("mlflow").setLevel(os.environ["MLFLOW_LOGGING_LEVEL"])  # where it was imported before
        self._directory, self._start_of = directory, start_of
        self._client = MlflowClient(tracking_uri=uri)
        # A server knows where its artifacts go. Without one it would be the working directory: name a lasting place.
        artifacts = (directory.resolve().parent / "mlartifacts").as_uri()
        self._name, self._location = experiment, None if uri.startswith(("http://", "https://")) else artifacts
        self.added: Counter[str] = Counter()  # runs, points, files and versions that the store did not have
        self.forget()
        self.check_experiment()

    def forget(self) -> None:
        """After an error: what the store has is not known."""
        self._ids: dict[Run, str] = {}
        self._made_here: set[Run] = set()
        self._steps: dict[Run, dict[str, set[int]]] = {}
        self._experiment_id: str | None = None

    @property
    def _experiment(self) -> str:
        if self._experiment_id is None:
            found = self._client.get_experiment_by_name(self._name)
            made = found.experiment_id if found else self._client.create_experiment(self._name, self._location)
            self._experiment_id = made
        return self._experiment_id

    def send(self, batch: Sequence[Item]) -> None:
        """Send one item, or several `MetricsLogged` of one run. Raises whatever MLflow, its store or the network raises, and
        LookupError where a run is neither here nor known to have begun."""
        match batch[0]:
            case RunStarted():
                self._start(batch[0])
            case MetricsLogged():
                self._log([points for points in batch if isinstance(points, MetricsLogged)])
            case RunEnded():
                self._end(batch[0])
            case RunRecorded():
                self._complete(batch[0].run)
            case ArtifactAdded():
                self._file(batch[0])
            case DescriptionSet():
                self._describe(batch[0].run, {}, {NOTE: self._linked(batch[0])})
            case DatasetUsed():
                self._input(batch[0])
            case ModelRegistered():
                self._version(batch[0])
            case AliasSet():
                self._alias(batch[0])

    def check_experiment(self) -> None:
        """RuntimeError where the experiment was deleted: it may be restored, so what it is to get must wait."""
        found = self._client.get_experiment(self._experiment)
        if found.lifecycle_stage == "deleted":
            raise RuntimeError(is_deleted(found.name, found.experiment_id))

    def _start(self, start: RunStarted) -> None:
        run = start.run
        found = self._search(run)
        if found:
            self._ids[run] = found[0].info.run_id
            self._client.update_run(self._ids[run], status="RUNNING")
        else:
            own = {ARM: "", RUN_KEY: run.run_key}
            if run.arm is not None:
                own = {ARM: run.arm, SEED: str(run.seed), "mlflow.parentRunId": self._id(run.parent)}
            made = self._client.create_run(
                self._experiment, start.milliseconds, tags={**start.tags, **own}, run_name=run.title
            )
            self._ids[run] = made.info.run_id
            self._made_here.add(run)
            self.added["runs"] += 1
        self._describe(run, start.params, start.tags)

    def _log(self, batch: Sequence[MetricsLogged]) -> None:
        """A step of a metric that is there already, from an earlier attempt or an earlier call, is not logged again."""
        from mlflow.entities import Metric

        run = batch[0].run
        new: dict[tuple[str, int], Metric] = {}
        for points in batch:
            for name, value in points.metrics.items():
                if points.step not in self._logged(run, name):
                    new.setdefault((name, points.step), Metric(name, value, points.milliseconds, points.step))
        metrics = list(new.values())
        for start in range(0, len(metrics), MAX_METRICS):
            self._client.log_batch(self._id(run), metrics=metrics[start : start + MAX_METRICS])
            self.added["points"] += len(metrics[start : start + MAX_METRICS])
        for name, step in new:
            self._logged(run, name).add(step)

    def _end(self, end: RunEnded) -> None:
        own = self._id(end.run)
        self._describe(end.run, {}, {**end.tags, STATUS: end.status})
        self._client.set_terminated(own, MLFLOW_STATUS[end.status], end.milliseconds)
        for double in self._search(end.run):  # made by a request that was given up and carried out after all
            if double.info.run_id != own and not _content(double):
                self._client.delete_run(double.info.run_id)
        self._made_here.discard(end.run)
        self._steps.pop(end.run, None)

    def _complete(self, run: Run) -> None:
        """Send what the store lacks of a run whose records are complete. It may have been set back to an older copy since."""
        recorded, found = Records(self._directory).of(run), self._search(run)
        if found:
            self._made_here.discard(run)
            self._steps.pop(run, None)
        else:
            self._start(recorded.start)
        if self._lacks(run, recorded.points):
            self._log(recorded.points)
        if not found or found[0].data.tags.get(STATUS) != recorded.end.status:
            self._end(recorded.end)

    def _lacks(self, run: Run, points: Sequence[MetricsLogged]) -> bool:
        """Whether a step is missing. Of metrics that have the same steps, the first and the last in a step's order are asked for:
        what comes between them is sent between them."""
        steps: dict[str, set[int]] = {}
        for point in points:
            for name in point.metrics:
                steps.setdefault(name, set()).add(point.step)
        alike: dict[frozenset[int], list[str]] = {}
        for name, found in steps.items():
            alike.setdefault(frozenset(found), []).append(name)
        return any(own - self._logged(run, name) for own, names in alike.items() for name in {names[0], names[-1]})

    def _file(self, item: ArtifactAdded) -> None:
        """Unless the run has it, as it is now."""
        file, own = self._directory / item.path, self._id(item.run)
        with file.open("rb") as content:
            digest = hashlib.file_digest(content, "sha256").hexdigest()
        known = json.loads(self._client.get_run(own).data.tags.get(FILES, "{}"))
        if known.get(file.name) == digest and file.name in {one.path for one in self._client.list_artifacts(own)}:
            return
        self._client.log_artifact(own, str(file))
        self._client.set_tag(own, FILES, json.dumps(known | {file.name: digest}))
        self.added["files"] += 1

    def _linked(self, note: DescriptionSet) -> str:
        """Its text, with the addresses of files as MLflow's pages have them."""
        files = f"#/experiments/{self._experiment}/runs/{self._id(note.run.parent)}/artifacts/"
        return note.text.replace(ARTIFACT_LINK, f"]({files}")

    def _input(self, item: DatasetUsed) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        columns = [{"name": name, "type": kind} for name, kind in item.columns.items()]
        dataset = Dataset(
            item.name, item.digest, "code", json.dumps({"tags": json.loads(item.source)}),
            json.dumps({"mlflow_colspec": columns}), json.dumps({"num_rows": item.rows}),
        )  # fmt: skip
        tags = [InputTag("mlflow.data.context", item.context)]
        self._client.log_inputs(self._id(item.run), [DatasetInput(dataset, tags)])

    def _version(self, item: ModelRegistered) -> None:
        """Files first: a version is there once all it consists of is."""
        folder, own = self._directory / item.path, self._id(item.run)
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder}: there is no such folder")
        if self._versions(item):
            return
        self._client.log_artifacts(own, str(folder), POLICY)
        if not self._client.search_registered_models(f"name = '{item.model}'"):
            self._client.create_registered_model(item.model)
        self._client.create_model_version(item.model, f"runs:/{own}/{POLICY}", own, tags=dict(item.tags))
        self.added["versions"] += 1

    def _alias(self, item: AliasSet) -> None:
        versions = self._versions(item)
        if not versions:
            raise LookupError(f"{item.run} has no version of {item.model}")
        self._client.set_registered_model_alias(item.model, item.alias, versions[0].version)

    def _versions(self, item: ModelRegistered | AliasSet) -> list[Any]:
        """Of the registered model, those that the item's run has made: none or one."""
        found = self._client.search_model_versions(f"name = '{item.model}'")
        return [version for version in found if version.run_id == self._id(item.run)]

    def _id(self, run: Run) -> str:
        if run not in self._ids:
            found = self._search(run)
            if found:
                self._ids[run] = found[0].info.run_id
            else:  # the store was set back to an older copy, or is another one
                self._start(self._start_of(run))
        return self._ids[run]

    def _search(self, run: Run) -> list[Any]:
        """The MLflow runs that are this run: none or one; or several, what an outage may leave, the full one first."""
        if run.arm is None:
            condition = f"tags.`{RUN_KEY}` = '{run.run_key}' and tags.`{ARM}` = ''"
        else:
            same_arm = f"tags.`{ARM}` = '{run.arm}' and tags.`{SEED}` = '{run.seed}'"
            condition = f"tags.`mlflow.parentRunId` = '{self._id(run.parent)}' and {same_arm}"
        return sorted(self._client.search_runs([self._experiment], condition), key=_content, reverse=True)

    def _logged(self, run: Run, metric: str) -> set[int]:
        """The steps of `metric` that the store has."""
        steps = self._steps.setdefault(run, {})
        if metric not in steps:
            history = () if run in self._made_here else self._client.get_metric_history(self._id(run), metric)
            steps[metric] = {point.step for point in history}
        return steps[metric]

    def _describe(self, run: Run, params: Mapping[str, str], tags: Mapping[str, str]) -> None:
        from mlflow.entities import Param, RunTag

        all_params = [Param(name, value) for name, value in params.items()]
        all_tags = [RunTag(name, value) for name, value in tags.items()]
        for start in range(0, len(all_params), MAX_PARAMS):
            self._client.log_batch(self._id(run), params=all_params[start : start + MAX_PARAMS])
        for start in range(0, len(all_tags), MAX_TAGS):
            self._client.log_batch(self._id(run), tags=all_tags[start : start + MAX_TAGS])


def is_deleted(name: str, experiment: str) -> str:
    return (
        f"the experiment '{name}' is deleted there; restore it (mlflow experiments restore --experiment-id {experiment}), or "
        "give the recipe another name"
    )


def check_not_deleted(uri: str, name: str) -> None:
    """BadInput where the experiment is deleted in a store that is a file: this reads it without MLflow, whose import takes
    seconds. A server says so itself, soon after the run has begun."""
    path = unquote(uri.removeprefix("sqlite:///"))
    if not uri.startswith("sqlite:///") or not os.path.isfile(path):
        return
    try:
        with closing(sqlite3.connect(path)) as store:
            query = "SELECT experiment_id FROM experiments WHERE name = ? AND lifecycle_stage = 'deleted'"
            found = store.execute(query, (name,)).fetchone()
    except sqlite3.Error:  # no store of MLflow's yet, or a busy one: MLflow itself says what is wrong
        return
    if found:
        raise BadInput(f"tracking: MLflow at {uri}: {is_deleted(name, found[0])}")


def unknown(error: Exception) -> bool:
    """Does the store not know what is asked of it, such as a run?"""
    from mlflow.exceptions import MlflowException

    return isinstance(error, MlflowException) and error.error_code == "RESOURCE_DOES_NOT_EXIST"


def refused(error: Exception) -> bool:
    """Would the same request fail again? So if the server calls it wrong, the file cannot be read, or its run never
    began. A server that wants other credentials, or a gateway that knows no MLflow just now, refuses nothing: it waits.
    (Nor does OSError at large: a lost connection is one too.)"""
    from mlflow.exceptions import MlflowException
    from requests import HTTPError

    if isinstance(error, MlflowException):
        status = error.get_http_status_code()
        return status in (400, 409) or (status == 404 and error.error_code != "ENDPOINT_NOT_FOUND")
    if isinstance(error, HTTPError):  # of an artifact
        return error.response is not None and error.response.status_code in (400, 409, 413)
    return isinstance(
        error, (FileNotFoundError, IsADirectoryError, PermissionError, LookupError, TypeError, ValueError)
    )


def _content(run: Any) -> int:
    return len(run.data.params) + len(run.data.metrics)
