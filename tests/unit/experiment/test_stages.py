"""What comes before the arms: off-policy pairs and held-out ones by split, and how well the reward model orders those."""

import json
import math
import re
import shutil
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from rlhf_bench.core.costs import Cost
from rlhf_bench.core.errors import RunFailed
from rlhf_bench.core.given import REWARD_MODEL, Given
from rlhf_bench.core.types import Pair, Prompt, Turn
from rlhf_bench.experiment.stages.context import StageContext
from rlhf_bench.experiment.stages.pairs import STORED, OffPolicyPairs
from rlhf_bench.experiment.stages.start import make_start
from rlhf_bench.models.loading import RewardScaling
from rlhf_bench.recipe import parse_recipe
from rlhf_bench.recipe.sections import RewardModelSettings
from rlhf_bench.training.cache import Cache
from rlhf_bench.training.inputs import GOLD_SEED, OWN_SEED, REWARD_SEED, StartingPoint, prepare_inputs
from rlhf_bench.training.judging import row_of
from rlhf_bench.training.local_model import LocalModel, content_of
from rlhf_bench.training.roles import Roles
from tests.support.given_models import write_weights
from tests.support.scripted import Learner, LengthScorer, Pending, Pool, Sync

SMALL = {
    "name": "r", "compute": {"limit": 1e12}, "task": {"kind": "arithmetic", "digits": 1},
    "model": {"hidden_size": 32, "layers": 1, "heads": 1, "intermediate_size": 8, "max_length": 32},
    "data": {"train_prompts": 20, "max_response_tokens": 6, "off_policy_pairs": 8, "held_out_pairs": 3, "candidates_per_prompt": 4},
    "sft": {"demonstrations": 4, "steps": 2}, "evaluation": {"prompts": 5},
    "reward_model": {"steps": 2, "start_policy_prompts": 4}, "arms": {"a": {"method": "dpo"}},
}  # fmt: skip
SPLITS = ("in_distribution", "out_of_distribution", "unseen")


class ByFirstToken:
    """A reward model that orders responses by their first token: right for some pairs, wrong for others."""

    def load(self, path, dtype):
        pass

    def score(self, rows):
        return [[float(a[0]) for a in row.responses] for row in rows], Cost(flops=1)

    def rounding(self, score):
        return 0.0

    def begin_score(self, rows):
        return Pending(self.score(rows), [], 0)


def start(folder, pool=None, scorer=None, learner=None, given=None, **more):
    recipe = parse_recipe(SMALL | more)
    cache, said = Cache(folder / "cache"), []
    inputs = prepare_inputs(recipe, cache)
    pool = pool(inputs.tokenizer) if pool else Pool(inputs.tokenizer)
    roles = Roles(pool, scorer, learner or Learner(), None, Sync())
    if given is not None:  # nothing has that name: the scripted scorer reads no file
        reward_model = RewardModelSettings(name_or_path=given, start_policy_prompts=4)
        recipe = recipe.model_copy(update={"reward_model": reward_model})
        local = LocalModel(REWARD_MODEL, given, None if Path(given).is_dir() else {"commit": given})
        named = {REWARD_MODEL: Given(given, content_of(local, cache, said.append))}
        inputs = replace(inputs, reward_models={REWARD_MODEL: Path(given)}, given=named)
    context = StageContext(recipe=recipe, inputs=inputs, roles=roles, cache=cache, say=said.append)
    return make_start(context), inputs, said, roles


def test_held_out_pairs_are_on_their_own_splits_prompts_and_no_arm_trains_on_one(tmp_path):
    begun, inputs, said, _ = start(tmp_path)
    assert list(begun.held_out_pairs) == list(SPLITS)
    for split, pairs in begun.held_out_pairs.items():
        assert len(pairs) == 3 and {p.prompt.id for p in pairs} <= {p.id for p in inputs.held_out[split]}
    trained = {p.prompt.text for p in begun.pairs}
    assert len(begun.pairs) == len(trained) == 8 and trained <= {p.text for p in inputs.train}
    assert not trained & {p.prompt.text for pairs in begun.held_out_pairs.values() for p in pairs}
    assert any("8 training; held-out: 3 in_distribution, 3 out_of_distribution, 3 unseen" in line for line in said)


