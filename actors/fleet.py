"""Starting the roles where the recipe's `placement` puts them, and ending them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from actors.allocator import ALLOCATOR
from actors.evaluator import Evaluator, EvaluatorActor
from actors.learner.group import LearnerGroup
from actors.learner.rank import LearnerRank
from actors.monitoring.trace import ENABLED
from actors.reward_scorer import RewardScorer, ScorerActor
from actors.rollout.actor import RolloutActor
from actors.rollout.pool import RolloutPool
from actors.supervision.failures import Replace, failure_reason
from actors.supervision.supervisor import Supervisor
from actors.weight_sync import weight_sync
from rlhf_bench.compute.engine_time import EngineTime
from rlhf_bench.compute.resources import Bundle, bundles
from rlhf_bench.core.errors import RunFailed, StateLost
from rlhf_bench.models.flops import ModelShape
from rlhf_bench.recipe import Placement, Recipe, RolePlacement
from rlhf_bench.training.roles import Roles, WeightSync

CHECK_SECONDS = 1.0
"""How often a fleet that waits for room checks whether the run is ending."""


class NoRoom(RunFailed):
    """The cluster had none for a fleet within placement.timeout_seconds."""


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
        """After this, work that was cut short may begin again: from a checkpoint, or from its start."""
        while True:  # the supervisor bounds how often
            try:
                self.learner.rebuild(str(lost))
                break
            except StateLost as again:
                lost = again
        self.evaluator.forget()

    def stop(self) -> None:
        self.supervisor.stop()
        remove_placement_group(self.group)


@dataclass(frozen=True)
class Room:
    """What a fleet has reserved in the cluster."""

    group: PlacementGroup
    bundles: list[Bundle]
    where: dict[str, list[int]]  # role -> the bundle of each of its actors

    def share(self, role: str, number: int) -> tuple[int, Bundle]:
        """An actor's bundle, and its share of that, which it has with all actors in it."""
        bundle = self.where[role][number]
        actors = sum(bundles.count(bundle) for bundles in self.where.values())
        return bundle, {name: amount / actors for name, amount in self.bundles[bundle].items()}


def reserve(placement: Placement, scorer: bool = True, ending: threading.Event | None = None) -> Room:
    """Raises NoRoom, saying what was asked and what the cluster has: at once where the run is `ending`."""
    asked, where = bundles(placement, scorer)
    group = placement_group(asked, strategy="PACK")
    if not _placed(group, placement.timeout_seconds, ending or threading.Event()):
        remove_placement_group(group)
        raise _no_room(placement, asked, where)
    return Room(group, asked, where)


def _no_room(placement: Placement, asked: Sequence[Bundle], roles: Iterable[str]) -> NoRoom:
    pins = list(roles) if placement.pinned else []
    total, free = (
        {k: has.get(k, 0) for k in ("CPU", "GPU", *pins) if k != "GPU" or has.get(k)}
        for has in (ray.cluster_resources(), ray.available_resources())
    )
    return NoRoom(
        f"placement: no room after {placement.timeout_seconds:.0f} s: asked for {' + '.join(_shown(b) for b in asked)}; "
        f"the cluster has {_shown(total)}, of which {_shown(free)} free; make placement smaller or the cluster larger"
        + (", with nodes that offer the resource of each role's name" if pins else "")
    )


def _placed(group: PlacementGroup, seconds: float, ending: threading.Event) -> bool:
    deadline = time.monotonic() + seconds
    while not ending.is_set() and (left := deadline - time.monotonic()) > 0:
        if group.wait(min(left, CHECK_SECONDS)):
            return True
    return False


def _shown(resources: dict[str, float]) -> str:
    return ", ".join(f"{amount:g} {name}" for name, amount in resources.items())


def variables(role: RolePlacement, profile: bool) -> dict[str, str]:
    """The environment of a role's processes."""
    return {"OMP_NUM_THREADS": str(role.cpus)} | ({} if role.gpus else ALLOCATOR) | ({ENABLED: "1"} if profile else {})


