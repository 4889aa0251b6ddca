"""Pairwise and supervised losses against closed forms in float64, written here with numpy and scipy alone."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit, log_expit

from rlhf_bench.core.types import Row
from rlhf_bench.methods import METHODS
from rlhf_bench.methods.base import Outputs
from rlhf_bench.methods.dpo import DPOSettings, dpo_loss
from rlhf_bench.methods.flex_dpo import FlexDPOSettings, flex_dpo_loss
from rlhf_bench.methods.pairs import one_step, split_pairs, with_reference
from rlhf_bench.methods.supervised import REWARD_MODEL, SFT, bradley_terry

UP = np.array([0.0, 1.3, -2.0, 0.4, 30.0, -30.0])  # log-ratios of the chosen responses: agreeing, wrong, saturated
DOWN = np.array([0.0, -0.7, 3.0, 0.4, -40.0, 40.0])
BETAS = [(0.1, 0.1), (0.1, 0.08), (0.1, 0.15), (0.7, 0.01)]
finite = st.floats(-50, 50)


def double(x):
    return torch.tensor(x, dtype=torch.float64, requires_grad=True)


def value_and_gradients(loss, *inputs):
    """A loss [P] of several float64 inputs [P], and the gradient of its sum in each of them, as arrays."""
    leaves = [double(x) for x in inputs]
    out = loss(*leaves)
    return out.detach().numpy(), [g.numpy() for g in torch.autograd.grad(out.sum(), leaves)]


@pytest.mark.parametrize("beta", [0.01, 0.1, 1.0])
def test_dpo_is_the_negative_log_sigmoid_of_the_scaled_margin(beta):
    loss, (up, down) = value_and_gradients(lambda c, r: dpo_loss(c, r, beta), UP, DOWN)
    margin = beta * (UP - DOWN)
    np.testing.assert_allclose(loss, -log_expit(margin), rtol=1e-12)
    np.testing.assert_allclose(up, -beta * expit(-margin), rtol=1e-12)
    np.testing.assert_allclose(down, beta * expit(-margin), rtol=1e-12)


@pytest.mark.parametrize(("beta_chosen", "beta_rejected"), BETAS)
def test_flex_dpo_weighs_each_side_by_its_own_beta(beta_chosen, beta_rejected):
    loss, (up, down) = value_and_gradients(lambda c, r: flex_dpo_loss(c, r, beta_chosen, beta_rejected), UP, DOWN)
    margin = beta_chosen * UP - beta_rejected * DOWN
    np.testing.assert_allclose(loss, -log_expit(margin), rtol=1e-12)
    np.testing.assert_allclose(up, -beta_chosen * expit(-margin), rtol=1e-12)
    np.testing.assert_allclose(down, beta_rejected * expit(-margin), rtol=1e-12)


def test_known_values():
    """Reckoned by hand: β = 0.1, log-ratios 2 and −3, margin 0.5; β⁻ = 0.2 makes it 0.8."""
    two, minus_three = double([2.0]), double([-3.0])
    assert dpo_loss(two, minus_three, 0.1).item() == pytest.approx(0.4740769842)
    assert flex_dpo_loss(two, minus_three, 0.1, 0.2).item() == pytest.approx(0.3711006659)
    assert bradley_terry(two, minus_three).item() == pytest.approx(0.0067153485)


@pytest.mark.parametrize("loss", [
    lambda zero: dpo_loss(zero, zero, 0.1),
    lambda zero: flex_dpo_loss(zero, zero, 0.1, 0.03),
    lambda zero: bradley_terry(zero, zero),
])  # fmt: skip
def test_without_a_preference_the_loss_is_log_two(loss):
    assert loss(double([0.0])).item() == pytest.approx(np.log(2), abs=1e-15)


@settings(deadline=None)
@given(finite, finite, st.floats(1e-3, 2))
def test_flex_dpo_with_equal_betas_is_dpo(up, down, beta):
    up, down = double([up]), double([down])
    torch.testing.assert_close(flex_dpo_loss(up, down, beta, beta), dpo_loss(up, down, beta), rtol=1e-12, atol=1e-12)


@settings(deadline=None)
@given(finite, finite)
def test_bradley_terry_is_dpo_on_rewards_with_balanced_gradients(up, down):
    loss, (chosen, rejected) = value_and_gradients(bradley_terry, [up], [down])
    np.testing.assert_allclose(loss, -log_expit(up - down), rtol=1e-12)
    np.testing.assert_allclose(chosen, -expit(down - up), rtol=1e-12)
    np.testing.assert_array_equal(chosen, -rejected)


@pytest.mark.parametrize(("beta_chosen", "beta_rejected"), BETAS)
def test_the_sides_gradients_keep_their_ratio_in_log_space_and_blow_up_in_probability_space(beta_chosen, beta_rejected):
    pi_chosen, pi_rejected = np.array([0.3, 0.01, 0.2]), np.array([0.3, 0.2, 1e-9])
    reference_chosen, reference_rejected = np.array([0.2, 0.05, 0.1]), np.array([0.25, 0.1, 0.02])

    def of_probabilities(chosen, rejected):
        up = chosen.log() - torch.tensor(reference_chosen).log()
        down = rejected.log() - torch.tensor(reference_rejected).log()
        return flex_dpo_loss(up, down, beta_chosen, beta_rejected)

    _, (chosen, rejected) = value_and_gradients(of_probabilities, pi_chosen, pi_rejected)
    assert (chosen < 0).all() and (rejected > 0).all()
    np.testing.assert_allclose(-rejected / chosen, beta_rejected / beta_chosen * pi_chosen / pi_rejected, rtol=1e-10)
    # d/d log π = π · d/dπ: in log space only the betas are left.
    in_log_space = -(rejected * pi_rejected) / (chosen * pi_chosen)
    np.testing.assert_allclose(in_log_space, beta_rejected / beta_chosen, rtol=1e-10)


def test_dpo_gradients_in_probability_space_are_the_papers_closed_form():
    """arXiv 2406.07327: α = (π0⁺/π0⁻)^β, z = π⁻/π⁺, |∂ℓ/∂π±| = αβ z^β / ((1 + α z^β) π±)."""
    beta, pi, pi0 = 0.3, (0.12, 0.07), (0.2, 0.05)
    _, (chosen, rejected) = value_and_gradients(
        lambda c, r: dpo_loss(c.log() - np.log(pi0[0]), r.log() - np.log(pi0[1]), beta), [pi[0]], [pi[1]]
    )
    weight = (pi0[0] / pi0[1]) ** beta * (pi[1] / pi[0]) ** beta
    assert chosen[0] == pytest.approx(-beta * weight / ((1 + weight) * pi[0]))
    assert rejected[0] == pytest.approx(beta * weight / ((1 + weight) * pi[1]))


def test_dpo_in_the_field_form_of_probability_ratios():
    """arXiv 2404.04626: L = −log(x₁^β / (x₁^β + x₂^β)), x = π/π0."""
    beta, x1, x2 = 0.4, 1.7, 0.6
    loss, (d1, d2) = value_and_gradients(lambda a, b: dpo_loss(a.log(), b.log(), beta), [x1], [x2])
    total = x1**beta + x2**beta
    assert loss[0] == pytest.approx(-np.log(x1**beta / total))
    assert d1[0] == pytest.approx(-beta * x2**beta / (x1 * total))
    assert d2[0] == pytest.approx(beta * x2 ** (beta - 1) / total)


@pytest.mark.parametrize("loss", [
    lambda c, r: dpo_loss(c, r, 0.1), lambda c, r: flex_dpo_loss(c, r, 0.1, 0.08), bradley_terry,
])  # fmt: skip
def test_gradcheck(loss):
    assert torch.autograd.gradcheck(loss, (double([0.0, 1.3, -2.0]), double([0.0, -0.7, 3.0])))


# From tokens to pairs: two pairs, responses of 2, 1, 3 and 2 tokens in the order chosen, rejected, chosen, rejected.
INDEX = np.array([0, 0, 1, 2, 2, 2, 3, 3])
LOGPROBS = np.array([-0.5, -1.0, -2.5, -0.1, -0.2, -0.3, -4.0, -1.5])
REFERENCE = np.array([-2.0, -1.0, -1.2, -3.0])
SIDES = np.array([LOGPROBS[INDEX == r].sum() for r in range(4)]) - REFERENCE
SIGN = np.where(INDEX % 2 == 0, -1.0, 1.0)
TOKEN_PAIR = INDEX // 2


def policy_outputs(logprobs):
    extras = {"reference_logprob": torch.tensor(REFERENCE)}
    return Outputs(torch.tensor(INDEX), 4, extras, logprobs=logprobs, entropy=torch.linspace(0.1, 0.8, 8).double())


@pytest.mark.parametrize(("method", "settings", "beta_chosen", "beta_rejected"), [
    ("dpo", DPOSettings(beta=0.2), 0.2, 0.2),
    ("flex_dpo", FlexDPOSettings(beta_chosen=0.2, beta_rejected=0.05), 0.2, 0.05),
])  # fmt: skip
def test_a_pairs_objective_sums_over_tokens_and_pushes_each_token_its_sides_way(
    method, settings, beta_chosen, beta_rejected
):
    (objective,) = METHODS[method].objectives
    loss, (gradient,) = value_and_gradients(lambda x: objective.loss(policy_outputs(x), settings)[0], LOGPROBS)
    margin = beta_chosen * SIDES[0::2] - beta_rejected * SIDES[1::2]
    np.testing.assert_allclose(loss, -log_expit(margin), rtol=1e-12)
    weight = np.where(INDEX % 2 == 0, beta_chosen, beta_rejected)
    np.testing.assert_allclose(gradient, SIGN * weight * expit(-margin)[TOKEN_PAIR], rtol=1e-12)
    assert (objective.model, objective.unit) == ("policy", "row")


@pytest.mark.parametrize("method", ["dpo", "flex_dpo"])
def test_a_pairs_metrics_are_per_pair(method):
    (objective,) = METHODS[method].objectives
    _, metrics = objective.loss(policy_outputs(double(LOGPROBS)), METHODS[method].settings())
    expected = {
        "chosen_logprob": SIDES[0::2] + REFERENCE[0::2],
        "rejected_logprob": SIDES[1::2] + REFERENCE[1::2],
        "chosen_logratio": SIDES[0::2],
        "rejected_logratio": SIDES[1::2],
        "margin": SIDES[0::2] - SIDES[1::2],
        "accuracy": SIDES[0::2] > SIDES[1::2],
        "entropy": [0.2, 0.6],
    }
    assert metrics.keys() == expected.keys()
    for name, numbers in expected.items():
        np.testing.assert_allclose(metrics[name].numpy(), numbers, rtol=1e-6, err_msg=name)
        assert not metrics[name].requires_grad


def test_supervised_fine_tuning_is_the_negative_log_likelihood_of_every_token():
    loss, (gradient,) = value_and_gradients(lambda x: SFT.loss(policy_outputs(x), None)[0], LOGPROBS)
    np.testing.assert_array_equal(loss, -LOGPROBS)
    np.testing.assert_array_equal(gradient, -1.0)


def test_the_reward_models_objective_raises_chosen_over_rejected():
    scores = np.array([0.3, 1.1, 2.0, -0.5])

    def objective(leaf):
        out = Outputs(torch.tensor(INDEX), 4, {}, values=torch.zeros(8), scores=leaf)
        return REWARD_MODEL.loss(out, None)[0]

    loss, (gradient,) = value_and_gradients(objective, scores)
    margin = scores[0::2] - scores[1::2]
    np.testing.assert_allclose(loss, -log_expit(margin), rtol=1e-12)
    np.testing.assert_allclose(gradient, np.repeat(expit(-margin), 2) * [-1, 1, -1, 1], rtol=1e-12)


def test_the_references_log_probabilities_are_summed_over_each_response():
    row = Row("r", (1,), ((2, 3), (4,)))
    measured = {"reference_logprobs": [(np.array([-1.0, -0.5]), np.array([-2.0]))]}
    prepared = with_reference([row], [(1.0, 0.0)], measured, DPOSettings(), {})
    assert [a.tolist() for a in prepared.rows[0].extras["reference_logprob"]] == [[-1.5], [-2.0]]
    assert (prepared.rows[0].responses, prepared.rows[0].prompt_ids, prepared.rows[0].id) == (row.responses, (1,), "r")


@pytest.mark.parametrize(("shape", "responses"), [((3,), 3), ((4,), 2), ((2, 2), 4)])
def test_numbers_that_are_no_pairs_are_refused(shape, responses):
    with pytest.raises(ValueError, match="even number of responses"):
        split_pairs(torch.zeros(shape), responses)


def test_pair_methods_take_one_step_over_all_pairs():
    assert one_step([None] * 3, DPOSettings(), np.random.default_rng(0)) == [[0, 1, 2]]


@pytest.mark.parametrize("name", METHODS)
def test_every_method_is_registered_under_the_name_its_settings_carry(name):
    assert METHODS[name].settings().method == METHODS[name].name == name
