"""The driver's handle on all ranks of the learner: rows in, numbers and costs out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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
from rlhf_bench.methods.base import Method, PerResponse, SideGradients
from rlhf_bench.models.flops import ModelShape, forward_flops, side_gradients_flops, training_flops
from rlhf_bench.models.packing import layout_of, split_by_tokens
from rlhf_bench.training.roles import Means, Measures, Step

PEER_SECONDS = 15.0
"""So long a rank may take to answer after another one has failed."""


class LearnerGroup:
    """The driver's handle on all ranks. Rows in, numbers and costs out."""

    def __init__(
        self,
        actors: Sequence[Any],
        cpus: int,
        gpus: int,
        tokens_per_micro_batch: int,
        engine_time: EngineTime,
        restart: Callable[[str], list[Any]] | None = None,
    ):
        self.engine_time, self.restart = engine_time, restart
        self.ranks = list(actors)
        self.devices = len(actors) * (gpus or cpus)
        self.tokens_per_micro_batch = tokens_per_micro_batch
        self.shapes: dict[ModelName, ModelShape] = {}
        self.first_step_began: float | None = None

    def join(self) -> None:
        ((address, port),) = self._get("starting", [self.ranks[0].open_store.remote()])
        self._get("starting", [r.join.remote(address, port) for r in self.ranks])

    def rebuild(self, cause: str) -> None:
        """All ranks anew, for one that is lost: they hold collectives. Their models are gone with them."""
        assert self.restart is not None, "a group that nobody keeps cannot be rebuilt"
        self.ranks = self.restart(cause)
        self.shapes.clear()
        self.join()

    def load(
        self, name: ModelName, path: Path, seed: int = 0, learning_rate: float | None = None, max_grad_norm: float = 1.0
    ) -> None:
        asked = [r.load.remote(name, str(path), seed, learning_rate, max_grad_norm) for r in self.ranks]
        shapes = self._get("loading", asked)
        self.shapes[name] = shapes[0]

    def measure(self, name: ModelName, rows: Sequence[Row], temperature: float = 1.0) -> Measures:
        """Hand rows in, and wait."""
        return self.begin_measure(name, rows, temperature).result()

    def begin_measure(self, name: ModelName, rows: Sequence[Row], temperature: float = 1.0) -> RemoteCall[Measures]:
        """Hand rows in for a forward pass, and go on."""
        plan, idle = self._plan(rows)
        cost, count = self._measure_cost(name, rows, plan), len(rows)

        def finish(found: list[dict[int, PerResponse]], seconds: list[float]) -> Measures:
            by_row = {i: numbers for part in found for i, numbers in part.items()}
            return [by_row[i] for i in range(count)], cost + Cost(device_seconds=max(seconds) * self.devices)

        with self.engine_time.busy("measuring"):
            ref = ray.put(list(rows))
            refs = [
                r.measure.remote(name, ref, p, i, temperature) for r, p, i in zip(self.ranks, plan, idle, strict=True)
            ]
        return RemoteCall("measuring", "learner", refs, finish, self.engine_time, self._lost)

    def measure_cost(self, name: ModelName, rows: Sequence[Row]) -> Cost:
        """What that would cost, but for seconds."""
        return self._measure_cost(name, rows, self._plan(rows)[0])

    def _measure_cost(self, name: ModelName, rows: Sequence[Row], plan: list[list[list[int]]]) -> Cost:
        flops = self._planned_flops(name, rows, plan, forward_flops)
        return Cost(flops=flops, scored_tokens=sum(r.response_tokens for r in rows))

    def steps(self, work: Sequence[Step], temperature: float = 1.0) -> Means:
        """Hand in optimizer steps, and wait."""
        return self.begin_steps(work, temperature).result()

    def begin_steps(self, work: Sequence[Step], temperature: float = 1.0) -> RemoteCall[Means]:
        """Hand in optimizer steps, to be taken one after another in one call to the ranks, and go on."""
        planned = [self._plan(step.rows) for step in work]
        units = [step.units for step in work]
        cost = sum((self._step_cost(step, plan) for step, (plan, _) in zip(work, planned, strict=True)), Cost())

        def finish(found: list[list[dict[str, float]]], seconds: list[float]) -> Means:
            count_tokens("learner", cost.trained_tokens)
            means = [_mean(sums, n) for n, *sums in zip(units, *found, strict=True)]
            return means, cost + Cost(device_seconds=max(seconds) * self.devices)

        self.first_step_began = self.first_step_began or perf_counter()
        with self.engine_time.busy("learning"):
            ref = ray.put(list(work))
            refs = [
                r.steps.remote(ref, [p[rank] for p, _ in planned], [i[rank] for _, i in planned], units, temperature)
                for rank, r in enumerate(self.ranks)
            ]
        return RemoteCall("learning", "learner", refs, finish, self.engine_time, self._lost)

    def steps_cost(self, work: Sequence[Step]) -> Cost:
        """What these steps will cost, but for seconds: known before they are taken."""
        return sum((self._step_cost(step, self._plan(step.rows)[0]) for step in work), Cost())

    def _step_cost(self, step: Step, plan: list[list[list[int]]]) -> Cost:
        flops = self._planned_flops(step.objective.model, step.rows, plan, training_flops)
        return Cost(flops=flops, trained_tokens=sum(r.response_tokens for r in step.rows))

    def side_gradients(
        self, method: Method, rows: Sequence[Row], settings: Any, temperature: float = 1.0
    ) -> tuple[SideGradients, Cost]:
        """Both sides' mean gradients under the method's `pair_weight`: norms and product, and what it cost."""
        plan, _ = self._plan(rows)
        cost, pairs = self.side_gradients_cost(rows), len(rows)

        def finish(found: list[list[float]], seconds: list[float]) -> tuple[SideGradients, Cost]:
            chosen, rejected, dot = found[0]
            sides = SideGradients(chosen**0.5 / pairs, rejected**0.5 / pairs, dot / pairs**2)
            return sides, cost + Cost(device_seconds=max(seconds) * self.devices)

        with self.engine_time.busy("measuring"):
            ref = ray.put(list(rows))
            refs = [
                r.side_gradients.remote(method.pair_weight, ref, p, settings, temperature)
                for r, p in zip(self.ranks, plan, strict=True)
            ]
        return RemoteCall("measuring", "learner", refs, finish, self.engine_time, self._lost).result()

    def side_gradients_cost(self, rows: Sequence[Row]) -> Cost:
        """One forward and two backward passes; known before they are made, but for seconds."""
        plan, _ = self._plan(rows)
        flops = self._planned_flops("policy", rows, plan, side_gradients_flops)
        return Cost(flops=flops, scored_tokens=sum(r.response_tokens for r in rows))

    def weights(self, name: ModelName) -> ray.ObjectRef:
        """The full weights, as one object in Ray's store."""
        refs = [r.weights.options(num_returns=2).remote(name) for r in self.ranks]
        self._get("sync", [done for _, done in refs])
        return refs[0][0]

    def save(self, name: ModelName, path: Path) -> None:
        self._get("loading", [r.save.remote(name, str(path)) for r in self.ranks])

    def save_state(self, folder: str) -> dict[str, str]:
        """What training goes on from, written into `folder`, a path or URI: names of files and their SHA-256."""
        sums = self._get("saving", [r.save_state.remote(folder) for r in self.ranks])
        return {name: digest for own in sums for name, digest in own.items()}

    def load_state(self, folder: str, files: Sequence[str]) -> None:
        """Go on from there, with models that `load` has placed: on as many ranks as there are now."""
        self._get("loading", [r.load_state.remote(folder, list(files)) for r in self.ranks])

    def free(self, name: ModelName) -> None:
        """No effect where there is none."""
        self._get("loading", [r.free.remote(name) for r in self.ranks])
        self.shapes.pop(name, None)

    def _get(self, activity: Activity, refs: Sequence[ray.ObjectRef]) -> list[Any]:
        return self.engine_time.during(activity, gather, refs, self._lost)

    def _lost(self, rank: int, error: Exception) -> ray.ObjectRef:
        """What a rank held cannot be handed to another: `StateLost`. An error of its own may come of a peer's end, which shows
        a little later."""
        if self.restart is None:
            raise error
        try:
            cause = failure_reason(error)
        except Exception:
            if len(self.ranks) == 1 or self._all_live():
                raise
            cause = f"has lost a rank beside it ({' '.join(str(error).split())[:200]})"
        raise StateLost(f"rank {rank} {cause}" if len(self.ranks) > 1 else cause) from error

    def _all_live(self) -> bool:
        pings = [r.ping.remote() for r in self.ranks]
        try:
            ray.get(pings, timeout=PEER_SECONDS)
        except (ray.exceptions.RayActorError, ray.exceptions.GetTimeoutError):
            return False
        return True

    def _plan(self, rows: Sequence[Row]) -> tuple[list[list[list[int]]], list[int]]:
        if not rows:
            raise RunFailed("the learner was handed no rows: there was nothing to learn from in this update")
        plan = split_by_tokens(rows, len(self.ranks), self.tokens_per_micro_batch)
        longest = max(len(p) for p in plan)
        return plan, [longest - len(p) for p in plan]  # every rank must take part in every collective

    def _planned_flops(self, name: ModelName, rows: Sequence[Row], plan: list[list[list[int]]], formula: Any) -> float:
        shape, scalar = self.shapes[name], MODEL_HEAD[name] == "scalar"
        total = 0.0
        for indices in (part for rank in plan for part in rank):
            part = [rows[i] for i in indices]
            heads = sum(r.response_tokens + (len(r.responses) if scalar else 0) for r in part)
            total += formula(shape, layout_of(part), heads)
        return total


def _mean(by_rank: Sequence[Mapping[str, float]], units: int) -> dict[str, float]:
    """Sums over each rank's share of the units -> means over all units; what is known of the step is every rank's."""
    means = {key: sum(sums[key] for sums in by_rank) / units for key in by_rank[0]}
    return means | {key: by_rank[0][key] for key in ("grad_norm", "skipped")}
