"""Losses on pairs beyond DPO and Flex-DPO: values and gradients against closed forms in float64, and identities."""

from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from scipy.special import expit, log_expit

from rlhf_bench.core.types import DESIRABLE, Row
from rlhf_bench.methods import METHODS
from rlhf_bench.methods.base import Outputs, PairLogprobs
from rlhf_bench.methods.pairs import pair_logprobs, with_reference

# Pairs that agree with the reference, are right, wrong, one-sided, saturated; no entry sits on a kink.
CHOSEN = np.array([-4.0, -2.7, -9.0, -3.6, -1.0, -40.0])
REFERENCE_CHOSEN = np.array([-4.5, -4.0, -7.0, -4.0, -31.0, -10.0])
REJECTED = np.array([-6.0, -8.7, -5.0, -3.5, -45.0, -2.0])
REFERENCE_REJECTED = np.array([-6.5, -8.0, -8.0, -3.9, -5.0, -42.0])
CHOSEN_TOKENS = np.array([3.0, 1.0, 4.0, 2.0, 7.0, 20.0])
REJECTED_TOKENS = np.array([2.0, 5.0, 4.0, 1.0, 9.0, 3.0])
UP, DOWN = CHOSEN - REFERENCE_CHOSEN, REJECTED - REFERENCE_REJECTED
PAIR_METHODS = [name for name, method in METHODS.items() if method.consumes == "pairs"]


def double(x):
    return torch.tensor(x, dtype=torch.float64)


def pairs_of(chosen, rejected, reference_chosen=REFERENCE_CHOSEN, reference_rejected=REFERENCE_REJECTED):
    return PairLogprobs(
        chosen,
        rejected,
        double(reference_chosen),
        double(reference_rejected),
        double(CHOSEN_TOKENS[: len(chosen)]),
        double(REJECTED_TOKENS[: len(chosen)]),
    )


def at_reference():
    return pairs_of(double(REFERENCE_CHOSEN), double(REFERENCE_REJECTED))


def value_and_gradients(name, **settings):
    """A method's loss on the pairs above, and the gradient of its sum in both log-probabilities: three arrays [P]."""
    chosen, rejected = double(CHOSEN).requires_grad_(), double(REJECTED).requires_grad_()
    loss = METHODS[name].pair_loss(pairs_of(chosen, rejected), METHODS[name].settings(**settings))
    gradients = torch.autograd.grad(loss.sum(), (chosen, rejected), allow_unused=True)
    return loss.detach().numpy(), *(np.zeros_like(CHOSEN) if g is None else g.numpy() for g in gradients)


