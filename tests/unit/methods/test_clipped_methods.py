"""GRPO, RLOO, REINFORCE++ and rejection-sampling fine-tuning: advantages by hand, losses and gradients in float64, identities."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_bench.core.errors import BadInput
from rlhf_bench.core.types import Row
from rlhf_bench.methods import METHODS
from rlhf_bench.methods.base import Outputs
from rlhf_bench.methods.grpo import group_advantages, kl_estimate, length_weights
from rlhf_bench.methods.reinforce_plus_plus import return_to_come
from rlhf_bench.methods.rft import best_of
from rlhf_bench.methods.rloo import leave_one_out
from rlhf_bench.methods.samples import policy_loss
from rlhf_bench.recipe import parse_recipe

CRITIC_FREE = ("grpo", "rloo", "reinforce_plus_plus")
NAN = float("nan")
ROWS = [Row("a", (1, 2), ((3, 4, 5), (3, 6), (7,))), Row("b", (1,), ((7,), (8, 9, 3, 4), (5, 5)))]
LENGTHS = [3, 2, 1, 1, 4, 2]
REWARDS = [[1.0, 0.0, 0.5], [2.0, -1.0, 0.5]]


def double(x):
    return torch.tensor(x, dtype=torch.float64, requires_grad=True)


def measured(seed=0, **flat):
    """Log-probs of policy and reference: per row and response; and the flat arrays."""
    rng = np.random.default_rng(seed)
    flat = {name: [rng.normal(-1, 0.5, n) for n in LENGTHS] for name in ("logprobs", "reference_logprobs")} | flat
    return {name: [tuple(arrays[:3]), tuple(arrays[3:])] for name, arrays in flat.items()}, flat


def prepared(name, rewards=REWARDS, rows=ROWS, known=None, **arm):
    method = METHODS[name]
    return method.prepare(rows, rewards, known or measured()[0], method.settings(**arm), {})


def extras(found, name):
    return [a for row in found.rows for a in row.extras[name]]


def of_responses(found):
    """Each response's advantage, which all of its tokens share."""
    assert all(np.ptp(a) == 0 for a in extras(found, "advantages"))
    assert [len(a) for a in extras(found, "advantages")] == LENGTHS
    return [a[0] for a in extras(found, "advantages")]


# GRPO


def test_grpos_advantages_by_hand():
    """Rewards 1, 0, ½: mean ½, deviation √(1/6). Rewards 2, −1, ½: the same at three times the size, so the same advantages."""
    expected = [0.5 * math.sqrt(6), -0.5 * math.sqrt(6), 0.0]
    np.testing.assert_allclose(of_responses(prepared("grpo")), 2 * expected, atol=1e-12)
    plain = of_responses(prepared("grpo", divide_by_deviation=False))
    np.testing.assert_allclose(plain, [0.5, -0.5, 0.0, 1.5, -1.5, 0.0], atol=1e-12)


def test_a_group_whose_rewards_are_equal_up_to_rounding_teaches_nothing():
    rows = [Row(r.id, r.prompt_ids, r.responses, {"reward_rounding": (np.array([1e-6]),) * 3}) for r in ROWS]
    rewards = [[1.0, 1.0 + 5e-7, 1.0 - 4e-7], REWARDS[1]]
    for name in ("grpo", "rloo"):
        found = of_responses(prepared(name, rewards, rows, kl_coefficient=0))
        np.testing.assert_allclose(found[:3], 0, atol=1e-15)
        assert found[3] > 0.5 and found[4] < -0.5


def test_a_sample_without_an_end_is_worse_than_the_worst_of_the_update():
    found = of_responses(
        prepared("rloo", [[1.0, NAN, 0.0], [2.0, 2.0, 2.0]], kl_coefficient=0, missing_eos_penalty=0.5)
    )
    np.testing.assert_allclose(found, [1 + 0.25, -0.5 - 0.5, 0 - 0.25, 0, 0, 0], atol=1e-12)


