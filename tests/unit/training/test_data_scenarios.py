"""One-shot pairs: chosen and rejected responses, each from the start policy or from others."""

import json
import math
from collections import Counter
from dataclasses import replace
from itertools import product

import pytest

from rlhf_bench.compute.forecast import Lengths, pair_forecast
from rlhf_bench.core.costs import Cost
from rlhf_bench.core.errors import ArmFailed, BadInput
from rlhf_bench.core.types import Pair, Prompt
from rlhf_bench.diagnostics.distance import edit_distance
from rlhf_bench.methods import METHODS
from rlhf_bench.models.codec import Codec
from rlhf_bench.models.flops import ModelShape
from rlhf_bench.models.tokenizer import TokenizerSettings, build_tokenizer, encode_response
from rlhf_bench.recipe import DataSettings, parse_recipe
from rlhf_bench.tasks import build_task
from rlhf_bench.tasks.arithmetic import ArithmeticSettings
from rlhf_bench.training.batch import joined
from rlhf_bench.training.experience import make_source
from rlhf_bench.training.inputs import Inputs
from rlhf_bench.training.pairs import mix_sides
from rlhf_bench.training.roles import Roles
from rlhf_bench.training.rollouts import RolloutSampler
from rlhf_bench.training.state import ArmState
from tests.support.scripted import FreshStartSamples, LengthScorer, Pool

TASK = build_task(ArithmeticSettings(digits=1))
TOKENIZER = build_tokenizer(TokenizerSettings(kind="characters"), TASK.corpus())
TRAIN = TASK.prompts("train", 12, 0)
DPO = METHODS["dpo"]
SHAPE = ModelShape(
    50_000, layers=2, attention_width=32, head_weights=640, parameters=51_000, linear_width=600, vocabulary=20
)


def prompt(name):
    return Prompt(name, f"{name}?", "", (1, 2))


def pair(name, chosen, rejected, scores=(1.0, 0.0), version=0, id=None):
    return Pair(id or f"{name}{chosen}", prompt(name), chosen, rejected, *scores, version)


def test_each_side_comes_from_the_set_that_the_mode_names():
    own, others = pair("a", (10,), (11,), (0.9, 0.2), version=3), pair("a", (20,), (21,), (0.8, 0.1))
    (good,), (bad,) = mix_sides([own], [others], "chosen_on_policy"), mix_sides([own], [others], "rejected_on_policy")
    assert (good.chosen_ids, good.rejected_ids, good.chosen_score, good.rejected_score) == ((10,), (21,), 0.9, 0.1)
    assert (bad.chosen_ids, bad.rejected_ids, bad.chosen_score, bad.rejected_score) == ((20,), (11,), 0.8, 0.2)
    assert good.prompt == bad.prompt == own.prompt and good.policy_version == bad.policy_version == 3
    assert len({p.id for p in (own, others, good, bad)}) == 4


@pytest.mark.parametrize("mode", ["chosen_on_policy", "rejected_on_policy"])
def test_only_prompts_with_a_pair_of_both_kinds_give_one_and_in_the_samples_order(mode):
    own = [pair(name, (10,), (11,)) for name in "cab"]
    others = [pair(name, (20,), (21,)) for name in "xbyc"]
    assert [p.prompt.id for p in mix_sides(own, others, mode)] == ["c", "b"]
    assert mix_sides(own, [], mode) == mix_sides([], others, mode) == []


@pytest.mark.parametrize("mode", ["chosen_on_policy", "rejected_on_policy"])
def test_sides_that_contradict_their_scores_or_are_the_same_text_make_no_pair(mode):
    """All ways to score and to word the two sides that meet; what is left is what a preference can be."""
    for good, bad, same in product((0.0, 0.5, 1.0, -math.inf), (0.0, 0.5, 1.0, -math.inf), (True, False)):
        chosen_side = pair("a", (10,), (99,), (good, -math.inf))
        rejected_side = pair("a", (98,), (10,) if same else (21,), (math.inf, bad))
        own, others = (chosen_side, rejected_side) if mode == "chosen_on_policy" else (rejected_side, chosen_side)
        assert len(mix_sides([own], [others], mode)) == (not same and good > bad)


