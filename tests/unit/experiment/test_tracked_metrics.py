"""What MLflow is told of a comparison, before any store has to be there."""

import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from rlhf_bench.core.costs import Cost
from rlhf_bench.core.errors import BadInput
from rlhf_bench.core.text import table
from rlhf_bench.core.types import EvalPoint, Evaluation, LabelledResponse, Pair, Prompt, Row
from rlhf_bench.experiment.tracking.descriptions import (
    MAX_CHARACTERS,
    arm_finished,
    comparison_finished,
    comparison_started,
)
from rlhf_bench.experiment.tracking.metrics import (
    datasets,
    evaluation_metrics,
    finished_policies,
    scored_metrics,
    update_metrics,
    used_by,
)
from rlhf_bench.methods import METHODS
from rlhf_bench.methods.base import DataMode
from rlhf_bench.recipe import parse_recipe
from rlhf_bench.results.final_scores import ArmScores, FinalScores
from rlhf_bench.results.reader import read_recorded
from rlhf_bench.results.standing import standing
from rlhf_bench.results.summary import summarize
from tests.support.scripted import split_result

ROOT = Path(__file__).parents[3]
SMALL = {
    "name": "small", "task": {"kind": "arithmetic", "digits": 1}, "compute": {"limit": 1e9},
    "arms": {"ppo": {"method": "ppo"}, "dpo": {"method": "dpo"}},
}  # fmt: skip
SPENT = Cost(flops=4.0, generated_tokens=30, trained_tokens=12, scored_tokens=5).as_dict()


@pytest.fixture(scope="module")
def summary():
    """Of a recorded comparison: 3 seeds of several arms."""
    return summarize(read_recorded(ROOT / "docs" / "results" / "data" / "verse"))


def test_what_an_evaluation_has_no_value_for_is_left_out_as_the_tables_leave_it_out():
    """A correlation with lengths that are all equal. It was counted as trouble, once: not where it was sent again from the tables."""
    point = EvalPoint(0.5, 3, SPENT, 0.5, 1.0)
    numbers = {"kl": 1.0, "reward_model/length_correlation": math.nan}
    points = list(scored_metrics(point, numbers, [("score", "in_distribution", 0.25), ("score", "unseen", math.nan)]))
    assert points == list(scored_metrics(point, {"kl": 1.0}, [("score", "in_distribution", 0.25)]))
    assert all(math.isfinite(value) for _, metrics in points for value in metrics.values())


def test_an_update_stands_at_its_number_and_what_is_compared_also_at_compute_and_tokens():
    points = list(update_metrics(7, {"loss": 0.5, "reward": 0.25, "grad_norm": 2.0}, SPENT, 0.4567))
    assert [step for step, _ in points] == [7, 457, 42]
    at_update, at_compute, at_tokens = (metrics for _, metrics in points)
    assert at_update["train/loss"] == 0.5 and at_update["budget/fraction"] == 0.4567
    assert {f"budget/{column}": value for column, value in SPENT.items()}.items() <= at_update.items()
    assert at_compute == {"by_budget_permille/train/reward": 0.25}
    assert at_tokens == {"by_tokens/train/reward": 0.25}
    assert [step for step, _ in update_metrics(7, {"loss": 0.5}, SPENT, 0.4567)] == [7]  # nothing that is compared


def test_a_look_stands_at_its_update_its_compute_and_its_tokens():
    look = EvalPoint(0.5, 9, SPENT, 0.5012, 3.0)
    splits = {"in_distribution": split_result(0.75, greedy=0.25), "unseen": split_result(0.5, greedy=1.0)}
    points = list(evaluation_metrics(look, Evaluation(splits, {"kl": 0.1, "margin": 2.0}, {}, 1.0)))
    assert [step for step, _ in points] == [9, 501, 42]
    compared = {
        "score/in_distribution": 0.75,
        "score/unseen": 0.5,
        "kl": 0.1,
    }
    assert points[1][1] == {f"by_budget_permille/{name}": value for name, value in compared.items()}
    assert points[2][1] == {f"by_tokens/{name}": value for name, value in compared.items()}
    assert points[0][1]["evaluation/margin"] == 2.0 and points[0][1]["score/unseen"] == 0.5


def inputs(text="1+1="):
    prompt = Prompt("p0", text, "2", (1, 2, 3))
    held_out = {"in_distribution": [prompt], "unseen": [prompt, prompt]}
    pair = Pair("pair0", prompt, (4,), (5,))
    found = SimpleNamespace(
        demonstrations=[Row("p0", (1, 2), ((3,),))], train=[prompt] * 3, held_out=held_out, pairs=None, labelled=None
    )
    start = SimpleNamespace(
        pairs=[pair], held_out_pairs={"in_distribution": [pair]}, own_pairs={"on_policy": [pair] * 2}
    )
    return found, start