def test_kl_in_the_reward_is_paid_before_groups_are_compared():
    known, flat = measured()
    paid = [0.3 * (a - b).sum() for a, b in zip(flat["logprobs"], flat["reference_logprobs"], strict=True)]
    earned = np.concatenate(REWARDS) - paid
    expected = np.concatenate(
        [(part - part.mean()) / np.std(r) for part, r in zip(earned.reshape(2, 3), REWARDS, strict=True)]
    )
    arm = {"kl_in": "reward", "kl_coefficient": 0.3}
    np.testing.assert_allclose(of_responses(prepared("grpo", known=known, **arm)), expected, rtol=1e-12)
    found = prepared("grpo", known=known, **arm)
    assert found.metrics["kl_penalty"] == pytest.approx(np.mean(paid)) and "reference_gap" not in found.rows[0].extras


def outputs(index, **tensors):
    more = {k: torch.tensor(np.asarray(v), dtype=torch.float64) for k, v in tensors.pop("extras").items()}
    index = torch.tensor(index)
    return Outputs(index, int(index.max()) + 1, more, entropy=torch.zeros(len(index)), **tensors)


def grpo_loss(logprobs, found, arm):
    """The objective over all tokens of prepared rows, averaged as the learner does."""
    flat = {name: np.concatenate(extras(found, name)) for name in found.rows[0].extras}
    out = outputs(np.repeat(np.arange(6), LENGTHS), logprobs=logprobs, extras=flat)
    loss, _ = METHODS["grpo"].objectives[0].loss(out, arm)
    return loss.mean()


@pytest.mark.parametrize("over", ["responses", "tokens"])
@pytest.mark.parametrize("kl_in", ["loss", "reward"])
def test_grpos_loss_and_gradient_against_its_equation(over, kl_in):
    """arXiv 2402.03300, eq. 3, token by token; ratios beyond the clip on both sides, above at 0.28."""
    arm = METHODS["grpo"].settings(average_over=over, kl_in=kl_in, kl_coefficient=0.2, clip_high=0.28)
    known, flat = measured()
    found = METHODS["grpo"].prepare(ROWS, REWARDS, known, arm, {})
    moves = np.random.default_rng(5).normal(0, 0.3, sum(LENGTHS))
    logprobs = double(np.concatenate(flat["logprobs"]) + moves)
    loss = grpo_loss(logprobs, found, arm)
    parts, slopes, at = [], [], 0
    for advantage, old, reference in zip(
        of_responses(found), flat["logprobs"], flat["reference_logprobs"], strict=True
    ):
        token_losses, token_slopes = [], []
        for t in range(len(old)):
            new = old[t] + moves[at + t]
            ratio = math.exp(moves[at + t])
            clipped = min(max(ratio, 0.8), 1.28)
            stopped = clipped * advantage < ratio * advantage
            one, slope = -min(ratio * advantage, clipped * advantage), 0.0 if stopped else -ratio * advantage
            if kl_in == "loss":
                gap = reference[t] - new
                one, slope = one + 0.2 * (math.exp(gap) - gap - 1), slope + 0.2 * (1 - math.exp(gap))
            token_losses.append(one)
            token_slopes.append(slope)
        share = 1 / (6 * len(old)) if over == "responses" else 1 / sum(LENGTHS)
        parts.append(share * sum(token_losses))
        slopes += [share * slope for slope in token_slopes]
        at += len(old)
    assert loss.item() == pytest.approx(sum(parts), rel=1e-12)
    np.testing.assert_allclose(torch.autograd.grad(loss, logprobs)[0].numpy(), slopes, rtol=1e-10, atol=1e-15)


def test_clip_high_moves_the_upper_side_alone():
    one = torch.tensor([1.0]).double()
    for ratio, advantage, expected in ((1.25, 1.0, -1.25), (1.5, 1.0, -1.28), (0.5, -1.0, 0.8), (0.9, -1.0, 0.9)):
        loss = policy_loss(torch.tensor([math.log(ratio)]).double(), 0 * one, advantage * one, 0.2, 0.28)
        assert loss.item() == pytest.approx(expected)


def test_the_kl_estimate_is_0_at_the_reference_and_above_it_elsewhere_and_its_mean_is_the_kl():
    p, q = np.array([0.2, 0.5, 0.3]), np.array([0.4, 0.4, 0.2])
    found = kl_estimate(torch.tensor(np.log(p / q))).numpy()
    assert (found > 0).all() and kl_estimate(torch.zeros(1)).item() == 0
    assert (p * found).sum() == pytest.approx((p * np.log(p / q)).sum())
    gap = double([0.5, -0.3])
    assert torch.autograd.gradcheck(kl_estimate, (gap,))


