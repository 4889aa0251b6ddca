"""Starting the roles where the recipe's `placement` puts them, and ending them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from actors.evaluator import Evaluator, EvaluatorActor
from actors.learner.group import LearnerGroup
from actors.learner.rank import LearnerRank
from actors.monitoring.trace import ENABLED
from actors.reward_scorer import RewardScorer, ScorerActor
from actors.rollout.actor import RolloutActor
from actors.rollout.pool import RolloutPool
from actors.supervision.failures import Replace, failure_reason
from actors.supervision.supervisor import Supervisor
from actors.weight_sync import WeightSync, weight_sync
from rlhf_bench.compute.engine_time import EngineTime
from rlhf_bench.compute.resources import Bundle, bundles
from rlhf_bench.core.errors import RunFailed, StateLost
from rlhf_bench.models.flops import ModelShape
from rlhf_bench.recipe import Placement, Recipe, RolePlacement
from rlhf_bench.training.roles import Roles

ALLOCATOR = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**40), "MALLOC_TOP_PAD_": str(64 * 2**20)}
"""Of roles on CPUs: glibc keeps what a tensor frees for the next one. By default it hands large ones back to the system
each time, and a step takes half as long again while their pages are zeroed anew (docs/benchmarks.md)."""
LOOK_SECONDS = 1.0
"""Between two looks whether the run is ending, while a fleet waits for room."""


class NoRoom(RunFailed):
    """The cluster had none for a fleet, for as long as that may take."""


@dataclass
class Fleet:
    """Handles on all roles. They live until `stop`, across arms and seeds."""

    pool: RolloutPool
    scorer: RewardScorer | None
    learner: LearnerGroup
    evaluator: Evaluator
    sync: WeightSync
    group: PlacementGroup
    supervisor: Supervisor

    @property
    def roles(self) -> Roles:
        return Roles(self.pool, self.scorer, self.learner, self.evaluator, self.sync, self.learner.engine_time)

    def join(self) -> None:
        """Wait for the learner's ranks to have found each other: before the first call."""
        try:
            self.learner.join()
        except StateLost as lost:
            self.recover(lost)

    @property
    def actors(self) -> dict[str, Any]:
        """By name: "learner 0" and so on."""
        return self.supervisor.actors

    def recover(self, lost: StateLost) -> None:
        """After this whatever was under way may begin again: from a checkpoint, or from its start."""
        while True:  # bounded by the crew
            try:
                self.learner.rebuild(str(lost))
                break
            except StateLost as again:
                lost = again
        self.evaluator.forget()

    def stop(self) -> None:
        self.supervisor.stop()
        remove_placement_group(self.group)


def reserve(
    placement: Placement, scorer: bool = True, ending: threading.Event | None = None
) -> tuple[PlacementGroup, list[Bundle], dict[str, list[int]]]:
    """A placement group, or NoRoom saying what was asked and what the cluster has: at once where the run is `ending`."""
    asked, where = bundles(placement, scorer)
    group = placement_group(asked, strategy="PACK")
    if not _placed(group, placement.timeout_seconds, ending or threading.Event()):
        remove_placement_group(group)
        pins = list(where) if placement.pinned else []
        total, free = (
            {k: has.get(k, 0) for k in ("CPU", "GPU", *pins) if k != "GPU" or has.get(k)}
            for has in (ray.cluster_resources(), ray.available_resources())
        )
        raise NoRoom(
            f"placement: no room after {placement.timeout_seconds:.0f} s: asked for {' + '.join(_shown(b) for b in asked)}; "
            f"the cluster has {_shown(total)}, of which {_shown(free)} free; make placement smaller or the cluster larger"
            + (", with nodes that offer the resource of each role's name" if pins else "")
        )
    return group, asked, where


def _placed(group: PlacementGroup, seconds: float, ending: threading.Event) -> bool:
    deadline = time.monotonic() + seconds
    while not ending.is_set() and (left := deadline - time.monotonic()) > 0:
        if group.wait(min(left, LOOK_SECONDS)):
            return True
    return False


def _shown(resources: dict[str, float]) -> str:
    return ", ".join(f"{amount:g} {name}" for name, amount in resources.items())


def variables(role: RolePlacement, profile: bool) -> dict[str, str]:
    """The environment of a role's processes."""
    return {"OMP_NUM_THREADS": str(role.cpus)} | ({} if role.gpus else ALLOCATOR) | ({ENABLED: "1"} if profile else {})


def start_fleet(
    recipe: Recipe,
    model_path: str,
    shape: ModelShape,
    eos_id: int,
    scorer: bool,
    engine_time: EngineTime,
    say: Callable[[str], None],
    profile: bool = False,
    ending: threading.Event | None = None,
) -> Fleet:
    """Start every role at once, which takes no time once there is room for them: `Fleet.join` waits for the learner, and
    calls wait for a role that is still starting."""
    placement, dtype, length = recipe.placement, recipe.model.dtype, recipe.model.max_length
    group, asked, where = engine_time.during("starting", reserve, placement, scorer, ending)
    supervisor = Supervisor(recipe.reliability, group, placement.timeout_seconds, say)
    sharing = [sum(name_where.count(i) for name_where in where.values()) for i in range(len(asked))]

    def start(cls: type, role: str, i: int, *args: Any) -> Any:
        bundle = where[role][i]
        share = {key.lower(): amount / sharing[bundle] for key, amount in asked[bundle].items()}
        place = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=bundle)
        remote = ray.remote(cls).options(
            num_cpus=share["cpu"], num_gpus=share.get("gpu", 0) if placement.roles(scorer)[role].gpus else 0,
            scheduling_strategy=place, name=None,
            runtime_env={"env_vars": variables(placement.roles(scorer)[role], profile)},
        )  # fmt: skip
        return supervisor.start(f"{role} {i}", lambda: remote.remote(*args))

    def replace(role: str) -> Replace:
        def one(i: int, error: Exception) -> Any:
            (actor,) = supervisor.replace(failure_reason(error), f"{role} {i}")
            return actor

        return one

    learner, rollout, evaluator = placement.learner, placement.rollout, placement.evaluator
    each = (learner.actors, learner.cpus, learner.gpus, learner.zero_stage, dtype, recipe.model.lora)
    ranks = [start(LearnerRank, "learner", i, i, *each) for i in range(learner.actors)]
    engines = [
        start(RolloutActor, "rollout", i, model_path, rollout, length, dtype, placement.weight_sync)
        for i in range(rollout.actors)
    ]
    looker = start(EvaluatorActor, "evaluator", 0, model_path, evaluator, length, dtype)
    scorers = (
        [
            start(ScorerActor, "scorer", i, placement.scorer.cpus, placement.scorer.gpus)
            for i in range(placement.scorer.actors)
        ]
        if scorer
        else []
    )
    budget = recipe.compute.tokens_per_micro_batch
    names = [f"learner {i}" for i in range(learner.actors)]
    group_handle = LearnerGroup(
        ranks, learner.cpus, learner.gpus, budget, engine_time, lambda cause: supervisor.replace(cause, *names)
    )
    sync = weight_sync(placement.weight_sync, group_handle, engines, replace("rollout"))
    return Fleet(
        pool=RolloutPool(engines, rollout, shape, eos_id, budget * learner.actors, engine_time, sync.bring_up),
        scorer=RewardScorer(
            scorers, placement.scorer.cpus, placement.scorer.gpus, budget, engine_time, replace("scorer")
        )
        if scorer
        else None,
        learner=group_handle,
        evaluator=Evaluator(looker, engine_time, replace("evaluator")),
        sync=sync,
        group=group,
        supervisor=supervisor,
    )
