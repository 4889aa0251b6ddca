"""The training loop with roles whose answers are written down: what reaches the learner, when, and who pays for it."""

import json
import math
from collections import Counter
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from rlhf_bench.core.costs import Cost
from rlhf_bench.core.errors import ArmFailed, Stopped
from rlhf_bench.core.rounding import rounding_of
from rlhf_bench.core.types import Evaluation, LabelledResponse, Pair, PairEvaluation, Prompt, Row
from rlhf_bench.methods import METHODS
from rlhf_bench.methods.base import Adam, SideGradients
from rlhf_bench.methods.dpo import DPOSettings
from rlhf_bench.methods.ppo import PPOSettings
from rlhf_bench.models.codec import Codec
from rlhf_bench.models.tokenizer import TokenizerSettings, build_tokenizer
from rlhf_bench.recipe import parse_recipe
from rlhf_bench.tasks import build_task
from rlhf_bench.tasks.arithmetic import ArithmeticSettings
from rlhf_bench.training.arm import ArmObserver, ArmSpec, SharedByArms
from rlhf_bench.training.batch import mismatched
from rlhf_bench.training.cache import Cache
from rlhf_bench.training.inputs import Inputs, StartingPoint
from rlhf_bench.training.loop import ArmTrainer
from rlhf_bench.training.roles import Roles
from rlhf_bench.training.rollouts import StartSamples
from rlhf_bench.training.state import ArmState
from tests.support.scripted import MEASURING, SIDES, STEP, TINY, Evaluator, Learner, LengthScorer, Pool, Sync

TASK = build_task(ArithmeticSettings(digits=1))
TOKENIZER = build_tokenizer(TokenizerSettings(kind="characters"), TASK.corpus())
PAIRS = [Pair(f"pair{i}", Prompt(f"p{i}", "1+1=", "2", (1, 5)), (6, 2), (7, 8, 2)) for i in range(4)]
LOOKED = [PairEvaluation("in_distribution", "h", -3.0, -5.0, 0.5, -0.5, 2, 3, 0.0, 0.0, 1.0)]
RISING = {"kind": "linear", "start": 0.1, "end": 0.3}


class Arm:
    """One arm that has run: what the learner was handed, what was told to the outside."""

    def __init__(self, limit, *, marks=(), column="flops", answers=("right", "wrong", "unfinished"), learner=None,
                 evaluator=None, save_to=None, pool_order=None, pool_part=None, scorer=None, checkpointer=None, skips=5, shape=TINY,
                 pool=Pool, dtype="float32", pairs=PAIRS, labelled=None, **arm):  # fmt: skip
        recipe = parse_recipe({"name": "r", "task": {"kind": "arithmetic"}, "compute": {"limit": limit, "column": column, "skips_in_a_row": skips},
                               "model": {"dtype": dtype},
                               "data": {"candidates_per_prompt": 3},
                               "arms": {"a": arm if METHODS[arm["method"]].consumes == "samples" else {"pairs_per_update": 4, **arm}}})  # fmt: skip
        settings = recipe.arms["a"]
        self.learner, self.evaluator = learner or Learner(), evaluator or Evaluator()
        self.pool = pool(TOKENIZER, answers=answers, chunk=pool_part, order=pool_order)
        self.sync = Sync(self.pool)
        train = TASK.prompts("train", 10, 0)
        inputs = Inputs(TASK, Codec(TOKENIZER), None, shape, train, {}, [], [], None, [], {}, labelled=labelled)
        self.aside = TemporaryDirectory()
        base_folder = Path(self.aside.name) / "base"
        base_folder.mkdir()
        (base_folder / "model.safetensors").write_bytes(b"weights")
        (base_folder / "config.json").write_text("{}")
        start = StartingPoint(base_folder, pairs, {}, None, Cost(), Cost(), Cost(), {})
        roles = Roles(self.pool, scorer or LengthScorer(), self.learner, self.evaluator, self.sync)
        self.updates, self.looks, self.skipped = [], [], []
        observer = ArmObserver(
            lambda update, numbers, ledger: self.updates.append((update, dict(numbers), ledger.fraction)),
            lambda look, evaluation: self.looks.append((look, evaluation)),
            lambda *what: self.skipped.append(what),
        )
        base = Evaluation({}, {}, {}, 0.0, self.evaluator.pairs)
        self.trainer = ArmTrainer(
            spec=ArmSpec("a", recipe, METHODS[settings.method], settings, 1),
            shared=SharedByArms(
                inputs, start, base, {}, StartSamples(Path(self.aside.name), "base"), Cache(Path(self.aside.name))
            ),
            roles=roles,
            observer=observer,
            state=ArmState.begin(column, limit, 1, marks),
            checkpointer=checkpointer,
        )
        self.ledger = self.trainer.state.ledger
        self.status = self.trainer.run(save_to)
        self.ledger = self.trainer.state.ledger

    def told(self, key):
        return [numbers[key] for _, numbers, _ in self.updates]


