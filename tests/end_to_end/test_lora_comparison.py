"""A whole comparison in which adapters learn, from a pretrained folder to finished policies, through every engine."""

import pytest
import yaml

from rlhf_bench.models.loading import load_model, write_random_model
from rlhf_bench.models.tokenizer import build_tokenizer
from rlhf_bench.recipe import load_recipe
from rlhf_bench.tasks import build_task
from tests.support.running import run

ARMS = {
    "ppo": {"method": "ppo", "prompts_per_update": 8, "samples_per_prompt": 2, "epochs_per_update": 1},
    "dpo": {"method": "dpo", "data": "on_policy", "pairs_per_update": 8, "learning_rate": 1e-3},
    "adaptive": {"method": "adaptive_flex_dpo", "data": "online", "prompts_per_update": 8, "adapt_every": 2},
}


@pytest.fixture(scope="module")
def pretrained(tiny, tmp_path_factory):
    """A Llama of random weights, saved as anyone's would be."""
    folder, recipe = tmp_path_factory.mktemp("pretrained"), load_recipe(tiny)
    tokenizer = build_tokenizer(recipe.model.tokenizer, build_task(recipe.task).corpus())
    note = write_random_model(recipe.model, tokenizer, 0, folder)
    load_model(str(note), "causal", "float32", 0).lm.save_pretrained(folder)
    note.unlink()
    return folder


@pytest.fixture(scope="module")
def done(tiny, folder, environment, pretrained):
    recipe = yaml.safe_load(tiny.read_text())
    recipe["model"] = {
        "name_or_path": str(pretrained), "max_length": 16, "lora": {"rank": 4, "alpha": 16},
        "tokenizer": {"kind": "pretrained", "name_or_path": str(pretrained)},
    }  # fmt: skip
    recipe |= {"arms": ARMS, "baseline": "dpo", "tuning": None, "claims": []}
    (folder / "lora.yaml").write_text(yaml.safe_dump(recipe))
    found = run(folder / "lora.yaml", folder / "out", environment, folder / "lora.log")
    assert found.code == 0, found.errors
    return found


def test_every_arm_learns_and_spends_its_budget(done):
    metrics = done.table("metrics")
    for arm in ARMS:
        (seed,) = done.summary["arms"][arm]["seeds"]
        updates = metrics[(metrics["arm"] == arm) & (metrics["phase"] == "train")]
        assert seed["status"] == "done" and len(updates) >= 3
        assert updates["grad_norm"].min() > 0


def test_finished_policies_are_plain_models_that_differ_from_the_given_one_in_linear_layers_alone(done, pretrained):
    from transformers import AutoModelForCausalLM

    given = dict(AutoModelForCausalLM.from_pretrained(pretrained).named_parameters())
    for arm in ARMS:
        folder = done.directory / "checkpoints" / arm / "seed-1"
        policy = dict(AutoModelForCausalLM.from_pretrained(folder).named_parameters())
        assert policy.keys() == given.keys() and not list(folder.glob("adapter*"))
        changed = {name for name in given if not policy[name].equal(given[name])}
        assert changed == {name for name in given if "_proj." in name}
