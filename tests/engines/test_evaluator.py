"""The evaluator as a whole: a real engine that samples, and every number that docs/diagnostics.md names."""

import re
from pathlib import Path

import numpy as np
import pytest

from rlhf_bench.compute.engine_time import EngineTime
from rlhf_bench.core.types import Judgement, Pair, Prompt
from rlhf_bench.diagnostics.gradients import pair_logprobs_of, partials
from rlhf_bench.diagnostics.likelihood import numbers_of_evaluated
from rlhf_bench.methods import METHODS
from rlhf_bench.models.loading import RewardScaling
from rlhf_bench.recipe import EvaluationSettings, RolloutPlacement

EOS, MAX_LENGTH = 2, 64
SPLITS = ("in_distribution", "out_of_distribution", "unseen")
PAGE = Path(__file__).parents[2] / "docs" / "diagnostics.md"


def prompts(split, count=12):
    start = SPLITS.index(split)
    return [Prompt(f"{split}-{i}", "", "", token_ids=(1, 4 + start, 4 + i % 10)) for i in range(count)]


def pairs(split, count=6):
    return [Pair(f"{p.id}/pair", p, (5 + i, 7, 8, EOS), (5 + i, 9, EOS)) for i, p in enumerate(prompts(split)[:count])]


def own_pairs():
    return [Pair(f"{p.id}/own", p, (7, 5 + i, EOS), (9, EOS)) for i, p in enumerate(prompts(SPLITS[0])[:4])]


@pytest.fixture(scope="module")
def evaluations(start, write_llama, tmp_path_factory):
    """Notes of one evaluator, its evaluations of the base policy and of one with other weights, itself, and these weights."""
    import ray
    import torch

    from actors.evaluator import Evaluator, EvaluatorActor, HeldOut
    from rlhf_bench.models.loading import load_model

    def judge(prompt, text):  # in here, so that they travel to the actor by value
        return Judgement(float("7" in text), {"long": float(len(text) > 4)})

    def decode(ids):
        return " ".join(str(i) for i in ids if i != EOS)

    base = write_llama(tmp_path_factory.mktemp("models") / "base")
    scalar = write_llama(tmp_path_factory.mktemp("models") / "reward", scalar=True)
    reward = str(RewardScaling(str(scalar), 0.5, 0.25).write(tmp_path_factory.mktemp("note")))
    actor = start(EvaluatorActor, str(base), RolloutPlacement(cpus=1, cache_mib=32), MAX_LENGTH, "float32")
    evaluator = Evaluator(actor, EngineTime())
    held_out = HeldOut(
        prompts={s: prompts(s) for s in SPLITS}, pairs={s: pairs(s) for s in SPLITS}, training=pairs(SPLITS[0])[:1],
        settings=EvaluationSettings(prompts=12, samples_per_prompt=4, best_of=2, gradient_pairs=3), max_response_tokens=6,
        tokens_per_micro_batch=128, end_ids=frozenset({EOS}), judge=judge, decode=decode, own_pairs={"on_policy": own_pairs()},
        reward_models={"reward_model": reward, "gold_reward_model": reward},
    )  # fmt: skip
    notes = evaluator.begin(held_out, str(base))
    model = load_model(str(base), "causal", "float32", 0).lm
    torch.manual_seed(3)
    same = {name: p.detach().numpy().copy() for name, p in model.named_parameters()}
    moved = {name: w + 0.05 * torch.randn(w.shape).numpy() for name, w in same.items()}
    for version, weights in enumerate((same, moved)):
        evaluator.submit(ray.put(weights), version, version, draws=f"version {version}")
    return notes, [evaluation for _, evaluation in evaluator.collect(wait=True)], evaluator, moved


def test_a_held_out_pair_that_is_trained_on_is_reported(evaluations):
    (note,), *_ = evaluations
    assert note.startswith("1 of 6 held-out pairs")


def test_numbers_are_those_that_are_documented(evaluations):
    _, (_, moved), *_ = evaluations
    main = pair_logprobs_of([p for p in moved.pairs if p.split == SPLITS[0] and p.kind == "fixed"])
    derived = set(partials(METHODS["dpo"].pair_loss, main, METHODS["dpo"].settings()))
    own = {
        f"own/{name}" for name in derived | set(numbers_of_evaluated(moved.pairs))
    }  # the loop chooses the arm's kind
    produced = set(moved.numbers) | derived | own
    rows = re.findall(r"^\| (`[^|]*`) \|", PAGE.read_text("utf-8"), re.MULTILINE)
    assert produced == {name for row in rows for name in re.findall(r"`([^`]+)`", row)}
    assert all(np.isfinite(value) for value in moved.numbers.values())


