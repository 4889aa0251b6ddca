"""What one recipe file can ask for beyond one comparison: swept settings, a series, a small size."""

import pytest
import yaml

from rlhf_bench.core.errors import BadInput
from rlhf_bench.methods import METHODS
from rlhf_bench.recipe import load_recipe, load_series, parse_recipe

SMALL = {
    "name": "small",
    "task": {"kind": "arithmetic"},
    "compute": {"limit": 1e12},
    "arms": {
        "ppo": {"method": "ppo", "learning_rate": 3e-5},
        "dpo": {"method": "dpo", "data": "on_policy"},
        "sft": {"method": "sft_dpo"},
    },
}


def write(folder, data=None, name="r.yaml", **more):
    path = folder / name
    path.write_text(yaml.safe_dump((SMALL if data is None else data) | more), encoding="utf-8")
    return path


def problem(error):
    (line,) = error.value.problems
    assert "\n" not in line
    return line


# Sweeps


def test_every_arm_that_has_a_swept_setting_runs_once_with_each_value():
    recipe = parse_recipe(SMALL | {"sweep": {"beta": [0.01, 0.5], "clip": [0.3]}})
    assert list(recipe.arms) == [
        "ppo",
        "dpo",
        "sft",
        "dpo.beta=0.01",
        "dpo.beta=0.5",
        "sft.beta=0.01",
        "sft.beta=0.5",
        "ppo.clip=0.3",
    ]
    assert recipe.arms["dpo.beta=0.5"] == METHODS["dpo"].settings(data="on_policy", beta=0.5)
    assert recipe.arms["ppo.clip=0.3"] == METHODS["ppo"].settings(learning_rate=3e-5, clip=0.3)
    assert recipe.arms["dpo"].beta == 0.1  # the arm itself stays what it was


def test_values_may_be_written_with_or_without_a_point_and_settings_may_be_whole_numbers():
    recipe = parse_recipe(SMALL | yaml.safe_load("sweep: {learning_rate: [1e-4], prompts_per_update: [16]}"))
    assert recipe.arms["dpo.learning_rate=0.0001"].learning_rate == 1e-4
    assert recipe.arms["ppo.prompts_per_update=16"].prompts_per_update == 16


def test_a_swept_recipe_that_was_saved_in_full_is_the_same_recipe():
    recipe = parse_recipe(SMALL | {"sweep": {"beta": [0.01, 0.5], "learning_rate": [1e-3]}})
    again = parse_recipe(yaml.safe_load(yaml.safe_dump(recipe.resolved(), sort_keys=False)))
    assert again == recipe and list(again.arms) == list(recipe.arms)


def test_what_a_sweep_makes_is_an_arm_like_any_other():
    swept = SMALL | {"sweep": {"beta": [0.5]}}
    claim = {"statement": "More is more.", "more": "dpo.beta=0.5", "less": "dpo"}
    recipe = parse_recipe(swept | {"baseline": "dpo.beta=0.5", "claims": [claim]})
    assert (recipe.baseline, recipe.claims[0].more) == ("dpo.beta=0.5", "dpo.beta=0.5")
    with pytest.raises(BadInput) as refused:
        parse_recipe(swept | {"baseline": "dpo.beta=0.4"})
    assert "there is no arm dpo.beta=0.4; choose among ppo, dpo, sft, dpo.beta=0.5" in problem(refused)


# Series


def test_a_series_is_a_comparison_for_each_value_and_differs_in_nothing_else(tmp_path):
    vary = {"key": "sft.steps", "values": [25, 100]}
    variants = load_series(write(tmp_path, vary=vary, sft={"demonstrations": 99}))
    assert [v.label for v in variants] == ["sft.steps=25", "sft.steps=100"]
    assert [v.recipe.sft.steps for v in variants] == [25, 100]
    first, second = (v.recipe.resolved() for v in variants)
    first["sft"]["steps"] = second["sft"]["steps"]
    assert first == second and first["sft"]["demonstrations"] == 99


def test_a_series_may_vary_a_section_that_the_file_leaves_out_or_a_whole_section(tmp_path):
    steps = load_series(write(tmp_path, vary={"key": "reward_model.steps", "values": [3]}))
    assert (steps[0].label, steps[0].recipe.reward_model.steps) == ("reward_model.steps=3", 3)
    columns = ["flops", "generated_tokens"]
    budgets = load_series(write(tmp_path, vary={"key": "compute.column", "values": columns}))
    assert [v.recipe.compute.column for v in budgets] == columns


