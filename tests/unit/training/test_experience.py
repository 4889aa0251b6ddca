"""From samples to rewards, pairs and an update's data."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest

from rlhf_bench.core.costs import Cost
from rlhf_bench.core.errors import ArmFailed
from rlhf_bench.core.rounding import rounding_of
from rlhf_bench.core.types import DESIRABLE, Group, Judgement, LabelledResponse, Pair, Prompt, Sample
from rlhf_bench.methods import METHODS
from rlhf_bench.models.codec import Codec
from rlhf_bench.models.tokenizer import TokenizerSettings, build_tokenizer, encode_response
from rlhf_bench.recipe import DataSettings
from rlhf_bench.tasks import build_task
from rlhf_bench.tasks.arithmetic import ArithmeticSettings
from rlhf_bench.training.batch import joined
from rlhf_bench.training.experience import FixedRows, make_source
from rlhf_bench.training.inputs import Inputs
from rlhf_bench.training.judging import Judge, reward_groups
from rlhf_bench.training.pairs import best_and_worst, preference_pairs, sides_of
from rlhf_bench.training.roles import Roles
from rlhf_bench.training.rollouts import RolloutSampler, sample_metrics
from rlhf_bench.training.state import ArmState
from tests.support.scripted import FreshStartSamples, LengthScorer, Pool

NAN = float("nan")
TASK = build_task(ArithmeticSettings(digits=1))
TOKENIZER = build_tokenizer(TokenizerSettings(kind="characters"), TASK.corpus())
PROMPT = Prompt("p", "1+2=", "3", (1, 5, 6, 7))


def group(*samples, prompt=PROMPT):
    """Samples given as (reward, finished); the k-th response is k + 1 tokens long."""
    return Group(prompt, tuple(
        Sample(f"{prompt.id}.{k}", (9,) * (k + 1), (-1.0,) * (k + 1), finished, policy_version=4, reward=reward)
        for k, (reward, finished) in enumerate(samples)
    ))  # fmt: skip


def test_the_best_and_the_worst_make_the_pair():
    (pair,) = best_and_worst([group((0.2, True), (0.9, True), (-1.0, True), (0.5, True))])
    assert pair == Pair("p.1>p.2", PROMPT, (9, 9), (9, 9, 9), 0.9, -1.0, policy_version=4)


def test_more_pairs_of_a_prompt_are_those_of_the_widest_differences_and_never_of_equals():
    # Responses differ in length, so that none counts as drawn twice; 0.9 > 0.5 > 0.5 > 0.0.
    candidates = Group(PROMPT, tuple(
        Sample(f"p.{k}", (9,) * (k + 1), (), True, 0, reward=reward) for k, reward in enumerate((0.5, 0.9, 0.0, 0.5))
    ))  # fmt: skip
    scores = [(p.chosen_score, p.rejected_score) for p in preference_pairs([candidates], max_per_prompt=10)]
    assert scores == [(0.9, 0.0), (0.5, 0.0), (0.5, 0.0), (0.9, 0.5), (0.9, 0.5)]
    assert preference_pairs([candidates], max_per_prompt=1) == best_and_worst([candidates])


def test_a_response_drawn_twice_counts_once():
    same = Group(PROMPT, tuple(Sample(f"p.{k}", (9, 8), (), True, 0, reward=r) for k, r in enumerate((1.0, 1.0))))
    other = Sample("p.2", (7,), (), True, 0, reward=0.0)
    assert len(preference_pairs([Group(PROMPT, (*same.samples, other))], max_per_prompt=10)) == 1


def test_prompts_whose_candidates_all_score_alike_give_no_pair():
    good, bad, lost = [(1.0, True)] * 3, [(0.0, True)] * 3, [(NAN, False)] * 3
    assert best_and_worst([group(*good), group(*bad), group(*lost), group((0.3, True))]) == []


@pytest.mark.parametrize(("dtype", "noise"), [("float32", 6e-7), ("bfloat16", 1e-2)])
def test_candidates_whose_scores_are_equal_up_to_rounding_give_no_pair(dtype, noise):
    """Of a reward model that gives every response the same, but for the last bits."""

    class Scorer(LengthScorer):
        def __init__(self, more):
            super().__init__()
            self.more = more

        def rounding(self, score):
            return rounding_of(score, dtype)

        def begin_score(self, rows):
            found = super().begin_score(rows)
            scores = [3.0 * (1 + noise / 2), 3.0 * (1 - noise / 2), 3.0, 3.0 + self.more]
            return replace(found, found=([scores], Cost()))

    candidates = group((0, True), (0, True), (0, True), (0, True))
    (alike,), _ = reward_groups([candidates], "reward_model", Scorer(0.0))
    assert best_and_worst([alike]) == [] == preference_pairs([alike], 10)
    assert sample_metrics([alike], 0)["equal_rewards"] == 1.0
    unfinished = Group(PROMPT, (*alike.samples, Sample("p.4", (8,), (), False, 4)))
    assert [p.rejected_ids for p in preference_pairs([unfinished], 10)] == [(8,)] * 4
    (better,), _ = reward_groups([candidates], "reward_model", Scorer(3 * rounding_of(3.0, dtype)))
    assert [p.chosen_ids for p in preference_pairs([better], 10)] == [(9,) * 4] * 3
    assert sample_metrics([better], 0)["equal_rewards"] == 0.0


def test_an_unfinished_candidate_is_the_worst_there_is():
    (pair,) = best_and_worst([group((-50.0, True), (NAN, False), (-60.0, True))])
    assert (pair.chosen_ids, pair.rejected_ids, pair.rejected_score) == ((9,), (9, 9), -math.inf)


@pytest.mark.parametrize("order", list(itertools.permutations(range(4))))
def test_beside_an_unfinished_candidate_the_best_is_still_the_best(order):
    """Every difference to minus infinity is infinite: that one must not hide which finished candidate is the best."""
    candidates = [(0.0, True), (1.0, True), (0.5, True), (NAN, False)]
    (pair,) = best_and_worst([group(*(candidates[i] for i in order))])
    assert (pair.chosen_score, pair.rejected_score) == (1.0, -math.inf)
    scores = [p.chosen_score for p in preference_pairs([group(*(candidates[i] for i in order))], max_per_prompt=3)]
    assert scores == [1.0, 0.5, 0.0]


def test_of_a_response_drawn_twice_the_first_counts_in_its_own_place():
    """a b a: the two that score alike are a and b, and a came first."""
    ids = ((9, 2), (8, 2), (9, 2), (7, 2))
    drawn = [Sample(f"p.{k}", a, (), True, 0, reward=r) for k, (a, r) in enumerate(zip(ids, (1, 1, 1, 0), strict=True))]
    (pair,) = best_and_worst([Group(PROMPT, tuple(drawn))])
    assert pair.id == "p.0>p.3"


def test_among_equals_the_first_is_taken():
    (pair,) = best_and_worst([group((0.0, True), (1.0, True), (1.0, True), (0.0, True))])
    assert (pair.id.split(">")[0], pair.rejected_ids) == ("p.1", (9,))


def answered(text, finished=True):
    ids = encode_response(TOKENIZER, text)
    return Sample(text, ids if finished else ids[:-1], (-1.0,) * len(ids), finished, 0)


def test_the_judge_reads_text_and_gives_nothing_to_a_response_that_did_not_end():
    samples = (answered("3"), answered("4"), answered("3", finished=False), answered(""))
    (judged,), cost = Judge(TASK, Codec(TOKENIZER))([Group(PROMPT, samples)])
    assert [s.gold for s in judged.samples] == [1, 0, 0, 0]
    assert [s.text for s in judged.samples] == ["3", "4", "3", ""]
    assert cost == Cost(judge_queries=4)


def test_what_the_judge_leaves_undecided_is_wrong_and_counted():
    def judge(prompt, response):
        return Judgement(0.0, {"undecided": 1.0}) if response == "9" else Judgement(1.0, {"undecided": 0.0})

    samples = (answered("9"), answered("4"), answered("9", finished=False), answered("4"))
    (judged,), _ = Judge(replace(TASK, judge=judge, settle=None), Codec(TOKENIZER))([Group(PROMPT, samples)])
    assert [s.gold for s in judged.samples] == [0, 1, 0, 1]
    assert sample_metrics([judged], 0)["undecided"] == 1 / 4


def test_rewards_come_from_the_judge_or_the_reward_model_and_unfinished_ones_have_none():
    (judged,), _ = Judge(TASK, Codec(TOKENIZER))([Group(PROMPT, (answered("3"), answered("41"), answered("3", False)))])
    (by_judge,), free = reward_groups([judged], "judge", None)
    (by_model,), cost = reward_groups([judged], "reward_model", LengthScorer(0.5))
    np.testing.assert_array_equal([s.reward for s in by_judge.samples], [1, 0, NAN])
    np.testing.assert_array_equal([s.reward for s in by_model.samples], [1, 1.5, NAN])
    assert (free, cost) == (Cost(), Cost(flops=3))


@pytest.mark.parametrize("scale", [math.inf, -math.inf, NAN])
def test_a_score_that_is_no_number_is_told_from_a_response_that_did_not_end(scale):
    (found,), _ = reward_groups([group((0.0, True), (0.0, False))], "reward_model", LengthScorer(scale))
    assert found.samples[0].reward == math.inf and math.isnan(found.samples[1].reward)


def pairs(count):
    return [Pair(f"pair{i}", PROMPT, (i, 2), (i, 3, 2), 1.0 + i, -float(i), policy_version=i % 2) for i in range(count)]


def begin(seed=0, version=0):
    return replace(ArmState.begin("flops", 1.0, seed), version=version)


def all_of(source, state):
    return joined(list(source.draw(state, state.ledger)))


@pytest.mark.parametrize(("count", "per_update"), [(7, 3), (6, 3), (5, 5), (1, 1)])
def test_fixed_pairs_come_once_in_every_epoch(count, per_update):
    source, state, ids = FixedRows.of_pairs(pairs(count), per_update, metrics={}), begin(seed=3), []
    for _ in range(count):  # per_update epochs
        drawn = all_of(source, state)
        assert len(drawn.rows) == len(drawn.rewards) == drawn.metrics["pairs"] == per_update
        ids += [row.id for row in drawn.rows]
    epochs = [ids[at : at + count] for at in range(0, len(ids), count)]
    assert all(sorted(epoch) == sorted(p.id for p in pairs(count)) for epoch in epochs)
    if count > 1:
        assert any(epoch != epochs[0] for epoch in epochs)


def test_a_fixed_pairs_row_has_the_chosen_response_and_reward_first():
    drawn = all_of(FixedRows.of_pairs(pairs(4), 4, metrics={"gold": 0.5}), begin(version=10))
    for row, reward in zip(drawn.rows, drawn.rewards, strict=True):
        i = int(row.id.removeprefix("pair"))
        assert row.responses == ((i, 2), (i, 3, 2)) and row.prompt_ids == PROMPT.token_ids
        assert reward == (1.0 + i, -float(i))
    assert drawn.fixed and drawn.metrics == {"policy_version_lag": 9.5, "pairs": 4, "pair_passes": 1.0, "gold": 0.5}


def test_the_seed_decides_the_order_of_fixed_pairs():
    first, again, other = (
        [r.id for r in all_of(FixedRows.of_pairs(pairs(20), 20, {}), begin(seed)).rows] for seed in (1, 1, 2)
    )  # fmt: skip
    assert first == again != other


def test_sides_taken_apart_come_one_by_one_with_their_labels():
    given, state = pairs(3), begin(seed=3, version=4)
    source = FixedRows.of_labelled(sides_of(given), 2)
    drawn = [all_of(source, state) for _ in range(3)]
    rows = [row for batch in drawn for row in batch.rows]
    found = {(row.responses[0], float(row.extras[DESIRABLE][0][0])) for row in rows}
    assert found == {(p.chosen_ids, 1.0) for p in given} | {(p.rejected_ids, 0.0) for p in given}
    assert all(row.prompt_ids == PROMPT.token_ids and len(row.responses) == 1 for row in rows)
    assert len({row.id for row in rows}) == 6 and all(batch.fixed for batch in drawn)
    assert [batch.metrics["pairs"] for batch in drawn] == [1, 1, 1]
    assert {batch.metrics["pair_passes"] for batch in drawn} == {1 / 3}  # the loop counts the rounds


def test_labels_of_the_data_go_before_the_sides_of_its_pairs():
    labelled = [LabelledResponse(f"l{i}", PROMPT, (i, 2), i == 0) for i in range(5)]
    settings = METHODS["kto"].settings(unpaired=True, pairs_per_update=2)
    for given, expected in ((labelled, 4), (None, 4)):
        source = make_source(METHODS["kto"], settings, None, pairs(3), None, begin(), given)
        assert len(all_of(source, begin()).rows) == expected
        assert len(source.rows) == (6 if given is None else 5)


def test_more_pairs_wanted_than_there_are():
    assert len(all_of(FixedRows.of_pairs(pairs(3), 32, {}), begin()).rows) == 3


def test_sample_metrics_are_means_over_samples():
    metrics = sample_metrics([group((1.0, True), (3.0, True)), group((NAN, False))], version=6)
    assert math.isnan(metrics.pop("gold"))  # never judged
    assert metrics == {
        "reward": 2.0,
        "response_length": 4 / 3,
        "finished": 2 / 3,
        "empty": 1 / 3,
        "undecided": 0.0,
        "equal_rewards": 0.0,
        "policy_version_lag": 2.0,
    }
    alike = [group((1.0, True), (1.0, True)), group((NAN, False), (NAN, False)), group((1.0, True), (NAN, False))]
    assert sample_metrics(alike, 0)["equal_rewards"] == 2 / 3
    assert math.isnan(sample_metrics([group((NAN, False))], 0)["reward"])


def sampler(settings, pool, seed=0, **data):
    train = TASK.prompts("train", 10, 0)
    inputs = Inputs(TASK, Codec(TOKENIZER), None, None, train, {}, [], [], None, [], {})
    roles = Roles(pool, LengthScorer(), None, None, None)
    return RolloutSampler(roles, inputs, DataSettings(**data), settings, seed, FreshStartSamples())


def test_every_prompt_is_sampled_once_per_epoch():
    pool = Pool(TOKENIZER)
    sampling, state = sampler(METHODS["ppo"].settings(), pool), begin()
    for _ in range(5):
        list(sampling.sample(state.sampler, state.ledger, prompts=4, samples=3))
    assert sorted(pool.asked[:10]) == sorted(pool.asked[10:]) and len(set(pool.asked[:10])) == 10
    assert pool.asked[:10] != pool.asked[10:] and len(set(pool.seeds)) == 5


@pytest.mark.parametrize(("feedback", "phases"), [
    ("reward_model", {"rollout", "scoring", "evaluation"}),  # the judge only looks on
    ("judge", {"rollout", "judging"}),  # the judge teaches, and is paid
])  # fmt: skip
def test_who_is_charged_depends_on_who_teaches(feedback, phases):
    sampling = sampler(METHODS["ppo"].settings(feedback=feedback), Pool(TOKENIZER))
    state = begin()
    list(sampling.sample(state.sampler, state.ledger, prompts=2, samples=3))
    charged = state.ledger.by_phase
    assert {phase for phase, cost in charged.items() if cost != Cost()} == phases
    assert charged["judging" if feedback == "judge" else "evaluation"].judge_queries == 6


def test_samples_of_one_prompt_stay_one_row_with_their_rewards():
    arm = METHODS["ppo"].settings(prompts_per_update=2, samples_per_prompt=3, feedback="judge")
    drawn = all_of(make_source(METHODS["ppo"], arm, sampler(arm, Pool(TOKENIZER)), [], None, begin()), begin())
    assert [len(row.responses) for row in drawn.rows] == [3, 3] and not drawn.fixed
    np.testing.assert_array_equal(drawn.rewards, [(1, 0, NAN)] * 2)
    assert drawn.metrics["gold"] == pytest.approx(1 / 3) and drawn.metrics["finished"] == pytest.approx(2 / 3)


@pytest.mark.parametrize(("data", "lags"), [("online", [0, 0, 0]), ("on_policy", [0, 1, 2])])
def test_online_pairs_are_of_the_policy_and_on_policy_ones_of_the_start_policy(data, lags):
    arm = METHODS["dpo"].settings(data=data, prompts_per_update=4, pairs_per_update=4)
    pool, drawn = Pool(TOKENIZER), []
    sampling, state = sampler(arm, pool, candidates_per_prompt=3), begin()
    source = make_source(METHODS["dpo"], arm, sampling, [], None, state)
    for state.version in range(3):
        if data == "online":  # the engines have the newest weights; else the start policy's
            pool.version = state.version
        drawn.append(all_of(source, state))
        assert len(pool.seeds) == len(drawn) and not drawn[-1].fixed and len(drawn[-1].rows) == 4
    assert [d.metrics["policy_version_lag"] for d in drawn] == lags
    assert drawn[0].rewards == [(1.0, -math.inf)] * 4


def test_candidates_that_all_score_alike_leave_on_policy_training_nothing_to_do_and_say_so():
    """Otherwise an update costs nothing, and a budget of which nothing is spent never ends."""
    arm = METHODS["dpo"].settings(data="on_policy")
    with pytest.raises(ArmFailed, match="pair"):
        sampling = sampler(arm, Pool(TOKENIZER, ["wrong"]), candidates_per_prompt=3)
        all_of(make_source(METHODS["dpo"], arm, sampling, [], None, begin()), begin())


@pytest.mark.parametrize(("method", "arm"), [
    ("ppo", {"prompts_per_update": 5, "samples_per_prompt": 3}),
    ("dpo", {"data": "online", "prompts_per_update": 5, "feedback": "reward_model"}),
])  # fmt: skip
def test_an_updates_data_is_the_same_in_one_part_and_in_several(method, arm):
    settings, found = METHODS[method].settings(**arm), []
    for part in (None, 2):
        sampling = sampler(settings, Pool(TOKENIZER, chunk=part), candidates_per_prompt=3)
        state = begin(version=4)
        parts = list(make_source(METHODS[method], settings, sampling, [], None, state).draw(state, state.ledger))
        assert [len(p.rows) for p in parts] == ([5, 0] if part is None else [2, 2, 1, 0])
        found.append((joined(parts), state.ledger.total().generated_tokens))
    (whole, tokens), (pieces, same_tokens) = found
    assert [(r.id, r.responses) for r in whole.rows] == [(r.id, r.responses) for r in pieces.rows]
    np.testing.assert_array_equal(whole.rewards, pieces.rewards)
    assert whole.metrics == pieces.metrics and tokens == same_tokens


def test_a_part_is_scored_while_the_engines_draw_the_next():
    """The scorer is handed the first part before the second is asked for, and is waited for after that."""
    order = []

    class Scorer(LengthScorer):
        def begin_score(self, rows):
            order.append(("scoring begins", rows[0].id))
            found = super().begin_score(rows)
            found.order, found.call = order, rows[0].id
            return found

    settings = METHODS["ppo"].settings()
    sampling = sampler(settings, Pool(TOKENIZER, chunk=1, order=order))
    sampling.roles = Roles(sampling.roles.pool, Scorer(), None, None, None)
    state = begin()
    first, second = [part[0].prompt.id for part in sampling.sample(state.sampler, state.ledger, 2, 2)]
    assert order == [
        ("draws", first), ("scoring begins", first), ("draws", second), ("scoring begins", second),
        ("is waited for", first), ("is waited for", second),
    ]  # fmt: skip
