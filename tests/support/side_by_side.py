"""A whole comparison whose workers have scripted roles. `python side_by_side.py DIR WORKERS` runs it in its own process.

The learner forgets everything before an arm, and its answers depend only on seed, rows and step. So if a number
depends on which worker ran an arm, or when, the comparison itself is at fault.
"""

import io
import json
import random
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from rlhf_bench.compute.engine_time import EngineTime
from rlhf_bench.core.errors import StateLost, Stopped
from rlhf_bench.experiment.comparison import Comparison
from rlhf_bench.experiment.progress import ProgressDisplay
from rlhf_bench.experiment.scheduler import Worker
from rlhf_bench.experiment.shutdown import raise_on_signals
from rlhf_bench.experiment.spec import ComparisonSpec, Runtime
from rlhf_bench.recipe import parse_recipe
from rlhf_bench.results.directory import open_directory
from rlhf_bench.training.cache import Cache
from rlhf_bench.training.checkpoints import fetch, put
from rlhf_bench.training.inputs import prepare_inputs
from rlhf_bench.training.roles import Roles
from tests.support.scripted import Evaluator, Learner, LengthScorer, Pending, Pool, Sync

PAIRS = {"method": "dpo", "pairs_per_update": 4}
ARMS = {
    "offline": PAIRS, "one-shot": {**PAIRS, "data": "on_policy"}, "other-one-shot": {**PAIRS, "data": "on_policy", "beta": 0.3},
    "online": {**PAIRS, "data": "online", "prompts_per_update": 4},
}  # fmt: skip
RECIPE = {
    "name": "r", "task": {"kind": "arithmetic", "digits": 1}, "compute": {"limit": 100.0}, "seeds": [1, 2],
    "model": {"hidden_size": 32, "layers": 1, "heads": 1, "intermediate_size": 8, "max_length": 32},
    "data": {"train_prompts": 20, "max_response_tokens": 6, "off_policy_pairs": 8, "held_out_pairs": 2,
             "candidates_per_prompt": 4},
    "sft": {"demonstrations": 4, "steps": 2}, "evaluation": {"prompts": 2, "marks": [0.5, 1.0]}, "arms": ARMS,
}  # fmt: skip


@dataclass
class Trained(Learner):
    """Steps of the arm at hand; `seconds` a step. `loses`: seeds that lose all state in their third step, once each."""

    seconds: float = 0.0
    loses: list = field(default_factory=list)
    seed: int = 0
    origin: int = 0  # the weights that it was loaded from

    def load(self, name, path, seed=0, learning_rate=None, max_grad_norm=1.0, adam=None):
        super().load(name, path, seed)
        if name == "policy":
            self.seed, saved = seed, path / "model.safetensors"
            self.origin = int(saved.read_text()) if saved.exists() else 0
            self.stepped.clear()

    def begin_steps(self, work, temperature=1.0):
        time.sleep(self.seconds * random.random())
        if self.seed in self.loses and len(self.stepped) >= 3:
            self.loses.remove(self.seed)
            raise StateLost("learner 0 has died")
        found = []
        for step in work:
            self.stepped.append((step.rows, step.settings, step.learning_rate))
            tokens = sum(sum(response) for row in step.rows for response in row.responses)
            found.append({"loss": tokens / (self.seed + len(self.stepped)), "accuracy": 0.5, "grad_norm": 1.0})
        return Pending((found, self.steps_cost(work)), [], 0)

    def weights(self, name):
        return self.origin + self.seed * 1000 + len(self.stepped)

    def save(self, name, path):
        path.mkdir(parents=True, exist_ok=True)
        (path / "model.safetensors").write_text(str(self.weights(name)))
        (path / "config.json").write_text("{}")

    def save_state(self, folder):
        return {"steps.json": put(f"{folder}/steps.json", json.dumps(len(self.stepped)).encode())}

    def load_state(self, folder, files):
        self.stepped[:] = [None] * json.loads(fetch(f"{folder}/steps.json"))


class Tracker:
    """Keeps in memory what MLflow is told, by kind."""

    def __init__(self):
        self.ended = {}

    def end_arm(self, arm, seed, status, tags):
        self.ended[arm, seed] = status

    def __getattr__(self, name):
        return lambda *args, **kwargs: None


class Unreported(Comparison):
    """Ends with its tables: drawing their report takes longer than all the rest."""

    def _publish(self, timing, elsewhere):
        return None


class Made:
    """A comparison into `directory` on `workers` workers, and everything it leaves."""

    def __init__(self, directory, workers=1, seconds=0.0, loses=(), never=0, **recipe):
        (directory / "out").mkdir(parents=True, exist_ok=True)
        settings = parse_recipe(RECIPE | recipe)
        self.directory, self.settings, self.cache = directory / "out", settings, Cache(directory / "cache")
        inputs = prepare_inputs(settings, self.cache)
        open_directory(self.directory, settings, inputs.fingerprint["data"])
        self.learners = [Trained(seconds=seconds, loses=list(loses) if n == 0 else []) for n in range(workers)]
        self.pools = [Pool(inputs.tokenizer) for _ in range(workers)]
        self.begun = []  # what evaluators were told: worker, base, for trials?, charged?
        self.recovered, self.shown, self.tracker = [], io.StringIO(), Tracker()
        self.never = threading.Event()
        made = [self._worker(n) for n in range(workers)]
        others = [lambda worker=worker: worker for worker in made[1:]] + [self._wait for _ in range(never)]
        self.comparison = Unreported(
            ComparisonSpec(
                recipe=settings, directory=self.directory, inputs=inputs, arms=list(settings.arms), seeds=settings.seeds
            ),
            Runtime(
                first=made[0],
                others=others,
                end_workers=self.never.set,
                cache=self.cache,
                tracker=self.tracker,
                display=ProgressDisplay(self.directory, self.shown),
                tags={"run_key": "k", "commit": "", "machine": ""},
                versions={"torch": "2"},
                threads=lambda: {"learner": "1"},
                began=time.perf_counter(),
                begin_report=lambda: "elsewhere",
            ),
        )

    def _wait(self):
        self.never.wait()

    def _worker(self, n):
        time_of_its_own = EngineTime()
        with time_of_its_own.busy("starting"):
            pool = self.pools[n]
        asked = self.settings.gold_reward_model or any(arm.feedback != "judge" for arm in self.settings.arms.values())
        scorer = LengthScorer() if asked else None
        self.scorer = scorer
        evaluator = Evaluator(lambda weights: weights / 1e7, late=bool(n % 2))
        roles = Roles(pool, scorer, self.learners[n], evaluator, Sync(pool), time_of_its_own)

        def begin(start, tuning, charged):
            self.begun.append((n, start.base.name, tuning, charged))
            return ()

        return Worker(roles, begin, lambda arm, seed: None, lambda lost: self.recovered.append(n))

    def run(self):
        return self.comparison.run()


def main():
    raise_on_signals()
    made = Made(Path(sys.argv[1]), int(sys.argv[2]), seconds=0.2, reliability={"checkpoint_seconds": 1000})
    print("ready", flush=True)
    try:
        made.run()
    except Stopped as stop:
        sys.exit(128 + stop.number)


if __name__ == "__main__":
    main()
