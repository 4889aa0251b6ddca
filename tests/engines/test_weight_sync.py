"""The engines hold what the learner holds: real vLLM against a real DeepSpeed rank."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import ray

from rlhf_bench.compute.engine_time import EngineTime
from rlhf_bench.core.errors import RunFailed
from rlhf_bench.core.types import Prompt, Row, Sampling
from rlhf_bench.methods.supervised import SFT
from rlhf_bench.models.flops import generation_flops
from rlhf_bench.recipe import Placement, RolloutPlacement
from rlhf_bench.training.judging import row_of
from rlhf_bench.training.roles import Step
from rlhf_bench.training.sync_check import Probe

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
    dtype: str

    def gap(self, version: int = 0) -> float:
        """The check that follows every sync in a run."""
        ((expected,),), _ = self.learner.measure("policy", [PROBE])
        sums, tolerance = (
            self.learner.checksums("policy"),
            Placement().tolerance(self.dtype, self.learner.shapes["policy"]),
        )
        probe = Probe(PROBE.prompt_ids, PROBE.responses[0], expected.tolist(), sums, tolerance, version)
        return self.pool.check(probe)

    def train(self, steps: int = 2) -> None:
        self.learner.steps([Step(SFT, LESSONS, None, 1e-2)] * steps)

    def begin(self) -> None:
        self.learner.load("policy", self.weights, learning_rate=1e-2)


@pytest.fixture(scope="module")
def sides(start, write_llama, tmp_path_factory):
    """Two engines with tied embeddings, one with untied, and one learner for both models; and one of each in bfloat16."""
    from actors.learner.group import LearnerGroup
    from actors.learner.rank import LearnerRank
    from actors.rollout.actor import RolloutActor
    from actors.rollout.pool import RolloutPool
    from actors.weight_sync import weight_sync

    folder = tmp_path_factory.mktemp("models")

    class Engine(RolloutActor):
        def load_but_for(self, weights, version, module):
            """A sync after which one module multiplies with the matrix that it had before."""
            (held,) = self.engine.llm.apply_model(lambda model: model.get_submodule(module))
            before, matrix = held.cpu_linear, held.weight.detach().clone()
            self.engine.call_worker("start_weight_update")
            self.engine.call_worker("update_weights", update_info={"arrays": ray.get(weights[0])})
            self.engine.call_worker("finish_weight_update")
            held.cpu_linear = before
            if (
                before.__closure__ is None
            ):  # this processor's kernel has no copy in it: it multiplies with the matrix itself
                held.weight.data.copy_(matrix)
            self.engine.finish_sync(version)

    learners = {
        dtype: LearnerGroup([start(LearnerRank, 0, 1, 1, 0, 0, dtype)], 1, 0, 512, EngineTime())
        for dtype in ("float32", "bfloat16")
    }
    found = {}
    for name, dtype, engines in (("tied", "float32", 2), ("untied", "float32", 1), ("bfloat16", "bfloat16", 1)):
        path = write_llama(folder / name, tie_word_embeddings=name != "untied")
        actors = [start(Engine, str(path), PLACEMENT, MAX_LENGTH, dtype, "object_store") for _ in range(engines)]
        learner = learners[dtype]
        found[name] = Side(path, learner, actors, None, weight_sync("object_store", learner, actors), dtype)
    for learner in learners.values():
        learner.join()
    for side in found.values():
        side.begin()
        side.pool = RolloutPool(
            side.engines, PLACEMENT, side.learner.shapes["policy"], frozenset({EOS}), 512, EngineTime()
        )
    return found


@pytest.fixture(params=["tied", "untied", "bfloat16"])
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
    assert side.dtype == "bfloat16" or side.gap() < TOLERANCE
    side.train()
    with pytest.raises(RunFailed, match=r"after update 0 an engine was sent another model\.\S+ than the learner has: "):
        side.gap()
    side.sync.send(1)
    side.gap(version=1)
    with pytest.raises(RunFailed, match="after update 2 an engine holds the weights of update 1"):
        side.gap(version=2)
    side.begin()
    side.sync.send(0)
    side.gap()  # and back again


Q = "model.layers.0.self_attn.q_proj.weight"


def stale(new, old):
    return new | {Q: old[Q]}


def swapped(new, old):
    other = Q.replace("layers.0", "layers.1")
    return new | {Q: new[other], other: new[Q]}


def two_of_a_layer_swapped(new, old):
    gate, up = (f"model.layers.0.mlp.{name}_proj.weight" for name in ("gate", "up"))
    return new | {gate: new[up], up: new[gate]}


def one_bit(new, old):
    changed = new[Q].copy()
    changed.view(np.uint32 if changed.dtype == np.float32 else np.uint16)[3, 5] ^= 1
    return new | {Q: changed}


def a_norm_less(new, old):
    return {name: array for name, array in new.items() if name != "model.norm.weight"}


@pytest.mark.parametrize("change", [stale, swapped, two_of_a_layer_swapped, one_bit, a_norm_less])
def test_weights_that_are_not_the_learners_stop_the_run(change, side):
    """However little they change log-probs."""
    old = copied(ray.get(side.learner.weights("policy")))
    side.train(1)
    new = copied(ray.get(side.learner.weights("policy")))
    for engine in side.engines:
        ray.get(engine.load_weights.remote([ray.put(change(new, old))], 1))
    lost = "was sent no model.norm.weight" if change is a_norm_less else "was sent another model.layers"
    with pytest.raises(RunFailed, match=f"an engine {lost}"):
        side.gap(version=1)
    side.sync.send(1)
    side.gap(version=1)


def copied(arrays):
    return {name: array.copy() for name, array in arrays.items()}


@pytest.mark.parametrize("module", ["model.layers.1.self_attn.qkv_proj", "model.layers.0.mlp.down_proj", "lm_head"])
def test_a_matrix_that_an_engine_took_in_and_does_not_use_stops_the_run(module, side):
    """On CPUs engines multiply with copies, which only they see."""
    side.sync.send(0)
    side.train(1)
    weights = side.learner.weights("policy")
    for engine in side.engines:
        ray.get(engine.load_but_for.remote([weights], 1, module))
    with pytest.raises(RunFailed, match=rf"an engine does not (multiply with the {module}|hold \S+)\.weight"):
        side.gap(version=1)
    side.sync.send(1)
    side.gap(version=1)


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

    alone = RolloutPool(tied.engines[:1], PLACEMENT, tied.pool.shape, frozenset({EOS}), 512, EngineTime())
    once = draw(alone, 1)
    assert draw(alone, 1) == draw(tied.pool, 1) == once
    assert draw(alone, 2) != once
    assert len({ids for group in once[0] for ids in group}) > 12  # and no two samples share their luck


@pytest.mark.parametrize("ends", [{EOS}, {EOS, 5, 9}], ids=len)
def test_a_response_ends_with_any_of_the_end_tokens_which_is_marked(tied, ends):
    from actors.rollout.pool import RolloutPool

    pool = RolloutPool(tied.engines, PLACEMENT, tied.pool.shape, frozenset(ends), 512, EngineTime())
    groups, cost = pool.generate(PROMPTS, Sampling(count=16, max_tokens=6))
    samples = [s for g in groups for s in g.samples]
    assert {s.response_ids[-1] for s in samples if s.finished} == ends
    for sample in samples:
        assert sample.finished == (sample.response_ids[-1] in ends)
        assert not ends & set(sample.response_ids[:-1])
        assert sample.finished or len(sample.response_ids) == 6
        assert len(sample.sampler_logprobs) == len(sample.response_ids)
    assert {s.finished for s in samples} == {True, False}
    assert len({s.id for s in samples}) == len(samples)
    assert cost.generated_tokens == sum(len(s.response_ids) for s in samples)
    # Prompts this short fill no block of the prefix cache, so every prompt token is computed.
    counted = [(len(g.prompt.token_ids), 0, len(s.response_ids)) for g in groups for s in g.samples]
    assert cost.flops == generation_flops(tied.pool.shape, counted)


def test_the_prefix_cache_saves_work_within_a_draw_and_forgets_it_afterwards(tied):
    """A draw costs the same whatever was drawn before: a run that is resumed in between pays and draws alike."""
    from actors.rollout.pool import RolloutPool

    alone = RolloutPool(tied.engines[:1], PLACEMENT, tied.pool.shape, frozenset({EOS}), 512, EngineTime())
    long = Prompt("long", "", "", token_ids=(1, *[4 + i % 11 for i in range(380)]))

    def draw(count):
        """Samples of the prompt; what they cost, and what they must cost with one computation of the prompt's whole blocks."""
        (group,), cost = alone.generate([long], Sampling(count=count, max_tokens=6))
        (measured,), _ = tied.learner.measure("policy", [row_of(group)])
        for sample, logprobs in zip(group.samples, measured, strict=True):
            np.testing.assert_allclose(sample.sampler_logprobs, logprobs, atol=TOLERANCE, rtol=0)
        lengths = [len(s.response_ids) for s in group.samples]
        charged = [(381, 0 if i == 0 else 352, length) for i, length in enumerate(lengths)]
        return [s.response_ids for s in group.samples], cost.flops, generation_flops(alone.shape, charged)

    first, cost, expected = draw(3)
    assert cost == expected
    assert draw(3) == (first, cost, expected)
    tied.train()
    tied.sync.send(1)
    _, cost, expected = draw(1)
    assert cost == expected


