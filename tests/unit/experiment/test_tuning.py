"""Trials before the comparison: the same for every arm, kept, scored on prompts that the comparison never uses."""

import io
import json
import math
from pathlib import Path

import pytest

from rlhf_bench.core.costs import Cost
from rlhf_bench.core.errors import RunFailed
from rlhf_bench.core.types import Pair, Prompt
from rlhf_bench.experiment.progress import ProgressDisplay
from rlhf_bench.experiment.scheduler import Worker
from rlhf_bench.experiment.spec import ComparisonSpec, Runtime
from rlhf_bench.experiment.tuning import tune, tuned_arms
from rlhf_bench.methods import METHODS
from rlhf_bench.models.tokenizer import TokenizerSettings, build_tokenizer
from rlhf_bench.recipe import parse_recipe
from rlhf_bench.results.trials import Trial, best_trial
from rlhf_bench.tasks import build_task
from rlhf_bench.tasks.arithmetic import ArithmeticSettings
from rlhf_bench.training.cache import Cache
from rlhf_bench.training.inputs import Inputs, StartingPoint, prepare_inputs
from rlhf_bench.training.roles import Roles
from rlhf_bench.training.rollouts import StartSamples
from tests.support.scripted import STEP, Evaluator, Learner, Pool, Sync

NAN = float("nan")
TRIALS = [{"learning_rate": 1e-4}, {"learning_rate": 3e-4}, {"learning_rate": 1e-3}]


def recipe(trials=TRIALS, **more):
    tuning = {"tuning": {"trials": trials, **more}} if trials else {}
    arms = {"ppo": {"method": "ppo"}, "dpo": {"method": "dpo", "beta": 0.3}}
    return parse_recipe(
        {"name": "r", "task": {"kind": "arithmetic"}, "compute": {"limit": 400.0}, "arms": arms} | tuning
    )


class Trying:
    """Runs no trial, but answers by arm and learning rate, and remembers the calls. A missing answer stands for a crash."""

    def __init__(self, answers):
        self.answers, self.asked = answers, []

    def __call__(self, arm, settings):
        self.asked.append((arm, settings.learning_rate))
        assert settings.method == arm and (arm == "ppo" or settings.beta == 0.3)  # the arm's own otherwise
        score, status = self.answers[arm][settings.learning_rate]
        return score, status, {"flops": 7.0}


DPO_BEST_AT_LAST = {"ppo": {1e-4: (0.5, "done"), 3e-4: (0.7, "done"), 1e-3: (0.6, "done")},
                    "dpo": {1e-4: (0.1, "done"), 3e-4: (0.2, "done"), 1e-3: (0.3, "done")}}  # fmt: skip


def tuned_by(directory, answers=DPO_BEST_AT_LAST, arms=("ppo", "dpo"), of=None):
    trying, said = Trying(answers), []
    return tuned_arms(of or recipe(), directory, arms, trying, said.append), trying.asked, said


def test_every_arm_tries_the_same_settings_once_each_and_continues_with_its_own_best(tmp_path):
    tuned, asked, said = tuned_by(tmp_path)
    assert asked == [(arm, trial["learning_rate"]) for arm in ("ppo", "dpo") for trial in TRIALS]
    assert {name: arm.learning_rate for name, arm in tuned.items()} == {"ppo": 3e-4, "dpo": 1e-3}
    assert tuned["dpo"] == METHODS["dpo"].settings(beta=0.3, learning_rate=1e-3)
    assert "ppo: continues with learning_rate 0.0003" in said and len(said) == 8


def test_a_trial_may_set_several_keys(tmp_path):
    both = recipe([{"learning_rate": 1e-4, "max_grad_norm": 0.5}, {"learning_rate": 3e-4, "max_grad_norm": 2.0}])
    tuned, _, _ = tuned_by(tmp_path, of=both)
    assert (tuned["dpo"].learning_rate, tuned["dpo"].max_grad_norm) == (3e-4, 2.0)


def test_trials_are_kept_with_what_they_spent_and_not_run_again(tmp_path):
    first, _, _ = tuned_by(tmp_path)
    kept = json.loads((tmp_path / "tuning.json").read_text())
    assert [(t["settings"], t["score"], t["status"], t["spent"]) for t in kept["ppo"]] == [
        (trial, score, "done", {"flops": 7.0}) for trial, score in zip(TRIALS, (0.5, 0.7, 0.6), strict=True)
    ]  # fmt: skip
    again, asked, _ = tuned_by(tmp_path, answers={})
    assert again == first and asked == []


