"""Rollouts against bare vLLM, weight sync against a copy in memory, and the start of a run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from functools import partial
from itertools import count
from pathlib import Path
from time import perf_counter, sleep
from typing import Any

import numpy as np

from tests.benchmarks.learner import VOCABULARY, write_model
from tests.benchmarks.row import Measured, Row, interleaved

RUNS = 5
STORE = 2 * 2**30
PROMPTS, SLOTS, RESPONSE, MEAN_RESPONSE = 512, 64, 128, 48
SYNC_PAUSE = 0.5
"""Seconds before a sync, in which Ray frees the weights of the one before: in a run an iteration lies between."""


def local_ray() -> Any:
    import ray

    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error",
             object_store_memory=STORE, ignore_reinit_error=True)  # fmt: skip
    return ray


def touch_store(ray: Any) -> None:
    """Have the pages of Ray's store be there, as they are after a few syncs of a run: for the first use of each, a sync
    waits several times as long as for all the rest."""
    ray.put(np.zeros(STORE * 9 // 10, np.uint8))  # and gone again
    sleep(SYNC_PAUSE)


def start_actor(ray: Any, cls: type, *arguments: Any) -> Any:
    """With the environment that a run gives its roles on CPUs."""
    from actors.allocator import ALLOCATOR

    variables = {"OMP_NUM_THREADS": os.environ["OMP_NUM_THREADS"]} | ALLOCATOR
    return ray.remote(cls).options(num_cpus=0, runtime_env={"env_vars": variables}).remote(*arguments)


def bare_engine(folder: Path, threads: int) -> Any:
    """An actor whose `seconds` times vLLM's own `generate`, for requests of prompt ids and seed: seconds and tokens."""
    from actors.rollout.actor import RolloutActor
    from actors.weight_sync import OBJECT_STORE
    from rlhf_bench.recipe import RolloutPlacement

    class Bare(RolloutActor):
        def seconds(self, requests: Any, sampling: Any) -> tuple[float, int]:
            from vllm import SamplingParams

            params = [
                SamplingParams(
                    temperature=sampling.temperature, max_tokens=sampling.max_tokens, seed=seed, logprobs=0,
                    stop_token_ids=[1], detokenize=False,
                )
                for _, seed in requests
            ]  # fmt: skip
            prompts = [{"prompt_token_ids": list(ids)} for ids, _ in requests]
            began = perf_counter()
            found = self.engine.llm.generate(prompts, params, use_tqdm=False)
            return perf_counter() - began, sum(len(output.outputs[0].token_ids) for output in found)

    placement = RolloutPlacement(cpus=threads, concurrent_requests=SLOTS)
    return start_actor(local_ray(), Bare, str(folder), placement, 512, "float32", OBJECT_STORE)


def rollouts() -> Measured:
    """Tokens per second of a pool of one engine, asked by the driver, and of `LLM.generate` alone in its process: eight
    times as many prompts as decode at once, and responses of many lengths."""
    from actors.learner.group import LearnerGroup
    from actors.learner.rank import LearnerRank
    from actors.rollout.actor import RolloutActor
    from actors.rollout.pool import RolloutPool
    from actors.weight_sync import OBJECT_STORE, ObjectStoreSync
    from rlhf_bench.compute.engine_time import EngineTime
    from rlhf_bench.core.types import Prompt, Sampling
    from rlhf_bench.recipe import RolloutPlacement

    ray, threads = local_ray(), int(os.environ["OMP_NUM_THREADS"])
    with tempfile.TemporaryDirectory() as aside:
        folder = write_model_that_ends(Path(aside))
        placement = RolloutPlacement(cpus=threads, concurrent_requests=SLOTS)
        pooled = start_actor(ray, RolloutActor, str(folder), placement, 512, "float32", OBJECT_STORE)
        alone = bare_engine(folder, threads)
        rank = start_actor(ray, LearnerRank, 0, 1, threads, 0, 0, "float32")
        learner = LearnerGroup([rank], threads, 0, 4096, EngineTime())
        learner.join()
        learner.load("policy", folder)
        ObjectStoreSync(learner, [pooled, alone]).send(0)
        ray.kill(rank)
        pool = RolloutPool([pooled], placement, learner.shapes["policy"], frozenset({1}), 4096, EngineTime())
        rng = np.random.default_rng(0)
        prompts = [
            Prompt(str(i), "", "", tuple(rng.integers(2, VOCABULARY, rng.integers(32, 97)).tolist()))
            for i in range(PROMPTS)
        ]
        our_seeds, their_seeds = count(), count()  # the same ones: responses of the same lengths
        lengths = list[float]()

        def ours() -> float:
            sampling = Sampling(1, RESPONSE, 1.0, next(our_seeds))
            began = perf_counter()
            _, cost = pool.generate(prompts, sampling)
            seconds = perf_counter() - began
            lengths.append(cost.generated_tokens / PROMPTS)
            return cost.generated_tokens / seconds

        def theirs() -> float:
            sampling = Sampling(1, RESPONSE, 1.0, next(their_seeds))
            requests = [(p.token_ids, sampling.seed * 1_000_003 + i) for i, p in enumerate(prompts)]
            seconds, tokens = ray.get(alone.seconds.remote(requests, sampling))
            return tokens / seconds

        ours(), theirs()
        mine, others = interleaved(2 * RUNS, ours, theirs)
    notes = f"{PROMPTS} prompts, {SLOTS} at once, {np.mean(lengths):.0f} tokens in a response, {RESPONSE} at most"
    return Measured([a / b for a, b in zip(mine, others, strict=True)], mine, others, "tokens/s", notes)


