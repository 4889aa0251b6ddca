"""An MLflow server that is set back to an older copy of its store: in the middle of a run, when its arm has just ended, and when
the run has ended without it. In the end it has what the store of an undisturbed run has."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.chaos.runs import ROOT, environment
from tests.chaos.told import Told
from tests.support.attempts import Attempts
from tests.support.mlflow_server import Server
from tests.support.mlflow_store import history, runs
from tests.support.running import paused

PART = "parts/ppo-seed1/result.json"
LACKS = "MLflow lacks "


def with_restored_store(told: Told, folder: Path, recipe: Path, whole: Path) -> None:
    place = folder / "mlflow"
    place.mkdir()
    server = Server(place)
    try:
        expected = _stands(f"sqlite:///{whole.parent / 'mlflow.db'}", "chaos")
        _set_back_twice(told, server, Attempts(recipe, folder / "set-back", _environment(folder, server)), expected)
        _set_back_after(told, server, Attempts(recipe, folder / "away", _environment(folder, server)), expected)
    finally:
        server.kill()
    told.compare("set back", folder / "set-back" / "out", whole)


def _environment(folder: Path, server: Server) -> dict[str, str]:
    return environment(folder) | {"MLFLOW_TRACKING_URI": server.address}


def _set_back_twice(told: Told, server: Server, tried: Attempts, expected: dict[str, Any]) -> None:
    copy = _begin(tried, server)
    times = _deliveries(tried.directory)
    tried.wait_for(lambda: _deliveries(tried.directory) > times)
    in_the_middle = not (tried.directory / PART).exists()
    with paused(tried.mark):
        server.set_back(copy)
    tried.wait_for(lambda: (tried.directory / PART).exists())
    with paused(tried.mark):
        server.set_back(copy)
    done = tried.end()
    differing = _differing(_stands(server.address, "chaos"), expected)
    fine = done.code == 0 and _lacks(tried.directory) == [] and not differing
    said = f"{done.code}: {_lacks(tried.directory)} {differing} {done.errors}"
    told.tell("MLflow set back in the middle of a run", "has all of it", fine and in_the_middle, said)
    told.tell("MLflow set back when the arm has ended", "has all of it", fine, said)


def _set_back_after(told: Told, server: Server, tried: Attempts, expected: dict[str, Any]) -> None:
    """The run says what its store lacks, and `track` sends it. It has another name, and so an experiment of its own."""
    copy = _begin(tried, server, "name=away")
    tried.wait_for(lambda: (tried.directory / PART).exists())
    server.kill()
    done = tried.end()
    fine = done.code == 0 and bool(_lacks(tried.directory)) and done.said.strip().splitlines()[-1].startswith(LACKS)
    told.tell("MLflow gone when the arm has ended", "summary and last line say what it lacks", fine, done.said)
    server.set_back(copy)
    command = [sys.executable, "-m", "rlhf_bench", "track", str(tried.directory)]
    sent = subprocess.run(command, cwd=ROOT, env=tried.environment, capture_output=True, text=True, timeout=300)
    differing = _differing(_stands(server.address, "away"), expected)
    fine = sent.returncode == 0 and _lacks(tried.directory) == [] and not differing
    said = f"{differing} {sent.stdout}{sent.stderr}"
    told.tell("MLflow set back after the run", "track sends what it lacks", fine, said)


def _begin(tried: Attempts, server: Server, *overrides: str) -> Path:
    """A copy of the store as it is after it got some updates of the arm, which goes on."""
    tried.start_and_reach("ppo", 2, *overrides)
    times, copy = _deliveries(tried.directory), tried.folder / "copy.db"
    tried.wait_for(lambda: _deliveries(tried.directory) > times)
    server.copy_store(copy)
    return copy


def _deliveries(directory: Path) -> int:
    """How often something has reached MLflow."""
    return (directory / "tracking.jsonl").read_text().count('"delivered"')


def _lacks(directory: Path) -> list[str] | None:
    """What MLflow lacks, as summary.json says; None where it does not."""
    told = json.loads((directory / "summary.json").read_text())["mlflow"]
    return told["lacks"] if told else None


def _stands(uri: str, experiment: str) -> dict[str, Any]:
    """Each metric's points of the arm's run; but for seconds."""
    (run,) = (run for title, run in runs(uri, experiment).items() if title != "comparison")
    names = [name for name in run.data.metrics if "seconds" not in name]
    return {name: sorted(history(uri, run, name)) for name in names}


def _differing(found: dict[str, Any], expected: dict[str, Any]) -> list[str]:
    """Metrics that are not the same, with the points that only one side has."""
    names = sorted(found.keys() | expected.keys())
    apart = {name: (set(found.get(name, [])) ^ set(expected.get(name, []))) for name in names}
    return [
        f"{name}: {sorted(points)[:4]}"
        for name, points in apart.items()
        if points or (name in found) != (name in expected)
    ]
