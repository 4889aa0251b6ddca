"""The whole experiment, top to bottom: start (base, pairs, reward model) → arms × seeds → report."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, TypeVar

from rlhf_bench.checkpoints import Checkpoints
from rlhf_bench.ledger import Cost, Ledger, Phase
from rlhf_bench.loop import BASE_LOOK, ArmRun, Data, Look, Progress
from rlhf_bench.material import Cache, Material
from rlhf_bench.methods import METHODS
from rlhf_bench.methods.base import MethodSettings, uses_reward_model
from rlhf_bench.recipe import Recipe
from rlhf_bench.records import (
    METRIC_KEYS,
    PAIR_KEYS,
    SAMPLE_KEYS,
    TABLES,
    Part,
    copy_checkpoint,
    merge_parts,
    pair_rows,
    sample_rows,
    table,
    write_json,
    write_trouble,
)
from rlhf_bench.resume import StartSamples
from rlhf_bench.roles import Roles, StateLost
from rlhf_bench.signals import Grace, grace
from rlhf_bench.sources import DrawnBefore
from rlhf_bench.stages import Start, make_start
from rlhf_bench.tracked import datasets, finished_policies, look_points, update_points, used_by
from rlhf_bench.tracking import Dataset, Tracker
from rlhf_bench.tuning import tuned_arms
from rlhf_bench.types import ArmFailed, Evaluation, RunFailed

if TYPE_CHECKING:
    from rlhf_bench.report import Summary
    from rlhf_bench.report.page import Elsewhere


T = TypeVar("T")


class ArmSaver:
    """Checkpoints of one arm and seed, with its records: see `loop.Saver`."""

    def __init__(
        self, checkpoints: Checkpoints, every_seconds: float, part: Part, grace: Grace, say: Callable[[str], None]
    ):
        self.checkpoints, self.every_seconds, self.part = checkpoints, every_seconds, part
        self.grace, self.say, self.last = grace, say, perf_counter()

    def due(self) -> bool:
        return self.grace.number is not None or perf_counter() - self.last >= self.every_seconds

    def save(self, number: int, state: Mapping[str, Any], write: Callable[[str], Mapping[str, str]]) -> None:
        self.checkpoints.save(number, {"arm": state, "records": self.part.rows()}, write)
        self.last = perf_counter()
        self.grace.obey()

    def latest(self) -> tuple[Mapping[str, Any], str, Sequence[str]] | None:
        found = self.checkpoints.latest()
        if found is None:
            return None
        self.part.put_back(found.state["records"])
        self.say(f"going on from {found.url}, after update {found.state['arm']['version']}")
        return found.state["arm"], found.url, found.files


@dataclass
class Comparison:
    """One run of a recipe into one directory."""

    recipe: Recipe
    directory: Path
    material: Material
    roles: Roles
    cache: Cache
    tracker: Tracker
    say: Callable[[str], None]
    display: Any  # progress.Display
    tags: Mapping[str, str]  # run_key, commit, ray_submission_id, recipe, machine: on every run in MLflow
    began: float
    begin_evaluation: Callable[[Start, bool], Sequence[str]]  # the second: for tuning trials; returns notes
    begin_report: Callable[[], Elsewhere]  # starts a process that will draw with this one; called a while before
    begin_arm: Callable[[str, int], None]  # whose work the engines' meters count from now on
    recover: Callable[[StateLost], None]  # bring the roles back to where a piece of work may begin anew
    notes: list[str] = field(default_factory=list)  # what the data and the probes had to leave out
    arms: dict[str, MethodSettings] = field(init=False)  # the recipe's, as tuned
    drawn_before: DrawnBefore = field(init=False)
    datasets: dict[str, Dataset] = field(init=False)  # by name
    before_arms: dict[str, float] = field(default_factory=dict)  # seconds, by what engines were at

    def run(self, arms: Sequence[str], seeds: Sequence[int]) -> Summary:
        start = self._surely(make_start, self.recipe, self.material, self.roles, self.cache, self.say)
        self.drawn_before = StartSamples(self.directory / "state", start.base.name)
        self.datasets = datasets(self.recipe, self.material, start)
        for dataset in self.datasets.values():
            self.tracker.uses(dataset)
        self.arms = self._tuned(start, arms)
        self.notes = [*self.material.notes, *self._surely(self.begin_evaluation, start, False)]
        base = self._surely(self._look_at_base, start)
        self.before_arms = self._seconds(self.began)
        first_update = None
        todo = [(arm, seed) for seed in seeds for arm in arms]  # seed by seed: an early end still compares all arms
        with ThreadPoolExecutor(1, "records") as writer:  # tables are written while the engines go on with the next arm
            written: Future[None] | None = None
            failed = dict[str, str]()
            for done, (arm, seed) in enumerate(todo):
                if done == len(todo) - 1:
                    elsewhere = self.begin_report()
                if self._part(arm, seed).result is not None:
                    self.say(f"{arm} · seed {seed}: already done, kept")
                    continue
                self.display.begin(arm, seed, done, len(todo))
                try:
                    part, seconds, by_phase, result = self._surely(self._run_arm, arm, seed, start, base)
                except ArmFailed as failure:
                    failed[f"{arm} · seed {seed}"] = str(failure)
                    self.tracker.end_arm(arm, seed, "failed", {"cause": str(failure)})
                    self.display.warn(f"{arm} · seed {seed}: failed: {failure}; the other arms go on")
                    continue
                first_update = first_update if first_update is not None else seconds
                if written is not None:
                    written.result()
                written = writer.submit(self._write, part, by_phase, result, start, base, first_update)
            if written is not None:
                written.result()
            else:  # all there already: but this recipe may name other arms than the last one did
                self._record(start, base, first_update)
        before_report = self._own_seconds()
        # matplotlib and all that: the driver has imported it meanwhile
        from rlhf_bench.report import write_report
        from rlhf_bench.report.model_card import write_cards

        summary = write_report(self.directory, elsewhere)
        own, wall = self._own_seconds(), perf_counter() - self.began
        first_call = self.roles.engine_time.spans[0].began - self.began
        step = self.roles.learner.first_step_began or self.began  # none was taken where all arms were there
        self.say(
            f"timing: {wall:.0f} s in all, first optimizer step (of the base policy, where it is not in the cache) after "
            f"{step - self.began:.0f} s, first update of an arm after {first_update or 0:.0f} s; the driver's own work, "
            f"while no engine was at work, {own / wall:.1%} of that: {first_call:.0f} s before the engines started, "
            f"{before_report - first_call:.0f} s between their calls, {own - before_report:.0f} s for the report"
        )
        self.tracker.artifact(self.directory / "report.html")
        tables = [f"{name}.parquet" for name in TABLES]
        trials = ["tuning.json"] if self.recipe.tuning else []
        for name in ("summary.json", "recipe.yaml", *tables, *trials):
            self.tracker.artifact(self.directory / name)
        self._describe(summary)
        write_cards(self.directory, summary)
        if self.recipe.tracking.register_as is not None:
            self._register(self.recipe.tracking.register_as, summary)
        if failed:
            which, cause = next(iter(failed.items()))
            others = f" (and {len(failed) - 1} more)" if len(failed) > 1 else ""
            raise RunFailed(f"{which}{others}: {cause}; the other arms are done: {self.directory / 'report.html'}")
        return summary

    def _describe(self, summary: Summary) -> None:
        """In MLflow: the verdict, and what each arm's run came to."""
        from rlhf_bench.report import description

        self.tracker.describe(description.found(summary))
        for arm in summary.arms:
            for seed in arm.seeds:
                self.tracker.describe(description.found_by(arm, seed, summary), arm.name, seed.seed)

    def _register(self, model: str, summary: Summary) -> None:
        """Every finished policy of the recipe's arms and seeds, also of earlier runs; then names for them."""
        policies = list(finished_policies(summary))
        for arm, seed, score, _ in policies:
            folder = self.directory / "checkpoints" / arm / f"seed-{seed}"
            tags = {**self.tags, "arm": arm, "seed": seed, "score": score, "method": self.arms[arm].method}
            self.tracker.register(model, folder, arm, seed, tags)
        for arm, seed, _, aliases in policies:
            for alias in aliases:
                self.tracker.alias(model, alias, arm, seed)

    def _surely(self, work: Callable[..., T], *arguments: Any) -> T:
        """A piece of work that may begin anew wherever it was cut short: it keeps what it has got on disk."""
        while True:
            try:
                return work(*arguments)
            except StateLost as lost:
                self.recover(lost)

    def _part(self, arm: str, seed: int) -> Part:
        settings = self.arms[arm]
        return Part(self.directory, arm, settings.method, settings.data, seed)

    def _tuned(self, start: Start, arms: Sequence[str]) -> dict[str, MethodSettings]:
        """The arms' settings, after each has had its trials where the recipe gives them any."""
        tuning = self.recipe.tuning
        if tuning is None:
            return dict(self.recipe.arms)
        self._surely(self.begin_evaluation, start, True)
        base = self._surely(self._look_at_base, start)

        def run_trial(arm: str, settings: MethodSettings) -> tuple[float, str, dict[str, float]]:
            # The reward model is paid for in the comparison, once, not again in every trial.
            self.begin_arm(arm, tuning.seed)
            ledger = Ledger(self.recipe.compute.column, self.recipe.compute.limit * tuning.fraction)
            scores: list[float] = []

            def looked(look: Look, evaluation: Evaluation) -> None:
                scores.append(next(iter(evaluation.splits.values())).score)

            run = ArmRun(
                self.recipe, METHODS[settings.method], settings, tuning.seed, self.material, start, self.roles, ledger,
                Progress(lambda *_: None, looked), base, (), self.drawn_before, self.cache,
            )  # fmt: skip
            try:
                status: str = run.run(None)
            except ArmFailed as failure:
                self.display.warn(f"{arm}: a trial failed: {failure}")
                return math.nan, "failed", ledger.total().as_dict()
            return scores[-1], status, ledger.total().as_dict()

        trial = functools.partial(self._surely, run_trial)
        return tuned_arms(self.recipe, self.directory, arms, trial, self.say)

    def _look_at_base(self, start: Start) -> Evaluation:
        """Every arm's curve begins with the base policy: looked at once."""
        self.roles.learner.load("policy", start.base)
        self.roles.evaluator.submit(self.roles.learner.weights("policy"), 0, BASE_LOOK)
        ((_, evaluation),) = self.roles.evaluator.collect(wait=True)
        self.say("base policy: " + ", ".join(f"{split} {r.score:.3f}" for split, r in evaluation.splits.items()))
        return evaluation

    def _run_arm(
        self, arm: str, seed: int, start: Start, base: Evaluation
    ) -> tuple[Part, float | None, Mapping[Phase, Cost], dict[str, Any]]:
        """Run one arm with one seed, from its last checkpoint on: its records, seconds from the program's start to its first
        update in this run, what it cost, its result."""
        recipe, settings, part = self.recipe, self.arms[arm], self._part(arm, seed)
        ledger = Ledger(recipe.compute.column, recipe.compute.limit)
        if uses_reward_model(settings):
            ledger.charge("reward_model", start.reward_model_cost)
        params = {f"arm/{k}": v for k, v in settings.model_dump(mode="json").items()}
        self.tracker.start_arm(
            arm, seed, params, {**self.tags, "method": settings.method, "data": settings.data, "seed": str(seed)}
        )
        for dataset in used_by(settings.data, self.datasets):
            self.tracker.uses(dataset, arm, seed)
        self.begin_arm(arm, seed)
        began, first = perf_counter(), list[float]()

        def updated(update: int, numbers: Mapping[str, float], ledger: Ledger) -> None:
            first.append(perf_counter() - self.began)
            spent = ledger.total().as_dict()
            part.update(update, numbers, spent, ledger.fraction, run.seconds)
            self.display.update(arm, seed, update, numbers, ledger.fraction)
            for step, metrics in update_points(update, numbers, spent, ledger.fraction):
                self.tracker.log(arm, seed, step, metrics)

        def looked(look: Look, evaluation: Evaluation) -> None:
            part.looked(look, evaluation, start.reward_margins)
            for step, metrics in look_points(look, evaluation):
                self.tracker.log(arm, seed, step, metrics)
            if look is not BASE_LOOK:
                self.display.looked(arm, seed, look, evaluation)
            last["evaluation"] = evaluation

        def skipped(update: int, why: str, data: Data) -> None:
            kept = write_trouble(self.directory, f"{arm}-seed{seed}", update, why, data)
            where = f"; its data are in {kept}" if kept else ""
            self.display.warn(f"{arm} · seed {seed}: update {update} is skipped, {why}{where}")

        last: dict[str, Evaluation] = {}
        aside = self.directory / "checkpoints" / f".{arm}-seed{seed}.tmp"
        with grace(recipe.reliability.grace_seconds) as patience:
            saver = ArmSaver(
                self._checkpoints(arm, seed), recipe.reliability.checkpoint_seconds, part, patience, self.say
            )
            run = ArmRun(
                recipe, METHODS[settings.method], settings, seed, self.material, start, self.roles, ledger,
                Progress(updated, looked, skipped), base, recipe.evaluation.marks, self.drawn_before, self.cache, saver=saver,
            )  # fmt: skip
            status = run.run(aside)
        copy_checkpoint(aside, self.directory / "checkpoints" / arm / f"seed-{seed}")
        final = last["evaluation"]
        score, kl = next(iter(final.splits.values())).score, final.numbers.get("kl", math.nan)
        result = {
            "seed": seed,
            "status": status,
            "spent": ledger.total().as_dict(),
            "score": score,
            "kl": kl,
            "updates": run.version,
            "seconds": self._seconds(began),
        }
        self.tracker.end_arm(arm, seed, status, {"updates": str(run.version)})
        self.say(
            f"{arm} · seed {seed}: {status}, score {score:.3f}, {run.version} updates, {ledger.fraction:.1%} of the budget, {run.seconds:.0f} s"
        )
        return part, first[0] if first else None, ledger.by_phase, result

    def _checkpoints(self, arm: str, seed: int) -> Checkpoints:
        settings = self.recipe.reliability
        place = (
            self.directory / "state"
            if settings.checkpoint_place is None
            else f"{settings.checkpoint_place.rstrip('/')}/{self.tags['run_key']}"
        )
        return Checkpoints(f"{place}/{arm}-seed{seed}", settings.checkpoints, self.display.warn)

    def _write(
        self, part: Part, by_phase: Mapping[Phase, Cost], result: Mapping[str, Any], start: Start, base: Evaluation,
        first_update: float | None,
    ) -> None:  # fmt: skip
        part.finish(by_phase, result)
        self._checkpoints(part.key["arm"], part.key["seed"]).clear()
        self._record(start, base, first_update)

    def _record(self, start: Start, base: Evaluation, first_update: float | None) -> None:
        """Write what the report reads, after every arm: a run that is cut short can be reported too. All of DIR counts,
        also arms and seeds of earlier runs."""
        arms: dict[str, Any] = {}
        for name, settings in self.recipe.arms.items():
            results = [self._part(name, seed).result for seed in self.recipe.seeds]
            arms[name] = {"method": settings.method, "data": settings.data, "seeds": [r for r in results if r]}
        main, accuracy = self.recipe.evaluation.splits[0], start.reward_model_accuracy
        if not accuracy and (self.directory / "base.json").exists():  # measured by an earlier run of other arms
            accuracy = json.loads((self.directory / "base.json").read_text())["reward_model"]["accuracies"]
        write_json(self.directory / "base.json", {
            "score": {split: r.score for split, r in base.splits.items()},
            "numbers": dict(base.numbers),
            "reward_model": {"accuracy": accuracy.get(main), "accuracies": accuracy},
            "setup": {
                "off_policy_pairs": len(start.pairs),
                "held_out_pairs": ", ".join(f"{len(p)} {split}" for split, p in start.held_out_pairs.items()),
                "notes": self.notes,
            },
        })  # fmt: skip
        write_json(
            self.directory / "results.json",
            {
                "arms": arms,
                "timing": self._timing(first_update),
                "run_key": self.tags["run_key"],
                "commit": self.tags["commit"],
                "machine": self.tags["machine"],
            },
        )
        samples = sample_rows("base", 0, 0.0, base)
        shared = [{"arm": "shared", "seed": 0, "phase": "shared", **(start.base_cost + start.pairs_cost).as_dict()}]
        if self.recipe.tuning is not None:
            trials = json.loads((self.directory / "tuning.json").read_text())
            shared += [
                {"arm": arm, "seed": self.recipe.tuning.seed, "phase": "tuning", **t["spent"]}
                for arm, found in trials.items()
                for t in found
            ]
        merge_parts(
            self.directory,
            {a: self.recipe.seeds for a in self.recipe.arms},
            table([], METRIC_KEYS),
            table(samples, SAMPLE_KEYS),
            table(shared, ()),
            table(pair_rows("base", 0, BASE_LOOK, base, start.reward_margins), PAIR_KEYS),
        )

    def _timing(self, first_update: float | None) -> dict[str, Any]:
        """Seconds so far, and the share of them in which no engine was at work: they waited for the driver."""
        wall = perf_counter() - self.began
        return {
            "wall_seconds": wall, "driver_share": self._own_seconds() / wall, "first_update_seconds": first_update,
            "before_arms": self.before_arms,
        }  # fmt: skip

    def _seconds(self, began: float) -> dict[str, float]:
        """Wall time since `began` by what engines were at; `driver` where they were at nothing."""
        ended = perf_counter()
        return {**self.roles.engine_time.by_activity(began, ended), "driver": self.roles.engine_time.idle(began, ended)}

    def _own_seconds(self) -> float:
        return self.roles.engine_time.idle(self.began, perf_counter())
