"""An experiment in its small size, from the recipe to its page."""

import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import yaml

ROOT = Path(__file__).parents[2]
LIMIT_SECONDS = 600
"""Generous: `--fast` takes at most three minutes on two idle cores, and a machine that tests is not idle."""


def command(*arguments: object) -> str:
    own = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "MLFLOW_"))}
    done = subprocess.run(
        [sys.executable, "-m", "rlhf_bench", *map(str, arguments)], cwd=ROOT, env=own, capture_output=True, text=True,
        timeout=LIMIT_SECONDS,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_an_experiment_runs_small_and_its_page_is_made_again_from_what_it_keeps(tmp_path):
    name = "edit_distance"
    recipe = ROOT / "recipes" / "experiments" / f"{name}.yaml"
    written = yaml.safe_load(recipe.read_text())
    said = command("run", recipe, "--fast", "seeds=[1,2]", "--output", tmp_path / "out")
    metrics = pd.read_parquet(tmp_path / "out" / "metrics.parquet")
    last = metrics.query("phase == 'evaluation' and split == 'in_distribution' and mark == 1.0")
    assert set(zip(last["arm"], last["seed"], strict=True)) == {
        (arm, seed) for arm in written["arms"] for seed in (1, 2)
    }
    assert last["score"].between(0, 1).all() and last["chosen_logratio"].notna().all()
    assert all(str(arm) in said for arm in written["arms"])

    page = tmp_path / "results" / f"{name}.md"
    page.parent.mkdir()
    command("report", tmp_path / "out", "--page", page)
    first = page.read_bytes(), page.with_suffix(".png").read_bytes()
    text = page.read_text()
    assert all(claim["statement"] in text for claim in written["claims"])
    assert "Machine: 1 node: " in text and "Commit: " in text
    page.unlink()
    command("report", page.parent / "data" / name, "--page", page)
    assert (page.read_bytes(), page.with_suffix(".png").read_bytes()) == first
