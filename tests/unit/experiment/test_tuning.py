"""Trials before the comparison: the same for every arm, kept, scored on prompts that the comparison never uses."""

import io
import json
import math
from pathlib import Path

import pytest

from rlhf_bench.core.costs import Cost
from rlhf_bench.core.errors import BadInput, RunFailed
from rlhf_bench.core.types import Pair, Prompt
from rlhf_bench.experiment.progress import ProgressDisplay
from rlhf_bench.experiment.scheduler import Worker
from rlhf_bench.experiment.spec import ComparisonSpec, Runtime
from rlhf_bench.experiment.starts import Starts
from rlhf_bench.experiment.tuning import tune, tuned_arms
from rlhf_bench.methods import METHODS
from rlhf_bench.models.codec import Codec
from rlhf_bench.models.tokenizer import TokenizerSettings, build_tokenizer
from rlhf_bench.recipe import parse_recipe
from rlhf_bench.results.trials import Trial, TrialRun, best_trial, edge_of
from rlhf_bench.tasks import build_task
from rlhf_bench.tasks.arithmetic import ArithmeticSettings
from rlhf_bench.training.cache import Cache
from rlhf_bench.training.inputs import Inputs, StartingPoint, prepare_inputs
from rlhf_bench.training.roles import Roles
from tests.support.scripted import MEASURING, STEP, TINY, Evaluator, Learner, LengthScorer, Pool, Sync

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

    def __call__(self, arm, settings, seed):
        self.asked.append((arm, settings.learning_rate))
        assert settings.method == arm and (arm == "ppo" or settings.beta == 0.3)  # the arm's own otherwise
        score, status = self.answers[arm][settings.learning_rate]
        return TrialRun(seed, score, status, {"flops": 7.0})


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
    assert "dpo: continues with learning_rate 0.001, the largest that was tried" in said


def test_a_trial_may_set_several_keys(tmp_path):
    both = recipe([{"learning_rate": 1e-4, "max_grad_norm": 0.5}, {"learning_rate": 3e-4, "max_grad_norm": 2.0}])
    tuned, _, _ = tuned_by(tmp_path, of=both)
    assert (tuned["dpo"].learning_rate, tuned["dpo"].max_grad_norm) == (3e-4, 2.0)


