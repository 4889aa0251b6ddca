"""What comes before the arms: off-policy pairs and held-out ones by split, and how well the reward model orders those."""

import json
import math
import threading
import time
from dataclasses import replace

import numpy as np
import pytest

from rlhf_bench.core.costs import Cost
from rlhf_bench.core.errors import RunFailed
from rlhf_bench.core.types import Pair, Prompt
from rlhf_bench.experiment.stages.context import StageContext
from rlhf_bench.experiment.stages.pairs import STORED, OffPolicyPairs
from rlhf_bench.experiment.stages.start import make_start
from rlhf_bench.models.loading import RewardScaling
from rlhf_bench.recipe import parse_recipe
from rlhf_bench.recipe.sections import RewardModelSettings
from rlhf_bench.training.cache import Cache
from rlhf_bench.training.inputs import StartingPoint, prepare_inputs
from rlhf_bench.training.judging import row_of
from rlhf_bench.training.roles import Roles
from tests.support.scripted import Learner, LengthScorer, Pool, Sync

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


def start(folder, pool=None, scorer=None, learner=None, given=None, **more):
    recipe = parse_recipe(SMALL | more)
    cache, said = Cache(folder / "cache"), []
    inputs = prepare_inputs(recipe, cache)
    pool = pool(inputs.tokenizer) if pool else Pool(inputs.tokenizer)
    roles = Roles(pool, scorer, learner or Learner(), None, Sync())
    if given is not None:  # nothing has that name: the scripted scorer reads no file
        reward_model = RewardModelSettings(name_or_path=given, start_policy_prompts=4)
        recipe = recipe.model_copy(update={"reward_model": reward_model})
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
    def generate(self, prompts, sampling):
        self.groups, cost = super().generate(prompts, sampling)
        return self.groups, cost


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


def test_a_given_reward_model_is_not_trained_and_costs_the_scale_of_its_scores(tmp_path):
    for time_ in ("first", "again"):
        begun, _, said, roles = start(tmp_path, Seen, ByItsFolder(), arms=REWARDED, given="some/reward-model")
        tokens = begun.reward_model_cost.generated_tokens
        assert begun.reward_model_cost == Cost(flops=3, generated_tokens=tokens) and tokens > 0
        assert not any(name == "critic" for name, _, _ in roles.learner.loaded)
        (line,) = [line for line in said if line.startswith("reward model: some/")]
        assert ("from the cache" in line) == (time_ == "again")
    assert [p.name for p in begun.reward_model.iterdir() if p.suffix == ".safetensors"] == []


def test_another_given_reward_model_gets_a_scale_of_its_own(tmp_path):
    folders = [
        start(tmp_path, Seen, ByItsFolder(), arms=REWARDED, given=name)[0].reward_model
        for name in ("some/reward-model", "another/reward-model")
    ]
    assert folders[0] != folders[1] and RewardScaling.read(str(folders[1])).model == "another/reward-model"


def test_a_given_reward_model_that_is_changed_in_place_gets_another_scale(tmp_path):
    (tmp_path / "model" / "parts").mkdir(parents=True)
    weights = tmp_path / "model" / "parts" / "weights"
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
    prompt = Prompt("p", "hi", "2", (1, 5), turns=(("user", "hi"),), where="prompts.jsonl:3")
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
    assert fresh[1] == base[1] == inputs.model and "weaker" in str(weaker[1])
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