def test_a_run_that_was_stopped_resumes_with_the_next_trial(tmp_path):
    stops = {"ppo": DPO_BEST_AT_LAST["ppo"], "dpo": {1e-4: (0.1, "done")}}
    with pytest.raises(KeyError):
        tuned_by(tmp_path, stops)
    tuned, asked, _ = tuned_by(tmp_path)
    assert asked == [("dpo", 3e-4), ("dpo", 1e-3)]
    assert tuned == tuned_by(tmp_path, answers={})[0]


def test_only_the_arms_that_will_run_are_tried(tmp_path):
    tuned, asked, _ = tuned_by(tmp_path, arms=["dpo"])
    assert {arm for arm, _ in asked} == {"dpo"}
    assert tuned["ppo"] == recipe().arms["ppo"]  # as in the recipe, until its own trials are run
    later, asked, _ = tuned_by(tmp_path)
    assert {arm for arm, _ in asked} == {"ppo"} and later["dpo"] == tuned["dpo"]


def test_a_recipe_without_trials_leaves_its_arms_alone(tmp_path):
    tuned, asked, _ = tuned_by(tmp_path, of=recipe(None))
    assert tuned == recipe(None).arms and asked == [] and list(tmp_path.iterdir()) == []


def test_a_trial_that_diverged_is_never_the_best_and_survives_being_written_down(tmp_path):
    answers = DPO_BEST_AT_LAST | {"dpo": {1e-4: (0.1, "done"), 3e-4: (0.9, "diverged"), 1e-3: (NAN, "diverged")}}
    for _ in range(2):  # found, then read again
        assert tuned_by(tmp_path, answers)[0]["dpo"].learning_rate == 1e-4


def test_an_arm_whose_trials_all_diverged_ends_the_run_by_its_name(tmp_path):
    answers = DPO_BEST_AT_LAST | {"dpo": {rate: (NAN, "diverged") for rate in (1e-4, 3e-4, 1e-3)}}
    with pytest.raises(
        RunFailed,
        match=r"^tuning: no trial of arm dpo finished \(diverged\); where they diverged, try smaller settings",
    ):
        tuned_by(tmp_path, answers)


@pytest.mark.parametrize(("trials", "best"), [
    ([(0.2, "done"), (0.5, "done"), (0.5, "done")], 1),  # the first of equals
    ([(-1.0, "done"), (0.0, "diverged")], 0),
    ([(NAN, "done"), (0.1, "done"), (math.inf, "diverged")], 1),
    ([(0.3, "diverged")], None),
    ([], None),
])  # fmt: skip
def test_the_best_trial(trials, best):
    trials = [Trial({"learning_rate": float(i)}, score, status, {}) for i, (score, status) in enumerate(trials)]
    assert best_trial(trials) == (None if best is None else trials[best])


# The prompts that trials are scored on


SMALL = {
    "name": "r", "compute": {"limit": 1e9}, "arms": {"a": {"method": "dpo"}},
    "model": {"hidden_size": 32, "layers": 1, "heads": 1, "intermediate_size": 8, "max_length": 64},
    "data": {"train_prompts": 40, "max_response_tokens": 8}, "sft": {"demonstrations": 2}, "evaluation": {"prompts": 9},
}  # fmt: skip
TASKS = {"arithmetic": {"kind": "arithmetic"}, "verse": {"kind": "verse"}}


@pytest.fixture(scope="module", params=TASKS)
def prepared(request, tmp_path_factory):
    """The same recipe's inputs with trials and without."""
    task = {"task": TASKS[request.param]} | (
        {"model": SMALL["model"] | {"max_length": 256}} if request.param == "verse" else {}
    )
    cache = Cache(tmp_path_factory.mktemp("cache"))
    tuning = {"tuning": {"trials": TRIALS, "prompts": 7}}
    return [prepare_inputs(parse_recipe(SMALL | task | more), cache) for more in (tuning, {})]


