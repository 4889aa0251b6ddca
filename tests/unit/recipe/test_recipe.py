"""Recipes that work: defaults, inheritance, overrides, and what is written down with a run."""

from pathlib import Path

import pytest
import yaml

from rlhf_bench.compute.forecast import check_budget
from rlhf_bench.methods import METHODS
from rlhf_bench.recipe import Recipe, load_recipe, load_series, merge, parse_recipe
from rlhf_bench.tasks.arithmetic import ArithmeticSettings
from rlhf_bench.training.cache import Cache
from rlhf_bench.training.inputs import lengths_of, prepare_inputs

ROOT = Path(__file__).parents[3]
SMALL = {
    "name": "small",
    "task": {"kind": "arithmetic"},
    "compute": {"limit": 1e12},
    "arms": {"a": {"method": "ppo"}, "b": {"method": "dpo", "beta": 0.2}},
}


def write(folder, name, data):
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(data if isinstance(data, str) else yaml.safe_dump(data), encoding="utf-8")
    return path


SHIPPED = sorted((ROOT / "recipes").glob("**/*.yaml"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.stem)
def test_every_shipped_recipe_loads_and_says_what_it_is_for(path):
    for variant in load_series(path):
        assert variant.recipe.description
        assert variant.recipe.seeds and variant.recipe.arms


@pytest.mark.parametrize("path", sorted((ROOT / "recipes" / "experiments").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_experiment_has_a_small_size_that_costs_less_and_is_enough_for_its_arms(path, tmp_path):
    full, fast = load_series(path), load_series(path, fast=True)
    cost = [sum(len(v.recipe.arms) * len(v.recipe.seeds) * v.recipe.compute.limit for v in vs) for vs in (full, fast)]
    assert cost[1] < cost[0]
    for variant in fast:
        inputs = prepare_inputs(variant.recipe, Cache(tmp_path))
        check_budget(variant.recipe, inputs.shape, lengths_of(variant.recipe, inputs))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.stem)
def test_the_resolved_recipe_is_plain_data_that_makes_the_same_recipe(path):
    for variant in load_series(path):
        assert parse_recipe(yaml.safe_load(yaml.safe_dump(variant.recipe.resolved()))) == variant.recipe


def test_a_recipe_with_a_given_reward_model_is_read_again_as_it_was_saved():
    recipe = parse_recipe(SMALL | {"reward_model": {"name_or_path": "some/model", "start_policy_prompts": 9}})
    assert parse_recipe(recipe.resolved()) == recipe


def test_the_resolved_recipe_shows_every_default():
    resolved = parse_recipe(SMALL).resolved()
    assert resolved.keys() == Recipe.model_fields.keys()
    assert resolved["arms"]["b"] == {**METHODS["dpo"].settings().model_dump(mode="json"), "beta": 0.2}
    assert resolved["arms"]["a"].keys() == METHODS["ppo"].settings.model_fields.keys()


@pytest.mark.parametrize("settings", [m.settings for m in METHODS.values()] + [Recipe], ids=lambda s: s.__name__)
def test_every_key_is_described(settings):
    told = {name for name, field in settings.model_fields.items() if field.description}
    # What a section holds is described key by key inside it.
    sections = {"model", "task", "data", "reward_model", "compute", "evaluation", "placement", "tracking", "arms"}
    assert settings.model_fields.keys() - told <= sections | {"method"}


def test_numbers_may_be_written_with_or_without_a_point():
    """YAML takes 1e-4 for text: a learning rate so written must still be a number."""
    recipe = parse_recipe(SMALL | {"arms": {"a": yaml.safe_load("{method: dpo, learning_rate: 1e-4}")}})
    assert recipe.arms["a"].learning_rate == 1e-4


def test_overrides_reach_every_depth_and_win(tmp_path):
    path = write(tmp_path, "r.yaml", SMALL)
    overrides = ["seeds=[7]", "arms.b.beta=0.5", "placement.learner.actors=2", "sft.steps=3", "name=other"]
    recipe = load_recipe(path, overrides)
    assert (recipe.seeds, recipe.arms["b"].beta, recipe.placement.learner.actors) == ((7,), 0.5, 2)
    assert (recipe.sft.steps, recipe.name) == (3, "other")


def test_an_override_may_hold_an_equals_sign_and_a_mapping(tmp_path):
    path = write(tmp_path, "r.yaml", SMALL)
    recipe = load_recipe(path, ["description=a=b", "task={kind: arithmetic, digits: 3}", "arms.c={method: flex_dpo}"])
    assert (recipe.description, recipe.task) == ("a=b", ArithmeticSettings(digits=3))
    assert list(recipe.arms) == ["a", "b", "c"]


def test_a_recipe_inherits_section_by_section(tmp_path):
    write(tmp_path, "base/base.yaml", SMALL | {"data": {"temperature": 0.7, "train_prompts": 99}, "seeds": [1, 2]})
    write(tmp_path, "middle.yaml", {"extends": "base/base.yaml", "data": {"train_prompts": 50}})
    recipe = load_recipe(write(tmp_path, "top.yaml", {"extends": "middle.yaml", "name": "top", "seeds": [3]}))
    assert (recipe.name, recipe.seeds) == ("top", (3,))
    assert (recipe.data.temperature, recipe.data.train_prompts) == (0.7, 50)
    assert list(recipe.arms) == ["a", "b"]


def test_arms_and_task_are_replaced_whole():
    base = {"arms": {"a": {"method": "ppo", "clip": 0.1}, "b": {"method": "dpo"}}, "task": {"kind": "verse", "x": 1}}
    over = {"arms": {"a": {"method": "dpo"}}, "task": {"kind": "arithmetic"}}
    assert merge(base, over) == over
    assert base["arms"]["a"]["clip"] == 0.1  # untouched


def test_null_takes_an_inherited_section_away(tmp_path):
    write(tmp_path, "base.yaml", SMALL | {"sft": {"steps": 10}, "model": {"name_or_path": "folder"}})
    assert load_recipe(write(tmp_path, "r.yaml", {"extends": "base.yaml", "sft": None})).sft is None


def test_the_tasks_files_are_named_relative_to_the_recipe_that_names_them(tmp_path):
    files = {"kind": "files", "prompts": "./p.jsonl", "held_out": "../h.jsonl", "pairs": "/data/pairs.jsonl"}
    write(tmp_path, "base/base.yaml", SMALL | {"task": files})
    task = load_recipe(write(tmp_path, "top.yaml", {"extends": "base/base.yaml"})).task
    mixed = SMALL | {"task": {"kind": "mixture", "train": files, "transfer": {"kind": "verse"}}}
    assert load_recipe(write(tmp_path, "base/mixed.yaml", mixed)).task.train == task
    places = [place.source for place in (task.prompts, task.held_out, task.pairs)]
    assert places == [str(tmp_path / "base" / "p.jsonl"), str(tmp_path / "h.jsonl"), "/data/pairs.jsonl"]