def test_a_recipe_that_varies_nothing_is_a_series_of_one_without_a_label(tmp_path):
    (only,) = load_series(write(tmp_path))
    assert (only.label, only.recipe) == ("", load_recipe(write(tmp_path)))


def test_a_command_for_one_comparison_says_what_to_do_about_a_series_and_that_works(tmp_path):
    path = write(tmp_path, vary={"key": "sft.steps", "values": [25, 100]})
    with pytest.raises(BadInput) as refused:
        load_recipe(path)
    assert problem(refused).endswith("override vary=null")
    assert load_recipe(path, ["vary=null"]) == load_recipe(write(tmp_path, name="plain.yaml"))
    assert [v.label for v in load_series(path, ["vary=null"])] == [""]


@pytest.mark.parametrize("vary", [
    3, [1, 2], "sft.steps", {"key": "sft.steps"}, {"values": [1]}, {"key": "sft.steps", "values": 3},
    {"key": "sft.steps", "values": [1], "also": 2}, {"key": "sft.steps", "values": []},
    {"key": "sft.steps", "values": [25, 25]},
], ids=str)  # fmt: skip
def test_a_series_that_is_none_is_one_line(vary, tmp_path):
    with pytest.raises(BadInput) as refused:
        load_series(write(tmp_path, vary=vary))
    assert problem(refused).startswith("vary") and problem(refused).endswith("; correct it")


@pytest.mark.parametrize(("key", "value", "line"), [
    ("sft.step", 3, "sft.step: unknown key (did you mean steps?); remove it"),
    ("sft.steps", -3, "sft.steps: "),
    ("name.first", 3, "vary: name is not a section; check the key"),
])  # fmt: skip
def test_what_is_varied_is_checked_before_anything_starts(key, value, line, tmp_path):
    with pytest.raises(BadInput) as refused:
        load_series(write(tmp_path, vary={"key": key, "values": [value]}))
    assert problem(refused).startswith(line)


# Small sizes

FAST = {"seeds": [1], "compute": {"limit": 1e9}, "sft": {"steps": 5}}


def test_the_small_size_is_laid_over_the_recipe_only_when_asked_for(tmp_path):
    path = write(tmp_path, fast=FAST, sft={"demonstrations": 99})
    full, fast = load_recipe(path), load_recipe(path, fast=True)
    assert (full.compute.limit, full.seeds, full.sft.steps) == (1e12, (1, 2, 3), 400)
    assert (fast.compute.limit, fast.seeds, fast.sft.steps) == (1e9, (1,), 5)
    assert fast.sft.demonstrations == full.sft.demonstrations == 99
    assert list(fast.arms) == list(full.arms)


def test_the_command_line_wins_over_the_small_size(tmp_path):
    recipe = load_recipe(write(tmp_path, fast=FAST), ["sft.steps=7"], fast=True)
    assert (recipe.sft.steps, recipe.seeds) == (7, (1,))


def test_a_small_size_can_have_fewer_arms_a_shorter_series_and_an_inherited_size(tmp_path):
    write(tmp_path, name="base.yaml", fast=FAST)
    fast = {"arms": {"dpo": {"method": "dpo"}}, "vary": {"values": [2]}, "seeds": [4]}
    path = write(tmp_path, {"extends": "base.yaml", "vary": {"key": "sft.steps", "values": [25, 100]}, "fast": fast})
    (only,) = load_series(path, fast=True)
    assert (only.label, list(only.recipe.arms), only.recipe.seeds) == ("sft.steps=2", ["dpo"], (4,))
    assert only.recipe.compute.limit == 1e9  # of the recipe it extends
    assert len(load_series(path)) == 2


def test_the_small_sizes_files_are_named_relative_to_the_recipe_as_well(tmp_path):
    files = {"kind": "files", "prompts": "./p.jsonl", "held_out": "../h.jsonl"}
    task = load_recipe(write(tmp_path, fast={"task": files}), fast=True).task
    assert (task.prompts.source, task.held_out.source) == (str(tmp_path / "p.jsonl"), str(tmp_path.parent / "h.jsonl"))


@pytest.mark.parametrize("more", [{}, {"fast": None}, {"fast": 3}])
def test_a_recipe_without_a_small_size_says_so(more, tmp_path):
    with pytest.raises(BadInput) as refused:
        load_recipe(write(tmp_path, **more), fast=True)
    assert problem(refused).endswith("--fast: this recipe has no section fast; run it without, or add one")