@pytest.mark.parametrize("mode", ["chosen_on_policy", "rejected_on_policy"])
def test_sides_whose_scores_are_equal_up_to_rounding_make_no_pair(mode):
    own, others = (replace(pair("a", (k,), (k + 1,), (0.51, 0.5)), rounding=0.02) for k in (10, 20))
    assert mix_sides([own], [others], mode) == []
    better = [replace(p, chosen_score=0.53) for p in (own, others)]
    ((one,),) = [mix_sides([better[0]], [better[1]], mode)]
    assert one.rounding == 0.02


# A task's prompts, and what the weaker policy said to four of them, in an order of their own.
CORPUS = [
    Pair(
        f"off{i}",
        TRAIN[i],
        encode_response(TOKENIZER, TRAIN[i].answer),
        encode_response(TOKENIZER, "++++"),
        1.0,
        0.0,
    )
    for i in (7, 3, 9, 5)
]


class Scenario:
    """An arm's source, the pool that it draws from, and the arm's state."""

    def __init__(self, data, offline=CORPUS, pool=None, feedback="judge", edit=None, before=None, seed=0, per_update=4,
                 epochs=1, limit=1e9, column="generated_tokens"):  # fmt: skip
        arm = DPO.settings(data=data, feedback=feedback, pairs_per_update=per_update, edit_distance=edit, epochs=epochs)
        self.pool = pool or Pool(TOKENIZER)
        inputs = Inputs(TASK, Codec(TOKENIZER), None, SHAPE, TRAIN, {}, [], [], None, [], {})
        roles = Roles(self.pool, LengthScorer(), None, None, None)
        data = DataSettings(candidates_per_prompt=3)
        sampler = RolloutSampler(roles, inputs, data, arm, seed, before or FreshStartSamples())
        self.state = ArmState.begin(column, limit, seed)
        self.source = make_source(DPO, arm, sampler, offline, SHAPE, self.state)

    def draw(self):
        """The next update's data; as the loop does, the round is counted."""
        batch = joined(list(self.source.draw(self.state, self.state.ledger)))
        self.state.rounds += 1
        return batch

    def sides(self):
        return {row.id.partition("@")[0]: row.responses for row in self.draw().rows}


def sides(*arguments, **settings):
    return Scenario(*arguments, **settings).sides()


def text(ids):
    return TOKENIZER.backend_tokenizer.decode(list(ids)).replace(" ", "")


ONE_SHOT = ["on_policy", "chosen_on_policy", "rejected_on_policy"]


@pytest.mark.parametrize("data", ONE_SHOT)
def test_the_off_policy_pairs_prompts_are_sampled_first(data):
    """So that all four scenarios learn from the same prompts as far as those go."""
    arm = Scenario(data)
    arm.draw()
    first = {TRAIN[i].id for i in (7, 3, 9, 5)}
    assert set(arm.pool.asked) == first and len(arm.pool.asked) == 4
    arm.draw()
    # Where a side is the off-policy pair's, a further prompt has no other half; on_policy goes on to others.
    assert (set(arm.pool.asked[4:]) == first) == (data != "on_policy")
    assert len(set(arm.pool.asked)) == (8 if data == "on_policy" else 4)


def test_the_four_scenarios_on_the_same_prompts():
    found = {data: sides(data) for data in ("offline", *ONE_SHOT)}
    assert {len(rows) for rows in found.values()} == {4}
    # The start policy's worst is unfinished, the others' is "++++"; both of them know the answer.
    worst = {data: {text(down) == "++++" for _, down in rows.values()} for data, rows in found.items()}
    assert worst == {"offline": {True}, "on_policy": {False}, "chosen_on_policy": {True}, "rejected_on_policy": {False}}
    best = {text(up) for rows in found.values() for up, _ in rows.values()}
    assert best == {TRAIN[i].answer for i in (7, 3, 9, 5)}


