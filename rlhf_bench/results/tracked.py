"""DIR's note of what MLflow lacks: `mlflow.json`, and the same in `summary.json`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from rlhf_bench.core.files import write_json, write_text
from rlhf_bench.core.text import without_passwords
from rlhf_bench.results.schema import MLFLOW, SUMMARY


def forget_tracked(directory: Path) -> None:
    """While a run is in progress it is not known."""
    (directory / MLFLOW).unlink(missing_ok=True)


def note_tracked(directory: Path, uri: str, lacks: Sequence[str]) -> None:
    """`lacks`: a line for each thing, empty where the store at `uri` has everything."""
    known, summary = {"store": without_passwords(uri), "lacks": list(lacks)}, directory / SUMMARY
    write_json(directory / MLFLOW, known)
    if summary.exists():
        told = json.loads(summary.read_text(encoding="utf-8")) | {"mlflow": known}
        write_text(summary, json.dumps(told, indent=2, allow_nan=False) + "\n")
