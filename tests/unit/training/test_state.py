"""An arm's state: what a checkpoint gives back is what was put in, to the last bit, and continues as it would have."""

import json
import math

import numpy as np
import pytest
from pydantic import ValidationError

from rlhf_bench.compute.ledger import Ledger
from rlhf_bench.core.costs import Cost
from rlhf_bench.core.types import Row
from rlhf_bench.training.batch import Batch, Known
from rlhf_bench.training.state import ArmState


def busy_state():
    """A state with something in every field."""
    state = ArmState.begin("device_seconds", 12.5, seed=3, marks=(0.25, 0.5, 1.0))
    state.ledger.charge("learning", Cost(flops=1 / 3, device_seconds=0.1))
    state.ledger.max_update_cost, state.ledger.update_began_at = 0.7, 1e-17
    state.sampler.prompts.next(5, 7)
    state.sampler.calls = 2
    state.pairs.next(3, 4)
    state.minibatch_rng.permutation(9)
    state.rounds, state.version, state.synced_version, state.skipped_in_a_row = 4, 3, 2, 1
    state.method_state, state.charged_rows, state.seconds = {"kl": 0.1 + 0.2}, {"b", "a"}, 61.5
    row = Row("r", (1, 2), ((3, 4), (5,)), {"sampler_logprobs": (np.array([-0.1, -math.pi]), np.array([-1e-300]))})
    found = [(np.array([0.1, 0.2], np.float32), np.array([-0.3], np.float32))]
    rewards = [(math.nan, -math.inf)]
    state.prefetched = [
        Batch([row], rewards, {}, False, asked={"logprobs": Known((found, Cost(flops=7.0)))}),
        Batch([], [], {"reward": 0.1, "pairs": 3}, False),
    ]
    state.prefetch_ledger = Ledger("device_seconds", 12.5, {"rollout": Cost(generated_tokens=3.0)})
    return state


def through_a_file(state):
    return ArmState.from_json(json.loads(json.dumps(state.to_json())))


def test_a_state_comes_back_as_it_was():
    state, back = busy_state(), through_a_file(busy_state())
    assert json.dumps(back.to_json()) == json.dumps(state.to_json())  # by text: nan equals itself there
    assert back.ledger == state.ledger and back.prefetch_ledger == state.prefetch_ledger
    assert back.charged_rows == {"a", "b"} and back.method_state == {"kl": 0.1 + 0.2} and back.marks_left == [0.25, 0.5]
    (row,), (chosen,) = back.prefetched[0].rows, state.prefetched[0].rows
    assert (row.id, row.prompt_ids, row.responses, row.tokens) == ("r", (1, 2), ((3, 4), (5,)), 5)
    for ours, theirs in zip(row.extras["sampler_logprobs"], chosen.extras["sampler_logprobs"], strict=True):
        assert ours.dtype == theirs.dtype and ours.tobytes() == theirs.tobytes()
    assert math.isnan(back.prefetched[0].rewards[0][0]) and back.prefetched[0].rewards[0][1] == -math.inf


def test_what_the_learner_was_asked_for_comes_back_as_what_it_has_found():
    found, cost = through_a_file(busy_state()).prefetched[0].asked["logprobs"].result()
    assert cost == Cost(flops=7.0) and [a.dtype for a in found[0]] == [np.float32] * 2
    np.testing.assert_array_equal(found[0][0], np.array([0.1, 0.2], np.float32))


def test_random_numbers_continue_where_they_were():
    state = busy_state()
    back = through_a_file(state)
    assert back.minibatch_rng.permutation(50).tolist() == state.minibatch_rng.permutation(50).tolist()
    assert [back.sampler.prompts.next(4, 7) for _ in range(5)] == [state.sampler.prompts.next(4, 7) for _ in range(5)]
    assert [back.pairs.next(3, 4) for _ in range(5)] == [state.pairs.next(3, 4) for _ in range(5)]


def test_the_streams_of_one_seed_differ_and_those_of_two_seeds_too():
    def first(state):
        return [g.random() for g in (state.minibatch_rng, state.pairs.rng, state.sampler.prompts.rng)]

    numbers = [x for seed in (1, 2) for x in first(ArmState.begin("flops", 1.0, seed))]
    assert len(set(numbers)) == 6


def test_a_state_with_a_pending_update_is_not_written():
    state = busy_state()
    state.ledger.reserve("learning", Cost(flops=1.0))
    with pytest.raises(AssertionError, match="pending"):
        state.to_json()


def test_a_state_of_another_shape_is_refused():
    with pytest.raises(ValidationError, match="ledger"):
        ArmState.from_json({key: value for key, value in busy_state().to_json().items() if key != "ledger"})
