"""PPO: advantages, clipping, penalties and the order of its steps, against sums written out here in float64."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_bench.core.rounding import rounding_of
from rlhf_bench.core.types import Row
from rlhf_bench.methods.base import Outputs
from rlhf_bench.methods.ppo import PPOSettings, critic_objective, gae, next_kl_coefficient, prepare, value_loss
from rlhf_bench.methods.samples import (
    importance_weights,
    minibatches,
    policy_loss,
    policy_objective,
    response_scores,
    whiten,
)

EPSILON = 0.2


def double(x):
    return torch.tensor(x, dtype=torch.float64, requires_grad=True)


@st.composite
def episodes(draw):
    n = draw(st.integers(1, 12))
    number = st.floats(-5, 5)
    return tuple(np.array(draw(st.lists(number, min_size=n, max_size=n))) for _ in range(2))


def td_errors(rewards, values, discount):
    return rewards + discount * np.append(values[1:], 0.0) - values


@settings(deadline=None)
@given(episodes(), st.floats(0.1, 1), st.floats(0, 1))
def test_gae_is_the_discounted_sum_of_td_errors(episode, discount, lam):
    """arXiv 1506.02438, eq. 16, as a double loop."""
    rewards, values = episode
    errors = td_errors(rewards, values, discount)
    expected = [sum((discount * lam) ** (s - t) * errors[s] for s in range(t, len(errors))) for t in range(len(errors))]
    advantages, returns = gae(rewards, values, discount, lam)
    np.testing.assert_allclose(advantages, expected, atol=1e-10)
    np.testing.assert_allclose(returns, np.array(expected) + values, atol=1e-10)


@settings(deadline=None)
@given(episodes(), st.floats(0.1, 1))
def test_gae_with_lambda_one_is_return_minus_value_and_with_zero_the_td_error(episode, discount):
    rewards, values = episode
    n = len(rewards)
    returns = [sum(discount ** (s - t) * rewards[s] for s in range(t, n)) for t in range(n)]
    advantages, targets = gae(rewards, values, discount, 1.0)
    np.testing.assert_allclose(advantages, returns - values, atol=1e-10)
    np.testing.assert_allclose(targets, returns, atol=1e-10)
    np.testing.assert_allclose(gae(rewards, values, discount, 0.0)[0], td_errors(rewards, values, discount), atol=1e-10)


def test_gae_by_hand():
    """γ = 1, λ = ½: δ = (0.5, −1.25, 0.75), so A₂ = 0.75, A₁ = −1.25 + ½·0.75, A₀ = 0.5 + ½·A₁."""
    advantages, _ = gae(np.array([0.0, -1.0, 1.0]), np.array([0.0, 0.5, 0.25]), 1.0, 0.5)
    np.testing.assert_allclose(advantages, [0.0625, -0.875, 0.75])


def test_gae_refuses_arrays_that_would_broadcast():
    with pytest.raises(ValueError, match="one entry per token"):
        gae(np.zeros(3), np.zeros(1), 1.0, 1.0)


# Ratio of the new to the old probability, advantage, and the gradient of the loss in log π: 0 where clipping stops it.
SURROGATE = [
    (1.0, 2.0, -2.0), (1.0, -2.0, 2.0),
    (1.19, 2.0, -2.38), (1.21, 2.0, 0.0), (3.0, 2.0, 0.0), (0.5, 2.0, -1.0),
    (0.81, -2.0, 1.62), (0.79, -2.0, 0.0), (0.3, -2.0, 0.0), (1.5, -2.0, 3.0),
]  # fmt: skip


@pytest.mark.parametrize(("ratio", "advantage", "gradient"), SURROGATE)
def test_clipping_stops_the_gradient_only_where_it_would_go_further(ratio, advantage, gradient):
    new = double([np.log(ratio) - 1.5])
    loss = policy_loss(new, torch.tensor([-1.5]).double(), torch.tensor([advantage]).double(), EPSILON)
    expected = -min(ratio * advantage, float(np.clip(ratio, 1 - EPSILON, 1 + EPSILON)) * advantage)
    assert loss.item() == pytest.approx(expected)
    assert torch.autograd.grad(loss.sum(), new)[0].item() == pytest.approx(gradient)


def test_at_ratio_one_the_gradient_in_the_parameters_is_reinforces():
    """∇θ of the surrogate at π = π_old is −Σ A ∇θ log π: for softmax logits, −Σ_t A_t (one-hot(a_t) − π)."""
    logits = double([0.3, -1.0, 0.8])
    actions, advantages = torch.tensor([0, 2, 2, 1]), torch.tensor([1.0, -0.5, 2.0, 0.7]).double()
    logprobs = logits.log_softmax(-1)[actions]
    loss = policy_loss(logprobs, logprobs.detach(), advantages, EPSILON).sum()
    probabilities = np.exp(logits.detach().numpy()) / np.exp(logits.detach().numpy()).sum()
    expected = -sum(a * (np.eye(3)[k] - probabilities) for k, a in zip([0, 2, 2, 1], advantages.numpy(), strict=True))
    np.testing.assert_allclose(torch.autograd.grad(loss, logits)[0].numpy(), expected, rtol=1e-12)


# Value, return, and the gradient ∂loss/∂V for an old value of 0 and ε = 0.2; the larger of both errors counts.
VALUES = [
    (0.1, 1.0, -0.9), (-0.1, 1.0, -1.1), (0.1, -1.0, 1.1),
    (0.5, 1.0, 0.0), (-0.5, -1.0, 0.0),  # beyond the clip and nearer to the return: stopped
    (-0.5, 1.0, -1.5), (0.5, -1.0, 1.5), (0.9, 0.3, 0.6),  # beyond it and farther away: pulled back
]  # fmt: skip


@pytest.mark.parametrize(("value", "target", "gradient"), VALUES)
def test_the_clipped_value_loss(value, target, gradient):
    leaf = double([value])
    loss = value_loss(leaf, torch.zeros(1).double(), torch.tensor([target]).double(), EPSILON)
    clipped = float(np.clip(value, -EPSILON, EPSILON))
    assert loss.item() == pytest.approx(max((value - target) ** 2, (clipped - target) ** 2) / 2)
    assert torch.autograd.grad(loss.sum(), leaf)[0].item() == pytest.approx(gradient)


def test_gradcheck():
    """At points away from the kinks, both clipped and not."""
    old = torch.tensor([-1.0, -1.0, -1.0, -1.0]).double()
    advantages = torch.tensor([1.0, 1.0, -1.0, -1.0]).double()
    new = double([-0.9, -0.5, -1.1, -2.0])
    assert torch.autograd.gradcheck(lambda x: policy_loss(x, old, advantages, EPSILON), (new,))
    values, returns = double([-0.9, -0.5, -1.5, -1.1]), torch.tensor([1.0, 0.0, 0.5, -3.0]).double()
    assert torch.autograd.gradcheck(lambda v: value_loss(v, old, returns, EPSILON), (values,))


def test_whitening_keeps_order_and_leaves_nothing_of_mean_and_scale():
    x = np.array([3.0, -1.0, 4.0, 1.0])
    np.testing.assert_allclose(whiten(x, 0.0), (x - 1.75) / np.sqrt(((x - 1.75) ** 2).mean()))
    assert not whiten(np.full(4, 7.0), 0.0).any() and not whiten(np.array([7.0]), 0.0).any()


def test_scores_are_whitened_without_shifting_their_mean():
    """Mean 2 and deviation √2: m + (x − m)/σ. A shift would take the 2 away."""
    scores, deviation = response_scores(np.array([1.0, 4.0, 1.0, 2.0]), 0.0, 1.0)
    assert deviation == pytest.approx(np.sqrt(1.5))
    np.testing.assert_allclose(scores, 2.0 + np.array([-1.0, 2.0, -1.0, 0.0]) / np.sqrt(1.5), rtol=1e-12)
    assert scores.mean() == pytest.approx(2.0) and scores.std() == pytest.approx(1.0)


# A wrong answer among many right ones, a reward model's scores, scores on another scale, far from 0, and all of one kind.
FINISHED = [[1.0] * 15 + [0.0], [-3.1, 0.2, 1.9, 0.4], [-3e4, 2e3, 1.9e4], [101.0, 103.0], [1.0, 1.0], [0.0], [-7.0]]


@pytest.mark.parametrize("penalty", [0.25, 1.0, 3.0])
@pytest.mark.parametrize("finished", FINISHED, ids=str)
def test_an_unfinished_response_scores_less_than_the_worst_finished_one(finished, penalty):
    rewards = np.array([np.nan, *finished, np.nan])
    scores, deviation = response_scores(rewards, 0.0, penalty)
    assert scores[0] == scores[-1] == pytest.approx(scores[1:-1].min() - penalty / deviation, rel=1e-9)
    assert scores[0] < scores[1:-1].min()
    # In the reward's own units, too: whitened scores times the deviation are as far apart as rewards.
    apart = deviation * (scores[1:-1] - scores[0])
    np.testing.assert_allclose(apart, np.array(finished) - min(finished) + penalty, rtol=1e-6)


def test_the_advantage_of_not_finishing_is_the_lowest_of_all():
    """Responses of one token and a critic that knows nothing: the advantage is the score's."""
    rows = [Row(str(i), (1,), ((3,),)) for i in range(5)]
    zeros = [(np.zeros(1, np.float32),)] * 5
    known = dict.fromkeys(("logprobs", "reference_logprobs", "values"), zeros)
    rewards = [(-9.0,), (float("nan"),), (0.5,), (2.0,), (float("nan"),)]
    found = np.concatenate(extras(prepare(rows, rewards, known, PPOSettings(), {}), "advantages"))
    assert found[1] == found[4] < found[0] < found[2] < found[3]


