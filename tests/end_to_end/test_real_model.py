"""SmolLM2-135M-Instruct through every stage, in float32 and in bfloat16: every method with adapters, which a checkpoint writes in
a moment, and a few with all weights; marked slow, every method with all weights (about eight minutes in each format).
"""

import json
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import yaml

from rlhf_bench.methods import METHODS
from tests.support.running import ROOT, Run, numbered_with, run, with_cache

PAIRS = {"pairs_per_update": 2, "prompts_per_update": 2, "learning_rate": 1e-5}
ONLINE = {"prompts_per_update": 2, "samples_per_prompt": 2, "epochs_per_update": 1, "learning_rate": 1e-5}
ARMS = {
    name: {"method": name} | (PAIRS | {"data": "offline"} if method.consumes == "pairs" else ONLINE)
    for name, method in METHODS.items()
} | {
    "dpo-on-policy": {"method": "dpo", "data": "on_policy"} | PAIRS,
    "dpo-online": {"method": "dpo", "data": "online", "feedback": "reward_model"} | PAIRS,
    "kto-unpaired": {"method": "kto", "unpaired": True} | PAIRS,
    "rft": {"method": "rft"} | ONLINE | {"samples_per_prompt": 4},  # of which one has to be better than another
}
RECIPE = {
    "task": {"kind": "slogan"},
    "sft": {"demonstrations": 4, "steps": 1, "examples_per_step": 4, "learning_rate": 1e-5},
    "data": {
        "train_prompts": 16, "off_policy_pairs": 8, "held_out_pairs": 2, "candidates_per_prompt": 2,
        "max_response_tokens": 16,
    },
    "reward_model": {"steps": 1, "examples_per_step": 2, "start_policy_prompts": 2},
    "compute": {"column": "trained_tokens", "limit": 200},
    "evaluation": {
        "prompts": 2, "samples_per_prompt": 1, "splits": ["in_distribution"], "marks": [1.0], "kl_prompts": 2,
        "gradient_pairs": 1, "sample_prompts": 1,
    },
    "seeds": [1],
    "placement": {"rollout": {"cache_mib": 64}, "evaluator": {"cache_mib": 64}},
}  # fmt: skip
ROLES = {"rollout": "RolloutActor", "scorer": "ScorerActor", "learner": "LearnerRank", "evaluator": "EvaluatorActor"}
MEMORY, WITH_ADAPTERS = 0.15, 0.25
"""How far a forecast of a role's memory may be from its peak. With adapters what twenty arms leave with the allocator, from a tenth
to a quarter of a learner's memory, is a larger part."""


FEW = ("ppo", "dpo-on-policy")
ADAPTERS = {"rank": 4, "alpha": 8}


@dataclass(frozen=True)
class Watched:
    """A run, what `check` had forecast for it without the weights in Ray's store, and the most memory that a process of each
    role had for itself, in GiB; and how far these may be apart."""

    run: Run
    arms: dict[str, dict]
    forecast: dict[str, float]
    peaks: dict[str, float]
    bound: float


@pytest.fixture(scope="module", params=[
    pytest.param(("float32", FEW, None), id="float32"),
    pytest.param(("bfloat16", FEW, None), id="bfloat16"),
    pytest.param(("float32", tuple(ARMS), ADAPTERS), id="float32-adapters-every-method"),
    pytest.param(("bfloat16", tuple(ARMS), ADAPTERS), id="bfloat16-adapters-every-method"),
    pytest.param(("float32", tuple(ARMS), None), id="float32-every-method", marks=pytest.mark.slow),
    pytest.param(("bfloat16", tuple(ARMS), None), id="bfloat16-every-method", marks=pytest.mark.slow),
])  # fmt: skip
def watched(request, smollm2, tmp_path_factory) -> Iterator[Watched]:
    (dtype, names, adapters), folder = request.param, tmp_path_factory.mktemp(request.param[0])
    arms = {name: ARMS[name] for name in names}
    recipe, environment = folder / "recipe.yaml", with_cache(folder / "cache") | {"WATCHED_RUN": str(folder)}
    tokenizer = {"kind": "pretrained", "name_or_path": smollm2, "chat_template": "own"}
    model = {"name_or_path": smollm2, "max_length": 96, "dtype": dtype, "lora": adapters, "tokenizer": tokenizer}
    recipe.write_text(yaml.safe_dump(RECIPE | {"name": dtype, "model": model, "arms": arms}))
    checked = subprocess.run(
        [sys.executable, "-m", "rlhf_bench", "check", str(recipe), "--json"], cwd=ROOT, env=environment, text=True,
        capture_output=True, check=True,
    )  # fmt: skip
    peaks, ended = dict.fromkeys(ROLES, 0.0), threading.Event()
    watcher = threading.Thread(target=watch, args=(f"WATCHED_RUN={folder}", peaks, ended))
    watcher.start()
    try:
        done = run(recipe, folder / "out", environment, folder / "run.log")
    finally:
        ended.set()
        watcher.join()
    assert done.code == 0, done.errors[-3000:]
    store = Path(smollm2, "model.safetensors").stat().st_size / (1 if dtype == "float32" else 2) / 2**30
    forecast = {role: gib - store * (role != "scorer") for role, gib in json.loads(checked.stdout)["peak_gib"].items()}
    yield Watched(done, arms, forecast, peaks, WITH_ADAPTERS if adapters else MEMORY)
    for weights in (folder / "cache", done.directory / "checkpoints"):
        shutil.rmtree(weights)  # GiB that would lie on the disk until other runs of the tests have gone by


def watch(mark: str, peaks: dict[str, float], ended: threading.Event) -> None:
    """Keep the most memory that a process of each role has for itself. What it has mapped of Ray's store is not its own, and
    grows up to the store's size, since every snapshot of weights may lie at another place in it."""
    while not ended.wait(0.5):
        for number in numbered_with(mark):
            try:
                title = Path(f"/proc/{number}/cmdline").read_text()
                status = Path(f"/proc/{number}/status").read_text()
            except OSError:
                continue  # it has ended
            for role, actor in ROLES.items():
                if f"ray::{actor}" in title:
                    kib = dict(re.findall(r"^(VmRSS|RssShmem):\s+(\d+) kB$", status, re.MULTILINE))
                    if kib:  # not of a process that is about to end
                        peaks[role] = max(peaks[role], (int(kib["VmRSS"]) - int(kib["RssShmem"])) / 2**20)


def test_every_method_learns_and_is_evaluated(watched):
    assert set(watched.run.summary["arms"]) == set(watched.arms)
    metrics = watched.run.table("metrics")
    for arm, found in watched.run.summary["arms"].items():
        (seed,) = found["seeds"]
        assert seed["status"] == "done" and 0 <= seed["score"] <= 1 and seed["kl"] >= 0, arm
        updates = metrics[(metrics["phase"] == "train") & (metrics["arm"] == arm)]
        numbers = updates[["loss", "grad_norm"]].dropna(how="all")  # of samples that are all alike nothing is learned
        assert len(numbers) and np.isfinite(numbers.to_numpy(dtype=float)).all(), arm
        assert (numbers["grad_norm"] > 0).any(), arm


def test_the_forecast_of_memory_is_that_of_the_run(watched):
    apart = {role: watched.forecast[role] / peak - 1 for role, peak in watched.peaks.items()}
    assert all(abs(share) <= watched.bound for share in apart.values()), (apart, watched.peaks)
