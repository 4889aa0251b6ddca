"""Strengths that follow a schedule: their values, what a method makes of them, and how mistakes are told."""

import re

import pytest
import torch

from rlhf_bench.core.errors import BadInput
from rlhf_bench.core.types import Row
from rlhf_bench.methods import METHODS
from rlhf_bench.methods.base import PairLogprobs
from rlhf_bench.methods.schedules import Schedule
from rlhf_bench.recipe import parse_recipe

SCHEDULED = [
    ("dpo", "beta"),
    ("flex_dpo", "beta_chosen"),
    ("flex_dpo", "beta_rejected"),
    ("adaptive_flex_dpo", "beta_chosen"),
]
PAIRS = PairLogprobs(*(torch.tensor([x], dtype=torch.float64) for x in (-3.0, -4.0, -2.0, -3.5, 2.0, 2.0)))


def arm_of(arm):
    recipe = parse_recipe({"name": "r", "task": {"kind": "arithmetic"}, "compute": {"limit": 1e12}, "arms": {"b": arm}})
    assert parse_recipe(recipe.resolved()) == recipe
    return recipe.arms["b"]


@pytest.mark.parametrize(("kind", "values"), [
    ("constant", [0.2, 0.2, 0.2, 0.2]),
    ("linear", [0.2, 0.16, 0.12, 0.04]),
    # half a wave: at a quarter of the way (1 − cos 45°)/2 is done, half way half, and all at the end
    ("cosine", [0.2, 0.2 - 0.16 * 0.14644660940672624, 0.12, 0.04]),
])  # fmt: skip
def test_the_values_on_the_way(kind, values):
    schedule = Schedule(kind=kind, start=0.2, end=0.2 if kind == "constant" else 0.04)
    assert [schedule.resolve_at(f) for f in (0, 0.25, 0.5, 1)] == pytest.approx(values, rel=1e-12)


@pytest.mark.parametrize("kind", ["linear", "cosine"])
@pytest.mark.parametrize(("start", "end"), [(0.1, 0.01), (0.01, 0.1)])
def test_a_schedule_goes_one_way_and_stays_where_it_ends(kind, start, end):
    schedule = Schedule(kind=kind, start=start, end=end)
    values = [schedule.resolve_at(i / 50) for i in range(51)]
    assert values in (sorted(values), sorted(values, reverse=True))
    assert (values[0], values[-1]) == pytest.approx((start, end))
    assert schedule.resolve_at(1.3) == values[-1]


def test_a_constant_needs_no_end():
    assert Schedule(kind="constant", start=0.3) == Schedule(kind="constant", start=0.3, end=0.3)


@pytest.mark.parametrize(("method", "key"), SCHEDULED)
@pytest.mark.parametrize("fraction", [0.0, 0.5, 1.0])
def test_a_scheduled_strength_acts_like_the_number_it_stands_for(method, key, fraction):
    schedule = {"kind": "linear", "start": 0.3, "end": 0.1}
    moving = arm_of({"method": method, key: schedule}).resolve_at(fraction, {})
    fixed = METHODS[method].settings(**{key: 0.3 - 0.2 * fraction}).resolve_at(fraction, {})
    assert getattr(moving, key) == pytest.approx(getattr(fixed, key))
    loss = METHODS[method].pair_loss
    torch.testing.assert_close(loss(PAIRS, moving), loss(PAIRS, fixed))
    measured = {"reference_logprobs": []}
    logged = METHODS[method].prepare([], [], measured, moving, {}).metrics
    assert logged[key] == pytest.approx(0.3 - 0.2 * fraction)


@pytest.mark.parametrize("method", METHODS)
def test_settings_without_a_schedule_stay_as_they_are(method):
    settings = METHODS[method].settings()
    assert settings.resolve_at(0.4, {}) == settings


@pytest.mark.parametrize(("method", "key"), SCHEDULED)
def test_a_schedule_cannot_be_taken_for_a_number(method, key):
    settings = arm_of({"method": method, key: {"kind": "linear", "start": 0.3, "end": 0.1}})
    with pytest.raises(TypeError, match="call settings.resolve_at"):
        METHODS[method].pair_loss(PAIRS, settings)