# An update is a step, and the first one a look at the reference too: all pairs are in it, and are seen but once.
# The budget has room for one more look than there is: an arm ends where an update as dear as its dearest has none.
UPDATES = 10
SPENT = UPDATES * STEP.flops + MEASURING.flops
LIMIT = SPENT + MEASURING.flops


class PerRow(Learner):
    """Asks for each row of a forward pass by itself."""

    def measure_cost(self, name, rows):
        return sum((MEASURING for _ in rows), Cost())


def test_a_schedule_reaches_the_learner_as_the_number_it_is_when_the_update_begins():
    arm = Arm(LIMIT, method="dpo", beta=RISING)
    spent = [0.0] + [MEASURING.flops + STEP.flops * n for n in range(1, UPDATES)]
    expected = [0.1 + 0.2 * flops / LIMIT for flops in spent]
    assert [settings.beta for _, settings, _ in arm.learner.stepped] == pytest.approx(expected, rel=1e-12)
    assert arm.told("beta") == pytest.approx(expected, rel=1e-12)  # and is logged
    assert arm.status == "done" and arm.ledger.spent == SPENT


def test_what_is_paid_before_the_first_update_counts_for_a_schedule():
    learner = Learner()
    before = MEASURING.flops  # the check that the weights arrived, in the sync before sampling
    arm = Arm(200.0, learner=learner, method="dpo", data="on_policy", beta=RISING)
    assert arm.ledger.by_phase["sync"].flops == before and arm.sync.versions == [0]
    assert learner.stepped[0][1].beta == pytest.approx(0.1 + 0.2 * before / 200.0)


def test_an_arm_without_a_schedule_trains_with_its_settings_as_they_are():
    arm = Arm(LIMIT, method="dpo", beta=0.7, learning_rate=3e-3, learning_rate_schedule="constant")
    assert {(s.beta, rate) for _, s, rate in arm.learner.stepped} == {(0.7, 3e-3)} and len(arm.updates) == UPDATES


def test_learning_rates_fall_in_a_straight_line_to_nothing_where_the_budget_ends():
    """A rate is that of the share of the budget that was spent when the update began."""
    arm = Arm(LIMIT, method="dpo", learning_rate=3e-3)
    spent = [0.0] + [MEASURING.flops + STEP.flops * n for n in range(1, UPDATES)]
    expected = [3e-3 * (1 - flops / LIMIT) for flops in spent]
    assert [rate for *_, rate in arm.learner.stepped] == pytest.approx(expected, rel=1e-12)
    assert arm.told("learning_rate") == pytest.approx(expected, rel=1e-12)


PPO = {"method": "ppo", "prompts_per_update": 4, "samples_per_prompt": 3, "epochs_per_update": 2, "feedback": "judge",
       "learning_rate": 1e-3, "critic_learning_rate": 4e-3}  # fmt: skip


@pytest.mark.parametrize("ahead", [0, 1])
def test_both_models_rates_fall_alike_and_an_updates_steps_share_them(ahead):
    arm = Arm(400.0, rollouts_ahead=ahead, **PPO)
    rates = [rate for *_, rate in arm.learner.stepped]
    updates = len(arm.updates)
    by_update = [rates[4 * n : 4 * n + 4] for n in range(updates)]  # policy, critic, policy, critic
    assert [4e-3 * policy / 1e-3 for policy, *_ in by_update] == pytest.approx([critic for _, critic, *_ in by_update])
    assert all(first == second for *first, _, _ in by_update for second in [first]) and len(rates) == 4 * updates
    assert by_update[0][:2] == by_update[0][2:] == [1e-3, 4e-3] and 0 < rates[-2] < 1e-3 * 2 / updates
    assert [policy for policy, *_ in by_update] == sorted({policy for policy, *_ in by_update}, reverse=True)


def test_what_is_paid_before_the_first_update_takes_nothing_from_the_learning_rate():
    """Candidates, or a reward model: such an arm starts at its full rate as well, and ends at none."""
    arm = Arm(200.0, method="dpo", data="on_policy", learning_rate=1e-3)
    before = MEASURING.flops  # the check that the weights arrived
    spent = [before] + [before + (MEASURING.flops + STEP.flops) * n for n in range(1, len(arm.updates))]
    expected = [1e-3 * (1 - (flops - before) / (200.0 - before)) for flops in spent]
    assert [rate for *_, rate in arm.learner.stepped] == pytest.approx(expected, rel=1e-12)


def test_each_model_is_placed_with_its_rate_and_with_the_arms_adam():
    arm = Arm(400.0, adam_betas=(0.8, 0.9), adam_epsilon=1e-4, **PPO)
    adam = Adam((0.8, 0.9), 1e-4)
    assert arm.learner.optimizers[:2] == [("policy", 1e-3, adam), ("reference", None, None)]
    assert arm.learner.optimizers[2:] == [("critic", 4e-3, adam)]
    assert PPOSettings().adam == DPOSettings().adam == Adam((0.9, 0.999), 1e-5)  # one rule for all


