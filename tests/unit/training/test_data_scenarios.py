"""One-shot pairs: chosen and rejected responses, each from the start policy or from others."""

import math
from dataclasses import replace
from itertools import product

import pytest

from rlhf_bench.core.costs import Cost
from rlhf_bench.core.errors import ArmFailed
from rlhf_bench.core.types import Pair, Prompt
from rlhf_bench.diagnostics.distance import edit_distance
from rlhf_bench.methods import METHODS
from rlhf_bench.models.tokenizer import TokenizerSettings, build_tokenizer, encode_response
from rlhf_bench.recipe import DataSettings
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


def source_of(data, offline=CORPUS, pool=None, feedback="judge", edit=None, before=None, seed=0, **sizes):
    arm = DPO.settings(data=data, feedback=feedback, pairs_per_update=100, edit_distance=edit)
    pool = pool or Pool(TOKENIZER)
    inputs = Inputs(TASK, TOKENIZER, None, None, TRAIN, {}, [], [], None, [], {})
    roles = Roles(pool, LengthScorer(), None, None, None)
    sizes = {"candidates_per_prompt": 3, "on_policy_prompts": 6} | sizes
    sampler = RolloutSampler(roles, inputs, DataSettings(**sizes), arm, seed, before or FreshStartSamples())
    state = ArmState.begin("flops", 1e9, seed)
    return make_source(DPO, arm, sampler, offline, state), pool, state.ledger


def drawn(source, version=0):
    state = replace(ArmState.begin("flops", 1e9, seed=0), version=version)
    return joined(list(source.draw(state, state.ledger)))


def sides(source):
    return {row.id: row.responses for row in drawn(source).rows}


def text(ids):
    return TOKENIZER.backend_tokenizer.decode(list(ids)).replace(" ", "")


@pytest.mark.parametrize("data", ["on_policy", "chosen_on_policy", "rejected_on_policy"])
def test_the_off_policy_pairs_prompts_are_sampled_first(data):
    """So that all four scenarios learn from the same prompts as far as those go."""
    for prompts, expected in ((3, [7, 3, 9]), (4, [7, 3, 9, 5]), (6, [7, 3, 9, 5])):
        _, pool, _ = source_of(data, on_policy_prompts=prompts)
        first = [TRAIN[i].id for i in expected]
        assert pool.asked[: len(first)] == first
        # Where a side is the off-policy pair's, a further prompt has no other half; on_policy goes on to others.
        assert len(pool.asked) == len(set(pool.asked)) == (prompts if data == "on_policy" else len(first))


def test_the_four_scenarios_on_the_same_prompts():
    found = {data: sides(source_of(data, on_policy_prompts=4)[0]) for data in
             ("offline", "on_policy", "chosen_on_policy", "rejected_on_policy")}  # fmt: skip
    assert {len(rows) for rows in found.values()} == {4}
    # The start policy's worst is unfinished, the others' is "++++"; both of them know the answer.
    worst = {data: {text(down) == "++++" for _, down in rows.values()} for data, rows in found.items()}
    assert worst == {"offline": {True}, "on_policy": {False}, "chosen_on_policy": {True}, "rejected_on_policy": {False}}
    best = {text(up) for rows in found.values() for up, _ in rows.values()}
    assert best == {TRAIN[i].answer for i in (7, 3, 9, 5)}


@pytest.mark.parametrize("data", ["chosen_on_policy", "rejected_on_policy"])
def test_candidates_are_paid_once_and_the_pairs_then_stay(data):
    source, pool, ledger = source_of(data)
    found = [drawn(source, version) for version in range(3)]
    assert len(pool.seeds) == 1 and ledger.by_phase["judging"].judge_queries == 4 * 3
    assert all(d.fixed and len(d.rows) == 4 for d in found)
    assert [d.metrics["policy_version_lag"] for d in found] == [0, 1, 2] and found[0].metrics["gold"] == 1 / 3