def test_a_schedule_does_not_reach_the_state_or_the_rows():
    settings = METHODS["dpo"].settings(beta={"kind": "linear", "start": 0.3, "end": 0.1}).resolve_at(0.5, {})
    row = Row("r", (1,), ((2, 3), (4,)))
    measured = {"reference_logprobs": [(torch.tensor([-1.0, -0.5]).numpy(), torch.tensor([-2.0]).numpy())]}
    prepared = METHODS["dpo"].prepare([row], [(1.0, 0.0)], measured, settings, {"kept": 2.0})
    assert prepared.state == {"kept": 2.0} and prepared.rows[0].extras.keys() == {"reference_logprob"}


MISTAKES = [
    ("strong", r"KEY: .*number.*'strong'.*; correct it"),
    (0, r"KEY: .*greater than 0.*; correct it"),
    (float("inf"), r"KEY: .*finite.*; correct it"),
    (None, r"KEY: .*number.*None.*; correct it"),
    ([0.1, 0.2], r"KEY: .*number.*; correct it"),
    ({"kind": "linear", "start": 0.1}, r"KEY\.end: missing; add it"),
    ({"kind": "linear", "end": 0.1}, r"KEY\.start: missing; add it"),
    ({"start": 0.1, "end": 0.1}, r"KEY\.kind: missing; add it"),
    ({"kind": "steps", "start": 0.1, "end": 0.1}, r"KEY\.kind: .*'linear'.*'steps'.*; correct it"),
    ({"kind": "linear", "start": 0.1, "end": 0}, r"KEY\.end: .*greater than 0.*; correct it"),
    ({"kind": "cosine", "start": -0.1, "end": 0.1}, r"KEY\.start: .*greater than 0.*-0\.1.*; correct it"),
    ({"kind": "linear", "start": 0.1, "end": 0.2, "ends": 1}, r"KEY\.ends: unknown key \(did you mean end\?\); remove it"),
    ({"kind": "constant", "start": 0.1, "end": 0.2}, r"KEY: a constant schedule has one value: leave out end.*; correct it"),
]  # fmt: skip


@pytest.mark.parametrize(("method", "key"), SCHEDULED)
@pytest.mark.parametrize(("value", "line"), MISTAKES, ids=[str(value) for value, _ in MISTAKES])
def test_one_mistake_in_a_strength_is_one_line(method, key, value, line):
    with pytest.raises(BadInput) as refused:
        arm_of({"method": method, key: value})
    (problem,) = refused.value.problems
    assert re.fullmatch(line.replace("KEY", rf"arms\.b\.{key}"), problem), problem


@pytest.mark.parametrize(("arm", "line"), [
    ({"method": "adaptive_flex_dpo", "beta_rejected_min": 0.3},
     r"arms\.b\.beta_rejected_max: .*not be less than beta_rejected_min.*; correct it"),
    ({"method": "adaptive_flex_dpo", "beta_rejected_min": 0.3, "beta_rejected_max": 0.2},
     r"arms\.b\.beta_rejected_max: .*not be less than beta_rejected_min.*; correct it"),
    ({"method": "adaptive_flex_dpo", "safety": 1.5}, r"arms\.b\.safety: .*less than or equal to 1.*; correct it"),
    ({"method": "adaptive_flex_dpo", "beta_rejected": 0.1}, r"arms\.b\.beta_rejected: a setting of flex_dpo, not of .*; remove it"),
    ({"method": "ipo", "tau": 0}, r"arms\.b\.tau: .*greater than 0.*; correct it"),
    ({"method": "ipo", "log_probs": "average"}, r"arms\.b\.log_probs: .*'sum' or 'mean'.*; correct it"),
    ({"method": "slic", "form": "norm"}, r"arms\.b\.form: .*'likelihood' or 'reference'.*; correct it"),
    ({"method": "slic", "sft_weight": -1}, r"arms\.b\.sft_weight: .*greater than or equal to 0.*; correct it"),
    ({"method": "dpo", "edit_distance": [0.5, 0.2]}, r"arms\.b\.edit_distance: .*0 <= from < to <= 1.*; correct it"),
    ({"method": "dpo", "edit_distance": [0.2, 1.2]}, r"arms\.b\.edit_distance: .*0 <= from < to <= 1.*; correct it"),
    ({"method": "dpo", "data": "online", "edit_distance": [0.2, 0.5]}, r"arms\.b\.edit_distance: data: online .*leave edit_distance out.*"),
])  # fmt: skip
def test_settings_out_of_range_are_refused_by_their_key(arm, line):
    with pytest.raises(BadInput) as refused:
        arm_of(arm)
    (problem,) = refused.value.problems
    assert re.fullmatch(line, problem), problem