@pytest.mark.parametrize(("dtype", "alike"), [("bfloat16", True), ("float32", False)])
def test_an_update_knows_how_exact_its_rewards_and_values_are(dtype, alike):
    """All finished rewards are −1 up to rounding in 16 bits, and so is what the critic says of every state."""

    class Scorer(LengthScorer):
        def rounding(self, score):
            return rounding_of(score, dtype)

        def begin_score(self, rows):
            found = super().begin_score(rows)
            return replace(found, found=([[-1.0, -1.004, -1.0] for _ in rows], Cost()))

    arm = Arm(
        400.0, scorer=Scorer(), answers=("right", "wrong", "77"), dtype=dtype, **PPO | {"feedback": "reward_model"}
    )
    assert {deviation == 1.0 for deviation in arm.told("reward_deviation")} == {alike}
    stepped = [a for rows, *_ in arm.learner.stepped for row in rows for a in row.extras["advantages"]]
    assert {bool(a.any()) for a in stepped} == {not alike}


class Kept:
    """Every state of an arm; a new arm goes on from the state after `resume` updates."""

    def __init__(self, states=(), resume=None):
        self.states, self.resume = list(states), resume

    def due(self):
        return True

    def save(self, number, state, write):
        self.states.append(json.loads(json.dumps(state)))

    def latest(self):
        return None if self.resume is None else (self.states[self.resume - 1], "", ())


class Resumed(Learner):
    def load_state(self, folder, files):
        pass


