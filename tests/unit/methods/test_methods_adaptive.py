"""Adaptive Flex-DPO: its bound seen on small models in float64, one step of gradient descent at a time; its rule by hand."""

import math
import pickle

import numpy as np
import pytest
import torch
from torch import nn

from rlhf_bench.methods import METHODS
from rlhf_bench.methods.adaptive_flex_dpo import AdaptiveFlexDPOSettings, adapt, largest_beta_rejected
from rlhf_bench.methods.base import PairLogprobs, SideGradients
from rlhf_bench.methods.flex_dpo import flex_dpo_loss

METHOD = METHODS["adaptive_flex_dpo"]
PROMPTS, RESPONSES = 3, 8
PAIRS = [(0, 2, 5), (1, 3, 6), (2, 4, 7), (0, 3, 6)]  # prompt, chosen, rejected
BETA_CHOSEN = 0.3


class Tabular(nn.Module):
    """A softmax over responses with logits of its own for every prompt. Most of the mass is on response 0."""

    def __init__(self):
        super().__init__()
        self.logits = nn.Parameter(torch.randn(PROMPTS, RESPONSES) + 3.0 * (torch.arange(RESPONSES) == 0))

    def forward(self):
        return self.logits.log_softmax(-1)


class Network(nn.Module):
    """Two layers on one-hot prompts: parameters that prompts and responses share. Most of the mass is on response 0."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(PROMPTS, 6), nn.Tanh(), nn.Linear(6, RESPONSES))
        with torch.no_grad():
            self.layers[2].bias += 3.0 * (torch.arange(RESPONSES) == 0)

    def forward(self):
        return self.layers(torch.eye(PROMPTS, dtype=torch.float64)).log_softmax(-1)


def policy(kind, trained):
    """A policy and its reference's log-probabilities [prompts, responses]; the same policy unless it was trained on."""
    torch.manual_seed(4)
    model = kind().double()
    reference = model().detach()
    if trained:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.3 * torch.randn_like(parameter)
    return model, reference


def pairs_under(table, reference):
    prompts, chosen, rejected = torch.tensor(PAIRS).T
    one = torch.ones(len(PAIRS), dtype=torch.float64)
    sides = [t[prompts, side] for t in (table, reference) for side in (chosen, rejected)]
    return PairLogprobs(*sides, one, one)


def settings_with(beta_rejected):
    return AdaptiveFlexDPOSettings(beta_chosen=BETA_CHOSEN).resolve_at(0.0, {"beta_rejected": beta_rejected})


def flat_gradient(scalar, model):
    return torch.cat([g.flatten() for g in torch.autograd.grad(scalar, list(model.parameters()), retain_graph=True)])


def measured(model, reference, settings):
    """G⁺, G⁻ by autograd, as the docstring of the method defines them."""
    pairs = pairs_under(model(), reference)
    weight = METHOD.pair_weight(pairs, settings).detach()
    chosen, rejected = (flat_gradient((weight * side).mean(), model) for side in (pairs.chosen, pairs.rejected))
    return SideGradients(chosen.norm().item(), rejected.norm().item(), (chosen @ rejected).item()), weight


def rise_after_a_step(model, reference, settings, weight, size):
    """How much the weighted mean of log π(a⁺) changes in one step of plain gradient descent on the loss."""
    before = pairs_under(model(), reference)
    step = flat_gradient(METHOD.pair_loss(before, settings).mean(), model)
    start = nn.utils.parameters_to_vector(model.parameters()).detach().clone()
    nn.utils.vector_to_parameters(start - size * step, model.parameters())
    rise = (weight * (pairs_under(model(), reference).chosen - before.chosen)).mean().item()
    nn.utils.vector_to_parameters(start, model.parameters())
    return rise


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("kind", [Tabular, Network])
def test_the_chosen_likelihood_rises_below_the_bound_and_falls_above_it(kind, trained):
    model, reference = policy(kind, trained)
    signs = set()
    for beta_rejected in np.geomspace(0.03, 30, 25):
        settings = settings_with(float(beta_rejected))
        gradients, weight = measured(model, reference, settings)
        assert gradients.dot > 0  # the two sides conflict, or there would be no bound to see
        size = 1e-6
        rise = rise_after_a_step(model, reference, settings, weight, size)
        first_order = BETA_CHOSEN * gradients.chosen_norm**2 - beta_rejected * gradients.dot
        assert rise == pytest.approx(size * first_order, rel=1e-2, abs=1e-12)
        assert (rise > 0) == (beta_rejected < largest_beta_rejected(gradients, BETA_CHOSEN))
        signs.add(rise > 0)
    assert signs == {True, False}


@pytest.mark.parametrize("kind", [Tabular, Network])
def test_a_step_just_inside_the_bound_raises_it_and_one_just_outside_lowers_it(kind):
    """Where policy and reference agree w is 1/2 whatever β⁻ is, so that the bound is one number."""
    model, reference = policy(kind, trained=False)
    bound = largest_beta_rejected(measured(model, reference, settings_with(0.1))[0], BETA_CHOSEN)
    for factor in (0.99, 1.01):
        settings = settings_with(bound * factor)
        rise = rise_after_a_step(model, reference, settings, measured(model, reference, settings)[1], 1e-7)
        assert (rise > 0) == (factor < 1)


