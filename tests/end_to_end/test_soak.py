"""500 updates hold no more at their end than after the first hundred; and of a run that ends with an error nothing is left.

Marked slow: 300 updates of the pretrained chat model at hand (half an hour), and 40 arms one after another in one run."""

import json
import os
import signal
import time

import numpy as np
import pytest
import yaml

from tests.chaos.runs import begin, mark, write_recipe
from tests.support.running import left_running

UPDATES, WARM = 500, 150
CHAT_UPDATES, CHAT_WARM = 300, 100
SHORT_ARMS, WARM_ARMS = 40, 10
CHAT = """
name: chat
task: {kind: slogan}
data: {train_prompts: 16, off_policy_pairs: 8, held_out_pairs: 2, candidates_per_prompt: 2, max_response_tokens: 8}
sft: null
reward_model: {steps: 1, examples_per_step: 2, start_policy_prompts: 2}
compute: {column: trained_tokens, limit: 20480}
evaluation: {prompts: 2, samples_per_prompt: 1, splits: [in_distribution], kl_prompts: 2, gradient_pairs: 1, sample_prompts: 1}
seeds: [1]
placement: {rollout: {cache_mib: 64}, evaluator: {cache_mib: 64}}
arms:
  ppo: {method: ppo, prompts_per_update: 2, samples_per_prompt: 2, epochs_per_update: 1, learning_rate: 1.0e-6}
"""
"""An update samples 4 responses of at most 8 tokens, on which policy and critic train: 64 tokens, so that 320 updates fit."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("soak")


def read(samples):
    return [json.loads(line) for line in samples.read_text().splitlines()] if samples.exists() else []


@pytest.fixture(scope="module")
def soaked(folder):
    """A run whose learner is killed after 500 updates, where none may be started again. Returns exit code and samples."""
    recipe, samples = write_recipe(folder, UPDATES + 60, evaluations=20), folder / "soak.jsonl"
    more = ["reliability.restarts=0", "reliability.checkpoint_seconds=5"]
    process = begin(folder, recipe, "soak", ["tests.chaos.watched", str(samples)], more)
    try:
        deadline = time.monotonic() + 1200
        while not (found := read(samples)) or found[-1]["update"] < UPDATES:
            assert process.poll() is None and time.monotonic() < deadline, (folder / "soak.log").read_text()[-2000:]
            time.sleep(0.2)
        learner = next(pid for pid in found[-1]["processes"] if "LearnerRank" in open(f"/proc/{pid}/cmdline").read())
        os.kill(learner, signal.SIGKILL)
        code = process.wait(timeout=60)
    finally:
        process.kill()
    return code, found


def growth(updates, amounts):
    """Per 100 updates, as a share of what there is in the middle: the slope of a straight line."""
    return 100 * np.polyfit(updates, amounts, 1)[0] / max(np.median(amounts), 1e-9)


def assert_flat(late, times):
    """Of every process: memory of its own within 1 % per 100 times, open files; and the object store."""
    grown = {name: growth(times, [s["own"][name] for s in late]) for name in late[0]["own"]}
    assert all(share <= 0.01 for share in grown.values()), grown
    first, last = late[: len(late) // 3], late[-len(late) // 3 :]
    assert np.median([s["store"] for s in last]) <= 1.01 * np.median([s["store"] for s in first]) + 2**16
    for name in late[0]["files"]:
        assert max(s["files"][name] for s in last) <= max(s["files"][name] for s in first) + 2, name
    assert max(len(s["processes"]) for s in last) <= max(len(s["processes"]) for s in first)


def test_memory_store_and_files_are_flat(soaked):
    late = [s for s in soaked[1] if s["update"] >= WARM]
    assert late[-1]["update"] >= UPDATES
    assert_flat(late, [s["update"] for s in late])


@pytest.mark.slow
def test_memory_store_and_files_are_flat_with_the_chat_model_at_hand(folder, smollm2):
    tokenizer = {"kind": "pretrained", "name_or_path": smollm2, "chat_template": "own"}
    model = {"name_or_path": smollm2, "max_length": 96, "tokenizer": tokenizer}
    recipe, samples = folder / "chat.yaml", folder / "chat.jsonl"
    recipe.write_text(yaml.safe_dump(yaml.safe_load(CHAT) | {"model": model}))
    assert begin(folder, recipe, "chat", ["tests.chaos.watched", str(samples)]).wait(timeout=3600) == 0
    late = [s for s in read(samples) if s["update"] >= CHAT_WARM]
    assert late[-1]["update"] >= CHAT_UPDATES
    assert_flat(late, [s["update"] for s in late])


@pytest.mark.slow
def test_memory_store_and_files_are_flat_over_many_short_arms(folder):
    recipe, samples = write_recipe(folder, 1, evaluations=1), folder / "arms.jsonl"
    more = [f"seeds={[*range(1, SHORT_ARMS + 1)]}", "compute.limit=6.0e+7"]
    assert begin(folder, recipe, "arms", ["tests.chaos.watched", str(samples)], more).wait(timeout=3600) == 0
    found = [s for s in read(samples) if s["update"] == 1]
    assert len(found) == SHORT_ARMS
    assert_flat(found[WARM_ARMS:], range(WARM_ARMS, SHORT_ARMS))


def test_nothing_is_left_after_an_error(soaked, folder):
    code, _ = soaked
    assert code == 1 and "restarts" in (folder / "soak.log").read_text().splitlines()[-1]
    assert left_running(mark(folder, "soak")) == []
