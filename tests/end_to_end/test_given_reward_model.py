"""An arm that learns from a reward model that somebody else has made: another size, scores on a scale of its own. Beside it,
one that diverges."""

import json
import re

import pytest
import torch

from rlhf_bench.models.loading import load_model, write_random_model
from rlhf_bench.models.settings import ModelSettings
from rlhf_bench.models.tokenizer import build_tokenizer
from rlhf_bench.tasks.arithmetic import ArithmeticSettings, build
from tests.support.running import run

DIVERGES = "adaptive-online"


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """A classifier as save_pretrained writes it, smaller than the policy."""
    fresh, folder = tmp_path_factory.mktemp("fresh"), tmp_path_factory.mktemp("given")
    sizes = ModelSettings(hidden_size=16, layers=1, heads=1, intermediate_size=16, max_length=16)
    corpus = build(ArithmeticSettings(digits=1, terms=2, noise=0.1)).corpus()
    tokenizer = build_tokenizer(sizes.tokenizer, corpus)
    note = write_random_model(sizes, tokenizer, 3, fresh)
    model = load_model(str(note), "scalar", "float32", 3).lm
    with torch.no_grad():
        model.score.weight.mul_(40)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def before(given):
    return {file.name: file.read_bytes() for file in given.iterdir()}


@pytest.fixture(scope="module")
def done(given, before, tiny, folder, environment):
    """One of the arms learns at a rate at which nobody can."""
    named = f"reward_model: {{name_or_path: {given}, start_policy_prompts: 16}}"
    (folder / "given.yaml").write_text(re.sub(r"reward_model: .*", named, tiny.read_text()))
    more = ("tuning=null", f"arms.{DIVERGES}.learning_rate=1e30", "compute.skips_in_a_row=2")
    arms = ("--arm=ppo", f"--arm={DIVERGES}")
    done = run(folder / "given.yaml", folder / "out", environment, folder / "log", *arms, *more)
    assert done.code == 0, done.errors
    return done


def test_ppo_learns_from_a_given_reward_model_and_pays_for_its_scale_alone(given, before, done, folder):
    ledger = done.table("ledger").set_index(["arm", "phase"])
    paid = ledger.loc[("ppo", "reward_model")]
    assert (paid["trained_tokens"], paid["judge_queries"]) == (0, 0)
    assert paid["generated_tokens"] > 0 and paid["scored_tokens"] > 0
    updates = done.table("metrics").query("arm == 'ppo' and phase == 'train'")
    assert len(updates) >= 3 and updates["reward"].notna().all()
    assert updates["reward"].abs().max() < 10  # its own scores have a deviation far from 1
    (made,) = (folder / "cache").glob("reward-*")
    assert sorted(file.name for file in made.iterdir()) == ["cache.json", "reward.json"]
    assert json.loads((made / "reward.json").read_text())["model"] == str(given)
    assert {file.name: file.read_bytes() for file in given.iterdir()} == before
    margins = done.table("pairs").query("arm == 'base' and kind == 'fixed'")["reward_margin"]
    assert margins.notna().all() and margins.std() > 0.1


def test_an_arm_that_diverges_is_a_result_beside_the_others(done):
    """And the exit code, which `done` has seen, is 0."""
    summary = done.summary["arms"]
    statuses = {arm: [seed["status"] for seed in summary[arm]["seeds"]] for arm in ("ppo", DIVERGES)}
    assert statuses == {"ppo": ["done"], DIVERGES: ["diverged"]}
    assert summary[DIVERGES]["score"]["mean"] is None and summary["ppo"]["score"]["mean"] is not None
    page = (done.directory / "report.html").read_text()
    assert "0 of 1, 1 diverged" in page and f"{DIVERGES}: seed 1 (diverged) did not finish" in page
    skipped = done.table("metrics").query("phase == 'train' and skipped == 1")
    assert list(skipped["arm"]) == [DIVERGES] * 2
    kept = {f"{DIVERGES}-seed1-update{update}.json" for update in skipped["update"]}
    assert {path.name for path in (done.directory / "trouble").iterdir()} == kept
