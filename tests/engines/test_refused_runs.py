"""`rlhf-bench run` on wrong input: it ends with 2 and one line per problem, and writes nothing. Ray, which a run starts meanwhile,
ends too."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SERIES = """
name: series
task: {kind: arithmetic}
compute: {limit: 1.0e+13}
sft: {demonstrations: 8}
arms: {dpo: {method: dpo}}
vary: {key: data.temperature, values: [1.0, 0.0]}
"""
SUMS = str(ROOT / "recipes" / "sums.yaml")
COMMANDS = {
    "nobody": [SUMS, "--arm", "nobody", "--seed", "9"],
    "poor": [SUMS, "compute.limit=1"],
    "series": ["series.yaml"],
}


@pytest.fixture(scope="module")
def refused(tmp_path_factory):
    """What each of the commands says on standard error, a line each. They run at the same time."""
    folder = tmp_path_factory.mktemp("refused")
    (folder / "series.yaml").write_text(SERIES)
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    environment |= {"RLHF_BENCH_CACHE": str(folder / "cache"), "PYTHONPATH": str(ROOT)}
    begun = {
        name: subprocess.Popen(
            [sys.executable, "-m", "rlhf_bench", "run", *words, "--output", name],
            cwd=folder,
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )  # fmt: skip
        for name, words in COMMANDS.items()
    }
    said = {name: process.communicate(timeout=300)[1].splitlines() for name, process in begun.items()}
    assert {process.returncode for process in begun.values()} == {2}, said
    assert sorted(path.name for path in folder.iterdir()) == ["cache", "series.yaml"]
    return said


def test_arms_and_seeds_that_the_recipe_does_not_have(refused):
    for line, option in zip(refused["nobody"], ("--arm nobody", "--seed 9"), strict=True):
        assert line.startswith(f"error: {option}: the recipe has") and line.endswith("choose among them")


def test_a_budget_too_small_is_refused_before_anything_starts(refused):
    lines = refused["poor"]
    assert lines and all(line.startswith("error: compute.limit: 1 flops is less than arm") for line in lines)


def test_a_series_is_checked_as_a_whole_before_anything_of_it_starts(refused):
    (line,) = refused["series"]
    assert line.startswith("error: data.temperature: ")
