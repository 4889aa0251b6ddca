"""A recipe as small as can be that holds one of everything, and what a user's shell would have: no cluster, no store, a cache of its own."""

from pathlib import Path

import pytest
from playwright.sync_api import sync_playwright

from tests.chaos import runs
from tests.chaos.faults import SAMPLE
from tests.support.chromium import MISSING, find_chromium
from tests.support.running import Run, run, with_cache

ROOT = Path(__file__).parents[2]

REGISTERED = "tiny-policies"
"""The model in MLflow's registry that the comparison's policies are versions of."""
TINY = """
name: tiny
model: {hidden_size: 32, layers: 2, heads: 1, intermediate_size: 64, max_length: 16, tokenizer: {kind: characters}}
task: {kind: arithmetic, digits: 1, terms: 2, noise: 0.1}
data:
  train_prompts: 64
  off_policy_pairs: 24
  held_out_pairs: 6
  candidates_per_prompt: 4
  max_response_tokens: 5
sft: {demonstrations: 64, steps: 120, examples_per_step: 32, learning_rate: 1.0e-2}
reward_model: {steps: 8, examples_per_step: 8, learning_rate: 1.0e-3, start_policy_prompts: 16}
compute: {limit: 4.0e+8}
evaluation: {prompts: 8, samples_per_prompt: 4, marks: [0.5, 1.0], sample_prompts: 4, gradient_pairs: 2}
seeds: [1]
tuning: {trials: [{learning_rate: 1.0e-4}, {learning_rate: 5.0e-4}], fraction: 0.4, prompts: 2}
placement:
  rollout: {cpus: 1, cache_mib: 32}
  evaluator: {cpus: 1, cache_mib: 32}
arms:
  ppo: {method: ppo, prompts_per_update: 8, samples_per_prompt: 2, epochs_per_update: 1}
  dpo-offline: {method: dpo, data: offline, pairs_per_update: 8, beta: {kind: linear, start: 0.1, end: 0.3}}
  dpo-mixed: {method: dpo, data: chosen_on_policy, pairs_per_update: 8}
  adaptive-online: {method: adaptive_flex_dpo, data: online, prompts_per_update: 8, adapt_every: 2}
  ppo-ahead: {method: ppo, feedback: judge, prompts_per_update: 8, samples_per_prompt: 2, epochs_per_update: 1, rollouts_ahead: 1}
baseline: dpo-offline
claims:
  - {statement: "PPO scores higher than offline DPO", more: ppo, less: dpo-offline}
"""


@pytest.fixture(scope="module")
def chromium():
    """The browser, for the module. `make test` has installed it."""
    with sync_playwright() as started:
        found = find_chromium(started)
        if found is None:
            pytest.skip(MISSING)
        browser = started.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("comparison")


@pytest.fixture(scope="module")
def tiny(folder) -> Path:
    """The recipe's file. Every arm has time for three updates and more."""
    path = folder / "tiny.yaml"
    path.write_text(TINY)
    return path


@pytest.fixture(scope="module")
def environment(folder) -> dict[str, str]:
    return with_cache(folder / "cache")


@pytest.fixture(scope="session")
def compared(tmp_path_factory) -> Run:
    """The whole recipe, run once with an empty cache: for all tests that only read what it has left."""
    folder = tmp_path_factory.mktemp("compared")
    (folder / "tiny.yaml").write_text(TINY)
    environment, log = with_cache(folder / "cache") | {"COMPARED_RUN": str(folder)}, folder / "first.log"
    done = run(folder / "tiny.yaml", folder / "out" / "first", environment, log, f"tracking.register_as={REGISTERED}")
    assert done.code == 0, done.errors
    return done


@pytest.fixture(scope="session")
def prepared(compared) -> dict[str, str]:
    """An environment whose cache has all that an arm of the recipe starts from: base policy, pairs and reward model."""
    return with_cache(compared.directory.parents[1] / "cache")


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory) -> Path:
    """The output directory of the run of tests/chaos that is left alone; its recipe and its cache lie in the folder above."""
    folder = tmp_path_factory.mktemp("chaos")
    return runs.undisturbed(folder, runs.write_recipe(folder, updates=3 * len(SAMPLE)))
