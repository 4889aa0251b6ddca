"""An arm that learns from a reward model that somebody else has made: another size, scores on a scale of its own."""

import json
import re

import pytest
import torch

from rlhf_bench.models.loading import load_model, write_random_model
from rlhf_bench.models.settings import ModelSettings
from rlhf_bench.models.tokenizer import build_tokenizer
from rlhf_bench.tasks.arithmetic import ArithmeticSettings, build
from tests.support.running import run


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """A classifier as save_pretrained writes it, smaller than the policy."""
    fresh, folder = tmp_path_factory.mktemp("fresh"), tmp_path_factory.mktemp("given")
    sizes = ModelSettings(hidden_size=16, layers=1, heads=1, intermediate_size=16, max_length=16)
    corpus = build(ArithmeticSettings(digits=1, terms=2, noise=0.1)).corpus()
    tokenizer = build_tokenizer(sizes.tokenizer, corpus)
    write_random_model(sizes, tokenizer, 3, fresh)
    model = load_model(str(fresh), "scalar", "float32", 3).lm
    with torch.no_grad():
        model.score.weight.mul_(40)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_ppo_learns_from_a_given_reward_model_and_pays_for_its_scale_alone(given, tiny, folder, environment):
    named = f"reward_model: {{name_or_path: {given}, start_policy_prompts: 16}}"
    (folder / "given.yaml").write_text(re.sub(r"reward_model: .*", named, tiny.read_text()))
    before = {file.name: file.read_bytes() for file in given.iterdir()}
    done = run(folder / "given.yaml", folder / "out", environment, folder / "log", "--arm=ppo", "tuning=null")
    assert done.code == 0, done.errors
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
    margins = done.table("pairs").query("arm == 'base'")["reward_margin"]
    assert margins.notna().all() and margins.std() > 0.1
