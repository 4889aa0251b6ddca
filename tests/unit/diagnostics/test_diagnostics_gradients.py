"""Gradients in three spaces: against plain forward and backward passes, finite differences, and the closed forms."""

import math
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig

from rlhf_bench.core.types import PairEvaluation, Row
from rlhf_bench.diagnostics.gradients import (
    constant_ratio,
    gradient_numbers,
    log_partials,
    pair_logprobs_of,
    partials,
    side_gradients,
)
from rlhf_bench.methods import METHODS
from rlhf_bench.methods.base import PairLogprobs, SideGradients
from rlhf_bench.models.attention import PACKED_ROWS, register
from rlhf_bench.models.heads import TokenLogprobs
from rlhf_bench.models.packing import micro_batch

register()

PAIR_METHODS = {name: method for name, method in METHODS.items() if method.pair_loss is not None}
ROWS = [
    Row("a", (1, 2, 3), ((4, 5, 6, 2), (7, 2))),
    Row("b", (8,), ((9,), (10, 11, 12, 13, 14, 2))),
    Row("c", (6, 5, 4, 3), ((20, 19, 18, 2), (20, 19, 2))),
    Row("d", (1, 3, 5, 7, 9, 11, 13), ((4, 4, 4), (4, 5))),
]


@pytest.fixture(scope="module")
def model():
    config = LlamaConfig(
        vocab_size=31,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=64,
        pad_token_id=0,
        tie_word_embeddings=True,
        initializer_range=0.3,
    )
    torch.manual_seed(0)
    return TokenLogprobs(AutoModelForCausalLM.from_config(config, attn_implementation=PACKED_ROWS).eval())


def plain_logprob(lm, prompt, response):
    """log π(a|x) of one sequence without padding, with the library's own mask and positions."""
    logits = lm(torch.tensor([[*prompt, *response]])).logits[0, len(prompt) - 1 : -1]
    return logits.log_softmax(-1)[range(len(response)), list(response)].sum()


def plain_gradient(lm, prompt, response):
    lm.zero_grad()
    plain_logprob(lm, prompt, response).backward()
    gradient = torch.cat([p.grad.flatten() for p in lm.parameters()]).double()
    lm.zero_grad()
    return gradient


def pair_gradients(lm, row):
    return [plain_gradient(lm, row.prompt_ids, response) for response in row.responses]


@pytest.mark.parametrize("row", ROWS, ids=lambda r: r.id)
def test_a_pairs_gradients_are_those_of_two_plain_passes(model, row):
    found = side_gradients(model, micro_batch([row]))
    up, down = pair_gradients(model.lm, row)
    assert found.chosen_norm == pytest.approx(float(up.norm()), rel=1e-4)
    assert found.rejected_norm == pytest.approx(float(down.norm()), rel=1e-4)
    assert found.dot == pytest.approx(float(up @ down), rel=1e-3, abs=1e-4)
    assert found.cosine == pytest.approx(float(torch.nn.functional.cosine_similarity(up, down, dim=0)), abs=1e-4)


def test_a_batchs_gradients_are_the_means_over_its_pairs(model):
    found = side_gradients(model, micro_batch(ROWS))
    up, down = (torch.stack(side).mean(0) for side in zip(*(pair_gradients(model.lm, r) for r in ROWS), strict=True))
    assert (found.chosen_norm, found.rejected_norm) == pytest.approx((float(up.norm()), float(down.norm())), rel=1e-4)
    assert found.dot == pytest.approx(float(up @ down), rel=1e-3)


def test_nothing_is_left_behind_in_the_model(model):
    before = [p.detach().clone() for p in model.parameters()]
    with torch.no_grad():  # as an engine in the same process may have set it
        side_gradients(model, micro_batch(ROWS[:1]))
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_means_over_pairs_and_the_share_that_falls():
    pairs = [
        SideGradients(2.0, 1.0, 5.0),
        SideGradients(2.0, 4.0, 4.0),
        SideGradients(1.0, 3.0, 1.5),
        SideGradients(0.0, 3.0, 0.0),
    ]
    assert gradient_numbers(pairs) == pytest.approx(
        {
            "gradient/chosen_norm": 5 / 4,
            "gradient/rejected_norm": 11 / 4,
            "gradient/falling": 2 / 4,  # 5 > 4 and 1.5 > 1; 4 > 4 does not hold
            "gradient/cosine": (2.5 + 0.5 + 0.5) / 3,  # the last has none
        }
    )
    assert gradient_numbers([]) == {}
    assert "gradient/cosine" not in gradient_numbers(pairs[3:])


FLEX = METHODS["flex_dpo"]