def test_trials_are_scored_on_prompts_that_nothing_else_uses(prepared):
    tuned, _ = prepared
    trials = {p.text for p in tuned.tuning}
    assert len(tuned.tuning) == len(trials) == 7
    others = [*tuned.train, *(p for prompts in tuned.held_out.values() for p in prompts)]
    assert not trials & {p.text for p in others}
    demonstrated = {row.prompt_ids for row in tuned.demonstrations}
    assert not {p.token_ids for p in tuned.tuning} & demonstrated and all(p.token_ids for p in tuned.tuning)


def test_the_comparison_uses_the_same_prompts_whether_there_were_trials_or_not(prepared):
    tuned, plain = prepared
    assert tuned.held_out == plain.held_out and tuned.train == plain.train and plain.tuning == []
    assert {len(prompts) for prompts in tuned.held_out.values()} == {9}
    assert tuned.fingerprint == plain.fingerprint  # so that base, pairs and reward model are the same, too


# Trials as the experiment runs them


def run_trials(directory, evaluator, learner, arms, **tuning):
    """The tuned settings, the starting point, and what the evaluator was told each time: whether it is for trials."""
    task = build_task(ArithmeticSettings(digits=1))
    tokenizer = build_tokenizer(TokenizerSettings(kind="characters"), task.corpus())
    inputs = Inputs(task, tokenizer, Path("model"), None, task.prompts("train", 8, 0), {}, [], [], None, [], {})
    data = recipe(**tuning).resolved() | {
        "arms": {name: {"method": name, "pairs_per_update": 4} for name in ("dpo", "simpo")}
    }
    roles, told = Roles(Pool(tokenizer), None, learner, evaluator, Sync()), []
    runtime = Runtime(
        first=Worker(roles, lambda start, tuning: told.append(tuning) or [], lambda arm, seed: None, None),
        others=(),
        end_workers=None,
        cache=Cache(directory / "cache"),
        tracker=None,
        display=ProgressDisplay(directory, io.StringIO()),
        tags={},
        began=0.0,
        begin_report=None,
    )
    spec = ComparisonSpec(recipe=parse_recipe(data), directory=directory, inputs=inputs, arms=arms, seeds=[1])
    pairs = [Pair(f"pair{i}", Prompt(f"p{i}", "1+1=", "2", (1, 5)), (6, 2), (7, 8, 2)) for i in range(4)]
    base = directory / "base"
    base.mkdir()
    (base / "model.safetensors").write_bytes(b"weights")
    (base / "config.json").write_text("{}")
    start = StartingPoint(base, pairs, {}, None, Cost(), Cost(flops=1e9), Cost(), {})
    return tune(spec, runtime, start, StartSamples(directory / "state", "base")), start, told


def test_every_trial_has_the_same_share_of_the_budget_the_tuning_seed_and_a_policy_of_its_own(tmp_path):
    learner = Learner()
    _, start, told = run_trials(tmp_path, Evaluator(), learner, ["dpo", "simpo"], fraction=0.25, seed=9)
    assert told == [True]  # the evaluator uses the trials' own prompts
    policies = [(path, seed) for name, path, seed in learner.loaded if name == "policy" and seed]
    assert policies == [(start.base, 9)] * 6
    for trials in json.loads((tmp_path / "tuning.json").read_text()).values():
        spent = [t["spent"]["flops"] for t in trials]
        assert len(set(spent)) == 1 and 100 - 2 * STEP.flops < spent[0] <= 100  # a quarter of 400
    rates = [rate for _, _, rate in learner.stepped]
    assert [rate for i, rate in enumerate(rates) if i == 0 or rates[i - 1] != rate] == [1e-4, 3e-4, 1e-3] * 2
    assert learner.saved == []  # a trial's policy is thrown away


def test_a_trial_counts_with_its_last_evaluation_and_the_base_policys_score_does_not_win(tmp_path):
    """The score depends on the policy's steps: the base policy's is the highest, and belongs to no trial."""
    learner = Learner()
    evaluator = Evaluator(lambda steps: 1.0 if steps == 0 else steps / 1000)
    tuned, _, _ = run_trials(tmp_path, evaluator, learner, ["dpo"])
    trials = json.loads((tmp_path / "tuning.json").read_text())["dpo"]
    per_trial = len(learner.stepped) // 3
    assert [t["score"] for t in trials] == [n * per_trial / 1000 for n in (1, 2, 3)]
    assert tuned["dpo"].learning_rate == 1e-3