REWARDS = ("score", "pairs", "accuracy", "calibration_error", "length_correlation", "judge_length_correlation")


def test_a_gold_reward_model_that_is_the_other_one_says_the_same_of_the_same_samples(evaluations):
    base, moved = evaluations[1]
    for one in (base, moved):
        for name in REWARDS:
            assert one.numbers[f"reward_model/{name}"] == one.numbers[f"gold_reward_model/{name}"]
        assert 0 < one.numbers["reward_model/pairs"] <= 12 * 4  # two by two of four samples is the most
    assert base.numbers["reward_model/score"] != moved.numbers["reward_model/score"]


def test_the_reward_models_queries_are_in_the_evaluations_cost(evaluations):
    """The same evaluation without them costs less, and its other numbers are the same."""
    from dataclasses import replace

    *_, evaluator, _ = evaluations
    held_out, reference = evaluator.begun
    asked = again(evaluations, draws="version 1")
    evaluator.begin(replace(held_out, reward_models={}), reference, charged=False)
    unasked = again(evaluations, draws="version 1")
    evaluator.begin(held_out, reference)
    tokens = asked.cost["scored_tokens"] - unasked.cost["scored_tokens"]
    assert tokens > 2 * 12 * 3  # two models, twelve prompts of three tokens each, and the responses
    assert tokens % 2 == 0 and asked.cost["flops"] > unasked.cost["flops"]
    others = {
        name: value
        for name, value in asked.numbers.items()
        if "reward_model/" not in name and "diagnostics/" not in name
    }
    assert others == pytest.approx({name: unasked.numbers[name] for name in others})
    assert not any("reward_model/" in name for name in unasked.numbers)


def test_the_base_policy_has_moved_nowhere(evaluations):
    base = evaluations[1][0]
    assert base.numbers["kl"] == 0 == base.numbers["margin"]
    assert all(base.numbers[k] == 0 for k in base.numbers if k.endswith("_logratio"))


def test_the_base_policys_own_samples_are_likely_under_it(evaluations):
    """The samples come from the reference's weights, not from those that the engine started with or saw last."""
    base, moved = evaluations[1]
    assert base.numbers["probe/base_samples"] > base.numbers["probe/format_breaking"]
    assert moved.numbers["probe/base_samples_logratio"] < 0 < moved.numbers["kl"]


def test_properties_of_the_data_stay_and_those_of_the_policy_move(evaluations):
    base, moved = evaluations[1]
    for name in ("ches", "ches_normalised", "probes/dropped"):
        assert base.numbers[name] == moved.numbers[name]
    for name in ("chosen_logprob", "probe/permuted", "gradient/chosen_norm", "entropy", "argmax_confidence"):
        assert base.numbers[name] != moved.numbers[name]
    assert 0 < moved.numbers["argmax_confidence"] <= 1


def test_a_row_for_every_pair(evaluations):
    for one in evaluations[1]:
        fixed = [p for p in one.pairs if p.kind == "fixed"]
        assert [(p.split, p.pair_id) for p in fixed] == [(s, p.id) for s in SPLITS for p in pairs(s)]
        own = [p for p in one.pairs if p.kind == "on_policy"]
        assert [(p.split, p.pair_id) for p in own] == [(SPLITS[0], p.id) for p in own_pairs()]
        main = [p for p in fixed if p.split == SPLITS[0]]
        assert np.mean([p.chosen_logprob for p in main]) == pytest.approx(one.numbers["chosen_logprob"])


def test_the_diagnostics_are_in_the_evaluations_cost_and_set_up_is_charged_once(evaluations):
    base, moved = evaluations[1]
    for one in (base, moved):
        assert 0 < one.numbers["diagnostics/flops"] < one.cost["flops"]
        assert 0 < one.numbers["diagnostics/seconds"] < one.seconds
        assert one.cost["device_seconds"] == pytest.approx(one.seconds)
        assert one.cost["judge_queries"] == 3 * 12 * (4 + 1)  # samples, and the greedy response
    # At the base's own weights nothing is scored again: what it has more is the set-up.
    assert base.numbers["diagnostics/flops"] > moved.numbers["diagnostics/flops"]


def again(evaluations, **how):
    """The moved policy once more."""
    import ray

    *_, evaluator, moved = evaluations
    evaluator.submit(ray.put(moved), 1, "again", **how)
    ((_, found),) = evaluator.collect(wait=True)
    return found


