"""One on-policy iteration of a run against its engines alone, and the dispatch of rollouts to very many engines."""

from __future__ import annotations

import os
import tempfile
from functools import partial
from pathlib import Path
from time import perf_counter, sleep
from typing import Any

import numpy as np

from tests.benchmarks.engines import bare_engine, local_ray, start_actor
from tests.benchmarks.learner import VOCABULARY, resident_now, tokenizer, write_model
from tests.benchmarks.online_arm import begun, one_update
from tests.benchmarks.ppo import Loop, update
from tests.benchmarks.row import Measured, Row, interleaved

RUNS = 5
PROMPTS, SAMPLES, RESPONSE, RATE = 8, 4, 64, 1e-5
ACTORS, DISPATCHED, TOKEN_SECONDS = 256, 20_000, 0.03
FLAT_MIB = 32.0
"""So much may a driver grow, that hands out 100,000 prompts, and be called flat."""


class Alone:
    """The learner's and the scorer's work in a plain loop: `seconds` for the same rows and rewards."""

    def __init__(self, folder: str, reward: str):
        from rlhf_bench.models.loading import load_model

        self.loop = Loop(Path(folder))
        self.scorer = load_model(reward, "scalar", "float32", 0).eval().requires_grad_(False)

    def seconds(self, rows: list[Any], rewards: list[tuple[float, ...]]) -> float:
        import torch

        from rlhf_bench.models.packing import micro_batch, split_by_tokens

        began = perf_counter()
        with torch.no_grad():
            for indices in split_by_tokens(rows, 1, 4096)[0]:
                self.scorer(micro_batch([rows[i] for i in indices]))
        return perf_counter() - began + update(self.loop, rows, rewards, epochs=1)


def iteration(rollouts_ahead: int) -> Measured:
    """Sync, sampling, judging, scoring, three forward passes and a step of policy and critic, as PPO's loop makes them;
    against the sum of a bare vLLM and a bare torch loop over the same prompts and samples. A thread each. With
    `rollouts_ahead` the engine draws the next iteration's data while the learner is at the steps."""
    from rlhf_bench.core.types import Prompt, Sampling
    from rlhf_bench.models.codec import Codec
    from rlhf_bench.models.flops import ModelShape
    from rlhf_bench.models.loading import load_model
    from rlhf_bench.recipe import parse_recipe
    from rlhf_bench.tasks import build_task
    from rlhf_bench.training.inputs import Inputs

    os.environ["OMP_NUM_THREADS"] = "1"
    ray = local_ray()
    with tempfile.TemporaryDirectory() as aside:
        folder = write_model(Path(aside) / "policy", "float32")
        recipe = parse_recipe({
            "name": "bench", "task": {"kind": "arithmetic"}, "compute": {"limit": 1e18}, "sft": None,
            "model": {"name_or_path": str(folder), "max_length": 512,
                      "tokenizer": {"kind": "pretrained", "name_or_path": str(folder)}},
            "data": {"max_response_tokens": RESPONSE},
            "arms": {"ppo": {"method": "ppo", "prompts_per_update": PROMPTS, "samples_per_prompt": SAMPLES,
                             "epochs_per_update": 1, "learning_rate": RATE, "critic_learning_rate": RATE,
                             "rollouts_ahead": rollouts_ahead}},
        })  # fmt: skip
        rng = np.random.default_rng(0)
        prompts = [
            Prompt(str(i), "", "", tuple(rng.integers(2, VOCABULARY, rng.integers(64, 193)).tolist()))
            for i in range(PROMPTS)
        ]
        shape = ModelShape.of(load_model(str(folder), "causal", "float32", 0).lm)
        codec = Codec(tokenizer())
        inputs = Inputs(build_task(recipe.task), codec, folder, shape, prompts, {}, [], [], None, [], {})
        fleet, run = begun(recipe, inputs, Path(aside), scorer=folder)
        drawn_with = []
        bare = bare_engine(folder, 1)
        fleet.sync.engines.append(bare)  # the same weights, sent by the same hand
        run.sync()
        fleet.sync.engines.pop()
        alone = start_actor(ray, Alone, str(folder), str(folder))

        def ours() -> float:
            began = perf_counter()
            drawn_with.append(one_update(run))
            return perf_counter() - began

        def theirs() -> float:
            drawn = drawn_with[-1]
            samples = [row.prompt_ids for row in drawn.rows for _ in row.responses]
            requests = [(prompt_ids, len(drawn_with) * 1_000_003 + i) for i, prompt_ids in enumerate(samples)]
            sampling = Sampling(1, RESPONSE, 1.0, len(drawn_with))
            generation, _ = ray.get(bare.seconds.remote(requests, sampling))
            return generation + ray.get(alone.seconds.remote(drawn.rows, drawn.rewards))

        ours(), theirs()
        mine, others = interleaved(RUNS, ours, theirs)
        fleet.stop()
    return Measured([a / b for a, b in zip(mine, others, strict=True)], mine, others, "s")