# What networks of these formats make of equal responses, relative to the score.
NOISE = [("float32", 6e-7), ("float32", 1.5e-6), ("bfloat16", 1e-2), ("bfloat16", 2e-2)]


def scored(noise, dtype, size, more=0.0):
    """Four finished responses whose rewards are apart by rounding alone, or by `more`, as a scorer gives them."""
    rewards = size * (1 + noise * np.array([0.5, -0.5, 0.25, -0.1])) + np.array([more, 0, 0, 0])
    rounding = tuple(np.array([rounding_of(reward, dtype)]) for reward in rewards)
    rows = [
        Row(row.id, row.prompt_ids, row.responses, {"reward_rounding": rounding[2 * i : 2 * i + 2]})
        for i, row in enumerate(ROWS)
    ]
    return rows, [rewards[:2].tolist(), rewards[2:].tolist()]


def constant(values=0.7):
    """Policy and reference agree, and the critic says the same of every state."""
    ones = [np.full(n, -1.0, np.float32) for n in LENGTHS]
    said = [np.full(n, values, np.float32) for n in LENGTHS]
    return {
        "logprobs": [tuple(ones[:2]), tuple(ones[2:])],
        "reference_logprobs": [tuple(ones[:2]), tuple(ones[2:])],
        "values": [tuple(said[:2]), tuple(said[2:])],
    }


