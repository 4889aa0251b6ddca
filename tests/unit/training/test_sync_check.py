"""What a sync is checked by: weights exactly, log-probs as closely as their rounding allows."""

import math

import pytest

from rlhf_bench.core.errors import RunFailed
from rlhf_bench.models.flops import ModelShape
from rlhf_bench.recipe import Placement
from rlhf_bench.training.sync_check import Held, Probe, relative_gap

SUMS = {"a": 1, "b": 2}
LOGPROBS = [-0.1, -0.5, -2.0, -9.0]


def probe(tolerance=0.05):
    return Probe((1, 2), (3, 4, 5, 6), LOGPROBS, SUMS, tolerance, 7)


def held(**changes):
    return Held(**{"version": 7, "checksums": SUMS, "fault": None, "logprobs": LOGPROBS} | changes)


def test_the_same_is_no_gap():
    assert probe().gap(held()) == 0.0


def test_one_improbable_token_moves_nothing():
    """0.14 nats on one token of a healthy model in bfloat16 once ended a run."""
    assert probe().gap(held(logprobs=[-0.1, -0.5, -2.0, -9.14])) == 0.0
    assert relative_gap([-0.12, -0.53, -2.1, -10.0], LOGPROBS) == pytest.approx((0.02 / 1.1 + 0.1 / 3) / 2, rel=0.5)


@pytest.mark.parametrize(("changes", "line"), [
    ({"logprobs": [-0.3, -0.9, -2.9, -9.0]}, r"its log-probs differ from the learner's by 0\.2.*, more than placement\.sync_tolerance 0\.05"),
    ({"logprobs": [-0.1, math.nan, -2.0, -9.0]}, "by nan"),
    ({"version": 6}, "after update 7 an engine holds the weights of update 6"),
    ({"checksums": {"a": 1, "b": 3}}, "an engine was sent another b than the learner has: the engines do not hold"),
    ({"checksums": {"a": 2, "b": 1}}, "an engine was sent another a than"),
    ({"checksums": {"a": 1}}, "an engine was sent no b: the engines do not hold the learner's weights"),
    ({"checksums": SUMS | {"c": 3}}, "an engine was sent c, which the learner does not have"),
    ({"fault": "an engine does not hold a as it was sent"}, "after update 7 an engine does not hold a as it was sent: "),
], ids=str)  # fmt: skip
def test_what_differs_ends_the_run_by_name(changes, line):
    with pytest.raises(RunFailed, match=line):
        probe().gap(held(**changes))


def shape(layers, width):
    return ModelShape(0, layers, width, 0, 0, 0, 0)


def test_the_tolerance_follows_from_number_format_and_shape_and_can_be_given():
    def at(dtype, layers, width):
        return Placement().tolerance(dtype, shape(layers, width))

    assert at("bfloat16", 30, 576) == pytest.approx(4 * math.sqrt(61) / 256)
    assert at("bfloat16", 30, 64) == at("bfloat16", 30, 576)  # sums are kept in float32 there
    assert at("float32", 30, 576) == pytest.approx(4 * math.sqrt(61 * 576) / 2**24)
    assert Placement(sync_tolerance=0.3).tolerance("bfloat16", shape(30, 576)) == 0.3