def write_model_that_ends(folder: Path) -> Path:
    """The learner's model, with an end token that is drawn once in about `MEAN_RESPONSE` tokens: the first number of every
    embedding is 1, which makes that of the last hidden states large, and the end's is larger."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(write_model(folder, "float32"))
    with torch.no_grad():
        embedding = model.get_input_embeddings().weight
        embedding[:, 0] = 1.0
        end = model(torch.arange(2, 130)[None]).logits[..., 1].mean()
        embedding[1, 0] += 0.1
        slope = (model(torch.arange(2, 130)[None]).logits[..., 1].mean() - end) / 0.1
        embedding[1, 0] += np.log(VOCABULARY / MEAN_RESPONSE) / slope - 0.1
    model.save_pretrained(folder)
    return folder


def learner_and_engines(folder: Path, engines: int) -> tuple[Any, list[Any]]:
    """A learner group of one rank with the model as its policy, and engines of its shape."""
    from actors.learner.group import LearnerGroup
    from actors.learner.rank import LearnerRank
    from actors.rollout.actor import RolloutActor
    from actors.weight_sync import OBJECT_STORE
    from rlhf_bench.compute.engine_time import EngineTime
    from rlhf_bench.recipe import RolloutPlacement

    ray, threads = local_ray(), int(os.environ["OMP_NUM_THREADS"])

    class Engine(RolloutActor):
        def seconds_of_loading(self, weights: list[Any]) -> float:
            """Median for weights in memory of this process's own."""
            held = {name: array.copy() for name, array in ray.get(weights[0]).items()}

            def once() -> float:
                began = perf_counter()
                self.engine.load(held, 0)
                return perf_counter() - began

            return float(np.median([once() for _ in range(RUNS)]))

    placement = RolloutPlacement(cpus=threads, concurrent_requests=4, cache_mib=64)
    actors = [start_actor(ray, Engine, str(folder), placement, 128, "float32", OBJECT_STORE) for _ in range(engines)]
    rank = start_actor(ray, LearnerRank, 0, 1, threads, 0, 0, "float32")
    learner = LearnerGroup([rank], threads, 0, 4096, EngineTime())
    learner.join()
    learner.load("policy", folder)
    return learner, actors


