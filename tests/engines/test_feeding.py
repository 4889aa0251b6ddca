"""How a pool feeds its engines: by what each still has to do. The engines here answer at once and record their requests."""

import ray

from actors.rollout.actor import Advance
from actors.rollout.pool import RolloutPool
from actors.rollout.vllm_engine import Completion
from rlhf_bench.compute.engine_time import EngineTime
from rlhf_bench.core.types import Prompt, Sampling
from rlhf_bench.models.flops import ModelShape
from rlhf_bench.recipe import RolloutPlacement


def recording_class():
    """Made here so that it travels to workers by value."""

    class Recording:
        def __init__(self):
            self.waiting, self.handed = [], []

        def advance(self, requests, sampling, end_ids, until):
            self.handed.append(list(requests))
            self.waiting += requests
            now, self.waiting = self.waiting[:until], self.waiting[until:]
            return Advance(
                dict.fromkeys(now, Completion((5, min(end_ids)), (0.0, 0.0), True, 0)), version=0, seconds=0.0
            )

        def abandon(self):
            self.waiting.clear()

        def all_handed(self):
            return self.handed

    return Recording


def test_the_longest_prompt_goes_to_the_engine_with_the_fewest_tokens_left(start):
    engines = [start(recording_class()) for _ in range(2)]
    shape = ModelShape(1, 1, 1, 1, 1, 1, 1)
    pool = RolloutPool(engines, RolloutPlacement(concurrent_requests=2), shape, frozenset({1}), 4096, EngineTime())
    lengths = [8, 40, 7, 30, 5, 6, 4, 3]
    prompts = [Prompt(str(n), "", "", (5,) * n) for n in lengths]
    chunks = list(pool.stream(prompts, Sampling(1, 2, 1.0, 1)))
    assert sorted(i for chunk in chunks for i in chunk.indices) == list(range(len(lengths)))
    handed = [
        [[lengths[i] for i in call] for call in calls] for calls in ray.get([e.all_handed.remote() for e in engines])
    ]
    # Tokens left, with two of a response: 42 and 32, so 8 to the second; 42 and 42, so 7 to the first; 51 and 42, so 6 to
    # the second, which has no room for more then: three requests are one more than it draws at once.
    assert handed[0][0] == [40, 7, 5] and handed[1][0] == [30, 8, 6]
    assert sorted(n for calls in handed for call in calls for n in call) == sorted(lengths)  # each handed out once