def test_data_has_a_name_a_size_and_a_digest_that_changes_with_it():
    recipe = parse_recipe(SMALL)
    known, other = datasets(recipe, *inputs()), datasets(recipe, *inputs("1+2="))
    assert {name: (one.context, one.rows) for name, one in known.items()} == {
        "demonstrations": ("training", 1), "train_prompts": ("training", 3), "off_policy_pairs": ("training", 1),
        "held_out_prompts_in_distribution": ("evaluation", 1), "held_out_prompts_unseen": ("evaluation", 2),
        "held_out_pairs_in_distribution": ("evaluation", 1), "own_pairs_on_policy": ("evaluation", 2),
    }  # fmt: skip
    assert known == datasets(recipe, *inputs())
    assert known["train_prompts"].digest != other["train_prompts"].digest
    assert known["demonstrations"].digest == other["demonstrations"].digest


@pytest.mark.parametrize(("data", "trains_on"), [
    ("offline", ["off_policy_pairs"]), ("online", ["train_prompts"]),
    ("on_policy", ["train_prompts", "off_policy_pairs"]), ("chosen_on_policy", ["train_prompts", "off_policy_pairs"]),
])  # fmt: skip
def test_an_arms_run_names_the_data_that_it_learns_from(data: DataMode, trains_on):
    used = used_by(METHODS["dpo"].settings(data=data), datasets(parse_recipe(SMALL), *inputs()))
    assert [one.name for one in used if one.context == "training"] == trains_on
    assert len([one for one in used if one.context == "evaluation"]) == 4


@pytest.mark.parametrize("labelled", [True, False])
def test_an_arm_that_learns_from_labels_names_them_or_the_pairs_whose_sides_they_are(labelled):
    given, start = inputs()
    one = LabelledResponse("l", given.train[0], (1, 2), True)
    given.labelled = [one] if labelled else None
    known = datasets(parse_recipe(SMALL), given, start)
    used = used_by(METHODS["kto"].settings(unpaired=True), known)
    trains_on = [one.name for one in used if one.context == "training"]
    assert trains_on == (["labelled_responses"] if labelled else ["off_policy_pairs"])


def test_a_description_has_the_verdict_the_table_and_a_link_to_the_recipe(summary):
    text = comparison_finished(summary)
    assert "has the highest mean score" in text and "](artifact:recipe.yaml)" in text
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    # The headings, a line under them, the arms, and the base policy, also at other temperatures.
    assert len(lines) == 2 + len(summary.arms) + 1 + len(summary.base_at)
    assert all(any(f"| {arm.name} |" in line for line in lines) for arm in summary.arms)
    own = arm_finished(summary.arms[0], summary.arms[0].seeds[0], summary)
    assert f"{summary.arms[0].seeds[0].score:.3f}" in own and "](artifact:recipe.yaml)" in own


def test_a_description_that_would_be_too_long_for_mlflow_says_how_many_rows_it_lacks(summary):
    arm = summary.arms[0]
    scores = FinalScores({seed.seed: seed.score for seed in arm.finished})
    arms = tuple(replace(arm, name=f"arm-{i}") for i in range(200))
    many = replace(summary, arms=arms, standing=standing({one.name: ArmScores(scores, scores) for one in arms}))
    text = comparison_finished(many)
    assert (
        len(text) <= MAX_CHARACTERS + 50
        and "more rows are in the report." in text
        and "](artifact:report.html)" in text
    )


def test_text_of_a_recipe_is_no_markup_in_a_description():
    about = comparison_started(parse_recipe(SMALL | {"description": "[x](javascript:alert(1)) <b>"}))
    assert "\\[x](javascript" in about and "\\<b>" in about
    assert table([{"a": "x|y"}]).splitlines()[-1] == "| x\\|y |"


def test_every_finished_policy_has_aliases_and_one_of_all_is_best(summary):
    policies = list(finished_policies(summary))
    assert len(policies) == sum(len(arm.finished) for arm in summary.arms)
    by_alias = {alias: (arm, seed, score) for arm, seed, score, aliases in policies for alias in aliases}
    assert len(by_alias) == sum(len(aliases) for *_, aliases in policies)  # none is given twice
    for arm in summary.arms:
        assert by_alias[arm.name.replace(".", "_").replace("=", "_")][2] == max(seed.score for seed in arm.finished)
    assert by_alias["best"][2] == max(score for *_, score, _ in policies)
    assert math.isfinite(by_alias["best"][2])


@pytest.mark.parametrize(("arms", "said"), [
    (["latest"], "arms.latest: .* cannot give a policy the alias latest; rename the arm"),
    (["v2"], "arms.v2: .* alias v2"), (["Best"], "arms.Best: .* alias Best"),
    (["a.b", "a=b"], "arms.a=b: its alias in the registry, a_b, would be that of arm a.b too; rename one"),
])  # fmt: skip
def test_arms_that_cannot_have_an_alias_are_refused_where_policies_are_registered(arms, said):
    data = SMALL | {"arms": {arm: {"method": "dpo"} for arm in arms}}
    parse_recipe(data)
    with pytest.raises(BadInput, match=said):
        parse_recipe(data | {"tracking": {"register_as": "policies"}})


def test_a_registered_models_name_is_plain():
    """It goes into MLflow's filters, in quotes."""
    with pytest.raises(BadInput, match="tracking.register_as"):
        parse_recipe(SMALL | {"tracking": {"register_as": "it's"}})