def test_where_the_sides_do_not_conflict_no_beta_rejected_lowers_the_chosen_likelihood():
    """Two likely responses of one prompt, nothing else: raising one lowers the other."""
    logits = torch.tensor([1.0, 1.2], dtype=torch.float64, requires_grad=True)
    chosen, rejected = (torch.autograd.grad(logits.log_softmax(0)[i], logits)[0] for i in (0, 1))
    gradients = SideGradients(chosen.norm().item(), rejected.norm().item(), (chosen @ rejected).item())
    assert gradients.dot < 0
    assert largest_beta_rejected(gradients, 0.1) == math.inf
    for beta_rejected in (0.01, 1.0, 100.0):
        assert chosen @ (0.1 * chosen - beta_rejected * rejected) > 0


@pytest.mark.parametrize("beta_rejected", [0.02, 0.1])
def test_the_weight_is_the_share_of_the_gradient_that_the_loss_lets_through(beta_rejected):
    chosen = torch.tensor([-3.0, -9.0, 40.0, -60.0], dtype=torch.float64, requires_grad=True)
    zeros = torch.zeros(4, dtype=torch.float64)
    pairs = PairLogprobs(chosen, zeros - 4.0, zeros, zeros - 2.0, zeros + 1, zeros + 1)
    settings = settings_with(beta_rejected)
    (gradient,) = torch.autograd.grad(METHOD.pair_loss(pairs, settings).sum(), chosen)
    torch.testing.assert_close(METHOD.pair_weight(pairs, settings), -gradient / BETA_CHOSEN, rtol=1e-9, atol=0)


def test_the_loss_is_flex_dpos_at_the_beta_rejected_of_the_state():
    up, down = (torch.tensor(x, dtype=torch.float64) for x in ([0.5, -2.0], [1.0, 3.0]))
    zeros = torch.zeros(2, dtype=torch.float64)
    pairs = PairLogprobs(up, down, zeros, zeros, zeros + 1, zeros + 1)
    found = METHOD.pair_loss(pairs, settings_with(0.037))
    torch.testing.assert_close(found, flex_dpo_loss(up, down, BETA_CHOSEN, 0.037))


def settings_of(**changes):
    base = {"beta_chosen": 0.2, "beta_rejected_min": 0.02, "beta_rejected_max": 0.5, "safety": 0.8, "smoothing": 0.0}
    return AdaptiveFlexDPOSettings(**{**base, **changes})


def gradients_of(dot, chosen_norm=3.0):
    return SideGradients(chosen_norm, 2.0, dot)


@pytest.mark.parametrize(("dot", "expected"), [
    (4.0, 0.8 * 0.2 * 9 / 4),  # κ β⁺ ‖G⁺‖² / ⟨G⁺, G⁻⟩
    (6.0, 0.8 * 0.2 * 9 / 6),
    (1.0, 0.5),  # 1.44, above the maximum
    (1e-300, 0.5),
    (0.0, 0.5),
    (-5.0, 0.5),
    (1000.0, 0.02),  # 0.00144, below the minimum
])  # fmt: skip
def test_the_rule(dot, expected):
    assert adapt(gradients_of(dot), settings_of(), {}) == {"beta_rejected": pytest.approx(expected)}


def test_beta_chosens_schedule_moves_the_bound():
    settings = settings_of(beta_chosen={"kind": "linear", "start": 0.2, "end": 0.1}).resolve_at(1.0, {})
    assert adapt(gradients_of(4.0), settings, {})["beta_rejected"] == pytest.approx(0.8 * 0.1 * 9 / 4)


def test_the_first_measurement_is_taken_whole_and_later_ones_are_averaged_in_log_space():
    settings = settings_of(smoothing=0.75)
    state = adapt(gradients_of(4.0), settings, {"other": 7.0})
    assert state == {"other": 7.0, "beta_rejected": pytest.approx(0.36)}
    state = adapt(gradients_of(1000.0), settings, state)
    assert state["beta_rejected"] == pytest.approx(0.36**0.75 * 0.02**0.25)
    for _ in range(80):
        state = adapt(gradients_of(6.0), settings, state)
    assert state["beta_rejected"] == pytest.approx(0.24)


@pytest.mark.parametrize("broken", [
    SideGradients(float("nan"), 1.0, 1.0), SideGradients(1.0, float("inf"), 1.0), SideGradients(1.0, 1.0, float("nan")),
])  # fmt: skip
def test_a_measurement_that_is_not_finite_changes_nothing(broken):
    assert adapt(broken, settings_of(), {"beta_rejected": 0.3}) == {"beta_rejected": 0.3}


def test_before_any_measurement_beta_rejected_is_the_maximum_and_then_the_states():
    settings = settings_of()
    assert settings.beta_rejected == settings.resolve_at(0.0, {}).beta_rejected == 0.5
    now = settings.resolve_at(0.3, {"beta_rejected": 0.07})
    assert now.beta_rejected == pickle.loads(pickle.dumps(now)).beta_rejected == 0.07
    assert settings.beta_rejected == 0.5  # the arm's own settings stay
    assert now.model_dump() == settings.model_dump()


def test_the_cosine_of_two_sides():
    assert SideGradients(3.0, 2.0, -6.0).cosine == pytest.approx(-1)
    assert SideGradients(3.0, 4.0, 6.0).cosine == pytest.approx(0.5)
    assert math.isnan(SideGradients(0.0, 4.0, 0.0).cosine)


def test_only_adaptive_flex_dpo_asks_for_measurements():
    asking = {name for name, method in METHODS.items() if method.adapt is not None}
    assert asking == {"adaptive_flex_dpo"} == {name for name, method in METHODS.items() if method.pair_weight}