class Sleeper:
    """Answers as a rollout engine does, one request after the other, and sleeps for every token of a response instead of
    drawing it."""

    def __init__(self, token_seconds: float) -> None:
        self.token_seconds = token_seconds
        self.queue: list[tuple[int, int]] = []

    def advance(self, requests: Any, sampling: Any, end_ids: frozenset[int], until: int) -> Any:
        from actors.rollout.actor import Advance
        from actors.rollout.vllm_engine import Completion

        began, found = perf_counter(), dict[int, Any]()
        self.queue += [(number, tokens_of(seed, sampling.max_tokens)) for number, (_, seed) in requests.items()]
        while self.queue and len(found) < until:
            number, tokens = self.queue.pop(0)
            sleep(tokens * self.token_seconds)
            found[number] = Completion((5,) * tokens, (0.0,) * tokens, True, 0)
        return Advance(found, version=0, seconds=perf_counter() - began)

    def abandon(self) -> None:
        self.queue.clear()


def tokens_of(seed: int, most: int) -> int:
    return int(np.random.default_rng(seed).integers(most // 8, most + 1))


def dispatched(
    actors: int, prompts: int, response: int, token_seconds: float = TOKEN_SECONDS, runs: int = 1
) -> tuple[list[float], float, list[float]]:
    """Seconds that a pool of so many sleepers takes in each run, the ideal, and the driver's resident MiB at each eighth of
    each run."""
    from actors.rollout.pool import RolloutPool
    from rlhf_bench.compute.engine_time import EngineTime
    from rlhf_bench.core.types import Prompt, Sampling
    from rlhf_bench.models.flops import ModelShape
    from rlhf_bench.recipe import RolloutPlacement

    ray = local_ray()
    sleepers = [start_actor(ray, Sleeper, token_seconds) for _ in range(actors)]
    ray.get([sleeper.abandon.remote() for sleeper in sleepers])  # all have started
    shape = ModelShape(1, 1, 1, 1, 1, 1, 1)
    pool = RolloutPool(sleepers, RolloutPlacement(concurrent_requests=1), shape, frozenset({1}), 4096, EngineTime())
    asked = [Prompt(str(i), "", "", (5,) * (8 + i % 32)) for i in range(prompts)]
    sampling = Sampling(1, response, 1.0, 1)
    total = sum(tokens_of(sampling.seed * 1_000_003 + i, response) for i in range(prompts)) * token_seconds
    resident, seconds = list[float](), list[float]()
    for _ in range(runs):
        done, began = 0, perf_counter()
        for part in pool.stream(asked, sampling):
            done += len(part.indices)
            if done >= (len(resident) % 8 + 1) * prompts // 8:
                resident.append(resident_now())
        seconds.append(perf_counter() - began)
        if runs > 1:
            print(f"  {seconds[-1]:.1f} s", flush=True)
    for sleeper in sleepers:
        ray.kill(sleeper)
    return seconds, total / actors, resident


def dispatch() -> Measured:
    seconds, ideal, resident = dispatched(ACTORS, DISPATCHED, 112, runs=RUNS)
    grown = (
        "MiB that the driver grows from an eighth of the first run to the end of the last",
        resident[-1] - resident[0],
    )
    ratios = [taken / ideal for taken in seconds]
    return Measured(ratios, seconds, [ideal] * len(seconds), "s", bounds=[(*grown, FLAT_MIB)])


ROWS = (
    Row(
        "iteration",
        "an on-policy iteration, seconds",
        "its engines alone, one after the other",
        "at most",
        1.1,
        partial(iteration, 0),
    ),
    Row(
        "iteration_ahead",
        "the same, drawn an update ahead (`rollouts_ahead: 1`)",
        "the same",
        "at most",
        1.0,
        partial(iteration, 1),
    ),
    Row(
        "dispatch",
        f"{DISPATCHED:,} prompts to {ACTORS} sleeping engines, seconds",
        "the ideal",
        "at most",
        1.1,
        dispatch,
    ),
)
