"""Gradient fields against closed forms, and what `theory field` says of wrong input."""

import math

import numpy as np
import pandas as pd
import pytest
import yaml

from rlhf_bench.core.errors import BadInput
from rlhf_bench.methods import METHODS
from rlhf_bench.theory import commands
from rlhf_bench.theory.field import DEFAULT_METHODS, POINTS, Start, default_fields, gradients, render_table
from rlhf_bench.theory.field_figures import draw_fields
from rlhf_bench.theory.trajectories import read_run

START = Start(math.log(0.3), math.log(0.05), chosen_tokens=4.0, rejected_tokens=7.0)
X1, X2 = (grid.ravel() for grid in np.meshgrid([0.05, 0.4, 0.9, 1.3, 3.0], [0.02, 0.3, 0.8, 1.7, 6.0]))


def sigmoid(t):
    return 1 / (1 + np.exp(-t))


def found(name, **settings):
    method = METHODS[name]
    return gradients(method.pair_loss, method.settings(**settings), START, np.log(X1), np.log(X2))


def dpo():
    b = 0.3
    total = X1**b + X2**b
    return found("dpo", beta=b), -b * X2**b / (X1 * total), b * X2 ** (b - 1) / total


def flex_dpo():
    up, down = 0.3, 0.11
    total = X1**up + X2**down
    settings = {"beta_chosen": up, "beta_rejected": down}
    return found("flex_dpo", **settings), -up * X2**down / (X1 * total), down * X2 ** (down - 1) / total


def ipo():
    h = 2 * (np.log(X1 / X2) - 1 / (2 * 0.2))
    return found("ipo", tau=0.2, log_probs="sum"), h / X1, -h / X2


def slic():
    on = np.log(0.3 * X1) - np.log(0.05 * X2) < 1.5
    settings = {"form": "likelihood", "delta": 1.5, "sft_weight": 0.2}
    return found("slic", **settings), -(on + 0.2) / X1, on / X2


def slic_on_ratios():
    on = np.log(X1 / X2) < 1.5
    return found("slic", form="reference", delta=1.5, sft_weight=0.0), -1.0 * on / X1, on / X2


def simpo():
    b, gamma = 2.5, 0.7
    s = sigmoid(gamma - b * (np.log(0.3 * X1) / 4 - np.log(0.05 * X2) / 7))
    return found("simpo", beta=b, gamma=gamma), -s * b / (4 * X1), s * b / (7 * X2)


def dpop():
    b, penalty = 0.3, 5.0
    below = X1 < 1
    s = sigmoid(-b * (np.log(X1 / X2) - penalty * np.maximum(0, -np.log(X1))))
    return found("dpop", beta=b, penalty=penalty), -s * b * (1 + penalty * below) / X1, s * b / X2


