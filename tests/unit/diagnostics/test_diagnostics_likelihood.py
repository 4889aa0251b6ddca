"""The 3D-properties' numbers, by hand and against numpy's own fits."""

import math

import numpy as np
import pytest

from rlhf_bench.core.types import PairEvaluation
from rlhf_bench.diagnostics.likelihood import (
    kl_numbers,
    numbers_of_evaluated,
    pair_numbers,
    pairwise_accuracy,
    probe_numbers,
)

REFERENCE = np.array([[-1.0, -2.0], [-3.0, -1.0], [-2.0, -2.0], [-4.0, -1.0]])
CHANGE = np.array([[0.5, -1.0], [-0.25, -0.25], [-1.0, -3.0], [0.0, 0.5]])


def test_pairs_by_hand():
    numbers = pair_numbers(REFERENCE + CHANGE, REFERENCE)
    assert numbers == pytest.approx(
        {
            "chosen_logprob": -10.75 / 4,
            "rejected_logprob": -9.75 / 4,
            "chosen_logratio": -0.75 / 4,
            "rejected_logratio": -3.75 / 4,
            "margin": 3.0 / 4,
            "displaced": 0.5,  # the second and the third; 0 is no loss
            "accuracy": 0.5,  # the first and the third; a tie is no success
        }
    )


def test_the_reference_itself_has_moved_nowhere():
    numbers = pair_numbers(REFERENCE, REFERENCE)
    still = ("chosen_logratio", "rejected_logratio", "margin", "displaced", "accuracy")
    assert all(numbers[name] == 0 for name in still)


def test_evaluated_pairs_have_the_same_numbers():
    now = REFERENCE + CHANGE
    pairs = [PairEvaluation("s", f"{i}", *now[i], *CHANGE[i], 1, 1, 0.0, 0.0, 1.0) for i in range(4)]
    assert numbers_of_evaluated(pairs) == pytest.approx(pair_numbers(now, REFERENCE), abs=1e-12)


def test_identities_between_the_numbers():
    numbers = pair_numbers(REFERENCE + CHANGE, REFERENCE)
    assert numbers["margin"] == pytest.approx(numbers["chosen_logratio"] - numbers["rejected_logratio"])
    swapped = pair_numbers((REFERENCE + CHANGE)[:, ::-1], REFERENCE[:, ::-1])
    assert swapped["margin"] == pytest.approx(-numbers["margin"])
    assert swapped["accuracy"] + numbers["accuracy"] == 0.75  # all but the tie


def test_accuracy_takes_rewards_of_any_kind():
    assert pairwise_accuracy([1, 2, 3], [0, 2, 4]) == pytest.approx(1 / 3)


def test_probes_are_named_after_their_set():
    assert probe_numbers("permuted", np.array([-5.0, -7.0]), np.array([-4.0, -4.0])) == {
        "probe/permuted": -6.0,
        "probe/permuted_logratio": -2.0,
    }


def test_kl_and_its_error_are_those_of_the_mean_over_prompts():
    """Samples of one prompt are no independent prompts: two prompts of 3 and 1 nats, however many samples they have."""
    kl = np.array([[2.0, 4.0, 2.0, 4.0], [1.0, 1.0, 1.0, 1.0]])
    assert kl_numbers(kl) == pytest.approx({"kl": 2.0, "kl_error": 1.0})
    assert kl_numbers(np.repeat(kl, 5, axis=1)) == pytest.approx(kl_numbers(kl))
    assert math.isnan(kl_numbers(kl[:1])["kl_error"])
