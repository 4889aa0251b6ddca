"""What a reader of an MLflow store sees of a comparison, and what the run has yet to tell it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def runs(uri: str, experiment: str) -> dict[str, Any]:
    """The experiment's runs by name."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    found = client.search_runs([client.get_experiment_by_name(experiment).experiment_id])
    assert len({run.info.run_name for run in found}) == len(found), "a run stands twice"
    return {run.info.run_name: run for run in found}


def history(uri: str, run: Any, metric: str) -> list[tuple[int, float]]:
    from mlflow.tracking import MlflowClient

    points = MlflowClient(tracking_uri=uri).get_metric_history(run.info.run_id, metric)
    return [(point.step, point.value) for point in points]


def all_delivered(directory: Path) -> bool:
    """Does MLflow have every item of the journal that stands there?"""
    end = last_item = delivered = 0
    for line in (directory / "tracking.jsonl").read_bytes().splitlines(keepends=True):
        end += len(line)
        if "delivered" in (data := json.loads(line)):
            delivered = data["delivered"]
        else:
            last_item = end
    return last_item == delivered