def flex(beta_chosen, beta_rejected):
    return FLEX.settings(beta_chosen=beta_chosen, beta_rejected=beta_rejected).resolve_at(0.0, {})


@pytest.fixture(scope="module")
def exact():
    """A policy and a reference, all of it in float64 (Llama's norms and angles are float32 whatever the weights)."""
    config = GPT2Config(
        vocab_size=31, n_embd=32, n_inner=48, n_layer=2, n_head=2, n_positions=64, initializer_range=0.2
    )
    models = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        models.append(AutoModelForCausalLM.from_config(config, attn_implementation="eager").double().eval())
    return models


def one_pair(policy, reference, row):
    logprobs = [plain_logprob(policy, row.prompt_ids, a)[None] for a in row.responses]
    with torch.no_grad():
        fixed = [plain_logprob(reference, row.prompt_ids, a)[None] for a in row.responses]
    lengths = [torch.tensor([float(len(a))], dtype=torch.float64) for a in row.responses]
    return PairLogprobs(*logprobs, *fixed, *lengths)


@pytest.mark.parametrize("betas", [(0.1, 0.01), (0.1, 0.1), (0.1, 1.0), (0.1, 3.0)], ids=str)
def test_the_chosen_falls_exactly_where_the_gradient_condition_says(exact, betas):
    """Derived: for one pair and a small step on Flex-DPO, log π(a⁺) falls iff β⁻⟨g⁺,g⁻⟩ > β⁺‖g⁺‖², and by how much."""
    policy, reference = exact
    start = [p.detach().clone() for p in policy.parameters()]
    for row in ROWS:
        up, down = pair_gradients(policy, row)
        policy.zero_grad()
        pair = one_pair(policy, reference, row)
        FLEX.pair_loss(pair, flex(*betas)).sum().backward()
        rate = 1e-7
        with torch.no_grad():
            for p in policy.parameters():
                p -= rate * p.grad
            after = plain_logprob(policy, row.prompt_ids, row.responses[0])
            for p, value in zip(policy.parameters(), start, strict=True):
                p.copy_(value)
        margin = betas[0] * pair.chosen_logratio - betas[1] * pair.rejected_logratio
        push = betas[0] * (up @ up) - betas[1] * (up @ down)
        moved = float(after - pair.chosen.detach())
        assert moved == pytest.approx(float(rate * torch.sigmoid(-margin.detach()) * push), rel=1e-2)
        assert (moved < 0) == bool(betas[1] * (up @ down) > betas[0] * (up @ up))


def test_both_outcomes_occur_in_the_test_above(exact):
    falls = [bool(3.0 * (u @ d) > 0.1 * (u @ u)) for u, d in (pair_gradients(exact[0], row) for row in ROWS)]
    assert any(falls)
    rises = [bool(0.01 * (u @ d) <= 0.1 * (u @ u)) for u, d in (pair_gradients(exact[0], row) for row in ROWS)]
    assert any(rises)


@pytest.mark.parametrize("row", ROWS, ids=lambda r: r.id)
def test_flex_dpos_gradient_is_dpos_and_a_fading_pull(exact, row):
    """Derived: ∇ℓ = −σ(−m)[β⁻(g⁺ − g⁻) + (β⁺ − β⁻) g⁺]."""
    policy, reference = exact
    up, down = pair_gradients(policy, row)
    policy.zero_grad()
    pair = one_pair(policy, reference, row)
    FLEX.pair_loss(pair, flex(0.3, 0.2)).sum().backward()
    found = torch.cat([p.grad.flatten() for p in policy.parameters()])
    policy.zero_grad()
    margin = (0.3 * pair.chosen_logratio - 0.2 * pair.rejected_logratio).detach()
    torch.testing.assert_close(found, -torch.sigmoid(-margin) * (0.2 * (up - down) + 0.1 * up))


def some_pairs(n=40, seed=0, spread=1.0) -> PairLogprobs:
    """Pairs whose probabilities are far from underflow, so that differences in π can be taken."""
    rng = np.random.default_rng(seed)

    def column(low, high):
        return torch.from_numpy(rng.uniform(low, high, n))

    return PairLogprobs(
        column(-3 * spread, -0.5),
        column(-3 * spread, -0.5),
        column(-3, -0.5),
        column(-3, -0.5),
        torch.from_numpy(rng.integers(2, 6, n).astype(float)),
        torch.from_numpy(rng.integers(2, 6, n).astype(float)),
    )


def settings_of(name):
    return PAIR_METHODS[name].settings().resolve_at(0.0, {})


