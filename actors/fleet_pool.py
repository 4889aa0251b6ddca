"""The fleets of one run: the run waits for the first one, others start beside it and join in once they are up."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from actors.fleet import Fleet, NoRoom, start_fleet
from actors.held_out import HeldOut
from actors.monitoring import ray_metrics
from rlhf_bench.compute.engine_time import EngineTime
from rlhf_bench.core.errors import RunFailed
from rlhf_bench.core.types import Prompt
from rlhf_bench.experiment.scheduler import Worker
from rlhf_bench.recipe import Recipe
from rlhf_bench.training.inputs import Inputs, StartingPoint
from rlhf_bench.training.judging import Judge

Start = Callable[[int, threading.Event], Fleet]
"""A fleet's number, counted from 1, and an event that is set once the run is ending -> that fleet, whose actors are starting."""


@dataclass(frozen=True)
class FleetStarter:
    """A `Start` for the fleets of a recipe."""

    recipe: Recipe
    inputs: Inputs
    scorer: bool  # whether any arm needs a reward model
    numbered: bool  # whether warnings name the fleet
    profile: bool
    warn: Callable[[str], None]
    on_loads: Callable[[Mapping[str, Mapping[str, float]]], None]  # how busy each machine is, by host name

    def __call__(self, number: int, ending: threading.Event) -> Fleet:
        def say(line: str) -> None:
            self.warn(f"fleet {number}: {line}" if self.numbered else line)

        fleet = start_fleet(
            self.recipe, str(self.inputs.model), self.inputs.shape, self.inputs.codec.end_ids, scorer=self.scorer,
            engine_time=EngineTime(), say=say, profile=self.profile, ending=ending,
        )  # fmt: skip
        fleet.supervisor.on_loads = self.on_loads
        return fleet


class FleetPool:
    """Handles on all fleets. Whatever happens, `stop` ends them all."""

    def __init__(self, start: Start, say: Callable[[str], None]):
        self.start, self.say = start, say
        self.fleets: dict[int, Fleet] = {}
        self._changing = threading.Lock()
        self._ending = threading.Event()
        self._starters: list[ThreadPoolExecutor] = []

    def first(self) -> Fleet:
        return self._up(1)

    def others(self, count: int) -> list[Future[Fleet | None]]:
        """Begin to start so many more, without waiting for them. None for each that finds no room in time, which is said."""
        if count < 1:
            return []
        starter = ThreadPoolExecutor(count, "fleet")
        self._starters.append(starter)
        return [starter.submit(self._up_if_room, number) for number in range(2, 2 + count)]

    def stop(self) -> None:
        """For good: a thread that waits for an engine, or for a fleet, is woken by an error."""
        self._ending.set()
        with self._changing:
            fleets, self.fleets = list(self.fleets.values()), {}
        for fleet in fleets:
            fleet.stop()
        for starter in self._starters:
            starter.shutdown()

    def _up_if_room(self, number: int) -> Fleet | None:
        try:
            return self._up(number)
        except NoRoom as none:
            if not self._ending.is_set():
                self.say(f"fleet {number}: {none}; the run continues with the fleets that are there")
            return None

    def _up(self, number: int) -> Fleet:
        fleet = self.start(number, self._ending)
        with self._changing:
            ending = self._ending.is_set()
            if not ending:
                self.fleets[number] = fleet
        if ending:
            fleet.stop()
            raise RunFailed(f"fleet {number}: not started, since the run is ending")
        fleet.join()
        return fleet


def worker_of(fleet: Fleet, recipe: Recipe, inputs: Inputs) -> Worker:
    """The fleet as the scheduler sees it."""
    begin_evaluation = functools.partial(_begin_evaluation, fleet, recipe, inputs)
    return Worker(fleet.roles, begin_evaluation, ray_metrics.begin_arm, fleet.recover)


def later_worker(starting: Future[Fleet | None], recipe: Recipe, inputs: Inputs) -> Worker | None:
    """Wait for a fleet of `FleetPool.others`."""
    fleet = starting.result()
    return None if fleet is None else worker_of(fleet, recipe, inputs)


def _begin_evaluation(
    fleet: Fleet, recipe: Recipe, inputs: Inputs, start: StartingPoint, tuning: bool, charged: bool
) -> Sequence[str]:
    """Tell the evaluator what to evaluate on: everything, or for tuning trials their own prompts and nothing else."""
    main = recipe.evaluation.splits[0]
    prompts: Mapping[str, Sequence[Prompt]] = {main: inputs.tuning} if tuning else inputs.held_out
    judge = Judge(inputs.task, inputs.codec)
    held_out = HeldOut(
        prompts=prompts, right=inputs.right_responses(prompts) if recipe.evaluation.expected_score else {},
        pairs={} if tuning else start.held_out_pairs, training=start.pairs,
        settings=recipe.trial_evaluation() if tuning else recipe.evaluation,
        max_response_tokens=recipe.data.max_response_tokens, tokens_per_micro_batch=recipe.compute.tokens_per_micro_batch,
        end_ids=inputs.codec.end_ids, judge=judge.of, settle=judge.settle, decode=inputs.codec.decode,
        own_pairs={} if tuning else start.own_pairs, reward_models={} if tuning else start.reward_models,
    )  # fmt: skip
    return fleet.evaluator.begin(held_out, str(start.base), charged)
