"""A PPO update of the learner group against the same work in a plain PyTorch loop, without DeepSpeed and Ray; and updates of methods
without a critic against PPO's without its own."""

from __future__ import annotations

import os
import tempfile
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np

from tests.benchmarks.engines import start_actor
from tests.benchmarks.learner import VOCABULARY, rank, write_model
from tests.benchmarks.row import Measured, Row, interleaved

RUNS = 5
PROMPTS, SAMPLES, RATE, BUDGET = 8, 4, 1e-5, 4096


def rollouts() -> tuple[list[Any], list[tuple[float, ...]]]:
    """Rows of `SAMPLES` responses to a prompt, and a reward each."""
    from rlhf_bench.core.types import Row as Sequences

    rng = np.random.default_rng(0)

    def tokens(low: int, high: int) -> tuple[int, ...]:
        return tuple(rng.integers(2, VOCABULARY, rng.integers(low, high + 1)).tolist())

    rows = [Sequences(str(i), tokens(64, 192), tuple(tokens(16, 96) for _ in range(SAMPLES))) for i in range(PROMPTS)]
    return rows, [tuple(rng.normal(size=SAMPLES)) for _ in rows]


class Group:
    """As an arm does it: measure by policy, reference and critic, prepare, four epochs of steps."""

    def __init__(self, folder: Path):
        self.group, self.actor = rank("float32")
        for name, rate in (("policy", RATE), ("critic", RATE), ("reference", None)):
            self.group.load(name, folder, 0, rate, 1.0)

    def measure(self, rows: list[Any], critic: bool = True) -> dict[str, Any]:
        names = {"reference_logprobs": "reference", "logprobs": "policy"} | ({"values": "critic"} if critic else {})
        return {key: self.group.measure(model, rows)[0] for key, model in names.items()}

    def steps(self, steps: list[Any]) -> None:
        self.group.steps(steps)


class Loop:
    """The same packed batches and losses; torch and nothing else."""

    def __init__(self, folder: Path):
        import torch

        from rlhf_bench.models.loading import load_model

        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
        self.models = {
            name: load_model(str(folder), kind, "float32", 0)
            for name, kind in (("policy", "causal"), ("reference", "causal"), ("critic", "scalar"))
        }
        self.models["reference"].eval().requires_grad_(False)
        self.optimizers = {
            name: torch.optim.AdamW(
                self.models[name].parameters(), lr=RATE, weight_decay=0.0, betas=(0.9, 0.95), fused=True
            )
            for name in ("policy", "critic")
        }

    def measure(self, rows: list[Any]) -> dict[str, Any]:
        import torch

        from rlhf_bench.models.packing import micro_batch, split_by_tokens

        found: dict[str, Any] = {}
        for key, name in (("reference_logprobs", "reference"), ("logprobs", "policy"), ("values", "critic")):
            by_row: list[Any] = [None] * len(rows)
            for indices in split_by_tokens(rows, 1, BUDGET)[0]:
                with torch.no_grad():
                    answer = self.models[name](micro_batch([rows[i] for i in indices]))
                numbers = answer[0] if name == "critic" else answer
                parts = iter(torch.split(numbers, [len(a) for i in indices for a in rows[i].responses]))
                for i in indices:
                    by_row[i] = tuple(next(parts).numpy() for _ in rows[i].responses)
            found[key] = by_row
        return found

    def steps(self, steps: list[Any]) -> None:
        import torch

        from rlhf_bench.models.packing import micro_batch, split_by_tokens
        from rlhf_bench.training.objective import loss_sums

        for step in steps:
            model, optimizer = self.models[step.objective.model], self.optimizers[step.objective.model]
            optimizer.zero_grad()
            for indices in split_by_tokens(step.rows, 1, BUDGET)[0]:
                batch = micro_batch([step.rows[i] for i in indices])
                loss, _ = loss_sums(step.objective, model, batch, step.settings)
                (loss / step.units).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()


def update(side: Group | Loop, rows: list[Any], rewards: list[tuple[float, ...]], epochs: int = 4) -> float:
    """One PPO update; seconds."""
    from rlhf_bench.methods import METHODS
    from rlhf_bench.training.roles import Step

    ppo = METHODS["ppo"]
    settings = ppo.settings(epochs_per_update=epochs).resolve_at(0.0, {})
    began = perf_counter()
    prepared = ppo.prepare(rows, rewards, side.measure(rows), settings, {})
    parts = ppo.minibatches(prepared.rows, settings, np.random.default_rng(0))
    side.steps([Step(o, [prepared.rows[i] for i in part], settings, RATE) for part in parts for o in ppo.objectives])
    return perf_counter() - began


def update_without_critic(side: Group, name: str, rows: list[Any], rewards: list[tuple[float, ...]]) -> float:
    """One update of that method, or of PPO with values of 0 that cost nothing; seconds."""
    from rlhf_bench.methods import METHODS
    from rlhf_bench.training.roles import Step

    method = METHODS[name]
    settings = method.settings().resolve_at(0.0, {})
    values = [tuple(np.zeros(len(a), dtype=np.float32) for a in row.responses) for row in rows]
    began = perf_counter()
    measured = side.measure(rows, critic=False) | ({"values": values} if name == "ppo" else {})
    prepared = method.prepare(rows, rewards, measured, settings, {})
    parts = [list(range(len(rows)))] * 2  # as many steps for all
    objectives = [o for o in method.objectives if o.model == "policy"]
    side.steps([Step(o, [prepared.rows[i] for i in part], settings, RATE) for part in parts for o in objectives])
    return perf_counter() - began


CRITIC_FREE = ("grpo", "rloo", "reinforce_plus_plus")


def against_ppo_without_critic() -> Measured:
    """Of the slowest; the notes have all."""
    with tempfile.TemporaryDirectory() as aside:
        side, data = Group(write_model(Path(aside), "float32")), rollouts()
        ppo = partial(update_without_critic, side, "ppo", *data)
        ppo()
        found = {
            name: interleaved(RUNS, partial(update_without_critic, side, name, *data), ppo) for name in CRITIC_FREE
        }
    ratios = {name: [a / b for a, b in zip(*both, strict=True)] for name, both in found.items()}
    slowest = max(CRITIC_FREE, key=lambda name: median(ratios[name]))
    notes = ", ".join(f"{name} {median(ratios[name]):.3f}" for name in CRITIC_FREE)
    return Measured(ratios[slowest], *found[slowest], "s", notes)


class Alone:
    """A loop in a process with the environment of a rank."""

    def __init__(self, folder: str):
        self.loop = Loop(Path(folder))

    def seconds(self, rows: list[Any], rewards: list[tuple[float, ...]]) -> float:
        return update(self.loop, rows, rewards)


def against_loop() -> Measured:
    import ray

    with tempfile.TemporaryDirectory() as aside:
        folder = write_model(Path(aside), "float32")
        ours, data = Group(folder), rollouts()
        theirs = start_actor(ray, Alone, str(folder))

        def bare() -> float:
            return ray.get(theirs.seconds.remote(*data))

        update(ours, *data), bare()
        mine, others = interleaved(RUNS, lambda: update(ours, *data), bare)
    return Measured([a / b for a, b in zip(mine, others, strict=True)], mine, others, "s")


ROWS = (
    Row("ppo", "PPO update, 4 epochs, seconds", "a bare torch loop", "at most", 1.1, against_loop),
    Row(
        "critic_free",
        "update without a critic, seconds",
        "PPO's policy alone",
        "at most",
        1.05,
        against_ppo_without_critic,
    ),
)