def assert_equals(found, loss, chosen, rejected):
    for got, expected in zip(found, (loss, chosen, rejected), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("tau", [0.02, 0.1, 1.0])
def test_ipo_is_the_squared_distance_of_the_margin_from_its_target(tau):
    error = UP - DOWN - 1 / (2 * tau)
    assert_equals(value_and_gradients("ipo", tau=tau), error**2, 2 * error, -2 * error)


def test_ipo_on_means_divides_each_log_ratio_by_its_own_length():
    error = UP / CHOSEN_TOKENS - DOWN / REJECTED_TOKENS - 1
    found = value_and_gradients("ipo", tau=0.5, log_probs="mean")
    assert_equals(found, error**2, 2 * error / CHOSEN_TOKENS, -2 * error / REJECTED_TOKENS)


@pytest.mark.parametrize("tau", [0.05, 0.5])
def test_ipo_is_least_where_the_margin_is_one_over_two_tau(tau):
    margins = np.linspace(0, 20, 2001)
    pairs = pairs_of(double(margins), double(np.zeros(2001)), np.zeros(2001), np.zeros(2001))
    loss = METHODS["ipo"].pair_loss(pairs, METHODS["ipo"].settings(tau=tau))
    assert margins[loss.argmin()] == pytest.approx(1 / (2 * tau))
    assert loss.min().item() == pytest.approx(0, abs=1e-20)


@pytest.mark.parametrize(("form", "margin"), [("likelihood", CHOSEN - REJECTED), ("reference", UP - DOWN)])
@pytest.mark.parametrize(("delta", "weight"), [(1.0, 0.05), (2.5, 0.0), (0.3, 1.0)])
def test_slic_is_a_hinge_on_the_margin_less_the_weighted_chosen_log_probability(form, margin, delta, weight):
    inside = (margin < delta).astype(float)
    assert 0 < inside.sum() < len(margin)
    found = value_and_gradients("slic", form=form, delta=delta, sft_weight=weight)
    assert_equals(found, inside * (delta - margin) - weight * CHOSEN, -inside - weight, inside)


@pytest.mark.parametrize("form", ["likelihood", "reference"])
def test_slics_hinge_and_its_gradient_are_nothing_from_delta_on(form):
    beyond = torch.linspace(0, 5, 11, dtype=torch.float64) + 1.5
    chosen = beyond.clone().requires_grad_()
    zeros = torch.zeros(11, dtype=torch.float64)
    pairs = PairLogprobs(chosen, zeros, zeros, zeros, zeros + 1, zeros + 1)
    loss = METHODS["slic"].pair_loss(pairs, METHODS["slic"].settings(form=form, delta=1.5, sft_weight=0))
    (gradient,) = torch.autograd.grad(loss.sum(), chosen)
    assert not loss.any() and not gradient.any()


@pytest.mark.parametrize(("beta", "gamma"), [(2.0, 1.0), (10.0, 0.0), (0.5, 1.6)])
def test_simpo_compares_mean_log_probabilities_with_a_margin(beta, gamma):
    argument = beta * CHOSEN / CHOSEN_TOKENS - beta * REJECTED / REJECTED_TOKENS - gamma
    push = beta * expit(-argument)
    found = value_and_gradients("simpo", beta=beta, gamma=gamma)
    assert_equals(found, -log_expit(argument), -push / CHOSEN_TOKENS, push / REJECTED_TOKENS)


@pytest.mark.parametrize("repeats", [2, 5])
def test_simpo_does_not_know_how_often_a_response_is_repeated(repeats):
    loss, settings = METHODS["simpo"].pair_loss, METHODS["simpo"].settings()
    once = pairs_of(double(CHOSEN), double(REJECTED))
    again = PairLogprobs(
        once.chosen * repeats,
        once.rejected * repeats,
        once.reference_chosen,
        once.reference_rejected,
        once.chosen_tokens * repeats,
        once.rejected_tokens * repeats,
    )
    torch.testing.assert_close(loss(again, settings), loss(once, settings), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("beta", "gamma"), [(0.1, 0.05), (0.5, 1.0)])
def test_sft_dpo_raises_the_chosen_response_by_gamma_more_than_dpo(beta, gamma):
    margin = beta * (UP - DOWN)
    push = beta * expit(-margin)
    found = value_and_gradients("sft_dpo", beta=beta, gamma=gamma)
    assert_equals(found, -log_expit(margin) - gamma * CHOSEN, -push - gamma, push)


def test_the_supervised_terms_gradient_in_probability_space_is_the_one_its_paper_states():
    """arXiv 2406.07327, under eq. 7: −γ/π(a⁺); the sign that is printed in eq. 7 itself would give +γ/π(a⁺)."""
    probability, beta, gamma = torch.tensor([0.3], dtype=torch.float64, requires_grad=True), 0.2, 0.7
    other = pairs_of(probability.log(), double([-2.0]), [-1.5], [-1.0])
    of = {
        name: torch.autograd.grad(
            METHODS[name].pair_loss(other, METHODS[name].settings(beta=beta, **more)).sum(),
            probability,
            retain_graph=True,
        )[0].item()
        for name, more in (("dpo", {}), ("sft_dpo", {"gamma": gamma}))
    }
    assert of["sft_dpo"] - of["dpo"] == pytest.approx(-gamma / 0.3)


@pytest.mark.parametrize(("beta", "penalty"), [(0.1, 50.0), (0.3, 2.0)])
def test_dpop_counts_a_chosen_response_below_the_reference_once_more_per_unit_of_penalty(beta, penalty):
    below = (UP < 0).astype(float)
    assert 0 < below.sum() < len(UP)
    margin = beta * (UP * (1 + penalty * below) - DOWN)
    push = beta * expit(-margin)
    found = value_and_gradients("dpop", beta=beta, penalty=penalty)
    assert_equals(found, -log_expit(margin), -push * (1 + penalty * below), push)


def test_dpops_first_step_is_dpos():
    def gradient(name):
        chosen = double(REFERENCE_CHOSEN).requires_grad_()
        loss = METHODS[name].pair_loss(pairs_of(chosen, double(REFERENCE_REJECTED)), METHODS[name].settings())
        return torch.autograd.grad(loss.sum(), chosen)[0]

    assert torch.equal(gradient("dpop"), gradient("dpo"))


@pytest.mark.parametrize("beta", [0.05, 0.1, 1.0])
def test_cal_dpo_is_a_contrast_without_beta_and_two_squares_around_their_targets(beta):
    target, margin = 1 / (2 * beta), UP - DOWN
    loss = -log_expit(margin) + (UP - target) ** 2 + (DOWN + target) ** 2
    chosen, rejected = -expit(-margin) + 2 * (UP - target), expit(-margin) + 2 * (DOWN + target)
    assert_equals(value_and_gradients("cal_dpo", beta=beta), loss, chosen, rejected)


@pytest.mark.parametrize("beta", [0.5, 5.0])
def test_length_normalised_dpo_compares_log_ratios_per_token(beta):
    margin = beta * (UP / CHOSEN_TOKENS - DOWN / REJECTED_TOKENS)
    push = beta * expit(-margin)
    found = value_and_gradients("length_normalised_dpo", beta=beta)
    assert_equals(found, -log_expit(margin), -push / CHOSEN_TOKENS, push / REJECTED_TOKENS)


@pytest.mark.parametrize(("beta", "noise"), [(0.1, 0.1), (0.5, 0.4)])
def test_robust_and_conservative_dpo_weigh_the_loss_of_the_label_turned_round(beta, noise):
    margin = beta * (UP - DOWN)
    right, wrong = -log_expit(margin), -log_expit(-margin)
    by_right, by_wrong = -beta * expit(-margin), beta * expit(margin)
    scale = 1 / (1 - 2 * noise)
    robust = value_and_gradients("robust_dpo", beta=beta, label_noise=noise)
    slope = scale * ((1 - noise) * by_right - noise * by_wrong)
    assert_equals(robust, scale * ((1 - noise) * right - noise * wrong), slope, -slope)
    slope = (1 - noise) * by_right + noise * by_wrong
    conservative = value_and_gradients("robust_dpo", form="conservative", beta=beta, label_noise=noise)
    assert_equals(conservative, (1 - noise) * right + noise * wrong, slope, -slope)


@pytest.mark.parametrize("noise", [0.05, 0.3])
def test_over_noisy_labels_robust_dpo_is_dpo_on_the_true_ones(noise):
    """arXiv 2403.00409, section 3.1: unbiased."""
    method, dpo = METHODS["robust_dpo"], METHODS["dpo"]
    pairs = pairs_of(double(CHOSEN), double(REJECTED))
    turned = PairLogprobs(
        pairs.rejected, pairs.chosen, pairs.reference_rejected, pairs.reference_chosen, pairs.rejected_tokens, pairs.chosen_tokens
    )  # fmt: skip
    settings = method.settings(beta=0.3, label_noise=noise)
    mean = (1 - noise) * method.pair_loss(pairs, settings) + noise * method.pair_loss(turned, settings)
    torch.testing.assert_close(mean, dpo.pair_loss(pairs, dpo.settings(beta=0.3)), rtol=1e-12, atol=1e-12)


def test_conservative_dpo_is_least_where_the_label_is_as_sure_as_it_is_said_to_be():
    margins = np.linspace(-5, 5, 100_001)
    pairs = pairs_of(double(margins), double(np.zeros(100_001)), np.zeros(100_001), np.zeros(100_001))
    pairs = PairLogprobs(
        *(torch.broadcast_to(t[:1], (100_001,)) if len(t) < 100_001 else t for t in vars(pairs).values())
    )
    method = METHODS["robust_dpo"]
    loss = method.pair_loss(pairs, method.settings(form="conservative", beta=1.0, label_noise=0.2))
    assert expit(margins[loss.argmin()]) == pytest.approx(0.8, abs=1e-4)


@pytest.mark.parametrize("weight", [0.1, 1.0])
def test_orpo_is_the_chosen_responses_likelihood_per_token_and_the_odds_of_both(weight):
    """odds = p/(1 − p), of p the geometric mean of a response's token probabilities: d log odds / d log p = 1/(1 − p)."""
    p, q = np.exp(CHOSEN / CHOSEN_TOKENS), np.exp(REJECTED / REJECTED_TOKENS)
    ratio = np.log(p / (1 - p)) - np.log(q / (1 - q))
    push = weight * expit(-ratio)
    loss = -np.log(p) - weight * log_expit(ratio)
    up, down = -(1 + push / (1 - p)) / CHOSEN_TOKENS, push / (1 - q) / REJECTED_TOKENS
    assert_equals(value_and_gradients("orpo", odds_weight=weight), loss, up, down)


def test_orpos_odds_stay_finite_where_a_response_is_certain():
    certain = torch.zeros(1, requires_grad=True)  # float32
    zeros = torch.zeros(1)
    for chosen, rejected in ((certain, zeros - 3), (zeros - 3, certain), (certain, certain)):
        pairs = PairLogprobs(chosen, rejected, zeros, zeros, zeros + 1, zeros + 1)
        loss = METHODS["orpo"].pair_loss(pairs, METHODS["orpo"].settings())
        (gradient,) = torch.autograd.grad(loss.sum(), certain)
        assert loss.isfinite().all() and gradient.isfinite().all()


@pytest.mark.parametrize(("beta", "weight"), [(0.1, 1.0), (0.5, 0.0)])
def test_cpo_is_dpo_without_a_reference_and_a_supervised_term_per_token(beta, weight):
    margin = beta * (CHOSEN - REJECTED)
    push = beta * expit(-margin)
    found = value_and_gradients("cpo", beta=beta, sft_weight=weight)
    loss = -log_expit(margin) - weight * CHOSEN / CHOSEN_TOKENS
    assert_equals(found, loss, -push - weight / CHOSEN_TOKENS, push)


def kto_settings(z0, **settings):
    return METHODS["kto"].settings(**settings).resolve_at(0.0, {"reference_point": z0})


@pytest.mark.parametrize("z0", [0.0, 1.7])
@pytest.mark.parametrize(("beta", "good", "bad"), [(0.1, 1.0, 1.0), (0.5, 1.3, 0.7)])
def test_kto_values_each_side_against_the_reference_point(z0, beta, good, bad):
    """arXiv 2402.01306, eq. 8: λ less value, the mean of a desirable and an undesirable example."""
    chosen, rejected = double(CHOSEN).requires_grad_(), double(REJECTED).requires_grad_()
    settings = kto_settings(z0, beta=beta, desirable_weight=good, undesirable_weight=bad)
    loss = METHODS["kto"].pair_loss(pairs_of(chosen, rejected), settings)
    found = loss.detach().numpy(), *(g.numpy() for g in torch.autograd.grad(loss.sum(), (chosen, rejected)))
    value, cost = expit(beta * (UP - z0)), expit(beta * (z0 - DOWN))
    up, down = -good * beta * value * (1 - value) / 2, bad * beta * cost * (1 - cost) / 2
    assert_equals(found, (good * (1 - value) + bad * (1 - cost)) / 2, up, down)


def test_ktos_reference_point_is_the_mean_of_mismatched_log_ratios_and_never_below_0():
    rows = [Row("a", (1,), ((2, 3), (4,))), Row("b", (1,), ((5,), (6, 7, 8)))]
    zeros = [tuple(np.zeros(len(a)) for a in row.responses) for row in rows]
    ratios = [(np.array([0.5, 1.0]), np.array([-2.0])), (np.array([4.0]), np.array([1.0, 1.0, 0.5]))]
    reference = [tuple(np.full(len(a), -1.5) for a in row) for row in ratios]
    known = {"reference_logprobs": zeros, "mismatched_reference_logprobs": reference}
    method, settings = METHODS["kto"], METHODS["kto"].settings()
    own = [tuple(a - 1.5 for a in row) for row in ratios]
    found = method.prepare(rows, [], known | {"mismatched_logprobs": own}, settings, {})
    assert found.state == {"reference_point": pytest.approx((1.5 - 2.0 + 4.0 + 2.5) / 4)}
    assert [list(row.extras) for row in found.rows] == [["reference_logprob"]] * 2
    below = [tuple(-a - 1.5 for a in row) for row in ratios]
    assert method.prepare(rows, [], known | {"mismatched_logprobs": below}, settings, {}).state == {
        "reference_point": 0.0
    }
    assert kto_settings(1.5).reference_point == 1.5 and settings.reference_point == 0.0


LABELLED = np.array([True, False, False, True, False])


def labelled_outputs(logprobs, labels=LABELLED, reference=-6.0, tokens=2):
    """Responses of two tokens each, and what an update's preparation attaches to them."""
    rows = [Row(f"r{i}", (1,), ((2, 3),), {DESIRABLE: (np.array([float(good)]),)}) for i, good in enumerate(labels)]
    numbers = [(np.full(tokens, reference / tokens),) for _ in labels]
    zeros = [(np.zeros(1),) for _ in labels]
    known = {"reference_logprobs": numbers, "mismatched_logprobs": zeros, "mismatched_reference_logprobs": zeros}
    settings = METHODS["kto"].settings(unpaired=True)
    prepared = METHODS["kto"].prepare(rows, [], known, settings, {}).rows
    extras = {name: double([float(row.extras[name][0][0]) for row in prepared]) for name in prepared[0].extras}
    index = torch.arange(len(labels)).repeat_interleave(tokens)
    each = logprobs.repeat_interleave(tokens) / tokens
    return Outputs(index, len(labels), extras, logprobs=each, entropy=torch.ones_like(each))


@pytest.mark.parametrize("z0", [0.0, 1.7])
def test_kto_without_pairs_values_each_response_by_its_label(z0):
    logprobs = double([-4.0, -2.7, -9.0, -3.6, -30.0]).requires_grad_()
    settings = kto_settings(z0, beta=0.5, desirable_weight=1.3, undesirable_weight=0.7, unpaired=True)
    (objective,) = METHODS["kto"].objectives
    loss, numbers = objective.loss(labelled_outputs(logprobs), settings)
    (gradient,) = torch.autograd.grad(loss.sum(), logprobs)
    ratio, sign, weight = logprobs.detach().numpy() + 6.0, np.where(LABELLED, 1, -1), np.where(LABELLED, 1.3, 0.7)
    value = expit(0.5 * sign * (ratio - z0))
    np.testing.assert_allclose(loss.detach(), weight * (1 - value), rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(gradient, -weight * 0.5 * sign * value * (1 - value), rtol=1e-12, atol=1e-14)
    means = {name: float(found.mean()) for name, found in numbers.items()}
    assert means["chosen_logratio"] == pytest.approx(ratio[LABELLED].mean())
    assert means["rejected_logratio"] == pytest.approx(ratio[~LABELLED].mean())
    assert means["rejected_logprob"] == pytest.approx(ratio[~LABELLED].mean() - 6.0)
    assert means["margin"] == pytest.approx(means["chosen_logratio"] - means["rejected_logratio"])
    assert means["entropy"] == 1.0


def test_kto_on_the_sides_of_pairs_is_kto_on_the_pairs():
    """Value and gradient of the mean over 2P responses are those of the mean over P pairs."""
    chosen, rejected = double(CHOSEN).requires_grad_(), double(REJECTED).requires_grad_()
    settings = kto_settings(0.4, beta=0.2, desirable_weight=1.2)
    whole = METHODS["kto"].pair_loss(pairs_of(chosen, rejected), settings).mean()
    apart = kto_settings(0.4, beta=0.2, desirable_weight=1.2, unpaired=True)
    labels = np.repeat([True, False], len(CHOSEN))
    out = labelled_outputs(torch.cat([chosen, rejected]), labels)
    out.extras["reference_logprob"][:] = double(np.concatenate([REFERENCE_CHOSEN, REFERENCE_REJECTED]))
    single = METHODS["kto"].objectives[0].loss(out, apart)[0].mean()
    assert float(single.detach()) == pytest.approx(float(whole.detach()), rel=1e-12)
    for got, expected in zip(
        torch.autograd.grad(single, (chosen, rejected)), torch.autograd.grad(whole, (chosen, rejected)), strict=True
    ):
        np.testing.assert_allclose(got, expected, rtol=1e-10, atol=1e-15)


def test_numbers_of_a_label_that_an_update_lacks_are_not_known():
    """An update may draw good responses alone. Nothing is known of bad ones then, and the loss is that of the good ones."""
    out = labelled_outputs(double([-4.0, -5.0]), np.array([True, True]))
    loss, numbers = METHODS["kto"].objectives[0].loss(out, kto_settings(0.0, unpaired=True))
    assert torch.isfinite(loss).all() and float(numbers["chosen_logprob"].mean()) == -4.5
    assert all(torch.isnan(numbers[name]).all() for name in ("rejected_logprob", "rejected_logratio", "margin"))


@pytest.mark.parametrize(
    ("more", "key"), [({"data": "online"}, "unpaired"), ({"edit_distance": (0.1, 0.5)}, "unpaired")]
)
def test_single_responses_are_of_a_fixed_set_and_have_no_distance(more, key):
    with pytest.raises(ValueError, match=f"{key}\n.*leave"):
        METHODS["kto"].settings(unpaired=True, **more)


@pytest.mark.parametrize("key", ["pairs_per_update", "prompts_per_update"])
def test_kto_asks_for_other_pairs_in_an_update(key):
    with pytest.raises(ValueError, match=f"{key}\n.*2 or more"):
        METHODS["kto"].settings(method="kto", **{key: 1})


@pytest.mark.parametrize(("name", "settings", "expected"), [
    ("length_normalised_dpo", {}, np.log(2)),
    ("robust_dpo", {}, np.log(2)),
    ("robust_dpo", {"form": "conservative"}, np.log(2)),
    ("kto", {}, 0.5),
    ("dpo", {}, np.log(2)),
    ("flex_dpo", {}, np.log(2)),
    ("adaptive_flex_dpo", {}, np.log(2)),
    ("dpop", {}, np.log(2)),
    ("sft_dpo", {"gamma": 0.0}, np.log(2)),
    ("sft_dpo", {"gamma": 0.2}, np.log(2) - 0.2 * REFERENCE_CHOSEN),
    ("ipo", {"tau": 0.1}, 25.0),
    ("ipo", {"tau": 0.1, "log_probs": "mean"}, 25.0),
    ("slic", {"form": "reference", "delta": 1.7, "sft_weight": 0}, 1.7),
    ("cal_dpo", {"beta": 0.1}, np.log(2) + 50),
])  # fmt: skip
def test_where_policy_and_reference_agree_the_loss_is_known(name, settings, expected):
    loss = METHODS[name].pair_loss(at_reference(), METHODS[name].settings(**settings))
    np.testing.assert_allclose(loss.numpy(), np.broadcast_to(expected, loss.shape), rtol=1e-12)


@pytest.mark.parametrize(("name", "settings", "dpo"), [
    ("sft_dpo", {"beta": 0.3, "gamma": 0}, {"beta": 0.3}),
    ("dpop", {"beta": 0.3, "penalty": 0}, {"beta": 0.3}),
    ("robust_dpo", {"beta": 0.3, "label_noise": 0}, {"beta": 0.3}),
    ("robust_dpo", {"beta": 0.3, "label_noise": 0, "form": "conservative"}, {"beta": 0.3}),
    ("flex_dpo", {"beta_chosen": 0.3, "beta_rejected": 0.3}, {"beta": 0.3}),
    ("adaptive_flex_dpo", {"beta_chosen": 0.1, "beta_rejected_max": 0.1}, {"beta": 0.1}),
])  # fmt: skip
def test_dpos_relatives_become_dpo(name, settings, dpo):
    for found, expected in zip(value_and_gradients(name, **settings), value_and_gradients("dpo", **dpo), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-12)


@hypothesis_settings(deadline=None)
@given(st.floats(-30, 0), st.floats(-30, 0), st.sampled_from(PAIR_METHODS))
def test_of_two_policies_that_differ_by_a_swap_the_better_ranking_one_is_not_the_dearer(one, other, name):
    less, more = (double([x]) for x in sorted((one, other)))
    reference, tokens = double([-5.0]), double([1.0])
    settings, loss = METHODS[name].settings(), METHODS[name].pair_loss
    right = loss(PairLogprobs(more, less, reference, reference, tokens, tokens), settings)
    wrong = loss(PairLogprobs(less, more, reference, reference, tokens, tokens), settings)
    assert right.item() <= wrong.item() + 1e-9


@pytest.mark.parametrize("name", PAIR_METHODS)
@pytest.mark.parametrize("variant", [{}, {"form": "reference"}, {"form": "conservative"}, {"log_probs": "mean"}])
def test_gradcheck(name, variant):
    method = METHODS[name]
    fields = method.settings.model_fields
    settings = method.settings(
        **{k: v for k, v in variant.items() if k in fields and v in get_args(fields[k].annotation)}
    )
    leaves = (double(CHOSEN[:4]).requires_grad_(), double(REJECTED[:4]).requires_grad_())

    def loss(chosen, rejected):
        return method.pair_loss(pairs_of(chosen, rejected, REFERENCE_CHOSEN[:4], REFERENCE_REJECTED[:4]), settings)

    assert torch.autograd.gradcheck(loss, leaves)


@pytest.mark.parametrize("name", PAIR_METHODS)
def test_losses_are_per_pair(name):
    """A pair's loss does not depend on which others are beside it."""
    settings, loss = METHODS[name].settings(), METHODS[name].pair_loss
    together = loss(pairs_of(double(CHOSEN), double(REJECTED)), settings)
    for i in range(len(CHOSEN)):
        parts = [t[i : i + 1] for t in vars(pairs_of(double(CHOSEN), double(REJECTED))).values()]
        torch.testing.assert_close(loss(PairLogprobs(*parts), settings), together[i : i + 1], rtol=0, atol=0)


# From tokens to pairs: two pairs, responses of 2, 1, 3 and 2 tokens in the order chosen, rejected, chosen, rejected.
INDEX = torch.tensor([0, 0, 1, 2, 2, 2, 3, 3])
LOGPROBS = double([-0.5, -1.0, -2.5, -0.1, -0.2, -0.3, -4.0, -1.5])
ENTROPY = torch.linspace(0.1, 0.8, 8).double()
REFERENCE = double([-2.0, -1.0, -1.2, -3.0])


def outputs(with_reference=True):
    return Outputs(INDEX, 4, {"reference_logprob": REFERENCE} if with_reference else {}, LOGPROBS, ENTROPY)


def test_pairs_are_read_off_the_forward_pass_with_their_lengths():
    pairs = pair_logprobs(outputs(), reference_free=False)
    expected = [[-1.5, -0.6], [-2.5, -5.5], [-2.0, -1.2], [-1.0, -3.0], [2, 3], [1, 2]]
    for found, numbers in zip(vars(pairs).values(), expected, strict=True):
        torch.testing.assert_close(found, double(numbers), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(pairs.chosen_logratio, double([0.5, 0.6]))
    torch.testing.assert_close(pairs.rejected_logratio, double([-1.5, -2.5]))


@pytest.mark.parametrize("name", PAIR_METHODS)
def test_the_objective_averages_what_pair_loss_gives(name):
    method = METHODS[name]
    settings, (objective,) = method.settings(), method.objectives
    loss, _ = objective.loss(outputs(), settings)
    torch.testing.assert_close(loss, method.pair_loss(pair_logprobs(outputs(), reference_free=False), settings))
    assert (objective.model, objective.unit) == ("policy", "row")


@pytest.mark.parametrize(("name", "settings", "free"), [
    *[(name, {}, name in ("slic", "simpo", "orpo", "cpo")) for name in PAIR_METHODS if name != "kto"], ("slic", {"form": "reference"}, False),
])  # fmt: skip
def test_what_a_loss_does_not_need_is_neither_measured_nor_missed(name, settings, free):
    """A loss without a reference gives the same numbers whether or not one is there, and logs none of it."""
    method, arm = METHODS[name], METHODS[name].settings(**settings)
    (objective,) = method.objectives
    assert method.needs(arm) == (() if free else ("reference_logprobs",))
    always = {"chosen_logprob", "rejected_logprob", "entropy"}
    relative = {"chosen_logratio", "rejected_logratio", "margin", "accuracy"}
    if free:
        loss, metrics = objective.loss(outputs(with_reference=False), arm)
        torch.testing.assert_close(loss, objective.loss(outputs(), arm)[0])
        assert metrics.keys() == always
        rows = [Row("r", (1,), ((2, 3), (4,)))]
        assert method.prepare(rows, [(1.0, 0.0)], {}, arm, {}).rows == rows
    else:
        assert objective.loss(outputs(), arm)[1].keys() == always | relative
        with pytest.raises(KeyError, match="reference_logprob"):
            objective.loss(outputs(with_reference=False), arm)
        with pytest.raises(KeyError, match="reference_logprobs"):
            with_reference([], [], {}, arm, {})


@pytest.mark.parametrize("name", ["ppo", "kto"])
def test_ppo_and_kto_need_all_that_they_measure(name):
    assert METHODS[name].needs(METHODS[name].settings()) == METHODS[name].measures