@dataclass(frozen=True)
class ActorStarter:
    """Starts the actors of roles where the fleet has room for them, under its supervisor."""

    room: Room
    supervisor: Supervisor
    roles: dict[str, RolePlacement]
    profile: bool

    def start(self, cls: type, role: str, number: int, *args: Any) -> Any:
        bundle, share = self.room.share(role, number)
        settings = self.roles[role]
        place = PlacementGroupSchedulingStrategy(self.room.group, placement_group_bundle_index=bundle)
        remote = ray.remote(cls).options(
            num_cpus=share["CPU"], num_gpus=share.get("GPU", 0) if settings.gpus else 0, scheduling_strategy=place,
            name=None, runtime_env={"env_vars": variables(settings, self.profile)},
        )  # fmt: skip
        return self.supervisor.start(f"{role} {number}", lambda: remote.remote(*args))

    def start_all(self, cls: type, role: str, *args: Any) -> list[Any]:
        """All actors of a role, alike."""
        return [self.start(cls, role, i, *args) for i in range(self.roles[role].actors)]

    def replace(self, role: str) -> Replace:
        def one(number: int, error: Exception) -> Any:
            (actor,) = self.supervisor.replace(failure_reason(error), f"{role} {number}")
            return actor

        return one


def start_fleet(
    recipe: Recipe,
    model_path: str,
    shape: ModelShape,
    end_ids: frozenset[int],
    scorer: bool,
    engine_time: EngineTime,
    say: Callable[[str], None],
    profile: bool = False,
    ending: threading.Event | None = None,
) -> Fleet:
    """Start every role at once, which takes no time once there is room for them: `Fleet.join` waits for the learner, and
    calls wait for a role that is still starting."""
    placement, dtype, length = recipe.placement, recipe.model.dtype, recipe.model.max_length
    room = engine_time.during("starting", reserve, placement, scorer, ending)
    supervisor = Supervisor(recipe.reliability, room.group, placement.timeout_seconds, say)
    starter = ActorStarter(room, supervisor, placement.roles(scorer), profile)
    learner = _start_learner(recipe, starter, engine_time)
    engines = starter.start_all(
        RolloutActor, "rollout", model_path, placement.rollout, length, dtype, placement.weight_sync
    )
    (evaluator,) = starter.start_all(EvaluatorActor, "evaluator", model_path, placement.evaluator, length, dtype)
    sync = weight_sync(placement.weight_sync, learner, engines, starter.replace("rollout"))
    tokens_per_chunk = recipe.compute.tokens_per_micro_batch * placement.learner.actors
    return Fleet(
        pool=RolloutPool(engines, placement.rollout, shape, end_ids, tokens_per_chunk, engine_time, sync.bring_up),
        scorer=_start_scorer(recipe, starter, engine_time) if scorer else None,
        learner=learner,
        evaluator=Evaluator(evaluator, engine_time, starter.replace("evaluator")),
        sync=sync,
        group=room.group,
        supervisor=supervisor,
    )


def _start_learner(recipe: Recipe, starter: ActorStarter, engine_time: EngineTime) -> LearnerGroup:
    settings = recipe.placement.learner
    common = (settings.cpus, settings.gpus, settings.zero_stage, recipe.model.dtype, recipe.model.lora)
    ranks = [starter.start(LearnerRank, "learner", i, i, settings.actors, *common) for i in range(settings.actors)]
    names = [f"learner {i}" for i in range(settings.actors)]
    return LearnerGroup(
        ranks, settings.cpus, settings.gpus, recipe.compute.tokens_per_micro_batch, engine_time,
        restart=lambda cause: starter.supervisor.replace(cause, *names),
    )  # fmt: skip


def _start_scorer(recipe: Recipe, starter: ActorStarter, engine_time: EngineTime) -> RewardScorer:
    settings = recipe.placement.scorer
    actors = starter.start_all(ScorerActor, "scorer", settings.cpus, settings.gpus)
    return RewardScorer(
        actors, settings.cpus, settings.gpus, recipe.compute.tokens_per_micro_batch, engine_time,
        starter.replace("scorer"),
    )  # fmt: skip
