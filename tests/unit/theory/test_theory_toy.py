"""The toy model: its start, its control, its definitions, and that many networks at once are each one alone."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from rlhf_bench.core.errors import RunFailed
from rlhf_bench.theory import commands, tables
from rlhf_bench.theory.toy import (
    CHOSEN,
    FIT_TOLERANCE,
    PROMPTS,
    RESPONSES,
    SCENARIOS,
    ToySettings,
    fit,
    initial_parameters,
    network_logits,
    outcomes,
    run_toy,
    table_logits,
    train,
)

SETTINGS = ToySettings()


def fitted(seeds):
    rows = torch.stack([s.row() for s in SCENARIOS])
    initial = [p.repeat(len(SCENARIOS), 1, 1) for p in initial_parameters(seeds, SETTINGS.width)]
    targets = rows.repeat_interleave(len(seeds), 0)
    return fit(initial, targets, SETTINGS), targets


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda s: s.name)
def test_a_scenario_is_a_distribution(scenario):
    row = scenario.row()
    assert row.shape == (RESPONSES,) and float(row.sum()) == pytest.approx(1.0)


def test_the_fitted_start_has_the_scenario_s_probabilities():
    start, targets = fitted([1, 2])
    gap = (network_logits(start).softmax(-1) - targets[:, None]).abs()
    assert gap.shape == (8, PROMPTS, RESPONSES) and float(gap.max()) < FIT_TOLERANCE


def test_a_fit_that_falls_short_is_an_error():
    broken = [p * float("nan") for p in initial_parameters([1], 8)]
    with pytest.raises((RunFailed, torch.linalg.LinAlgError)):
        fit(broken, SCENARIOS[0].row()[None], ToySettings(fit_steps=0))


def test_the_control_s_chosen_probability_never_declines():
    toy = run_toy([1], 150, ToySettings(tabular_learning_rate=0.05))
    for scenario, curves in zip(SCENARIOS, toy.table, strict=True):
        assert (np.diff(curves.chosen[:, 0]) >= 0).all(), scenario.name
        assert curves.chosen[-1, 0] > curves.chosen[0, 0] + 0.1


def test_the_control_follows_its_closed_form():
    """One pair's gradient moves its own two logits by +s and -s, and no other."""
    start = torch.stack([s.row() for s in SCENARIOS]).log()[:, None].repeat(1, PROMPTS, 1)
    curves, (end,) = train(table_logits, [start], 40, beta=0.1, learning_rate=0.05)
    moved = end - start
    s = moved[:, CHOSEN, CHOSEN]
    assert (s > 0).all()
    torch.testing.assert_close(moved[:, CHOSEN, CHOSEN + PROMPTS], -s)
    expected = torch.zeros_like(moved)
    expected[:, CHOSEN, CHOSEN], expected[:, CHOSEN, CHOSEN + PROMPTS] = s, -s
    torch.testing.assert_close(moved, expected)
    p = start.exp()[:, CHOSEN, CHOSEN]
    q = start.exp()[:, CHOSEN, CHOSEN + PROMPTS]
    closed = p * s.exp() / (p * s.exp() + q * (-s).exp() + 1 - p - q)
    np.testing.assert_allclose(curves.chosen[-1], closed.mean(1).numpy())


def test_many_networks_at_once_are_each_one_alone():
    """Against a loop with torch's own layers, cross-entropy and log-sigmoid: no code shared with the toy's."""
    epochs, seeds, which = 12, [3, 7, 11], 1
    rows = torch.stack([SCENARIOS[0].row(), SCENARIOS[1].row()])
    start = fit(
        [p.repeat(2, 1, 1) for p in initial_parameters(seeds, 16)], rows.repeat_interleave(3, 0), ToySettings(width=16)
    )
    curves, end = train(network_logits, start, epochs, beta=0.2, learning_rate=1e-3)

    index = 3 + which  # scenario 2, seed 7
    layers = [torch.nn.Linear(i, o).double() for i, o in ((4, 16), (16, 16), (16, 10))]
    for layer, (weight, bias) in zip(layers, zip(start[::2], start[1::2], strict=True), strict=True):
        layer.weight.data, layer.bias.data = weight[index].T.contiguous(), bias[index, 0].clone()
    net = torch.nn.Sequential(layers[0], torch.nn.ReLU(), layers[1], torch.nn.ReLU(), layers[2])
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    reference, chosen = None, []
    for epoch in range(epochs + 1):
        logp = net(torch.eye(4, dtype=torch.float64)).log_softmax(-1)
        reference = logp.detach() if reference is None else reference
        chosen.append(float(logp.detach().exp().diagonal().mean()))
        ratio = logp - reference
        margin = torch.stack([ratio[i, i] - ratio[i, 4 + i] for i in range(4)])
        if epoch < epochs:
            optimizer.zero_grad()
            (-torch.nn.functional.logsigmoid(0.2 * margin)).mean().backward()
            optimizer.step()
    np.testing.assert_allclose(curves.chosen[:, index], chosen, rtol=1e-9)
    torch.testing.assert_close(end[4][index], layers[2].weight.data.T, rtol=1e-8, atol=1e-10)


