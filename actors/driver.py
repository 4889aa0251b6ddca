"""The driver: starts fleets and tracker on a cluster that is there, runs the comparison, and ends what it started."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from importlib import import_module
from pathlib import Path

import ray
import yaml

from actors.evaluator import HeldOut
from actors.fleet import Fleet, start_fleet
from actors.fleet_pool import FleetPool
from actors.monitoring import ray_metrics as meters
from actors.monitoring.trace import write_profile
from actors.ray_cluster import machine
from actors.report_worker import begin_report
from rlhf_bench.compute.engine_time import EngineTime
from rlhf_bench.compute.resources import fleet_count
from rlhf_bench.core.errors import RunFailed, StateLost, Stopped
from rlhf_bench.experiment.comparison import Comparison
from rlhf_bench.experiment.progress import ProgressDisplay
from rlhf_bench.experiment.scheduler import Worker
from rlhf_bench.experiment.spec import ComparisonSpec, Runtime
from rlhf_bench.experiment.tracking.descriptions import comparison_started
from rlhf_bench.experiment.tracking.outbox import Status
from rlhf_bench.experiment.tracking.tracker import Tracker
from rlhf_bench.methods.base import uses_reward_model
from rlhf_bench.models.tokenizer import decode_response
from rlhf_bench.recipe import Recipe
from rlhf_bench.results.store import MAY_DIFFER, is_done
from rlhf_bench.training.cache import Cache
from rlhf_bench.training.inputs import Inputs, StartingPoint


def drive(
    recipe: Recipe,
    inputs: Inputs,
    cache: Cache,
    directory: Path,
    arms: Sequence[str],
    seeds: Sequence[int],
    began: float,
    profile: bool = False,
    quiet: bool = False,
) -> str:
    """Run the comparison; returns the text that ends it: table, verdict, where to look."""
    # MLflow's thread would otherwise hold this one up for 5 ms at a time, while an engine waits for its next call.
    sys.setswitchinterval(0.0005)
    display = ProgressDisplay(directory, quiet=quiet)
    run_key, commit = _run_key(directory), _commit()
    tracker = Tracker(recipe.tracking.uri, recipe.name, directory, on_warning=display.warn)
    tags = {
        "run_key": run_key,
        "commit": commit,
        "ray_submission_id": _submission_id(),
        "recipe": recipe.name,
        "machine": machine(),
    }
    # MLflow's params never change, so what may differ when a comparison is carried on is not among them.
    params = {k: v for k, v in _flat(recipe.resolved()).items() if k.split("/")[0] not in MAY_DIFFER}
    tracker.start_comparison(run_key, params, tags | {"seeds": str(list(recipe.seeds)), "arms": ", ".join(recipe.arms)})
    tracker.describe(comparison_started(recipe))
    tracker.artifact(directory / "recipe.yaml")
    status: Status = "failed"
    scorer = any(uses_reward_model(recipe.arms[a]) for a in arms)
    left = sum(not is_done(directory, arm, seed) for arm in arms for seed in seeds)
    count = fleet_count(recipe, scorer, ray.cluster_resources(), left)

    def start(number: int, ending: threading.Event) -> Fleet:
        say = display.warn if count == 1 else lambda line: display.warn(f"fleet {number}: {line}")
        model = str(inputs.model)
        fleet = start_fleet(recipe, model, inputs.shape, inputs.eos_id, scorer, EngineTime(), say, profile, ending)
        fleet.supervisor.on_loads = functools.partial(_track_loads, tracker)
        return fleet

    fleets = FleetPool(start, display.warn)
    try:
        display.say(
            f"starting the engines ({', '.join(f'{v:g} {k}' for k, v in ray.cluster_resources().items() if k in ('CPU', 'GPU'))} in the cluster"
            f"{f'; {count} fleets, arms side by side' if count > 1 else ''})"
        )
        first = fleets.first()
        others = fleets.others(count - 1)  # not before: the first one's start is what the run waits for
        # Takes seconds, in which the engines are at work anyway.
        threading.Thread(target=import_module, args=("rlhf_bench.report",), daemon=True).start()
        comparison = Comparison(
            ComparisonSpec(recipe=recipe, directory=directory, inputs=inputs, arms=arms, seeds=seeds),
            Runtime(
                first=_worker(first, recipe, inputs, charged=True),
                others=[functools.partial(_other_worker, other, recipe, inputs) for other in others],
                end_workers=fleets.stop,
                cache=cache,
                tracker=tracker,
                display=display,
                tags=tags,
                began=began,
                begin_report=functools.partial(begin_report, display.say),
            ),
        )
        summary = comparison.run()
        if profile:
            there = [fleet for _, fleet in sorted(fleets.fleets.items())]
            write_profile(directory / "profile.json", [(f.learner.engine_time, f.actors) for f in there])
        status = "done"
    except ray.exceptions.RayActorError as error:
        raise RunFailed(f"an engine's process died: {' '.join(str(error).split())[:300]}") from error
    except ray.exceptions.RayTaskError as error:
        cause = error.cause if isinstance(error.cause, Exception) else error
        raise RunFailed(f"an engine failed: {type(cause).__name__}: {' '.join(str(cause).split())[:300]}") from error
    except (StateLost, ray.exceptions.RayError) as error:
        raise RunFailed(f"{type(error).__name__}: {' '.join(str(error).split())[:300]}") from error
    except OSError as error:
        raise RunFailed(
            f"{error.filename or 'a file'}: {error.strerror or error}; mend that, and the same command goes on from the last checkpoint"
        ) from error
    except Stopped:
        status = "interrupted"
        raise
    finally:
        fleets.stop()
        try:
            for line in tracker.finish(status):
                display.warn(f"not in MLflow: {line}")
        finally:
            display.close()
    from rlhf_bench.report import render_text_table
    from rlhf_bench.report.verdict import notes, verdict

    ends = [
        render_text_table(summary),
        "",
        verdict(summary),
        *notes(summary),
        "",
        *([f"profile: {directory / 'profile.json'} (open it at ui.perfetto.dev)"] if profile else []),
        f"report: {directory / 'report.html'}",
    ]
    return "\n".join(ends)


def _worker(fleet: Fleet, recipe: Recipe, inputs: Inputs, charged: bool) -> Worker:
    """`charged`: what the evaluator's beginning costs is; once, however many fleets there are."""
    begin_evaluation = functools.partial(_begin_evaluation, fleet, recipe, inputs, charged)
    return Worker(fleet.roles, begin_evaluation, meters.begin_arm, fleet.recover)