@pytest.mark.parametrize("size", [1.0, -2.5, 40.0])
@pytest.mark.parametrize(("dtype", "noise"), NOISE)
def test_rewards_that_are_equal_up_to_rounding_are_no_preference(dtype, noise, size):
    rows, rewards = scored(noise, dtype, size)
    own = PPOSettings(kl_coefficient=0.0, gae_lambda=1.0)
    prepared = prepare(rows, rewards, constant(), own, {}, dtype)
    firsts = [returns[0] for returns in extras(prepared, "returns")]
    assert np.ptp(firsts) < 1e-12 * abs(size) and prepared.metrics["reward_deviation"] == 1.0
    # One that is better by more than that is preferred.
    rows, rewards = scored(noise, dtype, size, more=3 * rounding_of(size, dtype))
    firsts = [returns[0] for returns in extras(prepare(rows, rewards, constant(), own, {}, dtype), "returns")]
    assert firsts[0] > max(firsts[1:]) + 1.0


@pytest.mark.parametrize(("dtype", "noise"), NOISE)
def test_advantages_that_are_equal_up_to_rounding_are_no_preference(dtype, noise):
    """A critic that has learned what all responses earn, and is off by rounding."""
    known, arm = constant(5.0), PPOSettings(kl_coefficient=0.0, gae_lambda=0.95)
    rng = np.random.default_rng(0)
    known["values"] = [
        tuple((a * (1 + noise * rng.uniform(-0.5, 0.5, len(a)))).astype(np.float32) for a in row)
        for row in known["values"]
    ]
    alike = prepare(ROWS, [(5.0, 5.0), (5.0, 5.0)], known, arm, {}, dtype)
    assert not np.concatenate(extras(alike, "advantages")).any()
    better = prepare(ROWS, [(5.0, 5.0), (5.0, 6.0)], known, arm, {}, dtype)
    assert np.concatenate(extras(better, "advantages")).std() == pytest.approx(1.0)