def test_a_seed_s_first_weights_do_not_depend_on_the_others():
    alone, among = initial_parameters([5], 8), initial_parameters([4, 5], 8)
    assert all(torch.equal(a[0], b[1]) for a, b in zip(alone, among, strict=True))


def test_both_definitions_of_unseen_by_hand():
    logits = torch.zeros(1, PROMPTS, RESPONSES, dtype=torch.float64)
    probabilities = torch.tensor([[0.30, 0.10, 0.05, 0.05, 0.20, 0.02, 0.03, 0.05, 0.15, 0.05]], dtype=torch.float64)
    logits[0] = probabilities.log()
    curves, _ = train(table_logits, [logits], 0, beta=0.1, learning_rate=0.1)
    own = [(0.30, 0.20), (0.10, 0.02), (0.05, 0.03), (0.05, 0.05)]
    assert curves.chosen[0, 0] == pytest.approx(np.mean([c for c, _ in own]))
    assert curves.rejected[0, 0] == pytest.approx(np.mean([r for _, r in own]))
    assert curves.outside_pair[0, 0] == pytest.approx(np.mean([(1 - c - r) / 8 for c, r in own]))
    assert curves.in_no_pair[0, 0] == pytest.approx((0.15 + 0.05) / 2)
    assert curves.others_chosen[0, 0] == pytest.approx(np.mean([(0.5 - c) / 3 for c, _ in own]))
    assert curves.outside_pair[0, 0] <= 1 / 8


def test_outcomes_name_the_peak():
    toy = run_toy([1, 2, 3], 6)
    for curves in toy.network:
        own = outcomes(curves)
        for seed in range(3):
            assert (
                own["peak_chosen"][seed]
                == curves.chosen[int(own["peak_epoch"][seed]), seed]
                == max(curves.chosen[:, seed])
            )


def test_the_command_writes_figure_table_and_every_seed(tmp_path):
    printed = commands.toy(tmp_path, 3, 8)
    assert {p.name for p in tmp_path.iterdir()} == {"toy.png", "toy.svg", "toy.md", "toy.csv"}
    assert all(s.name in printed for s in SCENARIOS)
    assert len((tmp_path / "toy.csv").read_text().splitlines()) == 1 + 3 * len(SCENARIOS)


def test_verdicts_follow_student_s_interval_corrected_by_holm():
    clear, doubtful = np.array([0.19, 0.2, 0.21, 0.2]), np.array([0.1, 0.2, 0.4, 0.2])
    alone = tables.decided({"doubtful": doubtful})
    together = tables.decided(
        {"doubtful": doubtful, "below": -clear, "above": clear, "either": np.array([-0.1, 0.2, -0.3, 0.2])}
    )
    low, high = stats.t.interval(0.95, 3, doubtful.mean(), stats.sem(doubtful))
    assert alone == {"doubtful": (f"0.225 [{low:.3f}, {high:.3f}]", "yes")}
    assert {name: verdict for name, (_, verdict) in together.items()} == {
        "doubtful": "not resolved", "below": "no", "above": "yes", "either": "not resolved"
    }  # fmt: skip
    low, high = stats.t.interval(1 - 0.05 / 4, 3, clear.mean(), stats.sem(clear))
    assert together["above"][0] == f"0.200 [{low:.3f}, {high:.3f}]"


def test_fewer_seeds_than_a_test_takes_decide_nothing():
    assert tables.decided({"two": np.array([0.1, 0.2])}) == {"two": ("0.150", "not resolved")}


def test_an_outcome_is_shown_with_its_mean():
    assert math.isclose(float(tables.with_interval([0.5, 0.5, 0.5]).split()[0]), 0.5)
