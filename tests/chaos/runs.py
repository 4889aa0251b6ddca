"""Runs of the command line in processes of their own: undisturbed, with faults, with a driver that is killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.chaos.faults import Fault, Outcome
from tests.support.running import kill_all

ROOT = Path(__file__).parents[2]
RECIPE = """
name: chaos
model: {hidden_size: 32, layers: 2, heads: 1, intermediate_size: 64, max_length: 16, tokenizer: {kind: characters}}
task: {kind: arithmetic, digits: 1, terms: 2, noise: 0.1}
data: {train_prompts: 64, off_policy_pairs: 24, held_out_pairs: 6, candidates_per_prompt: 4, max_response_tokens: 5}
sft: {demonstrations: 64, steps: 120, examples_per_step: 32, learning_rate: 1.0e-2}
reward_model: {steps: 8, examples_per_step: 8, learning_rate: 1.0e-3, start_policy_prompts: 16}
compute: {limit: LIMIT}
evaluation: {prompts: 8, marks: MARKS, sample_prompts: 2, gradient_pairs: 2, splits: [in_distribution]}
seeds: [1]
placement: {rollout: {cpus: 1, cache_mib: 32}, evaluator: {cpus: 1, cache_mib: 32}}
reliability: {checkpoint_seconds: 0, hang_seconds: 8, restarts: 1000, grace_seconds: 20}
arms:
  ppo: {method: ppo, prompts_per_update: 8, samples_per_prompt: 2, epochs_per_update: 1}
"""
"""As small as possible with all roles at work. LIMIT and MARKS depend on the number of faults."""
FLOPS_OF_AN_UPDATE = 4.1e7


def write_recipe(folder: Path, updates: int, evaluations: int | None = None) -> Path:
    """With a budget for about so many updates, and an evaluation after every other one, or so many in all."""
    evaluations = evaluations or updates // 2
    marks = [round(k / evaluations, 6) for k in range(1, evaluations + 1)]
    path = folder / "chaos.yaml"
    path.write_text(RECIPE.replace("LIMIT", f"{updates * FLOPS_OF_AN_UPDATE:.3e}").replace("MARKS", str(marks)))
    return path


def environment(folder: Path) -> dict[str, str]:
    own = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "MLFLOW_", "RLHF_BENCH_"))}
    return own | {"RLHF_BENCH_CACHE": str(folder / "cache"), "COLUMNS": "200", "PYTHONPATH": str(ROOT)}


def begin(
    folder: Path, recipe: Path, name: str, module: Sequence[str], overrides: Sequence[str] = ()
) -> subprocess.Popen:
    command = [sys.executable, "-m", *module, "run", str(recipe), *overrides, "--output", str(folder / name / "out")]
    own = environment(folder) | dict([mark(folder, name).split("=", 1)])
    with open(folder / f"{name}.log", "ab") as log:
        return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, cwd=ROOT, env=own)


def mark(folder: Path, name: str) -> str:
    """A variable in the environment of this run's processes, and of no others."""
    return f"CHAOS_RUN={folder / name}"


def finish(process: subprocess.Popen, folder: Path, name: str, seconds: float) -> Path:
    """The run's directory, once it has succeeded."""
    try:
        code = process.wait(timeout=seconds)
    finally:
        process.kill()
    if code:
        raise AssertionError(f"exit code {code}: {(folder / f'{name}.log').read_text()[-3000:]}")
    return folder / name / "out"


def undisturbed(folder: Path, recipe: Path) -> Path:
    return finish(begin(folder, recipe, "undisturbed", ["rlhf_bench"]), folder, "undisturbed", 600)


def with_faults(
    folder: Path, recipe: Path, faults: Sequence[Fault], seconds: float, group_kill: bool = False
) -> tuple[Path, list[Outcome]]:
    """With all of them, in order. Each outcome is written to the folder's outcomes.jsonl at once. `group_kill`: then all of its
    processes are killed at once, and the same command resumes."""
    (folder / "faults.json").write_text(json.dumps([[f.kind, f.role, f.phase] for f in faults]))
    outcomes = folder / "outcomes.jsonl"
    module = ["tests.chaos.injected", str(folder / "faults.json"), str(outcomes)]
    process, deadline = begin(folder, recipe, "faults", module), time.monotonic() + seconds
    if group_kill:
        while len(outcomes_in(folder)) < len(faults):
            assert process.poll() is None and time.monotonic() < deadline, (folder / "faults.log").read_text()[-3000:]
            time.sleep(0.05)
        kill_all(mark(folder, "faults"))
        process.wait()
        process = begin(folder, recipe, "faults", ["rlhf_bench"])
    return finish(process, folder, "faults", seconds), outcomes_in(folder)


def outcomes_in(folder: Path) -> list[Outcome]:
    """Of the faults so far."""
    file = folder / "outcomes.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    return [Outcome(Fault(*line[:3]), *line[3:]) for line in lines]


def with_killed_drivers(folder: Path, recipe: Path, phases: Mapping[str, str]) -> tuple[Path, dict[str, float]]:
    """The driver gets SIGKILL in each phase in turn, and the same command resumes. Seconds from its next start until it has
    read its checkpoint."""
    log, found, first = folder / "drivers.log", list[float](), next(iter(phases.values()))
    for activity in phases.values():
        process = begin(folder, recipe, "drivers", ["tests.chaos.killed_driver", activity])
        if activity != first:
            found += _until_it_resumes(process, log, len(found))
        assert process.wait(timeout=300) == -signal.SIGKILL, log.read_text()[-2000:]
    process = begin(folder, recipe, "drivers", ["rlhf_bench"])
    found += _until_it_resumes(process, log, len(found))
    return finish(process, folder, "drivers", 600), dict(zip(phases, found, strict=True))


def _until_it_resumes(process: subprocess.Popen, log: Path, times: int) -> list[float]:
    began = time.monotonic()
    while log.read_text().count("resuming from") <= times:
        if process.poll() is not None:
            raise AssertionError(
                f"the driver started from the beginning instead of resuming: {log.read_text()[-2000:]}"
            )
        time.sleep(0.05)
    return [time.monotonic() - began]