def _other_worker(starting: Future[Fleet | None], recipe: Recipe, inputs: Inputs) -> Worker | None:
    fleet = starting.result()
    return None if fleet is None else _worker(fleet, recipe, inputs, charged=False)


def _begin_evaluation(
    fleet: Fleet, recipe: Recipe, inputs: Inputs, charged: bool, start: StartingPoint, tuning: bool
) -> Sequence[str]:
    """Tell the evaluator what to look at: everything, or for tuning trials their own prompts and nothing else."""
    main = recipe.evaluation.splits[0]
    held_out = HeldOut(
        prompts={main: inputs.tuning} if tuning else inputs.held_out,
        pairs={} if tuning else start.held_out_pairs, training=start.pairs, settings=recipe.evaluation,
        max_response_tokens=recipe.data.max_response_tokens, tokens_per_micro_batch=recipe.compute.tokens_per_micro_batch,
        eos_id=inputs.eos_id, judge=inputs.task.judge, decode=functools.partial(decode_response, inputs.tokenizer),
    )  # fmt: skip
    return fleet.evaluator.begin(held_out, str(start.base), charged)


def _track_loads(tracker: Tracker, loads: Mapping[str, Mapping[str, float]]) -> None:
    """In the crew's thread, which must go on: a disk that is full ends the run with the next update's numbers."""
    for host, load in loads.items():
        with suppress(RunFailed):
            tracker.log(None, None, int(time.time()), {f"system/{host}/{name}": x for name, x in load.items()})


def _run_key(directory: Path) -> str:
    """One key per directory, so that a run that is carried on is the same run in MLflow."""
    path = directory / "run_key"
    if not path.exists():
        path.write_text(uuid.uuid4().hex[:12])
    return path.read_text().strip()


def _commit() -> str:
    """The checkout's commit: given by the launcher where the job runs in a copy without its history."""
    if "RLHF_BENCH_COMMIT" in os.environ:
        return os.environ["RLHF_BENCH_COMMIT"]
    here = Path(__file__).parent
    try:
        found = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=here)
    except FileNotFoundError:  # no git on this machine
        return ""
    return found.stdout.strip()


def _flat(data: dict, prefix: str = "") -> dict[str, str]:
    """Nested settings as MLflow params: section/key."""
    out: dict[str, str] = {}
    for key, value in data.items():
        out |= (
            _flat(value, f"{prefix}{key}/")
            if isinstance(value, dict)
            else {prefix + key: yaml.safe_dump(value, default_flow_style=True).strip().removesuffix("...").strip()}
        )
    return out


def _submission_id() -> str:
    """The id of the job that runs this, or "": in the job's config, which Ray hands to the driver by environment."""
    config = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}"))
    return config.get("metadata", {}).get("job_submission_id", "")