def test_the_price_of_a_nat_is_in_the_rewards_own_units():
    """Rewards of mean 0 in other units, and k and the penalty in those units too: nothing changes."""
    nested, _ = measured()
    rewards = np.array([1.5, -2.0, 0.5])
    found = []
    for unit in (1.0, 0.01, 300.0):
        arm = PPOSettings(kl_coefficient=0.3 * unit, missing_eos_penalty=0.7 * unit)
        r = (rewards * unit).tolist()
        prepared = prepare(ROWS, [r[:2], [float("nan"), r[2]]], nested, arm, {})
        found.append(np.concatenate([*extras(prepared, "advantages"), *extras(prepared, "returns")]))
        assert prepared.metrics["kl_penalty"] == pytest.approx(0.3 * unit * prepared.metrics["kl"])
        assert prepared.metrics["reward_deviation"] == pytest.approx(unit * rewards.std())
    np.testing.assert_allclose(found[1:], [found[0]] * 2, rtol=1e-9)


def test_the_kl_coefficient_moves_towards_its_target():
    assert next_kl_coefficient(0.05, 100.0, None, 1000) == 0.05
    assert next_kl_coefficient(0.05, 6.0, 6.0, 1000) == 0.05
    assert next_kl_coefficient(0.05, 6.6, 6.0, 1000) == pytest.approx(0.05 * 1.01)
    assert next_kl_coefficient(0.05, 5.4, 6.0, 1000) == pytest.approx(0.05 * 0.99)
    # The error counts as 0.2 at most, so that one odd batch cannot throw the coefficient.
    assert next_kl_coefficient(0.05, 60.0, 6.0, 1000) == pytest.approx(0.05 * 1.02)
    assert next_kl_coefficient(0.05, -6.0, 6.0, 1000) == pytest.approx(0.05 * 0.98)


def test_the_kl_coefficient_stays_positive_after_any_number_of_samples():
    assert next_kl_coefficient(0.05, 0.0, 6.0, 100_000) > 0


ROWS = [Row("a", (1, 2), ((3, 4, 5), (3, 6))), Row("b", (1,), ((7,), (8, 9, 3, 4)))]
LENGTHS = [3, 2, 1, 4]


def measured(seed=0):
    """Log-probs, reference log-probs and values, per row and response; the flat arrays as well."""
    rng = np.random.default_rng(seed)
    names = ("logprobs", "reference_logprobs", "values")
    flat = {name: [rng.normal(-1, 0.5, n).astype(np.float32) for n in LENGTHS] for name in names}
    return {name: [tuple(arrays[:2]), tuple(arrays[2:])] for name, arrays in flat.items()}, flat


def extras(prepared, name):
    return [a for row in prepared.rows for a in row.extras[name]]


def test_prepare_against_every_step_written_out():
    arm = PPOSettings(kl_coefficient=0.3, discount=0.9, gae_lambda=0.7, missing_eos_penalty=2.0)
    nested, flat = measured()
    scores = np.array([0.5, 2.0, np.nan, -1.0])
    prepared = prepare(ROWS, [scores[:2].tolist(), scores[2:].tolist()], nested, arm, {})
    finished = scores[[0, 1, 3]]
    deviation = finished.std()
    given_score = [0.5 + (reward - 0.5) / deviation for reward in (0.5, 2.0, -1.0 - 2.0, -1.0)]  # their mean is 0.5
    gaps = [p.astype(float) - q for p, q in zip(flat["logprobs"], flat["reference_logprobs"], strict=True)]
    advantages, returns = [], []
    for r in range(4):
        values, rewards = flat["values"][r].astype(float), -0.3 / deviation * gaps[r]
        rewards[-1] += given_score[r]
        errors = td_errors(rewards, values, 0.9)
        one = np.array([sum(0.63 ** (s - t) * errors[s] for s in range(t, len(errors))) for t in range(len(errors))])
        advantages.append(one)
        returns.append(one + values)
    every = np.concatenate(advantages)
    for got, one in zip(extras(prepared, "advantages"), advantages, strict=True):
        np.testing.assert_allclose(got, (one - every.mean()) / every.std(), rtol=1e-6)
    for name, arrays in (("returns", returns), ("old_logprobs", flat["logprobs"]), ("old_values", flat["values"])):
        for got, one in zip(extras(prepared, name), arrays, strict=True):
            np.testing.assert_allclose(got, one, rtol=1e-6, err_msg=name)
    kl = np.mean([gap.sum() for gap in gaps])
    expected = {
        "kl": kl,
        "kl_coefficient": 0.3,
        "kl_penalty": 0.3 * kl,
        "reward_deviation": deviation,
        "unfinished": 0.25,
    }
    assert prepared.metrics == pytest.approx(expected)