def test_a_side_is_chosen_for_its_score(tmp_path):
    begun, inputs, _, _ = start(tmp_path)
    for pair in [*begun.pairs, *(p for pairs in begun.held_out_pairs.values() for p in pairs)]:
        text = inputs.tokenizer.backend_tokenizer.decode(list(pair.chosen_ids)).replace(" ", "")
        assert text == pair.prompt.answer and pair.chosen_score == 1.0 and pair.rejected_score < 1.0


def test_pairs_out_of_the_cache_are_the_same_pairs(tmp_path):
    first, _, _, _ = start(tmp_path)
    again, _, said, roles = start(tmp_path)
    assert (again.pairs, again.held_out_pairs) == (first.pairs, first.held_out_pairs)
    assert again.pairs_cost == first.pairs_cost and roles.pool.asked == []
    assert any(line.endswith("(from the cache)") for line in said)


def test_splits_that_are_not_evaluated_have_no_pairs(tmp_path):
    begun, _, _, _ = start(tmp_path, evaluation={"prompts": 5, "splits": ["in_distribution", "unseen"]})
    assert list(begun.held_out_pairs) == ["in_distribution", "unseen"]


def test_a_split_whose_candidates_all_score_alike_is_left_out(tmp_path):
    class FailsWhereItIsHard(Pool):
        def _sample(self, prompt, k, kind):
            return super()._sample(prompt, k, "wrong" if "out_of" in prompt.id else kind)

    begun, _, said, _ = start(tmp_path, FailsWhereItIsHard)
    assert list(begun.held_out_pairs) == ["in_distribution", "unseen"]
    assert not any("held-out pairs: none" in line for line in said)


def test_without_any_held_out_pair_the_reader_is_told(tmp_path):
    class KnowsTrainingPrompts(Pool):
        def _sample(self, prompt, k, kind):
            return super()._sample(prompt, k, kind if "/train/" in prompt.id else "wrong")

    begun, _, said, _ = start(tmp_path, KnowsTrainingPrompts)
    assert begun.held_out_pairs == {} and begun.reward_model_accuracy == {}
    assert any(line.startswith("held-out pairs: none") and "raise data.held_out_pairs" in line for line in said)


def test_without_a_pair_to_train_on_the_run_ends(tmp_path):
    with pytest.raises(RunFailed, match=r"^off-policy pairs: none, .*change data\.weaker_policy_steps$"):
        start(tmp_path, lambda tokenizer: Pool(tokenizer, ["wrong"]))