def weight_sync() -> Measured:
    """Bytes per second from the learner's parameters to the engine's, and of one thread copying memory. Beside it what the
    engine alone needs for weights that it holds already."""
    from actors.weight_sync import ObjectStoreSync

    ray = local_ray()
    with tempfile.TemporaryDirectory() as aside:
        learner, engines = learner_and_engines(write_large_model(Path(aside)), 1)
        size = 4 * learner.shapes["policy"].parameters
        sync, source, target = (
            ObjectStoreSync(learner, engines),
            np.ones(size // 4, np.float32),
            np.zeros(size // 4, np.float32),
        )

        def ours() -> float:
            sleep(SYNC_PAUSE)
            began = perf_counter()
            sync.send(0)
            return size / (perf_counter() - began) / 2**30

        def theirs() -> float:
            began = perf_counter()
            np.copyto(target, source)
            return size / (perf_counter() - began) / 2**30

        for _ in range(RUNS):  # until the pages of Ray's store that syncs take in turn are there, and known to both
            ours(), theirs()
        mine, others = interleaved(2 * RUNS, ours, theirs)
        (weights, _) = sync.sent
        alone = size / 2**30 / ray.get(engines[0].seconds_of_loading.remote([weights]))
    ratios = [a / b for a, b in zip(mine, others, strict=True)]
    notes = f"{size / 4e6:.0f}M parameters; vLLM's own loading, of weights that its process holds: {alone:.3g} GiB/s"
    return Measured(ratios, mine, others, "GiB/s", notes)


def write_large_model(folder: Path, layers: int = 7) -> Path:
    """100M float32 parameters with 7 layers: a Llama of width 896."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=896, intermediate_size=2432, num_hidden_layers=layers, num_attention_heads=14,
        num_key_value_heads=14, max_position_embeddings=128, tie_word_embeddings=True, pad_token_id=0, eos_token_id=1,
        bos_token_id=None,
    )  # fmt: skip
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def start() -> Measured:
    """Seconds from `run` to PPO's first update, which needs every role; base policy, reward model and pairs in the cache."""

    def once(arm: str) -> float:
        with tempfile.TemporaryDirectory() as aside:
            command = [
                sys.executable, "-m", "rlhf_bench", "run", "recipes/sums.yaml", "seeds=[1]", "compute.limit=1e11",
                "--arm", arm, "--output", f"{aside}/out",
            ]  # fmt: skip
            subprocess.run(command, check=True, capture_output=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
            return json.loads(Path(aside, "out/results.json").read_text())["timing"]["first_update_seconds"]

    once("ppo")  # fills the cache, where it is empty
    seconds, offline = interleaved(RUNS, partial(once, "ppo"), partial(once, "dpo-offline"))
    return Measured(seconds, unit="s", notes=f"an arm of offline DPO: {np.median(offline):.1f} s")


class Drawing:
    """An evaluator's engine of SmolLM2-135M-Instruct, and prompts of the quickstart."""

    def __init__(self) -> None:
        from actors.rollout.vllm_engine import VLLMEngine
        from rlhf_bench.cli.options import open_cache
        from rlhf_bench.models.loading import load_model
        from rlhf_bench.recipe import load_recipe
        from rlhf_bench.training.inputs import prepare_inputs

        recipe = load_recipe(Path(__file__).parents[2] / "recipes" / "quickstart.yaml")
        inputs = prepare_inputs(recipe, open_cache())
        self.engine = VLLMEngine(
            str(inputs.model), recipe.placement.evaluator, recipe.model.max_length, "float32", "object_store"
        )
        weights = load_model(str(inputs.model), "causal", "float32", 0).lm.named_parameters()
        self.engine.load({name: parameter.detach().numpy() for name, parameter in weights}, 0)
        self.prompts = [p.token_ids for p in inputs.held_out["in_distribution"]]
        self.room, self.ends = recipe.data.max_response_tokens, inputs.codec.end_ids

    def seconds(self, together: bool) -> float:
        """Of two samples and the likeliest response to each prompt."""
        sampled = [(ids, seed) for seed, ids in enumerate(ids for ids in self.prompts for _ in range(2))]
        greedy = [(ids, None) for ids in self.prompts]
        began = perf_counter()
        for requests in [sampled + greedy] if together else [sampled, greedy]:
            self.engine.generate(requests, self.room, 1.0, self.ends)
        return perf_counter() - began


def evaluation() -> Measured:
    ray = local_ray()
    drawing = start_actor(ray, Drawing)

    def seconds(together: bool) -> float:
        return ray.get(drawing.seconds.remote(together))

    seconds(True), seconds(False)
    mine, others = interleaved(RUNS, partial(seconds, True), partial(seconds, False))
    return Measured(
        [a / b for a, b in zip(mine, others, strict=True)], mine, others, "s", "16 prompts, 24 tokens at most"
    )


ROWS = (
    Row("rollout", "rollout pool, tokens/s", "bare vllm.LLM.generate", "at least", 0.97, rollouts),
    Row("weight_sync", "weight sync, bytes/s, 100M float32", "one thread's memory copy", "at least", 0.3, weight_sync),
    Row(
        "evaluation",
        "an evaluation's responses of SmolLM2 drawn together, seconds",
        "sampled, then greedy ones",
        "at most",
        0.85,
        evaluation,
    ),
    Row("start", "`run` to PPO's first update, warm, seconds", "–", "at most", 45, start),
)
