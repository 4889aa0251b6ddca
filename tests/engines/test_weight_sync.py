"""The engines hold what the learner holds: real vLLM against a real DeepSpeed rank."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from rlhf_bench.compute.engine_time import EngineTime
from rlhf_bench.core.errors import RunFailed
from rlhf_bench.core.types import Prompt, Row, Sampling
from rlhf_bench.methods.supervised import SFT
from rlhf_bench.models.flops import generation_flops
from rlhf_bench.recipe import RolloutPlacement
from rlhf_bench.training.judging import row_of
from rlhf_bench.training.roles import Step

EOS, MAX_LENGTH, TOLERANCE = 2, 400, 1e-4
PLACEMENT = RolloutPlacement(cpus=1, cache_mib=32, concurrent_requests=16)
PROBE = Row("probe", (1, 5, 9, 4), ((7, 8, 3, 3, 12, EOS),))
LESSONS = [Row(f"lesson {i}", (1, 4 + i), ((7, 5 + i, 9, EOS),)) for i in range(4)]
PROMPTS = [Prompt(f"p{i}", "", "", token_ids=(1, *range(4, 4 + i))) for i in range(1, 7)]


@dataclass
class Side:
    """One model in the learner's hands and in an engine's."""

    weights: Path
    learner: object
    engines: list
    pool: object
    sync: object

    def gap(self, version: int = 0, tolerance: float = TOLERANCE) -> float:
        """The check that follows every sync in a run."""
        ((expected,),), _ = self.learner.measure("policy", [PROBE])
        return self.pool.check(PROBE.prompt_ids, PROBE.responses[0], expected.tolist(), tolerance, version)

    def train(self, steps: int = 2) -> None:
        self.learner.steps([Step(SFT, LESSONS, None, 1e-2)] * steps)

    def begin(self) -> None:
        self.learner.load("policy", self.weights, learning_rate=1e-2)


@pytest.fixture(scope="module")
def sides(start, write_llama, tmp_path_factory):
    """Two engines with tied embeddings, one with untied; one learner for both models."""
    from actors.learner.group import LearnerGroup
    from actors.learner.rank import LearnerRank
    from actors.rollout.actor import RolloutActor
    from actors.rollout.pool import RolloutPool
    from actors.weight_sync import weight_sync

    folder = tmp_path_factory.mktemp("models")
    learner = LearnerGroup([start(LearnerRank, 0, 1, 1, 0, 0, "float32")], 1, 0, 512, EngineTime())
    found = {}
    for name, engines in (("tied", 2), ("untied", 1)):
        path = write_llama(folder / name, tie_word_embeddings=name == "tied")
        actors = [
            start(RolloutActor, str(path), PLACEMENT, MAX_LENGTH, "float32", "object_store") for _ in range(engines)
        ]
        found[name] = Side(path, learner, actors, None, weight_sync("object_store", learner, actors))
    learner.join()
    for side in found.values():
        side.begin()
        side.pool = RolloutPool(side.engines, PLACEMENT, learner.shapes["policy"], EOS, 512, EngineTime())
    return found


@pytest.fixture(params=["tied", "untied"])
def side(request, sides):
    """Learner and engines both at the weights of the folder, before and after."""
    side = sides[request.param]
    side.begin()
    yield side
    side.begin()
    side.sync.send(0)


@pytest.fixture
def tied(sides):
    side = sides["tied"]
    side.begin()
    side.sync.send(0)
    return side


def test_an_engine_that_was_sent_no_weights_does_not_answer(sides):
    """It has started with random ones. First in this file: the engines are shared."""
    for side in sides.values():
        side.begin()
        with pytest.raises(RuntimeError, match="has been sent no weights yet"):
            side.gap()


def test_engines_follow_the_learner(side):
    side.sync.send(0)
    assert side.gap() < TOLERANCE
    side.train()
    with pytest.raises(RunFailed, match=r"after update 3 .* more than placement\.sync_tolerance"):
        side.gap(version=3)
    side.sync.send(1)
    assert side.gap(version=1) < TOLERANCE
    with pytest.raises(RunFailed, match="after update 2 an engine holds the weights of update 1"):
        side.gap(version=2)
    side.begin()
    side.sync.send(0)
    assert side.gap() < TOLERANCE  # and back again


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_samples_carry_the_learners_log_probabilities(tied, temperature):
    tied.train()
    tied.sync.send(5)
    groups, _ = tied.pool.generate(PROMPTS, Sampling(count=3, max_tokens=12, temperature=temperature, seed=1))
    measured, _ = tied.learner.measure("policy", [row_of(g) for g in groups], temperature)
    for group, numbers in zip(groups, measured, strict=True):
        assert len(group.samples) == 3
        for sample, expected in zip(group.samples, numbers, strict=True):
            assert sample.policy_version == 5
            np.testing.assert_allclose(sample.sampler_logprobs, expected, atol=TOLERANCE, rtol=0)


def test_a_seed_fixes_the_samples_on_any_number_of_engines(tied):
    from actors.rollout.pool import RolloutPool

    def draw(pool, seed):
        groups, cost = pool.generate(PROMPTS, Sampling(count=4, max_tokens=8, seed=seed))
        assert [g.prompt for g in groups] == PROMPTS
        return [[s.response_ids for s in g.samples] for g in groups], cost.flops

    alone = RolloutPool(tied.engines[:1], PLACEMENT, tied.pool.shape, EOS, 512, EngineTime())
    once = draw(alone, 1)
    assert draw(alone, 1) == draw(tied.pool, 1) == once
    assert draw(alone, 2) != once
    assert len({ids for group in once[0] for ids in group}) > 12  # and no two samples share their luck


def test_the_end_of_a_response_is_marked(tied):
    groups, cost = tied.pool.generate(PROMPTS, Sampling(count=16, max_tokens=6))
    samples = [s for g in groups for s in g.samples]
    for sample in samples:
        assert sample.finished == (sample.response_ids[-1] == EOS)
        assert EOS not in sample.response_ids[:-1]
        assert sample.finished or len(sample.response_ids) == 6
        assert len(sample.sampler_logprobs) == len(sample.response_ids)
    assert {s.finished for s in samples} == {True, False}
    assert len({s.id for s in samples}) == len(samples)
    assert cost.generated_tokens == sum(len(s.response_ids) for s in samples)
    # Prompts this short fill no block of the prefix cache, so every prompt token is computed.
    counted = [(len(g.prompt.token_ids), 0, len(s.response_ids)) for g in groups for s in g.samples]
    assert cost.flops == generation_flops(tied.pool.shape, counted)


def test_the_prefix_cache_saves_work_and_forgets_old_weights(tied):
    from actors.rollout.pool import RolloutPool

    alone = RolloutPool(tied.engines[:1], PLACEMENT, tied.pool.shape, EOS, 512, EngineTime())
    long = Prompt("long", "", "", token_ids=(1, *[4 + i % 11 for i in range(380)]))

    def draw():
        groups, cost = alone.generate([long], Sampling(count=1, max_tokens=6))
        ((measured,),), _ = tied.learner.measure("policy", [row_of(groups[0])])
        np.testing.assert_allclose(groups[0].samples[0].sampler_logprobs, measured, atol=TOLERANCE, rtol=0)
        return cost.flops, len(groups[0].samples[0].response_ids)

    (cold, length), (warm, again) = draw(), draw()
    assert length == again and cold == generation_flops(alone.shape, [(381, 0, length)])
    assert warm < 0.7 * cold  # the cached part of the prompt is neither computed nor charged
    tied.train()
    tied.sync.send(1)
    fresh, length = draw()
    assert fresh == generation_flops(alone.shape, [(381, 0, length)])


def test_a_pool_hands_out_the_same_chunks_with_the_same_samples_however_it_feeds_its_engines(tied):
    """Few sequences at a time and small chunks: engines are fed and answer many times over."""
    from actors.rollout.pool import RolloutPool

    prompts = [*PROMPTS, *[Prompt(f"more {i}", "", "", token_ids=(1, *range(4, 9 + i))) for i in range(8)], PROMPTS[0]]
    sampling = Sampling(count=4, max_tokens=8, seed=3)
    found = []
    for engines, concurrent, tokens in ((2, 4, 128), (1, 4, 128), (2, 16, 128), (1, 16, 10_000)):
        placement = RolloutPlacement(cpus=1, concurrent_requests=concurrent)
        pool = RolloutPool(tied.engines[:engines], placement, tied.pool.shape, EOS, tokens, EngineTime())
        chunks = list(pool.stream(prompts, sampling))
        order = [i for chunk in chunks for i in chunk.indices]
        assert sorted(order) == list(range(len(prompts)))
        assert order == sorted(order, key=lambda i: (-len(prompts[i].token_ids), i))  # longest first
        by_prompt = {i: g for chunk in chunks for i, g in zip(chunk.indices, chunk.groups, strict=True)}
        assert all(by_prompt[i].prompt is p for i, p in enumerate(prompts))
        found.append([[s.response_ids for s in by_prompt[i].samples] for i in range(len(prompts))])
        if tokens == 128:
            assert [chunk.indices for chunk in chunks] == pool.chunks(prompts, sampling) and len(chunks) > 4
        assert sum(chunk.cost.generated_tokens for chunk in chunks) == sum(len(r) for rs in found[-1] for r in rs)
        assert all(chunk.cost.device_seconds >= 0 for chunk in chunks)
        assert sum(chunk.cost.device_seconds for chunk in chunks) > 0
    assert all(one == found[0] for one in found)


def test_an_engine_in_a_lost_ones_place_draws_only_with_the_weights_that_were_checked(tied, start, cluster):
    from actors.rollout.actor import RolloutActor
    from actors.rollout.pool import RolloutPool
    from actors.weight_sync import weight_sync

    first, other = tied.engines
    pool = RolloutPool([first], PLACEMENT, tied.pool.shape, EOS, 512, EngineTime(), lambda number, error: other)
    expected = Side(tied.weights, tied.learner, [first], pool, tied.sync)
    assert expected.gap() < TOLERANCE
    sampling = Sampling(count=2, max_tokens=8, seed=1)
    alone, _ = pool.generate(PROMPTS, sampling)

    def lose():
        dead = start(RolloutActor, "nowhere", PLACEMENT, MAX_LENGTH, "float32", "object_store")
        cluster.kill(dead)
        pool.actors[0] = dead

    lose()
    assert pool.generate(PROMPTS, sampling)[0] == alone
    tied.train()
    weight_sync("object_store", tied.learner, [other]).send(0)  # other weights that pass for the same
    lose()
    with pytest.raises(RunFailed, match="the engines do not hold the learner's weights"):
        pool.generate(PROMPTS, sampling)


def test_a_stream_that_is_closed_early_leaves_the_engines_without_work(tied):
    from actors.rollout.pool import RolloutPool

    pool = RolloutPool(tied.engines, PLACEMENT, tied.pool.shape, EOS, 64, EngineTime())
    sampling = Sampling(count=4, max_tokens=64, seed=3)
    whole = [g.samples for g in pool.generate(PROMPTS, sampling)[0]]
    stream = pool.stream(PROMPTS, sampling)
    next(stream)
    stream.close()
    assert [g.samples for g in pool.generate(PROMPTS, sampling)[0]] == whole
    tied.sync.send(9)  # which vLLM refuses while requests are running