def test_weights_by_length_make_a_mean_over_tokens_the_mean_of_means():
    losses = [np.arange(n, dtype=float) ** 2 for n in LENGTHS]
    weighted = np.concatenate([w * one for w, one in zip(length_weights(LENGTHS), losses, strict=True)])
    assert weighted.mean() == pytest.approx(np.mean([one.mean() for one in losses]))


# RLOO


def test_the_leave_one_out_baseline_by_hand():
    np.testing.assert_allclose(leave_one_out(np.array([4.0, 1.0, 1.0])), [4 - 1, 1 - 2.5, 1 - 2.5])
    known, flat = measured()
    paid = np.array([0.05 * (a - b).sum() for a, b in zip(flat["logprobs"], flat["reference_logprobs"], strict=True)])
    earned = (np.concatenate(REWARDS) - paid).reshape(2, 3)
    expected = [own[i] - np.delete(own, i).mean() for own in earned for i in range(3)]
    np.testing.assert_allclose(of_responses(prepared("rloo", known=known)), expected, rtol=1e-12)


@settings(deadline=None)
@given(st.lists(st.floats(-5, 5), min_size=2, max_size=9))
def test_rloo_is_dr_grpos_advantage_times_n_over_n_minus_one(rewards):
    earned = np.array(rewards)
    own = group_advantages(earned, earned, divide=False) * len(earned) / (len(earned) - 1)
    np.testing.assert_allclose(leave_one_out(earned), own, atol=1e-9)


def test_rloos_first_step_is_reinforces():
    """∇θ of the loss at π = π_old: −A_i Σ_t ∇ log π(a_t) over all tokens, for softmax logits."""
    arm = METHODS["rloo"].settings()
    logits = double([0.3, -1.0, 0.8])
    actions, advantages = torch.tensor([0, 2, 2, 1]), np.array([1.5, 1.5, -0.7, -0.7])
    logprobs = logits.log_softmax(-1)[actions]
    out = outputs([0, 0, 1, 1], logprobs=logprobs, extras={"old_logprobs": logprobs.detach(), "advantages": advantages})
    loss, _ = METHODS["rloo"].objectives[0].loss(out, arm)
    probabilities = np.exp(logits.detach().numpy()) / np.exp(logits.detach().numpy()).sum()
    expected = -sum(a * (np.eye(3)[k] - probabilities) for k, a in zip([0, 2, 2, 1], advantages, strict=True))
    np.testing.assert_allclose(torch.autograd.grad(loss.sum(), logits)[0].numpy(), expected, rtol=1e-12)


# REINFORCE++


def test_reinforce_plus_plus_by_hand():
    """arXiv 2501.03262, eqs. 8 to 10: the score less the KL still to come, whitened over all tokens."""
    np.testing.assert_allclose(return_to_come(np.array([-1.0, 2.0, 4.0])), [5.0, 6.0, 4.0])
    known, flat = measured()
    raw = []
    for reward, own, reference in zip(
        np.concatenate(REWARDS), flat["logprobs"], flat["reference_logprobs"], strict=True
    ):
        gaps = own - reference
        raw += [reward - 0.2 * gaps[t:].sum() for t in range(len(gaps))]
    found = np.concatenate(extras(prepared("reinforce_plus_plus", known=known, kl_coefficient=0.2), "advantages"))
    np.testing.assert_allclose(found, (np.array(raw) - np.mean(raw)) / np.std(raw), rtol=1e-9)


def test_of_equal_rewards_reinforce_plus_plus_makes_nothing_of_rounding_in_the_kl():
    known, flat = measured()
    near = [a + 1e-7 * (-1) ** np.arange(len(a)) for a in flat["logprobs"]]
    known, _ = measured(reference_logprobs=near)
    found = extras(prepared("reinforce_plus_plus", [[1000.0] * 3] * 2, known=known), "advantages")
    assert not np.concatenate(found).any()


def test_reinforce_plus_plus_is_ppo_with_a_critic_that_knows_nothing():
    known, _ = measured()
    zeros = known | {"values": [tuple(np.zeros_like(a) for a in row) for row in known["logprobs"]]}
    ppo = prepared("ppo", known=zeros, kl_coefficient=0.2, gae_lambda=1.0)
    own = prepared("reinforce_plus_plus", known=known, kl_coefficient=0.2)
    for one, other in zip(extras(ppo, "advantages"), extras(own, "advantages"), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-10)
    assert own.metrics == pytest.approx(ppo.metrics)