def test_pairs_that_come_with_the_data_are_held_out_on_the_main_split(tmp_path):
    rows = [{"prompt": f"{i}? ", "chosen": "yes", "rejected": "no"} for i in range(11)]
    prompts = [{"prompt": f"{name}{i} ", "reference": "yes", "response": "yes"} for name in "th" for i in range(5)]
    for name, lines in (("pairs", rows), ("train", prompts[:5]), ("held", prompts[5:])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    files = {"kind": "files", "prompts": str(tmp_path / "train.jsonl"), "held_out": str(tmp_path / "held.jsonl"),
             "pairs": str(tmp_path / "pairs.jsonl")}  # fmt: skip
    more = {
        "task": files,
        "evaluation": {"prompts": 5, "splits": ["in_distribution"]},
        "data": SMALL["data"] | {"train_prompts": 5},
    }
    begun, _, _, roles = start(tmp_path, **more)
    assert {split: len(pairs) for split, pairs in begun.held_out_pairs.items()} == {"in_distribution": 3}
    assert len(begun.pairs) == 8 and roles.pool.asked == []


def test_the_reward_models_margins_and_accuracy_on_held_out_pairs_split_by_split(tmp_path):
    arms = {"a": {"method": "dpo", "data": "online", "feedback": "reward_model"}}
    begun, _, said, _ = start(
        tmp_path, lambda tokenizer: Pool(tokenizer, ["right", "wrong"]), ByFirstToken(), arms=arms
    )
    every = [p for pairs in begun.held_out_pairs.values() for p in pairs]
    assert begun.reward_margins == {p.id: p.chosen_ids[0] - p.rejected_ids[0] for p in every}
    by_hand = {
        split: sum(p.chosen_ids[0] > p.rejected_ids[0] for p in pairs) / len(pairs)
        for split, pairs in begun.held_out_pairs.items()
    }
    assert begun.reward_model_accuracy == pytest.approx(by_hand) and 0 < sum(by_hand.values()) < 3
    (line,) = [line for line in said if line.startswith("reward model: accuracy")]
    assert all(f"{split} {share:.3f}" in line for split, share in by_hand.items())


class ByItsFolder(LengthScorer):
    """Reads its folder as a scorer does; the model itself likes long responses, on a scale of its own."""

    def load(self, path, dtype):
        self.reward = RewardScaling.read(str(path))
        self.loaded = [*getattr(self, "loaded", []), self.reward]

    def score(self, rows):
        found, cost = super().score(rows)
        return [[self.reward.scale * s - self.reward.offset for s in scores] for scores in found], cost


class Seen(Pool):
    """Remembers what the reward model was scaled on."""

    def generate(self, prompts, sampling):
        groups, cost = super().generate(prompts, sampling)
        if sampling.seed == REWARD_SEED:
            self.groups = groups
        return groups, cost


REWARDED = {"a": {"method": "dpo", "data": "online", "feedback": "reward_model"}}


@pytest.mark.parametrize("name", [None, "some/reward-model"], ids=["trained", "given"])
def test_a_reward_models_scores_have_mean_0_and_deviation_1_on_the_start_policys_samples(name, tmp_path):
    scorer = ByItsFolder(scale=-30.0)
    begun, _, _, roles = start(tmp_path, Seen, scorer, arms=REWARDED, given=name)
    scores, _ = scorer.score([row_of(g) for g in roles.pool.groups])
    flat = np.array([s for row in scores for s in row])
    assert len(set(flat)) > 1 and (flat.mean(), flat.std()) == pytest.approx((0, 1))
    assert scorer.loaded[0] == RewardScaling(name) and RewardScaling.read(str(begun.reward_model)) == scorer.loaded[-1]
    assert scorer.loaded[-1].model == name and scorer.loaded[-1].scale > 0


class ByMember(LengthScorer):
    """Members disagree: one likes long responses, the second likes them twice as much, the third short ones."""

    TASTES = (1.0, 2.0, -1.0)

    def load(self, path, dtype):
        super().load(path, dtype)
        found = re.fullmatch(r"member(\d)", Path(path).parent.name)
        self.scale = self.TASTES[int(found[1]) - 1] if found else 1.0


@pytest.mark.parametrize(("combine", "together"), [("mean", np.mean), ("min", np.min)])
def test_an_ensembles_members_have_seeds_and_means_of_their_own_and_one_scale(combine, together, tmp_path):
    ensemble = SMALL["reward_model"] | {"ensemble": {"size": 3, "combine": combine}}
    begun, _, said, roles = start(tmp_path, Seen, ByMember(), arms=REWARDED, reward_model=ensemble)
    trained = [(path, seed) for name, path, seed in roles.learner.loaded if name == "critic"]
    assert trained == [(begun.base, REWARD_SEED), (begun.base, REWARD_SEED + 100), (begun.base, REWARD_SEED + 200)]
    folders = [path for path in roles.learner.saved if path.name.startswith("member")]
    assert [path.name for path in folders] == ["member1", "member2", "member3"]
    lengths = np.array([len(s.response_ids) for g in roles.pool.groups for s in g.samples], dtype=float)
    raw = np.array([taste * lengths for taste in ByMember.TASTES])
    note = RewardScaling.read(str(begun.reward_model))
    assert note.offsets == pytest.approx(raw.mean(axis=1)) and note.combine == combine
    scores = note.scale * together(raw - raw.mean(axis=1, keepdims=True), axis=0) - note.offset
    assert (scores.mean(), scores.std()) == pytest.approx((0, 1))
    assert any(f"3 members by their {combine}" in line for line in said)


def test_an_ensemble_is_paid_for_by_the_member(tmp_path):
    """Samples and their judgement once, training and scoring as often as there are members."""

    def cost(**reward_model):
        settings = SMALL["reward_model"] | reward_model
        return start(tmp_path, Seen, ByMember(), arms=REWARDED, reward_model=settings)[0].reward_model_cost

    one, three = cost(), cost(ensemble={"size": 3})
    assert (one.generated_tokens, one.judge_queries) == (three.generated_tokens, three.judge_queries) != (0, 0)
    assert three.flops == 3 * one.flops > 0


def test_a_gold_reward_model_is_made_beside_the_other_one_and_charged_to_no_arm(tmp_path):
    gold = SMALL["reward_model"] | {"start_policy_prompts": 8, "pairs": "start_policy"}
    without, _, _, _ = start(tmp_path, Seen, LengthScorer(), arms=REWARDED)
    scorer = LengthScorer()
    begun, _, said, roles = start(tmp_path, Seen, scorer, arms=REWARDED, gold_reward_model=gold)
    assert begun.reward_model_cost == without.reward_model_cost and begun.reward_model == without.reward_model
    assert begun.gold_reward_model_cost.generated_tokens > begun.reward_model_cost.generated_tokens
    assert begun.reward_models == {
        "reward_model": str(begun.reward_model),
        "gold_reward_model": str(begun.gold_reward_model),
    }
    assert [seed for name, _, seed in roles.learner.loaded if name == "critic"] == [
        GOLD_SEED
    ]  # the other is in the cache
    assert scorer.loaded[-1] == begun.reward_model, "arms learn from the other one"
    assert begun.gold_margins == begun.reward_margins != {}  # by one scripted scorer
    assert any(line.startswith("gold reward model: accuracy on held-out pairs") for line in said)


def test_without_an_arm_that_learns_from_a_reward_model_the_gold_one_is_made_alone(tmp_path):
    begun, _, _, _ = start(tmp_path, Seen, LengthScorer(), gold_reward_model=SMALL["reward_model"])
    assert list(begun.reward_models) == ["gold_reward_model"]
    assert begun.reward_margins == {} and begun.gold_margins != {} and begun.reward_model_cost == Cost()


def test_a_given_reward_model_is_not_trained_and_costs_the_scale_of_its_scores(tmp_path):
    for time_ in ("first", "again"):
        begun, _, said, roles = start(tmp_path, Seen, ByItsFolder(), arms=REWARDED, given="some/reward-model")
        tokens = begun.reward_model_cost.generated_tokens
        assert begun.reward_model_cost == Cost(flops=3, generated_tokens=tokens) and tokens > 0
        assert not any(name == "critic" for name, _, _ in roles.learner.loaded)
        (line,) = [line for line in said if line.startswith("reward model: some/")]
        assert ("from the cache" in line) == (time_ == "again")
    assert sorted(p.name for p in begun.reward_model.parent.iterdir()) == ["cache.json", "reward.json"]


def test_another_given_reward_model_gets_a_scale_of_its_own(tmp_path):
    folders = [
        start(tmp_path, Seen, ByItsFolder(), arms=REWARDED, given=name)[0].reward_model
        for name in ("some/reward-model", "another/reward-model")
    ]
    assert folders[0] != folders[1] and RewardScaling.read(str(folders[1])).model == "another/reward-model"


def test_a_given_reward_model_that_is_changed_in_place_gets_another_scale(tmp_path):
    (tmp_path / "model" / "parts").mkdir(parents=True)
    weights = tmp_path / "model" / "parts" / "model.safetensors"
    weights.write_text("one")
    before, again = (
        start(tmp_path, Seen, ByItsFolder(), arms=REWARDED, given=str(tmp_path / "model"))[0] for _ in "ab"
    )
    weights.write_text("two")
    after, _, _, _ = start(tmp_path, Seen, ByItsFolder(), arms=REWARDED, given=str(tmp_path / "model"))
    assert before.reward_model == again.reward_model != after.reward_model


def test_a_given_reward_model_that_answers_no_numbers_ends_the_run(tmp_path):
    with pytest.raises(RunFailed, match=r"^reward model: a score .* is not finite; use another model$"):
        start(tmp_path, Seen, ByItsFolder(scale=math.nan), arms=REWARDED, given="some/model")


def test_accuracy_counts_ties_as_wrong_and_only_pairs_that_were_scored():
    def pair(name):
        return Pair(name, Prompt(name, name, ""), (1,), (2,))

    held_out = {"in_distribution": [pair("a"), pair("b"), pair("c"), pair("d")], "unseen": [pair("e")], "out_of_distribution": [pair("f")]}  # fmt: skip
    begun = StartingPoint(None, [], held_out, None, Cost(), Cost(), Cost(), {"a": 2.0, "b": 0.0, "c": -1.0, "e": 0.5})
    assert begun.reward_model_accuracy == {"in_distribution": 1 / 3, "unseen": 1.0}
    assert replace(begun, reward_margins={}).reward_model_accuracy == {}


def test_an_unfinished_side_survives_the_cache(tmp_path):
    """Its score is minus infinity, which standard JSON does not have."""
    for _ in range(2):
        begun, _, _, _ = start(tmp_path, lambda tokenizer: Pool(tokenizer, ["right", "unfinished"]))
        assert {p.rejected_score for p in begun.pairs} == {-math.inf}


def test_stored_pairs_come_back_equal_with_scores_that_are_not_finite():
    prompt = Prompt("p", "hi", "2", (1, 5), turns=(Turn("user", "hi"),), where="prompts.jsonl:3")
    pair = Pair("a", prompt, (6, 2), (7, 8, 2), chosen_score=0.1, rejected_score=-math.inf, policy_version=3)
    pairs = OffPolicyPairs([pair], {"unseen": [replace(pair, chosen_score=math.nan)]}, Cost(flops=0.3))
    back = STORED.validate_python(json.loads(json.dumps(STORED.dump_python(pairs))))
    assert repr(back) == repr(pairs) and back.train[0].prompt.where == prompt.where


def test_engines_sample_the_weaker_policys_pairs_while_the_learner_trains_the_base(tmp_path):
    base_saved = threading.Event()

    class Tells(Learner):
        def save(self, name, path):
            super().save(name, path)
            if len(self.saved) == 2:  # the weaker policy came first
                base_saved.set()

    class WaitsForTheBase(Pool):
        def generate(self, prompts, sampling):
            assert base_saved.wait(10), "the base policy waited for the pairs"
            return super().generate(prompts, sampling)

    learner = Tells()
    begun, inputs, _, roles = start(tmp_path, pool=WaitsForTheBase, learner=learner)
    assert len(begun.pairs) == 8
    fresh, weaker, base = learner.loaded
    assert fresh[1] == base[1] == inputs.weights and "weaker" in str(weaker[1])
    assert roles.sync.versions == [0], "engines hold the weaker policy before they are asked"


def test_where_the_base_fails_the_pairs_are_given_up(tmp_path):
    sampled, sampling_begins = [], threading.Event()

    class Slow(Pool):
        def generate(self, prompts, sampling):
            sampled.append(len(prompts))
            sampling_begins.set()
            time.sleep(0.3)
            return super().generate(prompts, sampling)

    class FailsThen(Learner):
        def begin_steps(self, work, temperature=1.0):
            assert self.losses[0] != math.inf or sampling_begins.wait(10)
            return super().begin_steps(work, temperature)

    def without_quality(tokenizer):
        return Slow(tokenizer, answers=("right",))  # no pairs, so it would ask on to the last prompt

    data = SMALL["data"] | {"train_prompts": 90, "off_policy_pairs": 8}
    with pytest.raises(RunFailed, match="base: fine-tuning: the loss is inf after 1 steps"):
        start(tmp_path, pool=without_quality, learner=FailsThen(losses=[1.0, math.inf]), data=data,
              task={"kind": "arithmetic", "digits": 2})  # fmt: skip
    assert sampled == [32], "one chunk was on its way"
    assert not list((tmp_path / "cache").glob("pairs-*"))


def arms(**kinds):
    """DPO arms by name: mode, or mode and feedback."""
    return {name: {"method": "dpo", "data": kind} if isinstance(kind, str) else {"method": "dpo", "data": kind[0], "feedback": kind[1]}
            for name, kind in kinds.items()}  # fmt: skip


SCENARIOS = arms(both="on_policy", online="online", good="chosen_on_policy", bad="rejected_on_policy", off="offline")


def text(inputs, ids):
    return inputs.tokenizer.backend_tokenizer.decode(list(ids)).replace(" ", "")


class Distinct(Pool):
    """The base policy's answers, which are asked for last, are other ones than those of the weaker policy."""

    def generate(self, prompts, sampling):
        self.answers = ("right", "8+8") if sampling.seed >= OWN_SEED else ("right", "wrong")
        return super().generate(prompts, sampling)


def test_pairs_of_every_kind_that_an_arm_trains_on_are_made_of_the_base_policys_answers(tmp_path):
    begun, inputs, said, roles = start(tmp_path, Distinct, arms=SCENARIOS)
    # By name, as the rows of pairs.parquet are: the order of a set would differ from process to process.
    assert list(begun.own_pairs) == ["chosen_on_policy", "on_policy", "rejected_on_policy"]
    assert {len(found) for found in begun.own_pairs.values()} == {3}
    fixed = {p.prompt.id: p for p in begun.held_out_pairs["in_distribution"]}
    rejected = {kind: {text(inputs, p.rejected_ids) for p in found} for kind, found in begun.own_pairs.items()}
    assert rejected == {"on_policy": {"8+8"}, "rejected_on_policy": {"8+8"}, "chosen_on_policy": {"77"}}
    for found in begun.own_pairs.values():
        assert {p.prompt.id for p in found} == set(fixed)  # on the same prompts, so that all kinds can be compared
        assert {text(inputs, p.chosen_ids) for p in found} == {fixed[p.prompt.id].prompt.answer for p in found}
    assert roles.learner.loaded[-1] == ("policy", begun.base, OWN_SEED) and roles.sync.versions[-1] == 0
    assert begun.own_pairs_cost.judge_queries == 5 * 4 and begun.own_pairs_cost.generated_tokens > 0
    assert any(line.endswith("3 chosen_on_policy, 3 on_policy, 3 rejected_on_policy") for line in said)


def test_own_pairs_are_on_prompts_that_no_arm_trains_on(tmp_path):
    begun, inputs, _, _ = start(tmp_path, arms=SCENARIOS)
    trained = {p.token_ids for p in inputs.train} | {p.prompt.token_ids for p in begun.pairs}
    own = [p for found in begun.own_pairs.values() for p in found]
    assert own and not trained & {p.prompt.token_ids for p in own}
    assert {p.prompt.id for p in own} <= {p.id for p in inputs.held_out["in_distribution"]}


def test_the_data_of_offline_arms_alone_need_no_further_pairs(tmp_path):
    begun, _, _, roles = start(tmp_path, arms=arms(off="offline"))
    assert begun.own_pairs == {} and begun.own_pairs_cost == Cost() and len(roles.sync.versions) == 1


def test_own_pairs_out_of_the_cache_are_the_same_also_where_an_arm_of_another_kind_joins(tmp_path):
    first, _, _, _ = start(tmp_path, arms=arms(both="on_policy"))
    again, _, said, roles = start(tmp_path, arms=SCENARIOS)
    assert again.own_pairs["on_policy"] == first.own_pairs["on_policy"] and again.own_pairs_cost == first.own_pairs_cost
    assert roles.pool.asked == [] and any(line.endswith("(answers from the cache)") for line in said)


def test_an_arms_own_pairs_are_ranked_by_its_feedback(tmp_path):
    """The scripted reward model likes long responses, the judge right ones."""
    pool = lambda tokenizer: Pool(tokenizer, ("right", "wrong", "9+9+9"))  # noqa: E731
    both = arms(judged="on_policy", scored=("on_policy", "reward_model"), mixed=("rejected_on_policy", "reward_model"))
    begun, inputs, _, _ = start(tmp_path, pool, LengthScorer(), arms=both)
    chosen = {kind: {text(inputs, p.chosen_ids) for p in found} for kind, found in begun.own_pairs.items()}
    assert chosen["on_policy_by_reward_model"] == {"9+9+9"} and "9+9+9" not in chosen["on_policy"]
    lengths = [(p.chosen_score > p.rejected_score) for p in begun.own_pairs["on_policy_by_reward_model"]]
    assert all(lengths) and begun.own_pairs_cost.flops >= 3
    # Without a reward model, where none of the arms to run needs it, its kinds are left out.
    alone, _, _, _ = start(tmp_path, pool, arms=both)
    assert set(alone.own_pairs) == {"on_policy"} and alone.own_pairs["on_policy"] == begun.own_pairs["on_policy"]


def test_a_kind_without_a_pair_is_told(tmp_path):
    class AlwaysRight(Distinct):
        def generate(self, prompts, sampling):
            return super().generate(prompts, sampling) if sampling.seed < OWN_SEED else Pool(self.tokenizer, ("right",)).generate(prompts, sampling)  # fmt: skip

    begun, _, said, _ = start(tmp_path, AlwaysRight, arms=arms(both="on_policy"))
    assert begun.own_pairs == {} and any(
        "none of kind on_policy" in line and "raise evaluation.prompts" in line for line in said
    )


def of_the_model_itself(folder):
    """The sections that start from a given model, without fine-tuning: no weaker policy then makes pairs."""
    fresh = prepare_inputs(parse_recipe(SMALL), Cache(folder / "cache")).model
    made = str(write_weights(shutil.copytree(fresh, folder / "given")))
    model = {"name_or_path": made, "max_length": 32, "tokenizer": {"kind": "pretrained", "name_or_path": made}}
    return {"model": model, "sft": None}


def test_without_off_policy_pairs_the_held_out_ones_are_of_the_base_policys_answers(tmp_path):
    own = {"online": {"method": "ppo", "feedback": "reward_model"}, **arms(scored=("on_policy", "reward_model"))}
    begun, inputs, said, _ = start(tmp_path, Distinct, LengthScorer(), **of_the_model_itself(tmp_path), arms=own)
    assert begun.pairs == [] and begun.pairs_cost == Cost() and begun.own_pairs_cost.judge_queries > 0
    ((split, fixed),) = begun.held_out_pairs.items()
    assert split == "in_distribution" and len(fixed) == 3
    assert {p.prompt.id for p in fixed} <= {p.id for p in inputs.held_out[split]}
    assert {text(inputs, p.chosen_ids) for p in fixed} <= {p.prompt.answer for p in fixed}  # ranked by the judge
    assert set(begun.own_pairs) == {"on_policy_by_reward_model"}  # the arms' kind, and no other one
    assert set(begun.reward_margins) == {p.id for p in fixed}
    assert any("among the base policy's own answers" in note for note in inputs.notes)


def test_without_off_policy_pairs_an_arm_of_that_kind_is_measured_on_the_same_pairs(tmp_path):
    begun, _, _, _ = start(tmp_path, Distinct, **of_the_model_itself(tmp_path), arms=arms(both="on_policy"))
    assert begun.held_out_pairs["in_distribution"] == begun.own_pairs["on_policy"] != []