def test_an_arm_that_trains_on_fixed_pairs_is_looked_at_on_those_alone(evaluations):
    found = again(evaluations, draws="version 1", own="fixed")
    assert {p.kind for p in found.pairs} == {"fixed"}
    assert found.numbers["chosen_logprob"] == pytest.approx(evaluations[1][1].numbers["chosen_logprob"], rel=1e-5)


def greedy_scores(found):
    return [one.greedy_score for split in found.splits.values() for one in split.prompts]


def test_samples_belong_to_a_name_and_greedy_responses_to_none(evaluations):
    """Arms and seeds that shared their draws would share their noise, which then looks like certainty."""
    moved = evaluations[1][1]
    same, other = again(evaluations, draws="version 1"), again(evaluations, draws="seed 2")
    assert same.splits == moved.splits and same.numbers["kl"] == moved.numbers["kl"]
    assert other.splits != moved.splits and other.numbers["kl"] != moved.numbers["kl"]
    assert greedy_scores(other) == greedy_scores(moved)
    for split in moved.splits.values():
        assert [p.prompt_id for p in split.prompts] == [f"{split.prompts[0].prompt_id[:-2]}-{i}" for i in range(12)]
        assert all(p.score <= p.best_of_score for p in split.prompts)


def test_at_another_temperature_the_policy_is_sharper_and_its_likelihoods_are_left_out(evaluations):
    moved, sharp = evaluations[1][1], again(evaluations, draws="version 1", temperature=0.2)
    assert set(sharp.numbers) == {"kl", "kl_error", "entropy", "argmax_confidence"} and sharp.pairs == ()
    assert sharp.numbers["entropy"] < moved.numbers["entropy"]
    assert sharp.numbers["argmax_confidence"] > moved.numbers["argmax_confidence"]
    assert sharp.numbers["kl"] > 0 and greedy_scores(sharp) == greedy_scores(moved)


def test_the_likeliest_responses_are_drawn_once_for_all_temperatures(evaluations):
    *_, evaluator, _ = evaluations
    evaluator.begin(*evaluator.begun)  # with nothing drawn yet
    drawn = [again(evaluations, draws="version 1", temperature=t).cost["generated_tokens"] for t in (1.0, 0.2, 1.0)]
    assert drawn[0] - drawn[2] >= len(SPLITS) * 12  # the same samples; and each likeliest response has a token or more
    assert drawn[1] != drawn[2]


def test_an_expected_score_is_what_samples_tend_to(evaluations):
    """The right response is one token and the end: its probability against the share of samples that it makes up."""
    from dataclasses import replace

    *_, evaluator, _ = evaluations
    held_out, reference = evaluator.begun
    right = {s: [(7, EOS)] * 12 for s in SPLITS}
    one = replace(
        held_out,
        right=right,
        pairs={},
        settings=held_out.settings.model_copy(update={"samples_per_prompt": 200, "best_of": None}),
        judge=lambda prompt, text: Judgement(float(text == "7")),
        prompts={s: prompts(s) for s in SPLITS[:1]},
    )
    evaluator.begin(one, reference)
    exact = again(evaluations, draws="many", temperature=0.5)
    evaluator.begin(replace(one, right={}), reference)
    sampled = again(evaluations, draws="many", temperature=0.5)
    evaluator.begin(held_out, reference)
    share, known = sampled.splits[SPLITS[0]].score, exact.splits[SPLITS[0]].score
    assert 0 < known < 1
    assert share == pytest.approx(known, abs=4 * (known * (1 - known) / 2400) ** 0.5)
    assert exact.splits[SPLITS[0]].greedy_score == sampled.splits[SPLITS[0]].greedy_score


def test_after_a_new_beginning_the_engine_samples_from_what_is_evaluated(evaluations):
    """Without pairs nothing is sampled for probes, so at the beginning the engine still has the weights of the policy before."""
    from dataclasses import replace

    import ray

    from rlhf_bench.models.loading import load_model

    _, (base, moved), evaluator, _ = evaluations
    held_out, reference = evaluator.begun
    assert greedy_scores(again(evaluations, draws="before")) == greedy_scores(moved) != greedy_scores(base)
    evaluator.begin(replace(held_out, pairs={}, own_pairs={}), reference)
    weights = load_model(reference, "causal", "float32", 0).lm.named_parameters()
    evaluator.submit(ray.put({name: p.detach().numpy() for name, p in weights}), 0, "base", draws="version 0")
    ((_, found),) = evaluator.collect(wait=True)
    evaluator.begin(held_out, reference)
    assert found.splits == base.splits and found.numbers["kl"] == 0