def test_reinforce_plus_plus_with_the_prompts_mean_by_hand():
    """Rewards 0 and 1, and 6 and 9, of a token each: −½, ½ and −3/2, 3/2 beyond their prompt's mean. The mean of these is 0 and
    the deviation √(5/4), over the update: a prompt of which more is at stake keeps its larger advantages."""
    rows = [Row("a", (1,), ((3,), (4,))), Row("b", (2,), ((3,), (4,)))]
    known = {"logprobs": [tuple(np.array([-1.0]) for _ in range(2))] * 2}
    found = prepared("reinforce_plus_plus", [[0.0, 1.0], [6.0, 9.0]], rows, known, baseline="prompt", kl_coefficient=0)
    expected = np.array([-0.5, 0.5, -1.5, 1.5]) / math.sqrt(1.25)
    np.testing.assert_allclose(np.concatenate(extras(found, "advantages")), expected, rtol=1e-12)


def test_with_the_prompts_mean_kl_is_still_paid_token_by_token():
    """Score less its prompt's mean, less the KL still to come, whitened over all tokens."""
    known, flat = measured()
    beyond = np.concatenate([np.array(own) - np.mean(own) for own in REWARDS])
    gaps = [a - b for a, b in zip(flat["logprobs"], flat["reference_logprobs"], strict=True)]
    raw = [own - 0.2 * gap[t:].sum() for own, gap in zip(beyond, gaps, strict=True) for t in range(len(gap))]
    found = prepared("reinforce_plus_plus", known=known, kl_coefficient=0.2, baseline="prompt")
    whitened = (np.array(raw) - np.mean(raw)) / np.std(raw)
    np.testing.assert_allclose(np.concatenate(extras(found, "advantages")), whitened, rtol=1e-9)


def test_with_the_prompts_mean_what_a_prompt_is_worth_by_itself_changes_nothing():
    """With the mean of the update it does."""
    found = {}
    for baseline in ("prompt", "update"):
        for shift in (0.0, 40.0):
            rewards = [REWARDS[0], [r + shift for r in REWARDS[1]]]
            arm = {"baseline": baseline, "kl_coefficient": 0}
            found[baseline, shift] = np.concatenate(
                extras(prepared("reinforce_plus_plus", rewards, **arm), "advantages")
            )
    np.testing.assert_allclose(found["prompt", 0.0], found["prompt", 40.0], rtol=1e-9)
    assert not np.allclose(found["update", 0.0], found["update", 40.0], atol=0.3)


def test_with_the_prompts_mean_prompts_that_tie_teach_nothing():
    rows = [Row(r.id, r.prompt_ids, r.responses, {"reward_rounding": (np.array([1e-6]),) * 3}) for r in ROWS]
    rewards = [[1000.0, 1000.0 + 5e-7, 1000.0], [-3.0] * 3]
    arm = {"baseline": "prompt", "kl_coefficient": 0}
    known = {"logprobs": measured()[0]["logprobs"]}
    assert not np.concatenate(extras(prepared("reinforce_plus_plus", rewards, rows, known, **arm), "advantages")).any()


def test_the_prompts_mean_of_one_sample_is_refused_by_key_with_the_remedy():
    arms = {"mine": {"method": "reinforce_plus_plus", "samples_per_prompt": 1, "baseline": "prompt"}}
    with pytest.raises(BadInput) as refused:
        parse_recipe({"name": "r", "task": {"kind": "arithmetic"}, "compute": {"limit": 1e12}, "arms": arms})
    (line,) = refused.value.problems
    assert line.startswith("arms.mine.baseline: one sample") and "samples_per_prompt to 2 or more" in line


# All of them


