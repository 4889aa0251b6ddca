"""The evaluator as a whole: a real engine that samples, and every number that docs/diagnostics.md names."""

import re
from pathlib import Path

import numpy as np
import pytest

from rlhf_bench.compute.engine_time import EngineTime
from rlhf_bench.core.types import Judgement, Pair, Prompt
from rlhf_bench.diagnostics.gradients import pair_logprobs_of, partials
from rlhf_bench.methods import METHODS
from rlhf_bench.recipe import EvaluationSettings, RolloutPlacement

EOS, MAX_LENGTH = 2, 64
SPLITS = ("in_distribution", "out_of_distribution", "unseen")
PAGE = Path(__file__).parents[2] / "docs" / "diagnostics.md"


def prompts(split, count=12):
    start = SPLITS.index(split)
    return [Prompt(f"{split}-{i}", "", "", token_ids=(1, 4 + start, 4 + i % 10)) for i in range(count)]


def pairs(split, count=6):
    return [Pair(f"{p.id}/pair", p, (5 + i, 7, 8, EOS), (5 + i, 9, EOS)) for i, p in enumerate(prompts(split)[:count])]


@pytest.fixture(scope="module")
def evaluations(start, write_llama, tmp_path_factory):
    """Notes of one evaluator, and its evaluations of the base policy and of one with other weights."""
    import ray
    import torch

    from actors.evaluator import Evaluator, EvaluatorActor, HeldOut
    from rlhf_bench.models.loading import load_model

    def judge(prompt, text):  # in here, so that they travel to the actor by value
        return Judgement(float("7" in text), {"long": float(len(text) > 4)})

    def decode(ids):
        return " ".join(str(i) for i in ids if i != EOS)

    base = write_llama(tmp_path_factory.mktemp("models") / "base")
    actor = start(EvaluatorActor, str(base), RolloutPlacement(cpus=1, cache_mib=32), MAX_LENGTH, "float32")
    evaluator = Evaluator(actor, EngineTime())
    held_out = HeldOut(
        prompts={s: prompts(s) for s in SPLITS}, pairs={s: pairs(s) for s in SPLITS}, training=pairs(SPLITS[0])[:1],
        settings=EvaluationSettings(prompts=12, kl_samples=8, gradient_pairs=3), max_response_tokens=6,
        tokens_per_micro_batch=128, eos_id=EOS, judge=judge, decode=decode,
    )  # fmt: skip
    notes = evaluator.begin(held_out, str(base))
    model = load_model(str(base), "causal", "float32", 0).lm
    torch.manual_seed(3)
    same = {name: p.detach().numpy().copy() for name, p in model.named_parameters()}
    moved = {name: w + 0.05 * torch.randn(w.shape).numpy() for name, w in same.items()}
    for version, weights in enumerate((same, moved)):
        evaluator.submit(ray.put(weights), version, version)
    return notes, [evaluation for _, evaluation in evaluator.collect(wait=True)]


def test_a_held_out_pair_that_is_trained_on_is_reported(evaluations):
    (note,) = evaluations[0]
    assert note.startswith("1 of 6 held-out pairs")


def test_numbers_are_those_that_are_documented(evaluations):
    _, (_, moved) = evaluations
    main = pair_logprobs_of([p for p in moved.pairs if p.split == SPLITS[0]])
    produced = set(moved.numbers) | set(partials(METHODS["dpo"].pair_loss, main, METHODS["dpo"].settings()))
    rows = re.findall(r"^\| (`[^|]*`) \|", PAGE.read_text("utf-8"), re.MULTILINE)
    assert produced == {name for row in rows for name in re.findall(r"`([^`]+)`", row)}
    assert all(np.isfinite(value) for value in moved.numbers.values())


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
        assert [(p.split, p.pair_id) for p in one.pairs] == [(s, p.id) for s in SPLITS for p in pairs(s)]
        main = [p for p in one.pairs if p.split == SPLITS[0]]
        assert np.mean([p.chosen_logprob for p in main]) == pytest.approx(one.numbers["chosen_logprob"])


def test_the_diagnostics_are_in_the_evaluations_cost_and_set_up_is_charged_once(evaluations):
    base, moved = evaluations[1]
    for one in (base, moved):
        assert 0 < one.numbers["diagnostics/flops"] < one.cost["flops"]
        assert 0 < one.numbers["diagnostics/seconds"] < one.seconds
        assert one.cost["device_seconds"] == pytest.approx(one.seconds)
        assert one.cost["judge_queries"] == 3 * 12
    sampled = base.cost["generated_tokens"] - moved.cost["generated_tokens"]
    assert base.numbers["diagnostics/flops"] > moved.numbers["diagnostics/flops"] and sampled > 0
