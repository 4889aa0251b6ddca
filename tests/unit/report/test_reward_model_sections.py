"""The sections on the reward models, on a recorded comparison to which their numbers are added."""

import json
import math

import numpy as np
import pandas as pd
import pytest

from rlhf_bench.report.sections.reward_models import reward_models
from rlhf_bench.results.reader import read_recorded
from rlhf_bench.results.summary import summarize
from tests.unit.report.test_report_sections import NOISE, of, page_of, record, row_of

SCALE = 2.0


def with_reward_models(directory, gold=True, scale=SCALE, judge=None):
    """PPO's proxy rises and its gold score falls from the middle on; DPO's both rise; flex did not record any."""
    record(directory)
    path = directory / "metrics.parquet"
    metrics = pd.read_parquet(path)
    at = (metrics["split"] == "in_distribution") & metrics["arm"].isin(["ppo", "dpo"])
    step, noise = 2 * metrics["mark"], metrics["seed"].map(NOISE)
    falls = metrics["arm"] == "ppo"
    numbers = {
        "reward_model/score": step + noise,
        "gold_reward_model/score": np.where(falls, 2 - (step - 1) ** 2, step) + noise,
        "reward_model/accuracy": np.where(falls, 0.8 - 0.1 * step, 0.8) + noise,
        "reward_model/calibration_error": 0.1 + 0 * step,
        "reward_model/length_correlation": 0.3 * step + noise,
        "reward_model/judge_length_correlation": 0 * step,
    }
    for name, values in numbers.items():
        if gold or not name.startswith("gold"):
            metrics[name] = pd.Series(values, index=metrics.index).where(at)
    metrics.to_parquet(path)
    base = json.loads((directory / "base.json").read_text())
    base["reward_model"] = {"accuracy": 0.75, "accuracies": {"in_distribution": 0.75}}
    base["reward_model"] |= {} if scale is None else {"scale": scale}
    (directory / "base.json").write_text(json.dumps(base))
    return directory


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return with_reward_models(tmp_path_factory.mktemp("rewarded"))


def test_the_page_has_both_sections(directory):
    page = page_of(directory)
    for anchor in ("reward-model", "over-optimisation"):
        assert page.count(f'id="{anchor}"') == 1 and f'href="#{anchor}"' in page


def test_an_arm_whose_proxy_rises_while_gold_falls_is_over_optimised_and_no_other_is(directory):
    _, section = of(reward_models, directory)
    said = [line for line in section.seen if line.startswith("Over-optimised")]
    assert said == ["Over-optimised by the gold reward model, which falls while the reward model's rises: ppo."]
    assert any("the gold reward model fell in ppo" in line and "rose in dpo" in line for line in section.seen)
    (plot,) = section.draw()
    assert plot.drawing is not None and plot.absent == "Not recorded: a reward model's score with KL of flex."


def test_points_stand_at_the_root_of_kl(directory):
    _, section = of(reward_models, directory)
    (plot,) = section.draw()
    points = plot.drawing.points  # KL is 0, 1 and 2 nats
    assert sorted({round(float(p.x), 3) for p in points}) == [0.0, 1.0, round(math.sqrt(2), 3)]
    assert {p.panel for p in points} == {"reward model", "gold reward model", "judge's score"}
    gold = {round(p.x, 3): p.y for p in points if (p.panel, p.series, p.seed) == ("gold reward model", "ppo", "")}
    assert gold == pytest.approx({0.0: 1, 1.0: 2, 1.414: 1})


def test_confidence_is_of_the_margin_in_the_models_own_unit(directory):
    """Margins of ±1 at a scale of 2 are half a unit of log-odds: σ(0.5), and three of four are right."""
    first, _ = of(reward_models, directory)
    (row,) = first.tables[0].rows
    sure = 1 / (1 + math.exp(-0.5))
    assert row["pairs"] == "4" and row["ranked right"].startswith("0.75 [")
    assert row["mean confidence"] == f"{sure:.3g}" and row["calibration error"] == f"{0.75 - sure:.3g}"
    assert "as sure as right" in first.seen[0]


def test_own_samples_and_length_are_in_the_table_and_said_where_they_fall(directory):
    first, _ = of(reward_models, directory)
    assert row_of(first, "ppo", 1)["own pairs ranked right"].startswith("0.6 [")
    assert row_of(first, "flex", 1)["own pairs ranked right"] == "–"
    assert row_of(first, "dpo", 1)["reward's correlation with length"].startswith("0.6 [")
    assert any("ranks as the judge does fell in ppo" in line for line in first.seen)
    assert [plot.drawing is not None for plot in first.draw()] == [True, True, True]


def test_without_a_gold_reward_model_the_judge_is_gold(tmp_path):
    directory = with_reward_models(tmp_path, gold=False)
    _, section = of(reward_models, directory)
    assert not any("gold reward model" in line for line in section.seen)
    assert list(row_of(section, "ppo")) == ["Arm", "reward model", "judge's score"]


def test_what_was_not_recorded_has_no_section(tmp_path):
    assert of(reward_models, record(tmp_path / "none")) == ()
    older = of(reward_models, with_reward_models(tmp_path / "older", scale=None))
    assert [section.anchor for section in older] == ["reward-model", "over-optimisation"]
    assert len(older[0].tables) == 1 and older[0].draw()[0].drawing is None
    recorded = read_recorded(tmp_path / "older")
    assert reward_models(recorded, summarize(recorded))[0].draw()[0].absent.startswith("Not recorded")
