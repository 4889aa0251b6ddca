"""What all arms share must not hang on which other arms there are, nor on a cache that is out of date."""

import shutil
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest

from rlhf_bench.core.errors import BadInput
from rlhf_bench.methods import METHODS
from rlhf_bench.recipe import parse_recipe
from rlhf_bench.training.arm import ArmSpec, SharedByArms
from rlhf_bench.training.cache import Cache
from rlhf_bench.training.inputs import prepare_inputs
from rlhf_bench.training.loop import ArmTrainer
from rlhf_bench.training.state import ArmState
from tests.support.given_models import write_weights

TINY = {"hidden_size": 32, "layers": 1, "heads": 1, "intermediate_size": 8, "max_length": 32}


def recipe(**sections):
    arms = {"dpo": {"method": "dpo"}}
    tiny = {"name": "tiny", "model": TINY, "compute": {"limit": 1e9}, "arms": arms,
            "data": {"train_prompts": 2, "max_response_tokens": 6, "off_policy_pairs": 1, "held_out_pairs": 1},
            "sft": {"demonstrations": 2}, "evaluation": {"prompts": 2, "splits": ["in_distribution"]}}  # fmt: skip
    return parse_recipe(tiny | {"task": {"kind": "arithmetic"}} | sections)


def given_model(tmp_path):
    return write_weights(shutil.copytree(prepare_inputs(recipe(), Cache(tmp_path / "cache")).model, tmp_path / "model"))


def test_another_judge_is_another_fingerprint(tmp_path):
    """Cached pairs and reward models were made with a judge: one of other rules must not be given them."""
    for name in ("train", "held_out"):
        lines = [f'{{"prompt": "{name} {i} ", "reference": "{i}", "response": "# {i}"}}\n' for i in range(2)]
        (tmp_path / f"{name}.jsonl").write_text("".join(lines))
    files = {"kind": "files", "prompts": str(tmp_path / "train.jsonl"), "held_out": str(tmp_path / "held_out.jsonl")}
    exact, number = (
        prepare_inputs(recipe(task=files | {"judge": judge, "marker": "#"}), Cache(tmp_path / "cache")).fingerprint
        for judge in ("exact", "number")
    )
    assert exact != number


def test_no_fine_tuning_and_no_pairs_is_refused_beforehand(tmp_path):
    """Off-policy pairs would come from a policy that is fine-tuned for a part of sft.steps: without sft, from none."""
    folder = given_model(tmp_path)
    pretrained = {"name_or_path": str(folder), "max_length": 32,
                  "tokenizer": {"kind": "pretrained", "name_or_path": str(folder)}}  # fmt: skip
    arms = {"off": {"method": "dpo"}, "mixed": {"method": "dpo", "data": "chosen_on_policy"},
            "on": {"method": "dpo", "data": "on_policy"}, "ppo": {"method": "ppo"}}  # fmt: skip
    with pytest.raises(BadInput) as refused:
        both = {"reward_model": {"pairs": "off_policy"}, "arms": arms}
        prepare_inputs(recipe(model=pretrained, sft=None, **both), Cache(tmp_path))
    named = [problem.partition(":")[0] for problem in refused.value.problems]
    assert named == ["arms.off.data", "arms.mixed.data", "reward_model.pairs"]
    assert prepare_inputs(recipe(model=pretrained, sft=None, arms={"on": arms["on"]}), Cache(tmp_path)).pairs == []


def test_a_given_model_is_another_fingerprint_by_its_weights_by_what_learns_and_by_number_format(tmp_path):
    """Cached stages were made from the weights as they were, and in one number format."""
    folder = given_model(tmp_path)
    tokenizer = {"kind": "pretrained", "name_or_path": str(folder)}
    plain = {"name_or_path": str(folder), "max_length": 32, "tokenizer": tokenizer}

    def fingerprints():
        return [prepare_inputs(recipe(model=model), Cache(tmp_path / "cache")).fingerprint
                for model in (plain, plain | {"lora": {"rank": 4, "alpha": 16}}, plain | {"dtype": "bfloat16"})]  # fmt: skip

    before = fingerprints()
    assert fingerprints() == before and all(before.count(one) == 1 for one in before)
    write_weights(folder, seed=7)
    after = fingerprints()
    assert fingerprints() == after and not any(one in before for one in after)


@dataclass
class Loaded:
    """A learner that only notes which weights it is given."""

    paths: dict = field(default_factory=dict)

    def load(self, name, path, *settings):
        self.paths[name] = path

    def free(self, name):
        pass


def test_an_arm_that_does_not_pay_for_the_reward_model_does_not_start_from_it():
    """PPO on the judge's word: its critic is the same, whether or not another arm has a reward model made."""
    with_judge = recipe(arms={"ppo": {"method": "ppo", "feedback": "judge"}})
    spec, critics = ArmSpec("ppo", with_judge, METHODS["ppo"], with_judge.arms["ppo"], 1), set()
    for reward_model in (None, "reward"):
        start, roles = SimpleNamespace(base="base", reward_model=reward_model), SimpleNamespace(learner=Loaded())
        shared, state = SharedByArms(None, start, None, {}, None, None), ArmState.begin("flops", 1, 1)
        ArmTrainer(spec=spec, shared=shared, roles=roles, observer=None, state=state).load_models()
        critics.add(roles.learner.paths["critic"])
    assert critics == {"base"}
