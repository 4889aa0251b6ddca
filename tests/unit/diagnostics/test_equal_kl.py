"""Numbers read off curves at a common KL or margin."""

import math

import pytest

from rlhf_bench.diagnostics.equal_kl import at_equal_kl
from rlhf_bench.diagnostics.matched import matched


def line(reach, score_at, looks=5):
    """A curve whose looks lie evenly from KL 0 to `reach`."""
    kl = [reach * i / (looks - 1) for i in range(looks)]
    return kl, [score_at(k) for k in kl]


def test_every_seed_is_read_at_the_largest_kl_that_all_reach():
    near, far = (lambda k: 0.5 + 0.1 * k), (lambda k: 0.5 + 0.02 * k)
    found = at_equal_kl({"near": {1: line(1.0, near), 2: line(1.5, near)}, "far": {1: line(2.0, far)}})
    assert found.kl == 1.0 and found.why == ""
    assert found.scores["near"][1] == pytest.approx(0.6) and found.scores["far"] == {1: pytest.approx(0.52)}
    assert found.scores["near"][2] == pytest.approx(0.6, abs=1e-3)  # between two evaluations, by the root


def test_between_two_evaluations_the_curve_is_straight_in_the_root_of_the_kl():
    found = at_equal_kl({"a": {0: ([0.0, 1.0, 9.0], [0.2, 0.8, 0.4])}, "b": {0: ([0.0, 4.0], [0.2, 0.4])}})
    assert found.kl == 4.0 and found.scores == {"a": {0: pytest.approx(0.6)}, "b": {0: pytest.approx(0.4)}}


def test_a_score_that_is_straight_in_the_root_is_read_off_exactly_wherever_the_evaluations_lie():
    def curve(*kl):
        return list(kl), [0.3 + 0.2 * math.sqrt(k) for k in kl]

    found = at_equal_kl({"a": {1: curve(0.0, 0.3, 7.0), 2: curve(0.0, 1.2, 5.0)}, "b": {1: curve(0.0, 0.1, 2.5)}})
    assert found.kl == 2.5 and not found.left_out
    for scores in found.scores.values():
        assert list(scores.values()) == pytest.approx([0.3 + 0.2 * math.sqrt(2.5)] * len(scores))


def test_an_arm_that_was_not_observed_on_its_way_there_gets_no_number():
    """Its first evaluation is far beyond: all between it and the base policy would be invented."""
    near = {1: line(0.5, lambda k: 0.5 + k)}
    far = {1: ([0.0, 30.0, 60.0], [0.5, 0.9, 0.9]), 2: ([0.0, 0.2, 60.0], [0.5, 0.6, 0.9])}
    found = at_equal_kl({"near": near, "also": near, "far": far})
    assert found.kl == 0.5 and set(found.scores) == {"near", "also"} and found.left_out == ("far",)
    alone = at_equal_kl({"near": near, "far": far})
    assert math.isnan(alone.kl) and alone.scores == {} and alone.left_out == ("far",)
    assert alone.why.startswith("Only near was evaluated at or below 0.5 nats")


def test_a_curve_that_turns_back_is_taken_on_its_way_out():
    there_and_back = ([0.0, 1.0, 4.0, 2.0, 9.0], [0.0, 0.5, 0.8, 0.1, 0.2])
    found = at_equal_kl({"a": {0: there_and_back}, "b": {0: ([0.0, 2.25, 1.0], [0.0, 0.5, 0.9])}})
    assert found.scores["a"][0] == pytest.approx(0.65)  # half of the way from √1 to √4
    assert found.scores["b"][0] == pytest.approx(0.5)


def test_curves_without_a_common_kl_say_so():
    found = at_equal_kl({"still": {0: ([0.0, 0.0], [0.5, 0.5])}, "late": {0: ([0.4, 2.0], [0.5, 0.6])}})
    assert math.isnan(found.kl) and found.scores == {}
    assert "a seed of still goes no further than 0 nats, and late is first seen at 0.4" in found.why


def test_arms_without_a_curve_take_no_part_and_one_arm_alone_is_no_comparison():
    curve = {0: ([0.0, 1.0], [0.1, 0.2])}
    assert set(at_equal_kl({"a": curve, "b": curve, "silent": {}}).scores) == {"a", "b"}
    assert at_equal_kl({"a": curve, "silent": {}}).why == "Fewer than two arms recorded KL at their evaluations."


def test_at_a_common_margin_the_number_is_straight_in_the_margin():
    """A rejected log-ratio of −3 or −1 per nat of margin is that, wherever the evaluations lie."""
    steep = {1: ([0.0, 1.0, 9.0], [0.0, -3.0, -27.0]), 2: ([0.0, 0.5, 4.0], [0.0, -1.5, -12.0])}
    mild = {1: ([0.0, 0.3, 2.5], [0.0, -0.3, -2.5])}
    found = matched({"steep": steep, "mild": mild}, "margin", lambda margin: margin)
    assert found.level == 2.5
    assert found.values == {"steep": {1: pytest.approx(-7.5), 2: pytest.approx(-7.5)}, "mild": {1: pytest.approx(-2.5)}}


def test_without_a_common_margin_the_sentence_names_the_margin():
    still = {1: ([0.0, -0.2], [0.0, 0.1])}
    found = matched({"still": still, "moved": {1: ([0.0, 1.0], [0.0, 1.0])}}, "margin", lambda margin: margin)
    assert math.isnan(found.level) and found.why.startswith("The arms have no margin in common: a seed of still")