def difference_in_pi(loss, pairs, settings, side):
    """∂ℓ/∂π by central differences in π itself."""
    log_pi = getattr(pairs, side)
    pi = log_pi.exp()
    h = 1e-6 * pi
    above, below = (loss(replace(pairs, **{side: (pi + s * h).log()}), settings) for s in (1, -1))
    return (above - below) / (2 * h)


@pytest.mark.parametrize("name", PAIR_METHODS)
def test_partials_are_those_of_finite_differences_in_pi(name):
    loss, pairs, settings = PAIR_METHODS[name].pair_loss, some_pairs(), settings_of(name)
    found = partials(loss, pairs, settings)
    up = difference_in_pi(loss, pairs, settings, "chosen").abs()
    down = difference_in_pi(loss, pairs, settings, "rejected").abs()
    active = (up > 1e-9) & (down > 1e-9)
    log_up, log_down = up * pairs.chosen.exp(), down * pairs.rejected.exp()  # ∂/∂log π = π ∂/∂π
    expected = {
        "partial/log_chosen": log_up.mean(),
        "partial/log_rejected": log_down.mean(),
        "partial/active": active.double().mean(),
        "partial/log_ratio": (log_down / log_up)[active].mean(),
        "partial/pi_log_chosen": up.log()[active].mean(),
        "partial/pi_log_rejected": down.log()[active].mean(),
        "partial/pi_log_ratio": (down / up).log()[active].mean(),
    }
    assert active.any()
    assert {k: found[k] for k in expected} == pytest.approx({k: float(v) for k, v in expected.items()}, rel=1e-4)


@pytest.mark.parametrize("name", PAIR_METHODS)
def test_where_theory_has_a_ratio_it_is_the_measured_one(name):
    found = partials(PAIR_METHODS[name].pair_loss, some_pairs(), settings_of(name))
    if "partial/pi_log_ratio_theory" in found:
        assert found["partial/pi_log_ratio_theory"] == pytest.approx(found["partial/pi_log_ratio"], abs=1e-9)


def ratio_of(name, pairs, **settings):
    method = PAIR_METHODS[name]
    return constant_ratio(method.pair_loss, pairs, method.settings(**settings).resolve_at(0.0, {}))


def test_which_losses_have_a_constant_ratio():
    """Derived: in log-probability space DPO's two gradients have the ratio 1, Flex-DPO's β⁻/β⁺, wherever the policy is."""
    pairs = some_pairs()
    torch.testing.assert_close(ratio_of("dpo", pairs, beta=0.3), torch.ones_like(pairs.chosen))
    flexible = ratio_of("flex_dpo", pairs, beta_chosen=0.1, beta_rejected=0.05)
    torch.testing.assert_close(flexible, torch.full_like(pairs.chosen, 0.5))
    torch.testing.assert_close(ratio_of("ipo", pairs), torch.ones_like(pairs.chosen))
    torch.testing.assert_close(ratio_of("simpo", pairs), pairs.chosen_tokens / pairs.rejected_tokens)
    per_token = ratio_of("length_normalised_dpo", pairs)
    torch.testing.assert_close(per_token, pairs.chosen_tokens / pairs.rejected_tokens)
    for form in ("robust", "conservative"):
        torch.testing.assert_close(ratio_of("robust_dpo", pairs, form=form), torch.ones_like(pairs.chosen))
    for name in ("sft_dpo", "dpop", "cal_dpo", "slic", "orpo", "cpo", "kto"):
        assert ratio_of(name, pairs) is None, name


def test_dpos_partials_are_the_papers_closed_forms():
    """arXiv 2406.07327: with α = (π0⁺/π0⁻)^β and z = π⁻/π⁺, ∂ℓ/∂π± = ∓ αβz^β / ((1 + αz^β) π±), of ratio π⁺/π⁻."""
    beta, pairs = 0.3, some_pairs()
    settings = METHODS["dpo"].settings(beta=beta).resolve_at(0.0, {})
    up, down = log_partials(METHODS["dpo"].pair_loss, pairs, settings)
    pi_chosen, pi_rejected = pairs.chosen.exp(), pairs.rejected.exp()
    alpha = (pairs.reference_chosen.exp() / pairs.reference_rejected.exp()) ** beta
    z = pi_rejected / pi_chosen
    size = alpha * beta * z**beta / (1 + alpha * z**beta)
    torch.testing.assert_close(up / pi_chosen, -size / pi_chosen)
    torch.testing.assert_close(down / pi_rejected, size / pi_rejected)
    torch.testing.assert_close((down / pi_rejected) / (up / pi_chosen).abs(), pi_chosen / pi_rejected)