@pytest.mark.parametrize("data", ONE_SHOT)
def test_every_pair_is_seen_once_and_a_prompt_comes_again_only_with_new_samples(data):
    arm = Scenario(data)
    found = [arm.draw() for _ in range(6)]
    assert not any(d.fixed for d in found) and [len(d.rows) for d in found] == [4] * 6
    ids = [row.id for d in found for row in d.rows]
    assert len(set(ids)) == len(ids) == 24
    assert len(arm.pool.seeds) == len(set(arm.pool.seeds)) == 6
    prompts = len(TRAIN) if data == "on_policy" else len(CORPUS)
    assert [d.metrics["prompt_passes"] for d in found] == pytest.approx([4 * n / prompts for n in range(1, 7)])
    assert {d.metrics["pair_passes"] for d in found} == {1}
    for at in range(0, 24, prompts):  # a pass is over when all have been asked
        assert len(set(arm.pool.asked[at : at + prompts])) == prompts
    assert arm.state.ledger.by_phase["judging"].judge_queries == 24 * 3  # paid for as they are drawn
    assert [d.metrics["gold"] for d in found] == [1 / 3] * 6


def test_the_lag_is_the_updates_since_the_start_policy():
    arm = Scenario("on_policy")
    assert arm.draw().metrics["policy_version_lag"] == 0
    arm.state.version = 7
    assert arm.draw().metrics["policy_version_lag"] == 7


class Barren(Pool):
    """Every other prompt has only wrong answers, so it makes no pair."""

    def _sample(self, prompt, k, kind):
        odd = [p.id for p in TRAIN].index(prompt.id) % 2
        return super()._sample(prompt, k, kind if odd else "wrong")


def test_an_update_draws_on_until_it_has_its_pairs_and_keeps_what_is_left_over():
    arm = Scenario("on_policy", [], Barren(TOKENIZER), per_update=5)
    for _ in range(8):
        assert len(arm.draw().rows) == 5
        assert len(arm.state.waiting) < 5
    left = [pair.id for pair in arm.state.waiting]
    again = ArmState.from_json(json.loads(json.dumps(arm.state.to_json())))
    assert [pair.id for pair in again.waiting] == left and again.waiting == arm.state.waiting
    state, arm.state = arm.state, again
    resumed = arm.draw()
    arm.state = state
    assert [row.id for row in arm.draw().rows][: len(left)] == left
    assert [row.id for row in resumed.rows][: len(left)] == left


def test_a_draw_that_the_budget_has_no_room_for_is_not_made():
    """A draw for 5 prompts makes fewer pairs here; the second one that the update asks for does not fit."""
    probe = Scenario("on_policy", [], Barren(TOKENIZER), per_update=5)
    probe.source.more(probe.state.sampler, probe.state.ledger)
    one = probe.state.ledger.spent
    arm = Scenario("on_policy", [], Barren(TOKENIZER), per_update=5, limit=1.5 * one)
    assert 0 < len(arm.draw().rows) < 5
    assert arm.state.ledger.spent == one and len(arm.pool.seeds) == 1


def test_arms_of_one_seed_share_the_start_policys_samples_and_each_pays_for_them():
    pool, before, charged = Pool(TOKENIZER), FreshStartSamples(), []
    for data in (*ONE_SHOT, "on_policy"):
        arm = Scenario(data, pool=pool, before=before)
        assert arm.sides() == sides(data)
        charged.append(arm.state.ledger.by_phase)
    assert len(pool.seeds) == 1 and charged[0] == charged[1] == charged[2] and charged[0]["rollout"] != Cost()
    Scenario("on_policy", pool=pool, before=before, seed=1).draw()
    assert len(pool.seeds) == len(set(pool.seeds)) == 2  # the second seed's own


# Several epochs


def planned(limit, epochs=3, column="trained_tokens", **settings):
    return Scenario("on_policy", [], limit=limit, epochs=epochs, column=column, **settings)