def test_arms_of_one_seed_share_the_start_policys_samples_and_each_pays_for_them():
    pool, before, charged = Pool(TOKENIZER), FreshStartSamples(), []
    for data in ("chosen_on_policy", "rejected_on_policy", "chosen_on_policy"):
        source, _, ledger = source_of(data, pool=pool, before=before)
        alone, _, _ = source_of(data)
        assert sides(source) == sides(alone)
        charged.append(ledger.by_phase)
    assert len(pool.seeds) == 1 and charged[0] == charged[1] == charged[2] and charged[0]["rollout"] != Cost()
    source_of("on_policy", pool=pool, before=before)  # on further prompts
    source_of("on_policy", pool=pool, before=before, seed=1)
    assert len(pool.seeds) == len(set(pool.seeds)) + 1 == 3  # the second seed's own


@pytest.mark.parametrize("data", ["chosen_on_policy", "rejected_on_policy"])
def test_a_reward_model_that_ranks_the_samples_scores_the_others_sides_as_well(data):
    """Its scale is not the judge's: here every score is above 1, the judge's highest. Longer is better."""
    pool = Pool(TOKENIZER, ["1111", "11", "111"])  # 5 tokens, 3 and 4 with their ends
    long, short = encode_response(TOKENIZER, "9" * 7), encode_response(TOKENIZER, "9")
    offline = [replace(CORPUS[0], rejected_ids=long), replace(CORPUS[1], rejected_ids=short)]
    offline = [replace(p, chosen_ids=encode_response(TOKENIZER, "8" * n)) for p, n in zip(offline, (6, 1), strict=True)]
    source, _, ledger = source_of(data, offline, pool, feedback="reward_model")
    (row,) = drawn(source).rows
    if data == "chosen_on_policy":  # the sample's 1111 is longer than the second pair's rejected side only
        assert [text(a) for a in row.responses] == ["1111", "9"]
    else:  # the first pair's chosen side only is longer than the samples' 11
        assert [text(a) for a in row.responses] == ["888888", "11"]
    assert ledger.by_phase["scoring"] == Cost(flops=6)  # the samples, then the others' pairs


def test_under_a_reward_model_an_unfinished_side_of_others_stays_the_worst_there_is():
    endless = replace(CORPUS[0], rejected_ids=(9,) * 9, rejected_score=-math.inf)
    source, _, _ = source_of("chosen_on_policy", [endless], Pool(TOKENIZER, ["1", "11"]), feedback="reward_model")
    (row,) = drawn(source).rows
    assert (text(row.responses[0]), row.responses[1]) == ("11", (9,) * 9)


@pytest.mark.parametrize("data", ["on_policy", "chosen_on_policy", "rejected_on_policy"])
def test_without_a_single_pair_the_run_ends_with_a_line_that_names_the_data(data):
    pool = Pool(TOKENIZER, ["wrong"]) if data == "on_policy" else Pool(TOKENIZER)
    with pytest.raises(ArmFailed, match=rf"^data: {data}: .*no pairs; raise data\.on_policy_prompts"):
        source_of(data, CORPUS if data == "on_policy" else [], pool)


def spread():
    """Pairs whose sides differ in 0 to 4 of 4 digits."""
    ends = [encode_response(TOKENIZER, "1111"[: 4 - k] + "2" * k) for k in range(5)]
    return [Pair(f"p{k}", TRAIN[k], ends[0], ends[k], 1.0, 0.0) for k in range(5)]


@pytest.mark.parametrize("limits", [(0.0, 0.3), (0.3, 0.7), (0.7, 1.0)])
def test_an_arm_learns_from_the_pairs_of_its_distance_only(limits):
    within = {p.id for p in spread() if limits[0] <= edit_distance(p.chosen_ids, p.rejected_ids) < limits[1]}
    assert 0 < len(within) < 5
    assert sides(source_of("offline", spread(), edit=limits)[0]).keys() == within


def test_distance_is_that_of_the_pairs_that_come_out_not_of_those_that_go_in():
    """The rejected side here is the answer without its end, one token less; where others wrote it, all but its end differs."""
    assert len(sides(source_of("rejected_on_policy", edit=(0.0, 0.55))[0])) == 4
    with pytest.raises(ArmFailed, match=r"^edit_distance: no pair's sides lie between 0\.0 and 0\.55 apart; widen"):
        source_of("offline", edit=(0.0, 0.55))