def test_importance_weights_by_hand():
    """What the policy says over what the sampler said: a token that was drawn too often counts less. At most the cap."""
    old, drawn = np.log([0.5, 0.1, 0.3, 0.9]), np.log([0.25, 0.4, 0.3, 0.1])
    np.testing.assert_allclose(importance_weights(old, drawn, 3.0), [2.0, 0.25, 1.0, 3.0], rtol=1e-12)


def test_samples_drawn_ahead_are_weighted_and_those_drawn_now_are_not():
    nested, flat = measured()
    rng = np.random.default_rng(1)
    drawn = [logprobs + rng.normal(0, 0.8, len(logprobs)).astype(np.float32) for logprobs in flat["logprobs"]]
    rows = [
        Row(row.id, row.prompt_ids, row.responses, {"sampler_logprobs": tuple(own)})
        for row, own in zip(ROWS, (drawn[:2], drawn[2:]), strict=True)
    ]
    scores = [[0.5, 2.0], [1.0, -1.0]]
    ahead = prepare(rows, scores, nested, PPOSettings(rollouts_ahead=1, importance_cap=1.5), {})
    expected = [
        np.minimum(np.exp(old.astype(float) - mu), 1.5) for old, mu in zip(flat["logprobs"], drawn, strict=True)
    ]
    for got, one in zip(extras(ahead, "importance"), expected, strict=True):
        np.testing.assert_allclose(got, one, rtol=1e-6)
    every = np.concatenate(expected)
    assert 0 < (every == 1.5).mean() < 1  # some are capped and some are not
    assert ahead.metrics["importance"] == pytest.approx(every.mean(), rel=1e-6)
    assert ahead.metrics["importance_capped"] == pytest.approx((every == 1.5).mean())
    assert all("importance" not in row.extras for row in prepare(rows, scores, nested, PPOSettings(), {}).rows)


def test_a_responses_rewards_add_up_to_its_score_less_the_penalty():
    """With γ = λ = 1 the first token's return is everything the response earns."""
    arm = PPOSettings(kl_coefficient=0.5, gae_lambda=1.0, missing_eos_penalty=3.0)
    nested, flat = measured(1)
    prepared = prepare(ROWS, [(1.0, 2.0), (float("nan"), 3.0)], nested, arm, {})
    deviation = np.sqrt(2 / 3)
    reward = [1.0, 2.0, 1.0 - 3.0, 3.0]
    for r, returns in enumerate(extras(prepared, "returns")):
        gap = float((flat["logprobs"][r].astype(float) - flat["reference_logprobs"][r]).sum())
        assert returns[0] == pytest.approx(2.0 + (reward[r] - 2.0 - 0.5 * gap) / deviation)


def test_drifting_from_the_reference_costs_reward():
    arm = PPOSettings(kl_coefficient=0.5, gae_lambda=1.0)
    nested, _ = measured(2)
    away = nested | {"reference_logprobs": [tuple(a - 2.0 for a in row) for row in nested["reference_logprobs"]]}
    rewards = [(1.0, 2.0), (0.0, 3.0)]
    near, far = (prepare(ROWS, rewards, m, arm, {}) for m in (nested, away))
    for n, one, other in zip(LENGTHS, extras(near, "returns"), extras(far, "returns"), strict=True):
        assert other[0] == pytest.approx(one[0] - 0.5 * 2.0 * n / np.std(rewards))


def test_in_a_batch_without_a_single_finished_response_all_are_alike():
    arm = PPOSettings(kl_coefficient=0.0, gae_lambda=1.0, missing_eos_penalty=1.5)
    nan = float("nan")
    prepared = prepare(ROWS, [(nan, nan), (nan, nan)], measured()[0], arm, {})
    assert all(a == pytest.approx(-1.5) for returns in extras(prepared, "returns") for a in returns)
    assert prepared.metrics["unfinished"] == 1.0