@pytest.mark.parametrize("epochs", [2, 3, 5])
def test_with_several_epochs_there_are_as_many_pairs_as_all_of_them_leave_room_for(epochs):
    """Sampling trains no token, so all that training on a draw's pairs spends is their tokens, once an epoch."""
    for limit in (100, 300, 500):
        arm = planned(limit, epochs)
        seen, tokens = Counter(), 0
        while not arm.source.ended(arm.state):
            batch = arm.draw()
            assert batch.fixed
            seen.update(row.id for row in batch.rows)
            tokens += sum(row.response_tokens for row in batch.rows)
        assert set(seen.values()) == {epochs}
        per_draw = epochs * max(p.response_tokens for p in arm.source.rows) * 4
        assert tokens <= limit < tokens + per_draw or len(seen) == 4
        assert batch.metrics["pair_passes"] == epochs
        assert batch.metrics["prompt_passes"] == len(arm.pool.asked) / len(TRAIN)


def test_candidates_and_all_epochs_share_the_budget():
    """In FLOPs: what sampling costs is taken off first; the scripted pool asks none by itself."""

    class Dear(Pool):
        def stream(self, prompts, sampling):
            for chunk in super().stream(prompts, sampling):
                yield replace(chunk, cost=chunk.cost + Cost(flops=3e7))

    cheap, dear = (planned(4e8, 2, "flops", pool=pool) for pool in (Pool(TOKENIZER), Dear(TOKENIZER)))
    draws = len(dear.pool.seeds)
    assert draws < len(cheap.pool.seeds) and dear.state.ledger.spent == draws * 3e7
    pairs = dear.source.rows
    settings = DPO.settings(data="on_policy", epochs=2)
    work = sum(
        pair_forecast(settings, SHAPE, Lengths(len(r.prompt_ids), 0), *map(len, r.responses)).flops for r in pairs
    )
    assert dear.state.ledger.spent + work <= 4e8 < dear.state.ledger.spent + work * (1 + 1 / draws) + 3e7


def test_epochs_are_for_pairs_that_are_drawn():
    for data, remedy in (("offline", "as many passes as the budget"), ("online", "new pairs in every update")):
        with pytest.raises(ValueError, match=f"data: {data} .*{remedy}.*leave epochs out"):
            DPO.settings(data=data, epochs=2)
    with pytest.raises(BadInput, match=r"arms\.a\.epochs: .* device_seconds; use epochs: 1 or another"):
        parse_recipe({"name": "r", "task": {"kind": "arithmetic"}, "compute": {"limit": 1, "column": "device_seconds"},
                      "arms": {"a": {"method": "dpo", "data": "on_policy", "epochs": 2}}})  # fmt: skip


def test_offline_pairs_come_again_and_the_passes_are_counted():
    arm = Scenario("offline", per_update=3)
    found = [arm.draw() for _ in range(4)]
    assert [d.metrics["pair_passes"] for d in found] == [0.75, 1.5, 2.25, 3.0]
    assert set(Counter(row.id for d in found for row in d.rows).values()) == {3} and not arm.source.ended(arm.state)


# What ranks the sides


@pytest.mark.parametrize("data", ["chosen_on_policy", "rejected_on_policy"])
def test_a_reward_model_that_ranks_the_samples_scores_the_others_sides_as_well(data):
    """Its scale is not the judge's: here every score is above 1, the judge's highest. Longer is better."""
    pool = Pool(TOKENIZER, ["1111", "11", "111"])  # 5 tokens, 3 and 4 with their ends
    long, short = encode_response(TOKENIZER, "9" * 7), encode_response(TOKENIZER, "9")
    offline = [replace(CORPUS[0], rejected_ids=long), replace(CORPUS[1], rejected_ids=short)]
    offline = [replace(p, chosen_ids=encode_response(TOKENIZER, "8" * n)) for p, n in zip(offline, (6, 1), strict=True)]
    arm = Scenario(data, offline, pool, feedback="reward_model", per_update=1)
    row = arm.draw().rows[0]
    if data == "chosen_on_policy":  # the sample's 1111 is longer than the second pair's rejected side only
        assert [text(a) for a in row.responses] == ["1111", "9"]
    else:  # the first pair's chosen side only is longer than the samples' 11
        assert [text(a) for a in row.responses] == ["888888", "11"]
    draws = len(pool.seeds)
    assert arm.state.ledger.by_phase["scoring"] == Cost(flops=6 * draws)  # the samples, then the others' pairs