def test_a_pool_hands_out_the_same_chunks_with_the_same_samples_however_it_feeds_its_engines(tied):
    """Few sequences at a time and small chunks: engines are fed and answer many times over."""
    from actors.rollout.pool import RolloutPool

    prompts = [*PROMPTS, *[Prompt(f"more {i}", "", "", token_ids=(1, *range(4, 9 + i))) for i in range(8)], PROMPTS[0]]
    sampling = Sampling(count=4, max_tokens=8, seed=3)
    found = []
    for engines, concurrent, tokens in ((2, 4, 128), (1, 4, 128), (2, 16, 128), (1, 16, 10_000)):
        placement = RolloutPlacement(cpus=1, concurrent_requests=concurrent)
        pool = RolloutPool(tied.engines[:engines], placement, tied.pool.shape, frozenset({EOS}), tokens, EngineTime())
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
    pool = RolloutPool(
        [first], PLACEMENT, tied.pool.shape, frozenset({EOS}), 512, EngineTime(), lambda number, error: other
    )
    expected = Side(tied.weights, tied.learner, [first], pool, tied.sync, "float32")
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

    pool = RolloutPool(tied.engines, PLACEMENT, tied.pool.shape, frozenset({EOS}), 64, EngineTime())
    sampling = Sampling(count=4, max_tokens=64, seed=3)
    whole = [g.samples for g in pool.generate(PROMPTS, sampling)[0]]
    stream = pool.stream(PROMPTS, sampling)
    next(stream)
    stream.close()
    assert [g.samples for g in pool.generate(PROMPTS, sampling)[0]] == whole
    tied.sync.send(9)  # which vLLM refuses while requests are running