@pytest.mark.parametrize("name", CRITIC_FREE)
def test_the_better_sample_has_the_higher_advantage_and_raising_it_lowers_the_loss(name):
    """At π = π_old: no sign in the loss can be turned without this."""
    arm = METHODS[name].settings(kl_coefficient=0)
    known, flat = measured()
    found = METHODS[name].prepare(ROWS, REWARDS, {"logprobs": known["logprobs"]}, arm, {})
    means = [a.mean() for a in extras(found, "advantages")]
    assert means[0] > means[2] > means[1] and means[3] > means[5] > means[4]
    logprobs = double(np.concatenate(flat["logprobs"]))
    flat = {key: np.concatenate(extras(found, key)) for key in found.rows[0].extras}
    out = outputs(np.repeat(np.arange(6), LENGTHS), logprobs=logprobs, extras=flat)
    loss, _ = METHODS[name].objectives[0].loss(out, arm)
    slopes = np.split(torch.autograd.grad(loss.sum(), logprobs)[0].numpy(), np.cumsum(LENGTHS)[:-1])
    assert (slopes[0] < 0).all() and (slopes[1] > 0).all() and (slopes[3] < 0).all() and (slopes[4] > 0).all()


@pytest.mark.parametrize("name", CRITIC_FREE)
def test_no_method_but_ppo_has_a_critic_and_kl_without_a_price_needs_no_reference(name):
    method = METHODS[name]
    assert [o.model for o in method.objectives] == ["policy"]
    assert method.needs(method.settings()) == ("reference_logprobs", "logprobs")
    assert method.needs(method.settings(kl_coefficient=0)) == ("logprobs",)
    known, _ = measured()
    found = prepared(name, known={"logprobs": known["logprobs"]}, kl_coefficient=0)
    assert "kl" not in found.metrics and found.state == {}


@pytest.mark.parametrize("name", CRITIC_FREE)
def test_samples_drawn_ahead_have_importance_weights(name):
    known, flat = measured()
    drawn = [a - 0.3 for a in flat["logprobs"]]
    rows = [
        Row(row.id, row.prompt_ids, row.responses, {"sampler_logprobs": tuple(own)})
        for row, own in zip(ROWS, (drawn[:3], drawn[3:]), strict=True)
    ]
    found = prepared(name, rows=rows, known=known, rollouts_ahead=1)
    np.testing.assert_allclose(np.concatenate(extras(found, "importance")), math.exp(0.3), rtol=1e-12)
    assert METHODS[name].settings(rollouts_ahead=1).draws_ahead and not METHODS[name].settings().draws_ahead


@pytest.mark.parametrize("name", ["grpo", "rloo", "rft"])
def test_a_group_of_one_is_refused_by_key_with_the_remedy(name):
    arms = {"mine": {"method": name, "samples_per_prompt": 1}}
    with pytest.raises(BadInput) as refused:
        parse_recipe({"name": "r", "task": {"kind": "arithmetic"}, "compute": {"limit": 1e12}, "arms": arms})
    (line,) = refused.value.problems
    assert line.startswith("arms.mine.samples_per_prompt: one sample has no other") and "2 or more" in line


# Rejection-sampling fine-tuning


@pytest.mark.parametrize(("rewards", "rounding", "best"), [
    ([0.0, 1.0, 0.5], 0.0, 1), ([0.3, 0.9, 0.9], 0.0, 1), ([NAN, -7.0, NAN], 0.0, 1), ([0.0, 1.0, 1.0 + 1e-7], 1e-6, 1),
    ([1.0, 1.0], 0.0, None), ([1.0, 1.0 + 1e-7], 1e-6, None), ([NAN, NAN], 0.0, None),
])  # fmt: skip
def test_the_best_is_the_first_of_the_highest_and_nothing_where_all_are_alike(rewards, rounding, best):
    assert best_of(np.array(rewards), rounding) == best


def test_rft_is_the_negative_log_likelihood_of_the_best_response():
    found = prepared("rft", [[0.0, NAN, 0.5], [2.0, 2.0, 2.0]], known={})
    assert found.rows == [Row("a", (1, 2), ((7,),))] and found.state == {}
    assert found.metrics == {"selected": 0.5, "selected_reward": 0.5}
    logprobs = double([-0.5, -2.0, -0.1])
    out = outputs([0, 0, 1], logprobs=logprobs, extras={})
    (objective,) = METHODS["rft"].objectives
    loss, _ = objective.loss(out, METHODS["rft"].settings())
    assert (objective.model, objective.unit, loss.tolist()) == ("policy", "token", [0.5, 2.0, 0.1])
    assert torch.autograd.grad(loss.sum(), logprobs)[0].tolist() == [-1.0, -1.0, -1.0]
    assert METHODS["rft"].measures == ()
