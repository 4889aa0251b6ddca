"""The driver's handle on all ranks of the learner: rows in, numbers and costs out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import ray

from actors.learner.deepspeed_engine import MODEL_HEAD, ModelName
from actors.monitoring.ray_metrics import count_tokens
from actors.supervision.failures import failure_reason
from actors.supervision.remote_call import RemoteCall, gather
from rlhf_bench.compute.engine_time import Activity, EngineTime
from rlhf_bench.core.costs import Cost
from rlhf_bench.core.errors import RunFailed, StateLost
from rlhf_bench.core.types import Row
from rlhf_bench.methods.base import STAGE_ADAM, Adam, Method, PerResponse, SideGradients
from rlhf_bench.models.flops import ModelShape, forward_flops, side_gradients_flops, training_flops
from rlhf_bench.models.packing import layout_of, split_by_tokens
from rlhf_bench.training.roles import Means, Measures, Step

PEER_SECONDS = 15.0
"""How long a rank may take to answer after another one has failed."""


@dataclass(frozen=True)
class Plan:
    """Which rows go to which rank: row indices by micro-batch, for each rank."""

    shares: list[list[list[int]]]

    @property
    def idle(self) -> list[int]:
        """By how many micro-batches each rank has fewer than the rank with the most: it must take part in every collective."""
        most = max(map(len, self.shares))
        return [most - len(share) for share in self.shares]


class LearnerGroup:
    """Rows in, numbers and costs out."""

    def __init__(
        self,
        actors: Sequence[Any],
        cpus: int,
        gpus: int,
        tokens_per_micro_batch: int,
        engine_time: EngineTime,
        restart: Callable[[str], list[Any]] | None = None,
    ):
        """`cpus` and `gpus` of each rank. `restart` starts all ranks anew, and is told why."""
        self.engine_time, self.restart = engine_time, restart
        self.ranks = list(actors)
        self.devices = len(actors) * (gpus or cpus)
        self.tokens_per_micro_batch = tokens_per_micro_batch
        self.shapes: dict[ModelName, ModelShape] = {}
        self.first_step_began: float | None = None

    def join(self) -> None:
        """Wait until all ranks have found each other."""
        ((address, port),) = self._get("starting", [self.ranks[0].open_store.remote()])
        self._get("starting", [r.join.remote(address, port) for r in self.ranks])

    def rebuild(self, cause: str) -> None:
        """Start all ranks anew where one is lost, since they hold collectives. Their models are lost with them."""
        assert self.restart is not None, "a group without a supervisor cannot be rebuilt"
        self.ranks = self.restart(cause)
        self.shapes.clear()
        self.join()

    def load(
        self,
        name: ModelName,
        path: Path,
        seed: int = 0,
        learning_rate: float | None = None,
        max_grad_norm: float = 1.0,
        adam: Adam = STAGE_ADAM,
    ) -> None:
        asked = [r.load.remote(name, str(path), seed, learning_rate, max_grad_norm, adam) for r in self.ranks]
        self.shapes[name], *_ = self._get("loading", asked)

    def measure(self, name: ModelName, rows: Sequence[Row], temperature: float = 1.0) -> Measures:
        """Hand rows in, and wait."""
        return self.begin_measure(name, rows, temperature).result()

    def begin_measure(self, name: ModelName, rows: Sequence[Row], temperature: float = 1.0) -> RemoteCall[Measures]:
        """Hand rows in for a forward pass, without waiting for it."""
        plan = self._plan(rows)
        cost, count = self._measure_cost(name, rows, plan), len(rows)

        def finish(found: list[dict[int, PerResponse]], seconds: list[float]) -> Measures:
            by_row = {i: numbers for share in found for i, numbers in share.items()}
            return [by_row[i] for i in range(count)], cost + self._time(seconds)

        with self.engine_time.busy("measuring"):
            ref = ray.put(list(rows))
            refs = [
                r.measure.remote(name, ref, share, idle, temperature)
                for r, share, idle in zip(self.ranks, plan.shares, plan.idle, strict=True)
            ]
        return RemoteCall("measuring", "learner", refs, finish, self.engine_time, self._lost)

    def measure_cost(self, name: ModelName, rows: Sequence[Row]) -> Cost:
        """What that would cost, without seconds."""
        return self._measure_cost(name, rows, self._plan(rows))

    def _measure_cost(self, name: ModelName, rows: Sequence[Row], plan: Plan) -> Cost:
        flops = self._planned_flops(name, rows, plan, forward_flops)
        return Cost(flops=flops, scored_tokens=sum(r.response_tokens for r in rows))

    def steps(self, work: Sequence[Step], temperature: float = 1.0) -> Means:
        """Hand in optimizer steps, and wait."""
        return self.begin_steps(work, temperature).result()

    def begin_steps(self, work: Sequence[Step], temperature: float = 1.0) -> RemoteCall[Means]:
        """Hand in optimizer steps, to be taken one after another in one call to the ranks, without waiting for them."""
        plans = [self._plan(step.rows) for step in work]
        units = [step.units for step in work]
        cost = sum((self._step_cost(step, plan) for step, plan in zip(work, plans, strict=True)), Cost())

        def finish(found: list[list[dict[str, float]]], seconds: list[float]) -> Means:
            count_tokens("learner", cost.trained_tokens)
            means = [_mean(sums, n) for n, *sums in zip(units, *found, strict=True)]
            return means, cost + self._time(seconds)

        self.first_step_began = self.first_step_began or perf_counter()
        with self.engine_time.busy("learning"):
            ref = ray.put(list(work))
            refs = [
                r.steps.remote(ref, [p.shares[i] for p in plans], [p.idle[i] for p in plans], units, temperature)
                for i, r in enumerate(self.ranks)
            ]
        return RemoteCall("learning", "learner", refs, finish, self.engine_time, self._lost)

    def steps_cost(self, work: Sequence[Step]) -> Cost:
        """What these steps will cost, without seconds: known before they are taken."""
        return sum((self._step_cost(step, self._plan(step.rows)) for step in work), Cost())

    def _step_cost(self, step: Step, plan: Plan) -> Cost:
        flops = self._planned_flops(step.objective.model, step.rows, plan, training_flops)
        return Cost(flops=flops, trained_tokens=sum(r.response_tokens for r in step.rows))

    def side_gradients(
        self, method: Method, rows: Sequence[Row], settings: Any, temperature: float = 1.0
    ) -> tuple[SideGradients, Cost]:
        """Both sides' mean gradients under the method's `pair_weight`: norms and product, and what it cost."""
        plan, cost, pairs = self._plan(rows), self.side_gradients_cost(rows), len(rows)

        def finish(found: list[list[float]], seconds: list[float]) -> tuple[SideGradients, Cost]:
            chosen, rejected, dot = found[0]
            sides = SideGradients(chosen**0.5 / pairs, rejected**0.5 / pairs, dot / pairs**2)
            return sides, cost + self._time(seconds)

        with self.engine_time.busy("measuring"):
            ref = ray.put(list(rows))
            refs = [
                r.side_gradients.remote(method.pair_weight, ref, share, settings, temperature)
                for r, share in zip(self.ranks, plan.shares, strict=True)
            ]
        return RemoteCall("measuring", "learner", refs, finish, self.engine_time, self._lost).result()

    def side_gradients_cost(self, rows: Sequence[Row]) -> Cost:
        """One forward and two backward passes, without seconds: known before they are made."""
        flops = self._planned_flops("policy", rows, self._plan(rows), side_gradients_flops)
        return Cost(flops=flops, scored_tokens=sum(r.response_tokens for r in rows))

    def weights(self, name: ModelName) -> ray.ObjectRef:
        """The full weights, as one object in Ray's store."""
        refs = [r.weights.options(num_returns=2).remote(name) for r in self.ranks]
        self._get("sync", [done for _, done in refs])
        return refs[0][0]

    def checksums(self, name: ModelName) -> dict[str, int]:
        """Of every tensor of the full weights, by name."""
        return self._get("sync", [r.checksums.remote(name) for r in self.ranks])[0]

    def save(self, name: ModelName, path: Path) -> None:
        """Write a Hugging Face folder."""
        self._get("loading", [r.save.remote(name, str(path)) for r in self.ranks])

    def save_state(self, folder: str) -> dict[str, str]:
        """Write what training resumes from into `folder`, a path or URI: names of files and their SHA-256."""
        sums = self._get("saving", [r.save_state.remote(folder) for r in self.ranks])
        return {name: digest for own in sums for name, digest in own.items()}

    def load_state(self, folder: str, files: Sequence[str]) -> None:
        """Resume from there, with models that `load` has placed: on as many ranks as there are now."""
        self._get("loading", [r.load_state.remote(folder, list(files)) for r in self.ranks])

    def free(self, name: ModelName) -> None:
        """No effect where there is no such model."""
        self._get("loading", [r.free.remote(name) for r in self.ranks])
        self.shapes.pop(name, None)

    def _get(self, activity: Activity, refs: Sequence[ray.ObjectRef]) -> list[Any]:
        return self.engine_time.during(activity, gather, refs, self._lost)

    def _lost(self, rank: int, error: Exception) -> ray.ObjectRef:
        """Raises `StateLost` for a lost rank: another one in its place would not have its models. The error of a rank may also
        come from the loss of another one, which shows a little later."""
        if self.restart is None:
            raise error
        try:
            cause = failure_reason(error)
        except Exception:
            if len(self.ranks) == 1 or self._all_alive():
                raise
            cause = f"has lost a rank beside it ({' '.join(str(error).split())[:200]})"
        raise StateLost(f"rank {rank} {cause}" if len(self.ranks) > 1 else cause) from error

    def _all_alive(self) -> bool:
        pings = [r.ping.remote() for r in self.ranks]
        try:
            ray.get(pings, timeout=PEER_SECONDS)
        except (ray.exceptions.RayActorError, ray.exceptions.GetTimeoutError):
            return False
        return True

    def _plan(self, rows: Sequence[Row]) -> Plan:
        if not rows:
            raise RunFailed("the learner was handed no rows: there was nothing to learn from in this update")
        return Plan(split_by_tokens(rows, len(self.ranks), self.tokens_per_micro_batch))

    def _time(self, seconds: Sequence[float]) -> Cost:
        """Of a call to all ranks, which lasts as long as the slowest."""
        return Cost(device_seconds=max(seconds) * self.devices)

    def _planned_flops(self, name: ModelName, rows: Sequence[Row], plan: Plan, formula: Callable[..., float]) -> float:
        shape, scalar = self.shapes[name], MODEL_HEAD[name] == "scalar"
        total = 0.0
        for indices in (batch for share in plan.shares for batch in share):
            batch = [rows[i] for i in indices]
            heads = sum(r.response_tokens + (len(r.responses) if scalar else 0) for r in batch)
            total += formula(shape, layout_of(batch), heads)
        return total


def _mean(by_rank: Sequence[Mapping[str, float]], units: int) -> dict[str, float]:
    """Sums over each rank's share of the units -> means over all units; `grad_norm` and `skipped` are the same on all ranks."""
    means = {key: sum(sums[key] for sums in by_rank) / units for key in by_rank[0]}
    return means | {key: by_rank[0][key] for key in ("grad_norm", "skipped")}
