"""From judged responses to a prompt's scores, and which responses an evaluation draws."""

import itertools

import numpy as np
import pytest

from rlhf_bench.core.types import Judgement
from rlhf_bench.diagnostics.scores import draws_seed, expected_best, mean_parts, prompt_scores


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_the_best_of_n_is_the_mean_maximum_over_all_subsets(n):
    scores = np.array([[0.1, 0.9, 0.4, 0.4], [1.0, 0.0, 0.0, 0.0]])
    by_hand = [np.mean([max(s) for s in itertools.combinations(row, n)]) for row in scores]
    assert expected_best(scores, n) == pytest.approx(by_hand)


def test_the_best_of_more_than_there_are_is_refused():
    with pytest.raises(ValueError, match="the best of 5 .* there are 4"):
        expected_best(np.zeros((2, 4)), 5)


def test_a_prompts_scores_are_means_over_its_responses_or_what_is_expected():
    sampled, greedy = np.array([[0.0, 1.0], [1.0, 1.0]]), np.array([1.0, 0.0])
    found = prompt_scores(["a", "b"], sampled, greedy, 2, None)
    assert [(one.prompt_id, one.score, one.greedy_score, one.best_of_score) for one in found] == [("a", 0.5, 1.0, 1.0), ("b", 1.0, 0.0, 1.0)]  # fmt: skip
    known = prompt_scores(["a", "b"], sampled, greedy, None, np.array([0.25, 0.75]))
    assert [one.score for one in known] == [0.25, 0.75] and all(np.isnan(one.best_of_score) for one in known)


def test_every_arm_seed_and_update_has_draws_of_its_own():
    names = [f"{arm}, seed {seed}, update {update}" for arm in "ab" for seed in range(50) for update in range(10)]
    assert len({draws_seed(name) for name in names}) == len(names)
    assert draws_seed(names[0]) == draws_seed(names[0])


def test_parts_that_are_means_count_all_they_are_over():
    """Three of four instructions followed in all, where the prompts' shares have the mean 5/6; one that lacks a part has 0."""
    long = Judgement(2 / 3, {"instruction": 2 / 3, "prompt": 0.0}, {"instruction": 3})
    short = Judgement(1.0, {"instruction": 1.0, "prompt": 1.0}, {"instruction": 1})
    assert mean_parts([long, short]) == pytest.approx({"instruction": 3 / 4, "prompt": 1 / 2})
    cut_off = Judgement(0.0, weights={"instruction": 4})
    assert mean_parts([long, short, cut_off]) == pytest.approx({"instruction": 3 / 8, "prompt": 1 / 3})
    assert mean_parts([Judgement(1.0), Judgement(0.0)]) == {}