def test_scores_of_the_others_sides_have_the_reward_models_rounding():
    roles = Roles(None, LengthScorer(step=0.25), None, None, None)
    inputs = Inputs(TASK, Codec(TOKENIZER), None, None, TRAIN, {}, [], [], None, [], {})
    for feedback, expected in (("reward_model", 0.25), ("judge", 0.0)):
        arm = DPO.settings(data="chosen_on_policy", feedback=feedback)
        sampler = RolloutSampler(roles, inputs, DataSettings(), arm, 0, FreshStartSamples())
        found = sampler.rescore(ArmState.begin("flops", 1e9, 0).ledger, CORPUS)
        assert {p.rounding for p in found} == {expected} and len(found) == len(CORPUS)


def test_under_a_reward_model_an_unfinished_side_of_others_stays_the_worst_there_is():
    endless = replace(CORPUS[0], rejected_ids=(9,) * 9, rejected_score=-math.inf)
    arm = Scenario("chosen_on_policy", [endless], Pool(TOKENIZER, ["1", "11"]), feedback="reward_model", per_update=1)
    (row,) = arm.draw().rows
    assert (text(row.responses[0]), row.responses[1]) == ("11", (9,) * 9)


@pytest.mark.parametrize("epochs", [1, 2])
@pytest.mark.parametrize("data", ONE_SHOT)
def test_without_a_single_pair_the_run_ends_with_a_line_that_names_the_data(data, epochs):
    pool = Pool(TOKENIZER, ["wrong"]) if data == "on_policy" else Pool(TOKENIZER)
    key = "train_prompts" if data == "on_policy" else "off_policy_pairs"
    with pytest.raises(ArmFailed, match=rf"^data: {data}: none of \d+ prompts .*no pairs; raise data\.{key}"):
        Scenario(data, CORPUS if data == "on_policy" else [], pool, epochs=epochs, column="flops").draw()
    assert len(pool.asked) == (len(TRAIN) if data == "on_policy" else 0)  # a whole pass, and no more


def spread():
    """Pairs whose sides differ in 0 to 4 of 4 digits."""
    ends = [encode_response(TOKENIZER, "1111"[: 4 - k] + "2" * k) for k in range(5)]
    return [Pair(f"p{k}", TRAIN[k], ends[0], ends[k], 1.0, 0.0) for k in range(5)]


@pytest.mark.parametrize("limits", [(0.0, 0.3), (0.3, 0.7), (0.7, 1.0)])
def test_an_arm_learns_from_the_pairs_of_its_distance_only(limits):
    within = {p.id for p in spread() if limits[0] <= edit_distance(p.chosen_ids, p.rejected_ids) < limits[1]}
    assert 0 < len(within) < 5
    assert sides("offline", spread(), edit=limits).keys() == within


def test_distance_is_that_of_the_pairs_that_come_out_not_of_those_that_go_in():
    """The rejected side here is the answer without its end, one token less; where others wrote it, all but its end differs."""
    assert len(sides("rejected_on_policy", edit=(0.0, 0.55))) == 4
    with pytest.raises(ArmFailed, match=r"^edit_distance: no pair's sides lie between 0\.0 and 0\.55 apart; widen"):
        Scenario("offline", edit=(0.0, 0.55))
    with pytest.raises(ArmFailed, match=r"^edit_distance: no pair's sides lie between 0\.9 and 1\.0 apart; widen"):
        Scenario("rejected_on_policy", edit=(0.9, 1.0)).draw()