def test_trials_are_kept_with_what_they_spent_and_not_run_again(tmp_path):
    first, _, _ = tuned_by(tmp_path)
    kept = json.loads((tmp_path / "tuning.json").read_text())
    assert [(t["settings"], t["score"], t["status"], t["spent"]["flops"]) for t in kept["ppo"]] == [
        (trial, score, "done", 7.0) for trial, score in zip(TRIALS, (0.5, 0.7, 0.6), strict=True)
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


# Several seeds


class BySeed(Trying):
    """Answers by learning rate and seed."""

    def __call__(self, arm, settings, seed):
        self.asked.append((settings.learning_rate, seed))
        score, status = self.answers[settings.learning_rate][seed]
        return TrialRun(seed, score, status, {"flops": 1.0 + seed})


def test_a_trial_counts_with_its_mean_over_the_seeds(tmp_path):
    """The rate that is best with one seed is not the best of the means."""
    answers = {1e-4: {0: (0.9, "done"), 7: (0.1, "done")}, 3e-4: {0: (0.6, "done"), 7: (0.6, "done")},
               1e-3: {0: (1.0, "done"), 7: (0.9, "diverged")}}  # fmt: skip
    trying = BySeed(answers)
    tuned = tuned_arms(recipe(seeds=[0, 7]), tmp_path, ["dpo"], trying, lambda line: None)
    assert tuned["dpo"].learning_rate == 3e-4
    assert trying.asked == [(trial["learning_rate"], seed) for trial in TRIALS for seed in (0, 7)]
    kept = json.loads((tmp_path / "tuning.json").read_text())["dpo"]
    assert [(t["score"], t["status"]) for t in kept] == [(0.5, "done"), (0.6, "done"), (0.95, "diverged")]
    assert kept[0]["spent"]["flops"] == 9.0 and [run["seed"] for run in kept[0]["runs"]] == [0, 7]


# Grids of an arm's own


def refused(**tuning):
    with pytest.raises(BadInput) as found:
        recipe(**tuning)
    return str(found.value)


def test_an_arm_may_have_trials_of_its_own_and_as_many(tmp_path):
    own = [{"critic_learning_rate": rate, "kl_coefficient": 0.1} for rate in (1e-4, 3e-4, 1e-3)]

    def run(arm, settings, seed):
        asked.append((arm, settings.learning_rate, getattr(settings, "critic_learning_rate", None)))
        return TrialRun(seed, len(asked) / 10, "done", {})

    asked = []
    tuned = tuned_arms(recipe(arms={"ppo": own}), tmp_path, ["ppo", "dpo"], run, lambda line: None)
    assert [critic for arm, _, critic in asked if arm == "ppo"] == [1e-4, 3e-4, 1e-3]
    assert [rate for arm, rate, _ in asked if arm == "dpo"] == [1e-4, 3e-4, 1e-3]
    assert (tuned["ppo"].critic_learning_rate, tuned["ppo"].kl_coefficient) == (1e-3, 0.1)


def test_another_number_of_trials_an_unknown_arm_and_a_setting_that_it_lacks_are_refused_by_name():
    assert "tuning.arms.ppo: 2 trials, where tuning.trials has 3" in refused(arms={"ppo": TRIALS[:2]})
    assert "tuning.arms: there is no arm other; choose among ppo, dpo" in refused(arms={"other": TRIALS})
    said = refused(arms={"dpo": [*TRIALS[:2], {"gae_lambda": 0.9}]})
    assert said.startswith("arms.dpo (tuning.arms.dpo[2]).gae_lambda: a setting of ppo, not of dpo; remove it")
    said = refused(trials=[*TRIALS[:2], {"gae_lambda": 0.9}])
    assert said == (
        "arms.dpo (tuning.trials[2]).gae_lambda: a setting of ppo, not of dpo; remove it, or give the arm trials of its own in "
        "tuning.arms.dpo"
    )
    assert "tuning.seeds: 2 is one of seeds; trials need seeds of their own" in refused(seeds=[0, 2])


# Beyond the edge of a grid


def tried(*scores, key="learning_rate", start=1e-4, ratio=3.0, status="done"):
    return [Trial({key: start * ratio**n}, score, status, {}) for n, score in enumerate(scores)]


@pytest.mark.parametrize(("scores", "side"), [
    ((0.1, 0.2, 0.3), "largest"), ((0.3, 0.2, 0.1), "smallest"), ((0.1, 0.3, 0.2), None), ((0.2, 0.2, 0.1), "smallest"),
    ((NAN, NAN, NAN), None), ((NAN, 0.1), "largest"), ((0.4,), None),
])  # fmt: skip
def test_the_edge_at_which_the_best_trial_lies(scores, side):
    edge = edge_of(tried(*scores))
    assert (edge and edge.side) == side
    assert edge_of(list(reversed(tried(*scores)))) == edge or 0.2 in scores[:1]  # by value, not by place; equals aside


def test_a_value_that_diverged_was_tried_too():
    trials = [*tried(0.1, 0.2), Trial({"learning_rate": 9e-4}, 0.9, "diverged", {})]
    assert edge_of(trials) is None  # the best lies between two that were tried


def test_trials_of_several_keys_have_no_edge():
    trials = [Trial({"learning_rate": n * 1e-4, "beta": 0.1 * n}, n / 10, "done", {}) for n in (1, 2)]
    assert edge_of(trials) is None
    assert edge_of([Trial({"learning_rate": 1e-4}, 0.1, "done", {}), Trial({"beta": 0.2}, 0.3, "done", {})]) is None


class Peaked:
    """The score of a rate falls with its distance, in factors, from `peak`."""

    def __init__(self, peak):
        self.peak, self.asked = peak, []

    def __call__(self, arm, settings, seed):
        self.asked.append(settings.learning_rate)
        return TrialRun(seed, -abs(math.log(settings.learning_rate / self.peak)), "done", {"flops": 1.0})


@pytest.mark.parametrize(("peak", "extend", "beyond"), [
    (1e-5, 3, [1e-4 / 3, 1e-4 / 9, 1e-4 / 27]),  # as far as it may
    (1e-2, 3, [1e-3 * (10 / 3), 1e-3 * (10 / 3) ** 2, 1e-3 * (10 / 3) ** 3]),
    (1e-3 * (10 / 3), 3, [1e-3 * (10 / 3), 1e-3 * (10 / 3) ** 2]),  # the second one is worse: the best has both sides
    (3e-4, 3, []), (1e-2, 0, []),
])  # fmt: skip
def test_a_grid_goes_on_geometrically_on_the_side_of_its_edge(peak, extend, beyond, tmp_path):
    trying, said = Peaked(peak), []
    tuned = tuned_arms(recipe(extend=extend), tmp_path, ["dpo"], trying, said.append)
    assert trying.asked[:3] == [1e-4, 3e-4, 1e-3] and trying.asked[3:] == pytest.approx(beyond, rel=1e-4)
    assert tuned["dpo"].learning_rate == min(trying.asked, key=lambda rate: abs(math.log(rate / peak)))
    assert sum("beyond the edge" in line for line in said) == len(beyond)
    kept = json.loads((tmp_path / "tuning.json").read_text())["dpo"]
    assert sum(t["spent"]["flops"] for t in kept) == 3 + len(beyond)
    again = Peaked(peak)  # nothing is tried twice
    assert tuned_arms(recipe(extend=extend), tmp_path, ["dpo"], again, said.append) == tuned and again.asked == []


def test_a_grid_ends_where_the_method_allows_no_further_value(tmp_path):
    """λ of generalised advantages is at most 1; 0.99² / 0.9 is more. And below 0 no series leads anywhere."""
    one = {"name": "r", "task": {"kind": "arithmetic"}, "compute": {"limit": 1}, "arms": {"ppo": {"method": "ppo"}}}
    for values in ([0.9, 0.99], [0.0, 0.5]):
        asked = []

        def run(arm, settings, seed, asked=asked, last=values[-1]):
            asked.append(settings.gae_lambda)
            return TrialRun(seed, 1.0 if settings.gae_lambda == (last if last > 0.5 else 0.0) else 0.0, "done", {})

        of = parse_recipe(one | {"tuning": {"trials": [{"gae_lambda": v} for v in values], "extend": 2}})
        folder = tmp_path / str(values[0])
        folder.mkdir()
        tuned_arms(of, folder, ["ppo"], run, lambda line: None)
        assert asked == values


# The prompts that trials are scored on


def test_trials_are_scored_with_draws_of_their_own_number():
    four = recipe()
    assert four.trial_evaluation().samples_per_prompt == 4
    many = recipe(samples_per_prompt=9)
    assert many.trial_evaluation() == many.evaluation.model_copy(update={"samples_per_prompt": 9})
    best = parse_recipe(four.resolved() | {"evaluation": {"samples_per_prompt": 8, "best_of": 8}})
    assert best.trial_evaluation().best_of is None  # no more than there are draws


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


def run_trials(directory, evaluator, learner, arms, reward_model=0.0, settings=None, **tuning):
    """The tuned settings, the starting point, and what the evaluator was told each time: whether it is for trials."""
    task = build_task(ArithmeticSettings(digits=1))
    tokenizer = build_tokenizer(TokenizerSettings(kind="characters"), task.corpus())
    inputs = Inputs(
        task, Codec(tokenizer), Path("model"), TINY, task.prompts("train", 8, 0), {}, [], [], None, [], {"model": "m"}
    )
    data = recipe(**tuning).resolved() | {
        "arms": settings or {name: {"method": name, "pairs_per_update": 4} for name in ("dpo", "simpo")}
    }
    roles, told = Roles(Pool(tokenizer), LengthScorer(), learner, evaluator, Sync()), []
    runtime = Runtime(
        first=Worker(roles, lambda start, tuning, charged: told.append(tuning) or [], lambda arm, seed: None, None),
        others=(),
        end_workers=None,
        cache=Cache(directory / "cache"),
        tracker=None,
        display=ProgressDisplay(directory, io.StringIO()),
        tags={},
        versions={},
        threads=dict,
        began=0.0,
        begin_report=None,
    )
    spec = ComparisonSpec(recipe=parse_recipe(data), directory=directory, inputs=inputs, arms=arms, seeds=[1])
    pairs = [Pair(f"pair{i}", Prompt(f"p{i}", "1+1=", "2", (1, 5)), (6, 2), (7, 8, 2)) for i in range(4)]
    base = directory / "base"
    base.mkdir()
    (base / "model.safetensors").write_bytes(b"weights")
    (base / "config.json").write_text("{}")
    start = StartingPoint(base, pairs, {}, None, Cost(), Cost(flops=1e9), Cost(flops=reward_model), {})
    return tune(spec, runtime, Starts(spec, runtime, {0: start})), start, told


def test_every_trial_has_the_same_share_of_the_budget_the_tuning_seed_and_a_policy_of_its_own(tmp_path):
    learner = Learner()
    _, start, told = run_trials(tmp_path, Evaluator(), learner, ["dpo", "simpo"], fraction=0.25, seeds=[9])
    assert told == [True]  # the evaluator uses the trials' own prompts
    policies = [(path, seed) for name, path, seed in learner.loaded if name == "policy" and seed]
    assert policies == [(start.base, 9)] * 6
    for trials in json.loads((tmp_path / "tuning.json").read_text()).values():
        spent = [t["spent"]["flops"] for t in trials]
        assert len(set(spent)) == 1 and 100 - 2 * STEP.flops < spent[0] <= 100  # a quarter of 400
    rates = [settings.learning_rate for _, settings, _ in learner.stepped]
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


RISING = {"kind": "linear", "start": 0.1, "end": 0.3}
ONLINE = {"method": "dpo", "data": "online", "prompts_per_update": 4, "beta": RISING}


@pytest.mark.parametrize("fraction", [0.25, 0.5])
def test_a_trial_has_the_same_share_of_what_each_arm_has_to_train_with(tmp_path, fraction):
    """The limit is 400, and a reward model costs 200: arms that are charged for it have 200 left, trials that share of it.
    Their schedules begin half way, as in the comparison."""
    learner = Learner()
    arms = {
        "judged": ONLINE,
        "rewarded": ONLINE | {"feedback": "reward_model"},
        "one-shot": ONLINE | {"data": "on_policy"},
    }
    run_trials(tmp_path, Evaluator(), learner, list(arms), 200.0, arms, trials=TRIALS[:2], fraction=fraction, seeds=[9])
    update = STEP.flops + 2 * MEASURING.flops + 3  # step, reference, sync's check; scoring
    for arm, trials in json.loads((tmp_path / "tuning.json").read_text()).items():
        horizon = fraction * (200 if arm == "rewarded" else 400)
        for trial in trials:
            assert horizon - 2 * update < trial["spent"]["flops"] <= horizon, arm
    betas = [settings.beta for _, settings, _ in learner.stepped]
    begins = [b for a, b in zip([1.0, *betas], betas, strict=False) if b < a]  # where a trial's schedule starts anew
    assert begins == pytest.approx([0.1, 0.1, 0.2, 0.2, 0.1, 0.1], abs=0.02)


def test_every_seed_of_a_trial_trains_a_policy_of_its_own(tmp_path):
    learner = Learner()
    _, start, told = run_trials(tmp_path, Evaluator(), learner, ["dpo"], seeds=[8, 9])
    assert told == [True]  # one base policy, evaluated once
    policies = [seed for name, _, seed in learner.loaded if name == "policy" and seed]
    assert policies == [8, 9] * 3
