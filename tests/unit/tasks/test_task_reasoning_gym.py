"""reasoning-gym's data sets as tasks: its own verdicts, splits by text, and what is refused."""

import inspect
import re
import sys
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_bench.core.errors import BadInput
from rlhf_bench.recipe import parse_recipe
from rlhf_bench.tasks import build_task
from rlhf_bench.tasks.reasoning_gym import EVALUATE, ReasoningGymSettings

SUMS = ReasoningGymSettings(
    dataset="chain_sum", config={"max_terms": 3}, harder={"min_terms": 5, "max_terms": 6}, size=2000
)
TASK = build_task(SUMS)


def test_splits_are_apart_and_harder_where_that_is_asked_for():
    assert TASK.splits == ("train", "in_distribution", "out_of_distribution")
    splits = {split: {p.text for seed in (1, 2) for p in TASK.prompts(split, 80, seed)} for split in TASK.splits}
    assert not any(splits[a] & splits[b] for a, b in combinations(TASK.splits, 2))
    signs = {split: [len(re.findall(r" [+-] ", text)) for text in found] for split, found in splits.items()}
    assert max(signs["train"] + signs["in_distribution"]) == 2 and min(signs["out_of_distribution"]) == 4
    same = ReasoningGymSettings(
        dataset="chain_sum", harder={}, size=500
    )  # of the same questions, too, each is in one split
    texts = {split: {p.text for p in build_task(same).prompts(split, 30, 0)} for split in TASK.splits}
    assert not any(texts[a] & texts[b] for a, b in combinations(TASK.splits, 2))
    assert TASK.prompts("train", 50, 1)[:20] == TASK.prompts("train", 20, 1) != TASK.prompts("train", 20, 2)


@pytest.mark.parametrize(
    "name", ["chain_sum", "family_relationships", "spell_backward", "leg_counting", "letter_counting"]
)
def test_verdicts_are_the_librarys_own(name):
    import reasoning_gym

    task = build_task(ReasoningGymSettings(dataset=name, size=300, seed=4))
    entries = reasoning_gym.create_dataset(name, size=300, seed=4)
    for prompt in task.prompts("train", 20, 0):
        entry = entries[int(prompt.id.rpartition("/")[2])]
        assert (prompt.text, prompt.answer) == (entry["question"], entry["answer"])
        for response in (prompt.answer, prompt.answer + "0", "It is " + prompt.answer, "no"):
            assert task.judge(prompt, response).score == pytest.approx(entries.score_answer(response, entry))
        assert task.judge(prompt, f"I add.\n<answer> {prompt.answer} </answer>").parts == {"right": 1.0}


def test_demonstrations_are_right_and_pairs_rule_made():
    assert all(TASK.judge(d.prompt, d.response).score == 1 for d in TASK.demonstrations(50, 0))
    for pair in TASK.pairs(60, 0):
        assert pair.source == "rule-made"
        assert TASK.judge(pair.prompt, pair.chosen).score == 1 > TASK.judge(pair.prompt, pair.rejected).score


@settings(max_examples=50, deadline=None)
@given(st.sampled_from(["prime_factorization", "boxnet", "game_of_life", "chain_sum"]), st.text() | st.just("42"))
def test_any_text_gets_a_judgement(name, response):
    task = TASKS.setdefault(name, build_task(ReasoningGymSettings(dataset=name, size=20)))
    assert 0 <= task.judge(task.prompts("train", 1, 0)[0], response).score <= 1


TASKS = {}


@pytest.mark.parametrize(("wrong", "line"), [
    ({"dataset": "chain_sums"}, "task.dataset: reasoning-gym has no 'chain_sums'; did you mean chain_sum"),
    ({"dataset": "xyzzy"}, "task.dataset: reasoning-gym has no 'xyzzy'; there are ab, acre, "),
    ({"dataset": "n_queens"}, "task.dataset: the verifier of 'n_queens' may run responses as Python; choose another"),
    ({"dataset": "word_ladder"}, "task.dataset: the entries of 'word_ladder' differ from process to process; choose another"),
    ({"dataset": "chain_sum", "config": {"terms": 3}}, "task.config: 'chain_sum' does not take these parameters ("),
    ({"dataset": "chain_sum", "harder": {"min_terms": 9}}, "task.harder: 'chain_sum' does not take these parameters ("),
    ({"dataset": "chain_sum", "config": {"seed": 3}}, "task.config: seed is a key of the task itself; move it to task.seed"),
])  # fmt: skip
def test_what_does_not_exist_is_refused_by_name(wrong, line):
    with pytest.raises(BadInput) as refused:
        build_task(ReasoningGymSettings(**wrong))
    assert str(refused.value).startswith(line) and "\n" not in str(refused.value)


def test_what_cannot_be_drawn_or_demonstrated_says_so():
    with pytest.raises(BadInput, match="5000 different prompts are asked for, and 2000 entries have"):
        TASK.prompts("train", 5000, 0)
    with pytest.raises(BadInput, match="verifies answers and gives none"):
        build_task(ReasoningGymSettings(dataset="rush_hour", size=20)).demonstrations(1, 0)


def test_every_verifier_that_evaluates_a_response_is_refused():
    from reasoning_gym.factory import DATASETS

    sources = {name: inspect.getsource(sys.modules[data_set.__module__]) for name, (data_set, _) in DATASETS.items()}
    evaluating = {
        name for name, source in sources.items() if re.search(r"(\beval|\.?parse_expr|sympify)\(answer", source)
    }
    assert evaluating == EVALUATE - {"composite"}


def test_a_recipe_can_name_it():
    arms = {"a": {"method": "ppo", "feedback": "judge"}}
    task = {"kind": "reasoning_gym", "dataset": "chain_sum", "config": {"max_terms": 3}}
    assert parse_recipe({"name": "a", "task": task, "compute": {"limit": 1e12}, "arms": arms}).task.config == {
        "max_terms": 3
    }