def test_the_kl_coefficient_is_carried_from_update_to_update():
    nested, flat = measured()
    arm = PPOSettings(kl_coefficient=0.3, kl_target=1e-3)
    first = prepare(ROWS, [(0.0, 1.0), (2.0, 3.0)], nested, arm, {})
    assert first.state == pytest.approx({"kl_coefficient": next_kl_coefficient(0.3, first.metrics["kl"], 1e-3, 4)})
    second = prepare(ROWS, [(0.0, 1.0), (2.0, 3.0)], nested, arm, first.state)
    assert second.metrics["kl_coefficient"] == first.state["kl_coefficient"] != 0.3


@settings(deadline=None)
@given(st.integers(1, 30), st.integers(1, 5), st.integers(1, 8))
def test_minibatches_cover_every_row_once_in_each_epoch(rows, epochs, parts):
    arm = PPOSettings(epochs_per_update=epochs, minibatches_per_epoch=parts)
    steps = minibatches([None] * rows, arm, np.random.default_rng(0))
    per_epoch = min(parts, rows)
    assert len(steps) == epochs * per_epoch
    for epoch in range(epochs):
        part = steps[epoch * per_epoch : (epoch + 1) * per_epoch]
        assert sorted(i for step in part for i in step) == list(range(rows))
        assert max(map(len, part)) - min(map(len, part)) <= 1


def test_each_epoch_is_cut_anew_and_the_generator_decides():
    arm = PPOSettings(epochs_per_update=2, minibatches_per_epoch=4)
    steps, again = (minibatches([None] * 32, arm, np.random.default_rng(7)) for _ in range(2))
    assert steps == again and steps[:4] != steps[4:]


def outputs(**tensors):
    extras = {k: torch.tensor(v).double() for k, v in tensors.pop("extras").items()}
    return Outputs(torch.zeros(2, dtype=torch.int64), 1, extras, **tensors)


def test_the_actors_objective_and_its_metrics():
    gaps = np.array([0.5, -0.1])
    out = outputs(
        logprobs=double(gaps - 2.0),
        entropy=torch.tensor([1.0, 2.0]),
        extras={"old_logprobs": [-2.0, -2.0], "advantages": [1.0, -3.0]},
    )
    loss, metrics = policy_objective(out, PPOSettings(clip=0.2))
    np.testing.assert_allclose(loss.detach().numpy(), [-1.2, 3.0 * np.exp(-0.1)], rtol=1e-12)
    assert metrics["clip_fraction"].tolist() == [1.0, 0.0]
    np.testing.assert_allclose(metrics["step_kl"].numpy(), np.exp(gaps) - 1 - gaps, rtol=1e-12)
    assert metrics["entropy"].tolist() == [1.0, 2.0]


def test_a_tokens_importance_multiplies_its_loss_and_its_gradient():
    own = {"old_logprobs": [-2.0, -2.0], "advantages": [1.0, -3.0]}
    found = []
    for more, arm in (({}, PPOSettings()), ({"importance": [0.5, 2.0]}, PPOSettings(rollouts_ahead=1))):
        logprobs = double([-1.95, -2.1])
        loss, _ = policy_objective(outputs(logprobs=logprobs, entropy=torch.zeros(2), extras=own | more), arm)
        found.append((loss.detach(), *torch.autograd.grad(loss.sum(), logprobs)))
    for plain, weighted in zip(*found, strict=True):
        np.testing.assert_allclose(weighted, plain * torch.tensor([0.5, 2.0]), rtol=1e-12)


def test_the_critics_objective_is_the_clipped_squared_error_and_its_gradient_the_error():
    values = double([0.1, 0.5])
    out = outputs(values=values, extras={"old_values": [0.0, 0.0], "returns": [1.0, -1.0]})
    loss, metrics = critic_objective(out, PPOSettings())
    np.testing.assert_allclose(loss.detach().numpy(), [0.5 * 0.81, 0.5 * 2.25], rtol=1e-12)
    np.testing.assert_allclose(torch.autograd.grad(loss.sum(), values)[0].numpy(), [-0.9, 1.5], rtol=1e-12)
    np.testing.assert_allclose(metrics["value_error"].numpy(), [0.81, 2.25], rtol=1e-12)


def test_a_target_with_nothing_to_multiply_is_refused():
    with pytest.raises(ValueError, match="kl_target\n.*0 would stay 0"):
        PPOSettings(method="ppo", kl_coefficient=0, kl_target=1.0)
    assert PPOSettings(method="ppo", kl_coefficient=0.1, kl_target=1.0).kl_target == 1.0