@pytest.mark.parametrize("case", [dpo, flex_dpo, ipo, slic, slic_on_ratios, simpo, dpop], ids=lambda c: c.__name__)
def test_autograd_gives_the_closed_form(case):
    got, chosen, rejected = case()
    np.testing.assert_allclose(got.chosen, chosen, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(got.rejected, rejected, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(got.log_chosen, X1 * chosen, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(got.log_rejected, X2 * rejected, rtol=1e-9, atol=1e-12)


def test_the_ratio_of_dpo_is_that_of_the_two_states_and_constant_in_log_space():
    got = found("dpo", beta=0.1)
    np.testing.assert_allclose(got.ratio, X1 / X2, rtol=1e-9)
    np.testing.assert_allclose(got.log_ratio, 1.0, rtol=1e-9)
    np.testing.assert_allclose(found("flex_dpo", beta_chosen=0.1, beta_rejected=0.04).ratio, 0.4 * X1 / X2, rtol=1e-9)


def test_the_field_of_dpo_does_not_depend_on_the_start_and_that_of_simpo_does():
    other = Start(-30.0, -2.0, 11.0, 3.0)
    for name, same in (("dpo", True), ("simpo", False)):
        method = METHODS[name]
        at = [gradients(method.pair_loss, method.settings(), s, np.log(X1), np.log(X2)).chosen for s in (START, other)]
        assert np.allclose(*at) == same


def test_far_out_the_field_stays_finite_in_log_space():
    method = METHODS["dpo"]
    far = gradients(method.pair_loss, method.settings(), START, np.array([-3.0]), np.array([-900.0]))
    assert np.isfinite(far.log_chosen).all() and far.log_rejected[0] >= 0


def test_the_table_has_a_row_for_every_method_and_says_where_the_field_is_flat():
    table = render_table(default_fields(DEFAULT_METHODS), Start(math.log(0.2), math.log(0.2)))
    for name in DEFAULT_METHODS:
        assert table.count(f"  {name} ") == 3
    assert all(point in table for point in POINTS)
    hinge = METHODS["slic"].settings(form="reference", sft_weight=0.0)
    flat = gradients(METHODS["slic"].pair_loss, hinge, START, np.array([5.0]), np.array([0.0]))
    assert np.isnan(flat.ratio).all()


def recorded(directory, arms):
    """A comparison's directory as a run leaves it: two seeds, two marks, three pairs, and a PPO arm."""
    rng = np.random.default_rng(0)
    rows = []
    for arm, seeds in {"base": [0], **dict.fromkeys(arms, [1, 2])}.items():
        for seed in seeds:
            for mark in [0.0] if arm == "base" else [0.5, 1.0]:
                for pair in range(3):
                    up, down = rng.normal(0, 0.1, 2) + mark * np.array([0.5, -2.0]) if mark else (0.0, 0.0)
                    rows.append({
                        "arm": arm, "seed": seed, "mark": mark, "update": int(10 * mark), "split": "in_distribution",
                        "pair_id": f"p{pair}", "chosen_logprob": up - 1.0, "rejected_logprob": down - 3.0,
                        "chosen_logratio": up, "rejected_logratio": down, "chosen_tokens": 4, "rejected_tokens": 6,
                    })  # fmt: skip
    frame = pd.DataFrame(rows)
    frame.to_parquet(directory / "pairs.parquet")
    (directory / "recipe.yaml").write_text(yaml.safe_dump({"arms": arms}))
    return frame


ARMS = {"ours": {"method": "dpo", "beta": 0.4}, "ppo": {"method": "ppo"}}


def test_a_run_gives_its_settings_its_start_and_its_trajectories(tmp_path):
    frame = recorded(tmp_path, ARMS)
    run = read_run(tmp_path)
    assert [f.name for f in run.fields] == ["ours", "ppo"]
    assert run.fields[0].settings.beta == 0.4 and run.fields[1].loss is None
    assert run.start == Start(pytest.approx(-1.0), pytest.approx(-3.0), 4.0, 6.0)
    own = frame[(frame["arm"] == "ours") & (frame["mark"] == 1.0)]
    way = run.trajectories["ours"]
    assert way.mean.shape == (3, 2) and (way.mean[0] == 0).all()
    np.testing.assert_allclose(way.mean[2], own[["chosen_logratio", "rejected_logratio"]].mean())
    first = own[(own["seed"] == 1) & (own["pair_id"] == "p1")]
    np.testing.assert_allclose(way.singles[2, 1], first[["chosen_logratio", "rejected_logratio"]].to_numpy()[0])
    assert (way.low <= way.high).all()


def test_pairs_of_other_kinds_than_the_fixed_one_are_no_part_of_a_trajectory(tmp_path):
    frame = recorded(tmp_path, ARMS)
    before = read_run(tmp_path)
    own = frame.assign(kind="on_policy", chosen_logratio=9.0, chosen_logprob=9.0)
    pd.concat([frame.assign(kind="fixed"), own]).to_parquet(tmp_path / "pairs.parquet")
    after = read_run(tmp_path)
    assert after.start == before.start
    np.testing.assert_array_equal(after.trajectories["ours"].mean, before.trajectories["ours"].mean)


def test_figures_are_written_with_and_without_a_run(tmp_path):
    recorded(tmp_path, ARMS)
    printed = commands.field(tmp_path / "out", [], tmp_path, None, None)
    names = {"field-linear.png", "field-linear.svg", "field-log.png", "field-log.svg"}
    assert {p.name for p in (tmp_path / "out").iterdir()} == names
    assert "ours" in printed and "field-log.svg" in printed
    figure = draw_fields(default_fields(["dpo"]), START, "linear")
    assert "0.3" in figure.get_suptitle() and "0.05" in figure.get_suptitle()


@pytest.mark.parametrize(("arguments", "says"), [
    ((["nonsense"], None, None, None), "--method nonsense: is unknown"),
    ((["ppo"], None, None, None), "--method ppo: is no loss on pairs"),
    (([], "missing", None, None), "pairs.parquet: no such file"),
    (([], None, 1.5, None), "--chosen-start 1.5"),
    (([], None, None, 0.0), "--rejected-start 0"),
])  # fmt: skip
def test_wrong_input_is_one_line(tmp_path, arguments, says):
    methods, run, chosen, rejected = arguments
    with pytest.raises(BadInput) as error:
        commands.field(tmp_path / "out", methods, run and tmp_path / run, chosen, rejected)
    assert len(error.value.problems) == 1 and says in error.value.problems[0] and "\n" not in error.value.problems[0]
    assert not (tmp_path / "out").exists()


def test_a_directory_of_something_else_is_refused(tmp_path):
    frame = recorded(tmp_path, ARMS)
    with pytest.raises(BadInput, match="no recorded arm of dpop"):
        read_run(tmp_path, ["dpop"])
    (tmp_path / "recipe.yaml").write_text("hello: there")
    with pytest.raises(BadInput, match="recipe.yaml: its arms"):
        read_run(tmp_path)
    (tmp_path / "recipe.yaml").unlink()
    with pytest.raises(BadInput, match="recipe.yaml: cannot be read"):
        read_run(tmp_path)
    frame.drop(columns="pair_id").to_parquet(tmp_path / "pairs.parquet")
    with pytest.raises(BadInput, match="no column pair_id"):
        read_run(tmp_path)
    (tmp_path / "pairs.parquet").write_text("no table")
    with pytest.raises(BadInput, match="cannot be read"):
        read_run(tmp_path)
