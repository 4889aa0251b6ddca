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
from typing import TYPE_CHECKING, Any

from rlhf_bench.compute.ledger import Ledger
from rlhf_bench.core.errors import ArmFailed, RunFailed
from rlhf_bench.core.files import write_json
from rlhf_bench.core.types import BASE_POINT, EvalPoint, Evaluation
from rlhf_bench.experiment.arm import ArmOutcome, ArmRunner
from rlhf_bench.experiment.scheduler import Worker, run_jobs
from rlhf_bench.experiment.shutdown import grace
from rlhf_bench.experiment.stages.start import make_start
from rlhf_bench.experiment.timing import Occupancy
from rlhf_bench.experiment.tracking.metrics import datasets, finished_policies
from rlhf_bench.experiment.tracking.tracker import Dataset, Tracker
from rlhf_bench.experiment.tuning import tuned_arms
from rlhf_bench.methods import METHODS
from rlhf_bench.methods.base import MethodSettings
from rlhf_bench.recipe import Recipe
from rlhf_bench.results.schema import METRIC_KEYS, PAIR_KEYS, SAMPLE_KEYS, TABLES
from rlhf_bench.results.store import is_done, merge_parts, pair_rows, sample_rows, table
from rlhf_bench.training.cache import Cache
from rlhf_bench.training.inputs import Inputs, StartingPoint
from rlhf_bench.training.loop import ArmObserver, ArmTrainer
from rlhf_bench.training.rollouts import StartSamples

if TYPE_CHECKING:
    from rlhf_bench.report import Summary
    from rlhf_bench.report.page import Elsewhere