@pytest.mark.parametrize("arm", [{"method": "dpo", "data": "on_policy"}, PPO, PPO | {"rollouts_ahead": 1}], ids=str)
def test_a_resumed_arm_goes_on_at_the_rates_of_one_that_was_left_alone(arm):
    kept = Kept()
    whole = Arm(400.0, checkpointer=kept, **arm)
    steps, updates = [rate for *_, rate in whole.learner.stepped], len(whole.updates)
    for resume in (1, updates // 2, updates - 1):
        rest = Arm(400.0, checkpointer=Kept(kept.states, resume), learner=Resumed(), **arm)
        assert [rate for *_, rate in rest.learner.stepped] == steps[resume * len(steps) // updates :]


def test_an_adaptive_method_measures_every_so_many_updates_and_trains_with_what_it_found():
    """The bound is 0.9 · 0.2 · 2² / 12 = 0.06, taken whole; steps in between train with the same β⁻."""
    learner = Learner(sides=SideGradients(2.0, 8.0, 12.0))
    arm = Arm(
        100.0, learner=learner, method="adaptive_flex_dpo", beta_chosen=0.2, beta_rejected_max=0.15, adapt_every=4
    )
    assert [steps for steps, _ in learner.sides_measured] == list(range(0, len(learner.stepped), 4))
    assert len(learner.sides_measured) == 3
    assert [s.beta_rejected for _, s, _ in learner.stepped] == pytest.approx([0.06] * len(learner.stepped))
    assert arm.told("state/beta_rejected") == pytest.approx([0.06] * len(learner.stepped))
    # The gradients are weighted by the loss as it was before the measurement: first at the maximum.
    assert [s.beta_rejected for _, s in learner.sides_measured] == pytest.approx([0.15, 0.06, 0.06])
    assert arm.ledger.by_phase["measuring"].flops == MEASURING.flops + 3 * SIDES.flops
    assert arm.ledger.spent <= 100.0 < arm.ledger.spent + STEP.flops + SIDES.flops


def test_a_schedule_moves_an_adaptive_methods_bound_as_well():
    learner = Learner(sides=SideGradients(2.0, 8.0, 40.0))
    arm = Arm(200.0, learner=learner, method="adaptive_flex_dpo", beta_chosen=RISING, adapt_every=1, smoothing=0.0)
    found = [(s.beta_chosen, s.beta_rejected) for _, s, _ in learner.stepped]
    # What is measured is charged first, so the step's β⁺ is a little further on than the rule's: by 5/200 of the way.
    lag = 0.2 * SIDES.flops / 200
    for beta_chosen, beta_rejected in found[1:]:
        assert beta_rejected == pytest.approx(0.9 * (beta_chosen - lag) * 4 / 40)
    assert found[-1][0] > 0.28 and arm.status == "done"


def test_an_update_whose_measurement_does_not_fit_is_not_begun():
    limit = MEASURING.flops + STEP.flops + SIDES.flops - 1
    with pytest.raises(ArmFailed, match="before the first update: 0 of 14 flops spent"):
        Arm(limit, method="adaptive_flex_dpo")
    assert Arm(limit + 1, method="adaptive_flex_dpo").ledger.spent == limit + 1
    assert len(Arm(limit, method="flex_dpo").updates) == 1


def test_a_budget_too_small_for_any_update_fails_with_what_was_spent():
    with pytest.raises(ArmFailed, match="before the first update: 0 of 9 flops spent; raise compute.limit"):
        Arm(9.0, method="dpo")


def test_looks_are_taken_at_the_marks_and_at_the_end():
    arm = Arm(LIMIT, marks=(0.25, 0.5, 1.0), method="dpo")
    assert [look.mark for look, _ in arm.looks] == [0.0, 0.25, 0.5, 1.0]
    assert [look.update for look, _ in arm.looks] == [0, 3, 5, UPDATES]
    assert all(look.fraction >= look.mark for look, _ in arm.looks[:-1])
    assert [evaluation.numbers["kl"] for _, evaluation in arm.looks[1:]] == [3, 5, UPDATES]
    assert arm.ledger.by_phase["evaluation"] == Cost(flops=3 * 7.0)
    assert arm.ledger.spent == SPENT  # looking costs the arm nothing


def test_without_marks_only_start_and_end_are_seen():
    arm = Arm(LIMIT, method="dpo")
    assert [(look.mark, look.update) for look, _ in arm.looks] == [(0.0, 0), (1.0, UPDATES)]


@pytest.mark.parametrize("late", [False, True], ids=["at_once", "all_at_the_end"])
def test_a_look_is_judged_by_the_loss_that_was_in_force_when_it_was_taken(late):
    """Flex-DPO's |∂⁻|/|∂⁺| is β⁻/β⁺ whatever the policy, so it shows which β⁻ the derivatives were taken with."""
    evaluator = Evaluator(pairs=LOOKED, late=late)
    arm = Arm(LIMIT, marks=(0.5, 1.0), evaluator=evaluator, method="flex_dpo", beta_chosen=0.5, beta_rejected=RISING)
    expected = [(0.1 + 0.2 * look.fraction) / 0.5 for look, _ in arm.looks]
    assert [e.numbers["partial/log_ratio"] for _, e in arm.looks] == pytest.approx(expected, rel=1e-9)
    assert [look.mark for look, _ in arm.looks] == [0.0, 0.5, 1.0]


def test_pairs_of_other_splits_do_not_enter_the_partials():
    far = PairEvaluation("unseen", "u", -30.0, -50.0, -9.0, 9.0, 2, 3, 0.0, 0.0, 1.0)
    alone, among = (Arm(LIMIT, evaluator=Evaluator(pairs=pairs), method="dpo") for pairs in (LOOKED, [*LOOKED, far]))
    key = "partial/log_chosen"
    assert among.looks[-1][1].numbers[key] == alone.looks[-1][1].numbers[key]
    assert alone.looks[-1][1].numbers[key] == pytest.approx(0.1 / (1 + math.exp(0.1)))  # β σ(−β(Δ⁺ − Δ⁻)), by hand


OWN = [PairEvaluation("in_distribution", f"o{i}", -2.0 - i, -4.0, up, down, 2, 3, 0.0, 0.0, 1.0, kind)
       for kind, moves in (("on_policy", [(0.75, -0.25), (-0.5, -1.0)]), ("chosen_on_policy", [(-2.0, -3.0)]))
       for i, (up, down) in enumerate(moves)]  # fmt: skip


@pytest.mark.parametrize("data", ["on_policy", "online"])
def test_an_on_policy_arm_records_the_numbers_of_on_policy_pairs_beside_those_of_the_fixed_ones(data):
    arm = Arm(
        400.0, evaluator=Evaluator(pairs=[*LOOKED, *OWN]), method="dpo", data=data, beta=0.1, prompts_per_update=4
    )
    alone = Arm(400.0, evaluator=Evaluator(pairs=LOOKED), method="dpo", data=data, beta=0.1, prompts_per_update=4)
    slopes = [0.1 / (1 + math.exp(0.1 * margin)) for margin in (1.0, 0.5)]  # β σ(−β(Δ⁺ − Δ⁻))
    expected = {
        "chosen_logprob": -2.5, "rejected_logprob": -4.0, "chosen_logratio": 0.125, "rejected_logratio": -0.625,
        "margin": 0.75, "displaced": 0.5, "accuracy": 1.0, "partial/log_chosen": sum(slopes) / 2,
        "partial/log_ratio": 1.0, "partial/pi_log_ratio": (2.0 + 1.0) / 2,
    }  # fmt: skip
    for (_, evaluation), (_, before) in zip(arm.looks, alone.looks, strict=True):  # the base policy's among them
        own = {name.removeprefix("own/"): x for name, x in evaluation.numbers.items() if name.startswith("own/")}
        assert {name: own[name] for name in expected} == pytest.approx(expected)
        fixed = {name: x for name, x in evaluation.numbers.items() if not name.startswith("own/")}
        assert fixed == before.numbers and not any(name.startswith("own/") for name in before.numbers)


def test_each_mixed_scenario_and_ppo_have_their_kind_of_pairs():
    pairs = [*LOOKED, *OWN]
    mixed = Arm(400.0, evaluator=Evaluator(pairs=pairs), method="dpo", data="chosen_on_policy")
    assert mixed.looks[-1][1].numbers["own/chosen_logratio"] == -2.0
    ppo = Arm(
        1000.0,
        evaluator=Evaluator(pairs=pairs),
        method="ppo",
        feedback="judge",
        prompts_per_update=4,
        samples_per_prompt=2,
    )
    numbers = ppo.looks[-1][1].numbers
    assert numbers["own/margin"] == 0.75 and not any("partial/" in name for name in numbers)
    by_model = Arm(1000.0, evaluator=Evaluator(pairs=pairs), method="ppo", prompts_per_update=4, samples_per_prompt=2)
    assert not any(name.startswith("own/") for name in by_model.looks[-1][1].numbers)  # another ranking, another kind


def test_the_own_pairs_of_an_offline_arm_are_the_fixed_ones():
    numbers = Arm(LIMIT, evaluator=Evaluator(pairs=[*LOOKED, *OWN]), method="dpo").looks[-1][1].numbers
    assert (numbers["own/chosen_logprob"], numbers["own/rejected_logratio"], numbers["own/margin"]) == (-3.0, -0.5, 1.0)
    partials = [name for name in numbers if name.startswith("partial/")]
    assert partials and all(numbers[f"own/{name}"] == numbers[name] for name in partials)


def test_updates_whose_loss_is_no_number_are_counted_and_five_in_a_row_end_the_arm_as_diverged():
    nan = float("nan")
    arm = Arm(LIMIT, learner=Learner(losses=[1.0, nan, 1.0, *[nan] * 5]), method="dpo")
    assert arm.status == "diverged" and len(arm.updates) == 8 and math.isnan(arm.told("loss")[1])
    assert arm.told("skipped") == [0, 1, 0, 1, 1, 1, 1, 1]
    assert [(look.mark, look.update) for look, _ in arm.looks] == [(0.0, 0), (1.0, 8)]
    assert arm.ledger.spent == MEASURING.flops + 8 * STEP.flops
    assert [(update, why) for update, why, _ in arm.skipped] == [(n, "loss not finite") for n in (2, 4, 5, 6, 7, 8)]
    assert [row.id for row in arm.skipped[0][2].rows] == [row.id for row in arm.learner.stepped[1][0]]
    some = Arm(LIMIT, learner=Learner(losses=[1.0, *[nan] * 4, 1.0, nan]), method="dpo")
    assert some.status == "done" and len(some.updates) == UPDATES
    online = Arm(200.0, learner=Learner(losses=[1.0, *[nan] * 5]), method="dpo", data="online", prompts_per_update=4)
    assert online.status == "diverged" and len(online.updates) == 6


@pytest.mark.parametrize("skips", [1, 2, 5])
def test_an_arm_diverges_with_the_same_update_wherever_checkpoints_fall(skips):
    class Checkpointer:
        def __init__(self, rounds):
            self.rounds, self.seen = rounds, 0

        def due(self):
            self.seen += 1
            return self.seen in self.rounds

        def save(self, number, state, write):
            pass

        def latest(self):
            return None

    def updates(*rounds):
        learner = Learner(losses=[1.0, *[float("nan")] * skips])
        arm = Arm(LIMIT, learner=learner, method="dpo", skips=skips, checkpointer=Checkpointer(rounds))
        assert arm.status == "diverged"
        return [str(update) for update in arm.updates]  # as text nan equals nan

    alone = updates()
    assert len(alone) == 1 + skips
    for rounds in ((1,), (2,), (1 + skips,), (skips, 1 + skips)):
        assert updates(*rounds) == alone


def test_an_update_whose_rewards_or_measures_are_not_finite_never_reaches_the_learner():
    class Spoiled(Learner):
        def begin_measure(self, name, rows, temperature=1.0):
            found = super().begin_measure(name, rows, temperature)
            if name == "critic":
                found.found[0][0][0][:] = math.inf
            return found

    for arm in (
        Arm(1000.0, learner=Spoiled(), method="ppo", prompts_per_update=4, samples_per_prompt=2),
        Arm(1000.0, scorer=LengthScorer(math.nan), method="ppo", prompts_per_update=4, samples_per_prompt=2),
    ):
        assert arm.status == "diverged" and arm.told("skipped") == [1] * 5 and not arm.learner.stepped
        assert {why for _, why, _ in arm.skipped} in ({"values not finite"}, {"a reward is not finite"})


@pytest.mark.parametrize("data", ["offline", "online"])
def test_the_next_update_of_fixed_pairs_is_handed_in_before_the_last_one_is_waited_for(data):
    learner = Learner()
    arm = Arm(LIMIT, marks=(0.5,), learner=learner, method="dpo", data=data, prompts_per_update=4)
    updates = len(arm.updates)
    in_turn = [what for n in range(1, updates + 1) for what in (("begins", n), ("is waited for", n))]
    if data == "online":  # fresh samples need the weights that the last update makes
        assert learner.order == in_turn
    else:
        evaluated = next(look.update for look, _ in arm.looks if look.mark == 0.5)
        behind = [n for n in range(1, updates) if n != evaluated]  # a look sees all that came before it
        assert [
            n for n in behind if learner.order.index(("is waited for", n)) < learner.order.index(("begins", n + 1))
        ] == []
        assert learner.order.index(("is waited for", evaluated)) < learner.order.index(("begins", evaluated + 1))
        assert sorted(learner.order) == sorted(in_turn) and updates == UPDATES
    assert [update for update, _, _ in arm.updates] == list(range(1, updates + 1))


def test_the_finished_policy_is_kept_only_where_a_place_is_named(tmp_path):
    assert Arm(LIMIT, method="dpo").learner.saved == []
    kept = Arm(LIMIT, method="dpo", save_to=tmp_path / "policy")
    assert kept.learner.saved == [tmp_path / "policy"] and (tmp_path / "policy" / "tokenizer.json").exists()


def test_the_reference_of_fixed_pairs_is_measured_once_and_of_fresh_ones_every_time():
    fixed, fresh = Arm(LIMIT, method="dpo"), Arm(100.0, method="dpo", data="online", prompts_per_update=4)
    assert [name for name, _ in fixed.learner.measured] == ["reference"] and len(fixed.updates) == UPDATES
    looks = [rows for name, rows in fresh.learner.measured if name == "reference"]
    assert len(looks) == len(fresh.updates) > 3


@pytest.mark.parametrize("limit", [100.0, 101.0, 103.0, 107.0, 113.0])
def test_an_online_arm_samples_with_its_newest_weights_and_never_passes_its_limit(limit):
    """Sending weights costs the check that they arrived: paid within the update that samples with them."""
    arm = Arm(limit, method="dpo", data="online", prompts_per_update=4)
    updates = len(arm.updates)
    assert arm.sync.versions in (
        list(range(updates)),
        list(range(updates + 1)),
    )  # the last may find no room for its step
    assert arm.ledger.spent <= limit
    assert limit - arm.ledger.spent < STEP.flops + 2 * MEASURING.flops  # a step, the reference's look, the check


def test_a_method_without_a_reference_loads_and_measures_none():
    arm = Arm(LIMIT, method="simpo")
    assert [name for name, _, _ in arm.learner.loaded] == ["policy"] and arm.learner.measured == []


def test_an_arm_that_draws_ahead_samples_while_the_learner_is_at_its_steps():
    """Update n + 1 is drawn after update n's steps were handed in, before they are waited for: one version behind."""
    learner = Learner()
    arm = Arm(400.0, learner=learner, method="ppo", prompts_per_update=4, samples_per_prompt=3, epochs_per_update=1,
              rollouts_ahead=1, feedback="judge", pool_order=learner.order)  # fmt: skip
    updates = len(arm.updates)
    happened = [what if what == "draws" else (what, n) for what, n in learner.order]
    expected = ["draws"]
    for n in range(1, updates + 1):
        ahead = ["draws"] if happened.count("draws") > n else []
        expected += [("begins", n), *ahead, ("is waited for", n)]
    assert happened == expected and updates > 5
    assert arm.told("policy_version_lag") == [0.0] + [1.0] * (updates - 1)
    assert arm.ledger.spent <= 400.0
    plain = Arm(400.0, method="ppo", prompts_per_update=4, samples_per_prompt=3, epochs_per_update=1, feedback="judge")
    assert set(plain.told("policy_version_lag")) == {0.0} and "importance" not in plain.updates[0][1]
    assert "importance" in arm.updates[0][1]


def test_a_pair_is_charged_for_its_reference_once_also_where_an_update_holds_it_twice():
    """Four pairs, three in an update: an epoch's last pair stands beside the next epoch's first ones."""
    arm = Arm(LIMIT, learner=PerRow(), method="dpo", pairs_per_update=3)
    assert arm.ledger.by_phase["measuring"].flops == len(PAIRS) * MEASURING.flops
    drawn = [row.id for rows, _, _ in arm.learner.stepped for row in rows]
    assert len(set(drawn)) == len(PAIRS) < len(drawn)
    # And the record of an update holds what had been spent by its end, not the next one's reference.
    spent = [round(fraction * LIMIT) for _, _, fraction in arm.updates]
    new = [len(set(drawn[: 3 * n])) for n in range(1, len(arm.updates) + 1)]
    assert spent == [MEASURING.flops * n + STEP.flops * i for i, n in enumerate(new, 1)]


def test_what_an_update_draws_ahead_is_charged_with_the_update_that_learns_from_it():
    ppo = {
        "method": "ppo",
        "prompts_per_update": 4,
        "samples_per_prompt": 3,
        "epochs_per_update": 1,
        "feedback": "judge",
    }
    told = {}
    for ahead in (0, 1):
        arm = Arm(400.0, **ppo, rollouts_ahead=ahead)
        told[ahead] = [round(fraction * 400.0) for _, _, fraction in arm.updates]
        assert arm.ledger.by_phase["rollout"].generated_tokens == sum(
            len(response) for rows, _, _ in arm.learner.stepped[::2] for row in rows for response in row.responses
        )
    assert told[0] == told[1]


class Noting(Learner):
    """Also notes in its order when a forward pass is asked for, and when it is waited for."""

    def begin_measure(self, name, rows, temperature=1.0):
        under_way, self.order = super().begin_measure(name, rows, temperature), self.order
        self.order.append(("measures", name))
        return replace(under_way, order=self.order, call=name)


def test_the_learner_measures_a_part_while_the_engines_draw_the_next_one():
    """Every part's forward passes are asked for before the next part is drawn, and waited for when all are."""
    learner = Noting()
    Arm(400.0, learner=learner, method="ppo", prompts_per_update=4, samples_per_prompt=3, epochs_per_update=1,
        feedback="judge", pool_order=learner.order, pool_part=2)  # fmt: skip
    happened = [what for what, _ in learner.order]
    update = happened[happened.index("draws") : happened.index("begins")]  # before it, the look at a sync's probe
    measures = ["measures"] * 3  # by policy, reference and critic
    assert update == ["draws", *measures, "draws", *measures, *["is waited for"] * 6]


def test_what_is_drawn_ahead_of_a_divergence_is_charged_with_its_forward_passes():
    arm = Arm(4000.0, learner=Learner(losses=[1.0, 1.0, *[math.nan] * 99]), method="ppo", prompts_per_update=4,
              samples_per_prompt=3, epochs_per_update=1, rollouts_ahead=1, feedback="judge")  # fmt: skip
    assert arm.status == "diverged"
    looks = [rows for _, rows in arm.learner.measured if rows[0].id != "probe"]  # which a sync pays for
    assert arm.ledger.by_phase["measuring"].flops == len(looks) * MEASURING.flops


class Costlier(Learner):
    """Its steps cost ten times as much after the first update."""

    def steps_cost(self, work):
        cost = super().steps_cost(work)
        return cost if not self.stepped else replace(cost, flops=10 * cost.flops)


def test_what_is_drawn_ahead_of_an_update_that_does_not_fit_is_charged_once():
    """Three forward passes for each draw: also for the second, for whose steps there is no room."""
    arm = Arm(100.0, learner=Costlier(), method="ppo", prompts_per_update=4, samples_per_prompt=3, epochs_per_update=1,
              rollouts_ahead=1, feedback="judge")  # fmt: skip
    assert len(arm.updates) == 1 and len(arm.pool.seeds) == 2
    assert arm.ledger.by_phase["measuring"].flops == 2 * 3 * MEASURING.flops


def test_an_arm_whose_updates_no_longer_spend_the_column_ends_with_the_cause():
    """All candidates score alike, so there are no pairs: sampling costs FLOPs, but no trained tokens."""
    online = {"method": "dpo", "data": "online", "prompts_per_update": 4, "feedback": "judge", "answers": ["wrong"]}
    with pytest.raises(ArmFailed, match="^5 updates in a row spent no trained_tokens, .* use compute.column flops"):
        Arm(100.0, column="trained_tokens", **online)


# Pairs among the start policy's samples


def test_a_one_shot_arm_keeps_the_start_policy_in_the_engines_and_trains_on_each_pair_once():
    arm = Arm(100.0, method="dpo", data="on_policy")
    assert arm.sync.versions == [0] and arm.told("policy_version_lag") == list(range(len(arm.updates)))
    rows = [row.id for rows, _, _ in arm.learner.stepped for row in rows]
    assert len(set(rows)) == len(rows) == 4 * len(arm.updates) > 20
    looks = [rows for name, rows in arm.learner.measured if name == "reference"]
    assert len(looks) == len(arm.updates)  # and each is looked at once by the reference
    assert 100.0 - STEP.flops - MEASURING.flops < arm.ledger.spent <= 100.0


class Barren(Pool):
    """Every other prompt has only wrong answers."""

    def _sample(self, prompt, k, kind):
        return super()._sample(prompt, k, kind if int(prompt.id[-1]) % 2 else "wrong")


class Keeping:
    """Writes a checkpoint after every update, keeps it, and stops after update `last`."""

    def __init__(self, last, found=None):
        self.last, self.found = last, found

    def due(self):
        return True

    def save(self, number, state, write):
        self.found = json.loads(json.dumps(dict(state)))
        if number == self.last:
            raise Stopped(2)

    def latest(self):
        return self.found and (self.found, "folder", [])


class Resuming(Learner):
    def load_state(self, folder, files):
        pass


@pytest.mark.parametrize("epochs", [1, 3])
@pytest.mark.parametrize("last", [1, 2, 5])
def test_a_one_shot_arm_that_was_stopped_goes_on_with_the_very_same_pairs(epochs, last):
    arm = {"method": "dpo", "data": "on_policy", "epochs": epochs, "pool": Barren, "shape": TINY}
    limit = {1: 120.0, 3: 2000.0}[epochs]

    def steps(of):
        return [[row.id for row in rows] for rows, _, _ in of.stepped]

    whole, before, after = (Resuming() for _ in range(3))
    done, kept = Arm(limit, learner=whole, **arm), Keeping(last)
    with pytest.raises(Stopped):
        Arm(limit, learner=before, checkpointer=kept, **arm)
    resumed = Arm(limit, learner=after, checkpointer=Keeping(None, kept.found), **arm)
    assert steps(before) + steps(after) == steps(whole) and len(steps(whole)) > last
    assert [str(told) for told in resumed.updates] == [str(told) for told in done.updates[last:]]
    resumed.ledger.by_phase.pop("sync"), done.ledger.by_phase.pop("sync")  # whose seconds are of the clock
    assert resumed.ledger.by_phase == done.ledger.by_phase


def test_an_arm_ends_when_all_its_epochs_are_made_though_budget_is_left():
    arm = Arm(2000.0, method="dpo", data="on_policy", epochs=3, shape=TINY)
    seen = Counter(row.id for rows, _, _ in arm.learner.stepped for row in rows)
    assert arm.status == "done" and set(seen.values()) == {3} and len(seen) % 4 == 0
    assert arm.told("pair_passes")[-1] == 3 and arm.ledger.spent < 2000.0 - 2 * STEP.flops
    assert [name for name, _ in arm.learner.measured] == ["policy", "reference"]  # the sync's probe; all rows at once


@pytest.mark.parametrize("method", ["grpo", "rloo", "reinforce_plus_plus", "rft"])
def test_a_method_without_a_critic_has_none_loaded_measured_or_trained(method):
    arm = Arm(60.0, method=method, prompts_per_update=4, samples_per_prompt=3, feedback="judge")
    loaded = [name for name, *_ in arm.learner.loaded]
    assert loaded == (["policy"] if method == "rft" else ["policy", "reference"])
    assert "critic" not in {name for name, _ in arm.learner.measured} and len(arm.updates) > 2


def test_rejection_sampling_trains_on_the_right_answer_alone():
    arm = Arm(60.0, method="rft", prompts_per_update=4, samples_per_prompt=3, feedback="judge")
    for rows, *_ in arm.learner.stepped:
        assert len(rows) == 4 and all(len(row.responses) == 1 for row in rows)
    assert all(numbers["selected"] == 1.0 and numbers["selected_reward"] == 1.0 for _, numbers, _ in arm.updates)


def test_an_update_whose_samples_are_all_alike_trains_nothing_and_is_paid_for():
    with pytest.raises(ArmFailed, match="before the first update"):
        Arm(200.0, column="generated_tokens", answers=("wrong",), method="rft", prompts_per_update=4,
            samples_per_prompt=3, feedback="judge")  # fmt: skip


@pytest.mark.parametrize("data", ["offline", "on_policy", "online"])
def test_ktos_reference_point_is_measured_before_every_update_on_the_next_pairs_responses(data):
    arm = Arm(80.0, method="kto", data=data, prompts_per_update=4)
    assert len(arm.updates) > 1 and all(numbers["state/reference_point"] == 0.0 for _, numbers, _ in arm.updates)
    looks = [(name, rows) for name, rows in arm.learner.measured if len(rows) > 1]
    trained = [rows for rows, *_ in arm.learner.stepped]
    for model in ("policy", "reference"):
        asked = [rows for name, rows in looks if name == model]
        for rows in trained:
            following = [*rows[1:], rows[0]]
            wanted = [(row.prompt_ids, other.responses) for row, other in zip(rows, following, strict=True)]
            assert wanted in [[(row.prompt_ids, row.responses) for row in found] for found in asked]
    assert "reference" in [name for name, *_ in arm.learner.loaded]
    assert all(settings.reference_point == 0.0 for _, settings, _ in arm.learner.stepped)


@pytest.mark.parametrize(
    "labelled", [None, [LabelledResponse(f"l{i}", PAIRS[0].prompt, (6 + i, 2), i % 3 == 0) for i in range(9)]]
)
def test_kto_learns_from_single_responses_with_a_label(labelled):
    """Of the data, or the sides of its pairs; each is measured under the reference once, and trained on by itself."""
    arm = Arm(200.0, method="kto", unpaired=True, pairs_per_update=3, labelled=labelled)
    assert arm.status == "done" and len(arm.updates) > 1 and set(arm.told("pairs")) == {3}
    rows = [row for rows, *_ in arm.learner.stepped for row in rows]
    assert all(len(row.responses) == 1 for row in rows)
    wanted = {p.chosen_ids for p in PAIRS} | {p.rejected_ids for p in PAIRS}
    assert {row.responses[0] for row in rows} <= ({one.response_ids for one in labelled} if labelled else wanted)
    good = [float(row.extras["desirable"][0][0]) for row in arm.learner.stepped[0][0]]
    assert arm.told("desirable")[0] == sum(good) / 6


@pytest.mark.parametrize(
    "arm", [{"method": "ppo", "feedback": "judge", "prompts_per_update": 4}, {"method": "dpo", "data": "on_policy"}]
)
def test_an_arm_needs_no_off_policy_pairs_to_check_its_weight_syncs(arm):
    found = Arm(300.0, pairs=[], **arm)
    prompt, (response,) = next(
        (row.prompt_ids, row.responses) for name, rows in found.learner.measured for row in rows if row.id == "probe"
    )
    assert found.status == "done" and prompt == response == found.trainer.shared.inputs.train[0].token_ids


def test_mismatched_responses_are_cut_to_what_the_context_has_room_for():
    rows = [Row("a", (1, 2), ((3,), (4, 5))), Row("b", (6,), ((7, 8, 9), (7,)))]
    found = mismatched(rows, 4)
    assert [(row.prompt_ids, row.responses) for row in found] == [((1, 2), ((7, 8), (7,))), ((6,), ((3,), (4, 5)))]
