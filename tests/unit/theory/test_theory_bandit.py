"""The bandit: its distribution and draws, its two losses by hand, and that cells and seeds do not touch each other."""

import itertools
import math

import numpy as np
import pytest
import torch

from rlhf_bench.theory import commands
from rlhf_bench.theory.bandit import (
    ARMS,
    IPO_MARGIN,
    PROBLEMS,
    VARIANTS,
    BanditSettings,
    Cell,
    best_of_n_reward,
    draw,
    effects,
    negative_loss,
    play,
    positive_loss,
    ranked_pairs,
    reference,
    rewards,
)

SMALL = BanditSettings(rounds=3, groups=2, samples=4, steps=3)
RATE = 0.05


def test_the_reference_is_a_squashed_cauchy():
    p = reference()
    assert p.shape == (ARMS,) and float(p.sum()) == pytest.approx(1.0) and (p > 0).all()
    low, high = math.atanh(-0.62), math.atanh(-0.6)  # arm 19: from -1 + 2 * 0.19
    mass = (math.atan((high + 0.7) / 0.4) - math.atan((low + 0.7) / 0.4)) / math.pi
    assert float(p[19]) == pytest.approx(mass)


def test_draws_follow_the_distribution():
    p = torch.tensor([[0.5, 0.25, 0.25]], dtype=torch.float64)
    uniforms = ((torch.arange(1000, dtype=torch.float64) + 0.5) / 1000).view(1, 1, 1000)
    assert draw(p, uniforms).flatten().bincount().tolist() == [500, 250, 250]
    assert draw(p, torch.full((1, 1, 1), 1 - 1e-16, dtype=torch.float64)).max() <= 2


def test_the_best_of_n_by_enumeration():
    p = torch.tensor([0.1, 0.4, 0.2, 0.3], dtype=torch.float64)
    r = torch.tensor([0.9, 0.2, 0.5, 0.5], dtype=torch.float64)  # with a tie
    brute = sum(
        math.prod(float(p[a]) for a in arms) * max(float(r[a]) for a in arms)
        for arms in itertools.product(range(4), repeat=3)
    )
    assert best_of_n_reward(p, r, 3) == pytest.approx(brute)


def test_the_positive_loss_is_the_likelihood_of_the_best():
    logits = torch.randn(1, ARMS, dtype=torch.float64, requires_grad=True)
    arms = torch.tensor([[[3, 70, 9], [5, 5, 8]]])
    reward = torch.tensor([[[0.1, 0.9, 0.2], [0.3, 0.3, 0.1]]], dtype=torch.float64)
    logp = logits.log_softmax(-1)
    loss = positive_loss(logp, arms, reward)
    assert float(loss.detach()) == pytest.approx(float(-(logp[0, 70] + logp[0, 5]).detach() / 2))
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    frequency = torch.zeros(ARMS, dtype=torch.float64)
    frequency[[70, 5]] = 0.5
    torch.testing.assert_close(gradient[0], logits.detach()[0].softmax(0) - frequency)


def test_the_negative_loss_by_hand_over_all_pairs():
    base = reference()
    logits = torch.randn(1, ARMS, dtype=torch.float64, requires_grad=True)
    arms, scores = [3, 70, 9, 3], [0.1, 0.9, 0.2, 0.1]
    logp = logits.log_softmax(-1)
    h = (logp - base.log())[0]
    terms = [
        (h[a] - h[b] - IPO_MARGIN) ** 2
        for (a, r), (b, s) in itertools.permutations(zip(arms, scores, strict=True), 2)
        if r > s
    ]
    assert len(terms) == 5
    loss = negative_loss(
        logp, base.log(), ranked_pairs(torch.tensor([[arms]]), torch.tensor([[scores]], dtype=torch.float64))
    )
    assert float(loss.detach()) == pytest.approx(float((sum(terms) / 5).detach()))
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    untouched = [a for a in range(ARMS) if a not in arms]
    assert float(gradient.sum()) == pytest.approx(0.0, abs=1e-9)
    torch.testing.assert_close(gradient[0, untouched], torch.zeros(len(untouched), dtype=torch.float64))


def test_samples_that_all_tie_push_nothing():
    logits = torch.zeros(1, ARMS, dtype=torch.float64, requires_grad=True)
    ranked = ranked_pairs(torch.tensor([[[1, 2, 3]]]), torch.ones(1, 1, 3, dtype=torch.float64))
    loss = negative_loss(logits.log_softmax(-1), reference().log(), ranked)
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    assert float(loss.detach()) == 0 and (gradient == 0).all()


def test_a_cell_and_a_seed_alone_are_what_they_are_among_others():
    cells = [Cell(p, v, RATE * (1 + i)) for i, (p, v) in enumerate(itertools.product(PROBLEMS, reversed(VARIANTS)))]
    among = play(cells, [1, 2, 3], SMALL)
    assert among.reward.shape == (4, len(cells), 3)
    for i, cell in enumerate(cells):
        alone = play([cell], [2], SMALL)
        np.testing.assert_allclose(alone.reward[:, 0, 0], among.reward[:, i, 1], rtol=1e-9)
        np.testing.assert_allclose(alone.kl[:, 0, 0], among.kl[:, i, 1], rtol=1e-7, atol=1e-12)


def test_all_variants_start_from_the_reference():
    done = play([Cell(PROBLEMS[0], v, RATE) for v in VARIANTS], [1], SMALL)
    expected = float((reference() * rewards(PROBLEMS[0])).sum())
    np.testing.assert_allclose(done.reward[0], expected)
    np.testing.assert_allclose(done.kl[0], 0.0, atol=1e-12)
    assert (done.kl[1:] > 0).all()


def test_sampling_from_the_policy_changes_nothing_before_the_policy_moved():
    """One round: both sources are still the same distribution, and the draws are shared."""
    one = BanditSettings(rounds=1, groups=2, samples=4, steps=3)
    done = play([Cell(PROBLEMS[0], v, RATE) for v in VARIANTS], [1, 2], one)
    np.testing.assert_allclose(done.reward[:, 0], done.reward[:, 1])
    np.testing.assert_allclose(done.reward[:, 2], done.reward[:, 3])
    assert not np.allclose(done.reward[1, 0], done.reward[1, 2])


def test_effects_add_up():
    values = np.random.default_rng(0).random((4, 5))
    e = effects(values)
    np.testing.assert_allclose(e["both together"], e["on-policy alone"] + e["negative gradient, given on-policy"])
    np.testing.assert_allclose(
        e["both together"], e["on-policy alone"] + e["negative gradient alone"] + e["more than the sum of the two"]
    )


def test_the_command_writes_figure_table_and_every_seed(tmp_path):
    printed = commands.bandit(tmp_path, 3, 2)
    assert {p.name for p in tmp_path.iterdir()} == {"bandit.png", "bandit.svg", "bandit.md", "bandit.csv"}
    assert all(v.name in printed for v in VARIANTS)
    assert len((tmp_path / "bandit.csv").read_text().splitlines()) == 1 + 3 * len(VARIANTS) * len(PROBLEMS)