@dataclass
class Comparison:
    """One run of a recipe into one directory. All before the arms is the first team's work; the arms are all teams'."""

    recipe: Recipe
    directory: Path
    inputs: Inputs
    first: Worker
    others: Sequence[Callable[[], Worker | None]]  # which start meanwhile: wait for one; None where it found no room
    end_workers: Callable[[], None]  # wakes, by an error, whoever waits for an engine of any team
    cache: Cache
    tracker: Tracker
    say: Callable[[str], None]
    display: Any  # progress.ProgressDisplay
    tags: Mapping[str, str]  # run_key, commit, ray_submission_id, recipe, machine: on every run in MLflow
    began: float
    begin_report: Callable[[], Elsewhere]  # starts a process that will draw with this one; called a while before
    notes: list[str] = field(default_factory=list)  # what the data and the probes had to leave out
    sample_cache: StartSamples = field(init=False)
    arms: ArmRunner = field(init=False)
    before_arms: dict[str, float] = field(default_factory=dict)  # seconds, by what engines were at
    first_updates: list[float] = field(default_factory=list)  # seconds from the program's start to each arm's first one
    stretches: list[Occupancy] = field(
        default_factory=list
    )  # of the first team, and of every team while it is at the arms
    failed: dict[tuple[str, int], dict[str, Any]] = field(default_factory=dict)  # results of earlier runs into DIR, too

    def run(self, arms: Sequence[str], seeds: Sequence[int]) -> Summary:
        self.stretches = [Occupancy(self.first.roles.engine_time, self.began)]
        start = self.first.with_recovery(make_start, self.recipe, self.inputs, self.first.roles, self.cache, self.say)
        self.sample_cache = StartSamples(
            self.directory / "state", f"{start.base.name} {self.inputs.fingerprint['model']}"
        )
        used = datasets(self.recipe, self.inputs, start)
        for dataset in used.values():
            self.tracker.uses(dataset)
        settings = self._tuned(start, arms)
        self.notes = [*self.inputs.notes, *self.first.with_recovery(self.first.begin_evaluation, start, False)]
        base = self.first.with_recovery(self._evaluate_base, start)
        self.before_arms = self.first.roles.engine_time.breakdown(self.began, perf_counter())
        self.arms = self._arms(settings, start, base, used)
        self.failed = _failed_before(self.directory)
        todo = [(arm, seed) for seed in seeds for arm in arms]  # seed by seed: an early end still compares all arms
        failed, elsewhere = self._run_arms(todo)
        summary = self._report(elsewhere)
        self._describe(summary)
        if self.recipe.tracking.register_as is not None:
            self._register(self.recipe.tracking.register_as, summary)
        if failed:
            which, cause = next(iter(failed.items()))
            others = f" (and {len(failed) - 1} more)" if len(failed) > 1 else ""
            raise RunFailed(f"{which}{others}: {cause}; the other arms are done: {self.directory / 'report.html'}")
        return summary

    def _arms(
        self,
        settings: Mapping[str, MethodSettings],
        start: StartingPoint,
        base: Evaluation,
        used: Mapping[str, Dataset],
    ) -> ArmRunner:
        return ArmRunner(
            self.recipe, settings, self.directory, self.inputs, self.cache, start, base, used, self.sample_cache,
            self.tracker, self.display, self.tags,
            first_update=lambda: self.first_updates.append(perf_counter() - self.began),
        )  # fmt: skip

    def _run_arms(self, todo: Sequence[tuple[str, int]]) -> tuple[dict[str, str], Elsewhere]:
        """Those that are not done yet, on as many teams as there are. What failed, in the order of `todo` whoever ended
        first; and who will draw the report."""
        pieces = [piece for piece in enumerate(todo) if not is_done(self.directory, *piece[1])]
        for arm, seed in todo:
            if is_done(self.directory, arm, seed):
                self.say(f"{arm} · seed {seed}: already done, kept")
        if not pieces:  # but this recipe may name other arms than the last one did
            elsewhere = self.begin_report()
            self._record()
            return {}, elsewhere
        failed, begun = list[tuple[str, int]](), list["Elsewhere"]()
        written: list[Future[None]] = []

        def work(worker: Worker, piece: tuple[int, tuple[str, int]]) -> None:
            number, (arm, seed) = piece
            stretch = Occupancy(worker.roles.engine_time, perf_counter())
            self.stretches.append(stretch)
            if piece is pieces[-1]:
                begun.append(self.begin_report())
            self.display.begin(arm, seed, number, len(todo))
            self.failed.pop((arm, seed), None)
            try:
                ended = self.arms.run(arm, seed, worker, patience)
            except ArmFailed as failure:
                self.failed[arm, seed] = {
                    "seed": seed,
                    "status": "failed",
                    "cause": str(failure),
                    "spent": failure.spent,
                }
                failed.append((arm, seed))
                written.append(writer.submit(self._record))
                self.tracker.end_arm(arm, seed, "failed", {"cause": str(failure)})
                self.display.warn(f"{arm} · seed {seed}: failed: {failure}; the other arms go on")
                return
            finally:
                self.display.end(arm, seed)
                stretch.ended = perf_counter()
            for earlier in list(written):
                if earlier.done():
                    earlier.result()  # raises what went wrong, such as a full disk
            written.append(writer.submit(self._write, ended))

        # One thread writes all tables, while the engines go on with the next arms.
        with ThreadPoolExecutor(1, "records") as writer:
            self.stretches[0].ended = perf_counter()
            others = [functools.partial(self._joined_in, ready) for ready in self.others]
            with grace(self.recipe.reliability.grace_seconds) as patience:
                run_jobs(pieces, [lambda: self.first, *others], work, patience, self.end_workers)
            self.stretches.append(Occupancy(self.first.roles.engine_time, perf_counter()))
            for one in written:
                one.result()
        if not written:  # else it is there as the last one left it
            self._record()
        causes = {
            f"{arm} · seed {seed}": self.failed[arm, seed]["cause"] for arm, seed in todo if (arm, seed) in failed
        }
        return causes, begun[0]

    def _joined_in(self, ready: Callable[[], Worker | None]) -> Worker | None:
        """Another team, once it is there and has what the first one has got from the stages before the arms. Charged to no
        arm: how many teams there are must change no number."""
        worker = ready()
        if worker is None:
            return None
        start, scorer = self.arms.start, worker.roles.scorer
        if scorer is not None and start.reward_model is not None:
            worker.with_recovery(scorer.load, start.reward_model, self.recipe.model.dtype)
        worker.with_recovery(worker.begin_evaluation, start, False)
        return worker

    def _report(self, elsewhere: Elsewhere) -> Summary:
        """Write it and the policies' cards, say where the time went, and hand MLflow the files."""
        before_report = self._own_seconds()
        # matplotlib and all that: the driver has imported it meanwhile
        from rlhf_bench.report import write_report
        from rlhf_bench.report.model_card import write_cards

        summary = write_report(self.directory, elsewhere)
        write_cards(self.directory, summary)
        own, wall = self._own_seconds(), perf_counter() - self.began
        first_call = next(self.first.roles.engine_time.spans()).began - self.began
        step = self.first.roles.learner.first_step_began or self.began  # none was taken where all arms were there
        fleets = self._fleets()
        self.say(
            f"timing: {wall:.0f} s in all, first optimizer step (of the base policy, where it is not in the cache) after "
            f"{step - self.began:.0f} s, first update of an arm after {min(self.first_updates, default=0):.0f} s; the "
            f"driver's own work, while no engine was at work, {own / self._all_seconds():.1%} of "
            f"{'that' if fleets == 1 else f'the time of {fleets} fleets together'}: {first_call:.0f} s before the engines started, "
            f"{before_report - first_call:.0f} s between their calls, {own - before_report:.0f} s for the report"
        )
        self.tracker.artifact(self.directory / "report.html")
        tables = [f"{name}.parquet" for name in TABLES]
        trials = ["tuning.json"] if self.recipe.tuning else []
        for name in ("summary.json", "recipe.yaml", *tables, *trials):
            self.tracker.artifact(self.directory / name)
        return summary

    def _describe(self, summary: Summary) -> None:
        """In MLflow: the verdict, and what each arm's run came to."""
        from rlhf_bench.experiment.tracking import descriptions as description

        self.tracker.describe(description.found(summary))
        for arm in summary.arms:
            for seed in arm.seeds:
                self.tracker.describe(description.found_by(arm, seed, summary), arm.name, seed.seed)

    def _register(self, model: str, summary: Summary) -> None:
        """Every finished policy of the recipe's arms and seeds, also of earlier runs; then names for them."""
        policies = list(finished_policies(summary))
        for arm, seed, score, _ in policies:
            folder = self.directory / "checkpoints" / arm / f"seed-{seed}"
            tags = {**self.tags, "arm": arm, "seed": seed, "score": score, "method": self.arms.settings[arm].method}
            self.tracker.register(model, folder, arm, seed, tags)
        for arm, seed, _, aliases in policies:
            for alias in aliases:
                self.tracker.alias(model, alias, arm, seed)

    def _tuned(self, start: StartingPoint, arms: Sequence[str]) -> dict[str, MethodSettings]:
        """The arms' settings, after each has had its trials where the recipe gives them any."""
        tuning = self.recipe.tuning
        if tuning is None:
            return dict(self.recipe.arms)
        worker = self.first
        worker.with_recovery(worker.begin_evaluation, start, True)
        base = worker.with_recovery(self._evaluate_base, start)

        def run_trial(arm: str, settings: MethodSettings) -> tuple[float, str, dict[str, float]]:
            # The reward model is paid for in the comparison, once, not again in every trial.
            worker.begin_arm(arm, tuning.seed)
            ledger = Ledger(self.recipe.compute.column, self.recipe.compute.limit * tuning.fraction)
            scores: list[float] = []

            def evaluated(look: EvalPoint, evaluation: Evaluation) -> None:
                scores.append(next(iter(evaluation.splits.values())).score)

            run = ArmTrainer(
                self.recipe, METHODS[settings.method], settings, tuning.seed, self.inputs, start, worker.roles, ledger,
                ArmObserver(lambda *_: None, evaluated), base, (), self.sample_cache, self.cache,
            )  # fmt: skip
            try:
                status: str = run.run(None)
            except ArmFailed as failure:
                self.display.warn(f"{arm}: a trial failed: {failure}")
                return math.nan, "failed", ledger.total().as_dict()
            return scores[-1], status, ledger.total().as_dict()

        trial = functools.partial(worker.with_recovery, run_trial)
        tuned = tuned_arms(self.recipe, self.directory, arms, trial, self.say)
        self.sample_cache.clear(tuning.seed)
        return tuned

    def _evaluate_base(self, start: StartingPoint) -> Evaluation:
        """Every arm's curve begins with the base policy: looked at once."""
        roles = self.first.roles
        roles.learner.load("policy", start.base)
        roles.evaluator.submit(roles.learner.weights("policy"), 0, BASE_POINT)
        ((_, evaluation),) = roles.evaluator.collect(wait=True)
        self.say("base policy: " + ", ".join(f"{split} {r.score:.3f}" for split, r in evaluation.splits.items()))
        return evaluation

    def _write(self, ended: ArmOutcome) -> None:
        """In the one thread that writes tables."""
        ended.part.finish(ended.by_phase, ended.result)
        arm, seed = ended.part.key["arm"], ended.part.key["seed"]
        self.arms.checkpoints(arm, seed).clear()
        if all(is_done(self.directory, other, seed) for other in self.recipe.arms):
            self.sample_cache.clear(seed)
        self._record()

    def _record(self) -> None:
        """Write what the report reads, after every arm: a run that is cut short can be reported too. All of DIR counts,
        also arms and seeds of earlier runs, in the recipe's order, whichever ended first."""
        start, base = self.arms.start, self.arms.base
        arms: dict[str, Any] = {}
        for name, settings in self.recipe.arms.items():
            results = [self.arms.part(name, s).result or self.failed.get((name, s)) for s in self.recipe.seeds]
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
                "timing": self._timing(),
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
            table(pair_rows("base", 0, BASE_POINT, base, start.reward_margins), PAIR_KEYS),
        )

    def _timing(self) -> dict[str, Any]:
        """Seconds so far, and the share in which engines waited for the driver: of all fleets' time, each counted while it
        had an arm to work on, and the first one also before and after the arms."""
        return {
            "wall_seconds": perf_counter() - self.began, "driver_share": self._own_seconds() / self._all_seconds(),
            "fleets": self._fleets(), "first_update_seconds": min(self.first_updates, default=None),
            "before_arms": self.before_arms,
        }  # fmt: skip

    def _fleets(self) -> int:
        return len({id(stretch.engine_time) for stretch in self.stretches})

    def _all_seconds(self) -> float:
        return sum(stretch.seconds for stretch in self.stretches)

    def _own_seconds(self) -> float:
        return sum(stretch.idle for stretch in self.stretches)


def _failed_before(directory: Path) -> dict[tuple[str, int], dict[str, Any]]:
    """ArmRunner and seeds that an earlier run into DIR could not end, as `results.json` has them."""
    path = directory / "results.json"
    arms = json.loads(path.read_text())["arms"] if path.exists() else {}
    return {(arm, s["seed"]): s for arm, found in arms.items() for s in found["seeds"] if s["status"] == "failed"}