def test_as_the_rejected_response_vanishes_its_gradient_in_pi_explodes():
    """arXiv 2406.07327: for β < 1, as π⁻ → 0, ∂ℓ/∂π⁺ → 0 and ∂ℓ/∂π⁻ → ∞. In log-probability both go to 0 alike."""
    loss, settings = METHODS["dpo"].pair_loss, METHODS["dpo"].settings(beta=0.1).resolve_at(0.0, {})
    looks = []
    for fall in (0.0, 20.0, 60.0):
        pairs = some_pairs()
        looks.append(partials(loss, replace(pairs, rejected=pairs.rejected - fall), settings))
    for key, direction in (("partial/pi_log_chosen", -1), ("partial/pi_log_rejected", 1), ("partial/log_rejected", -1)):
        steps = np.diff([look[key] for look in looks])
        assert (direction * steps > 0).all(), key
    assert [look["partial/log_ratio"] for look in looks] == pytest.approx([1, 1, 1])


def test_the_field_forms_ratio_turns_on_mis_ranked_pairs():
    """arXiv 2404.04626, with x = π/π0: |∂L/∂x₁| / |∂L/∂x₂| = x₂/x₁. Derived: 1 at the start, and the chosen gradient is
    the larger one where the pair is mis-ranked."""
    pairs, settings = some_pairs(), METHODS["dpo"].settings(beta=0.2).resolve_at(0.0, {})
    up, down = log_partials(METHODS["dpo"].pair_loss, pairs, settings)
    x1, x2 = pairs.chosen_logratio.exp(), pairs.rejected_logratio.exp()
    by_x1, by_x2 = (up / x1).abs(), (down / x2).abs()
    torch.testing.assert_close(by_x1, 0.2 * x2**0.2 / (x1 * (x1**0.2 + x2**0.2)))
    torch.testing.assert_close(by_x2, 0.2 * x2 ** (0.2 - 1) / (x1**0.2 + x2**0.2))
    assert torch.equal(by_x2 > by_x1, x2 < x1) and (x2 < x1).any() and (x2 > x1).any()


def test_flex_dpos_ratio_in_pi():
    """Derived: (β⁻/β⁺)(π⁺/π⁻)."""
    pairs = some_pairs()
    found = partials(FLEX.pair_loss, pairs, flex(0.1, 0.02))
    assert found["partial/log_ratio"] == pytest.approx(0.2)
    expected = float((math.log(0.2) + pairs.chosen - pairs.rejected).mean())
    assert found["partial/pi_log_ratio"] == found["partial/pi_log_ratio_theory"] == pytest.approx(expected)


def test_whole_responses_far_below_the_smallest_float():
    pairs = some_pairs(3)
    far = replace(
        pairs,
        chosen=pairs.chosen - 2000,
        rejected=pairs.rejected - 3000,
        reference_chosen=pairs.reference_chosen - 2000,
        reference_rejected=pairs.reference_rejected - 2990,
    )
    found = partials(METHODS["dpo"].pair_loss, far, settings_of("dpo"))
    assert all(math.isfinite(v) for v in found.values())
    assert found["partial/pi_log_ratio"] == pytest.approx(float((far.chosen - far.rejected).mean()))


def test_pairs_without_a_gradient_are_left_out_and_their_share_is_said():
    """A hinge that most pairs are past: its ratio is that of the others."""

    def hinge(pairs, settings):
        return torch.relu(settings - 2 * pairs.chosen + pairs.rejected)

    pairs = replace(some_pairs(4), chosen=torch.tensor([-1.0, -1, -1, -1]), rejected=torch.tensor([-9.0, -9, -9, -1]))
    found = partials(hinge, pairs, 2.0)
    assert found["partial/active"] == 0.25 and found["partial/log_ratio"] == 0.5
    assert found["partial/log_chosen"] == 0.5 and "partial/pi_log_ratio_theory" not in found
    assert set(partials(hinge, pairs, -100.0)) == {"partial/log_chosen", "partial/log_rejected", "partial/active"}


def test_looks_become_the_pairs_that_a_loss_takes():
    look = PairEvaluation("in_distribution", "a", -2.0, -5.0, 0.5, -1.5, 3, 7, 0.0, 0.0, 0.5)
    pairs = pair_logprobs_of([look, replace(look, chosen_logprob=-3.0)])
    values = {f.name: getattr(pairs, f.name).tolist() for f in fields(pairs)}
    assert values == {
        "chosen": [-2, -3],
        "rejected": [-5, -5],
        "reference_chosen": [-2.5, -3.5],
        "reference_rejected": [-3.5, -3.5],
        "chosen_tokens": [3, 3],
        "rejected_tokens": [7, 7],
    }
    assert pairs.chosen_logratio.tolist() == [0.5, 0.5] and pairs.chosen.dtype == torch.float64
