"""Both sides' weighted gradients on a tiny model, against one plain backward pass for every side of every pair."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from rlhf_bench.core.types import Row
from rlhf_bench.methods import METHODS
from rlhf_bench.models.attention import PACKED_ROWS, register
from rlhf_bench.models.heads import TokenLogprobs
from rlhf_bench.models.packing import micro_batch
from rlhf_bench.training.objective import weighted_sides

register()

RNG = np.random.default_rng(3)
ROWS = [
    Row(name, prompt, sides, {"reference_logprob": tuple(RNG.normal(-4 * len(a), 2, 1) for a in sides)})
    for name, prompt, sides in (
        ("a", (1, 2, 3), ((4, 5, 6, 2), (7, 2))),
        ("b", (8,), ((9,), (10, 11, 12, 13, 14, 2))),
        ("c", (6, 5, 4, 3), ((20, 19, 18, 2), (20, 19, 2))),
    )
]
METHOD = METHODS["adaptive_flex_dpo"]
SETTINGS = METHOD.settings(beta_chosen=0.2).resolve_at(0.0, {"beta_rejected": 0.05})


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=31, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=64, pad_token_id=0, tie_word_embeddings=True, initializer_range=0.3,
    )  # fmt: skip
    return TokenLogprobs(AutoModelForCausalLM.from_config(config, attn_implementation=PACKED_ROWS))


def plain(lm, row, response, temperature):
    """log π(a|x) of one unpadded sequence with the library's own mask, and its gradient."""
    logits = lm(torch.tensor([[*row.prompt_ids, *response]])).logits[0, len(row.prompt_ids) - 1 : -1] / temperature
    logprob = logits.log_softmax(-1)[range(len(response)), list(response)].sum()
    return logprob.item(), torch.cat([g.flatten() for g in torch.autograd.grad(logprob, list(lm.parameters()))])


def by_pair(lm, temperature):
    """Σ_i w_i g_i of both sides with w = σ(−m) written out."""
    totals, weights = [0.0, 0.0], []
    for row in ROWS:
        found = [plain(lm, row, response, temperature) for response in row.responses]
        ratios = [logprob - float(r[0]) for (logprob, _), r in zip(found, row.extras["reference_logprob"], strict=True)]
        weights.append(1 / (1 + np.exp(0.2 * ratios[0] - 0.05 * ratios[1])))
        totals = [total + weights[-1] * gradient for total, (_, gradient) in zip(totals, found, strict=True)]
    assert max(weights) - min(weights) > 0.1  # or weights would not be tested
    return totals


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_the_sides_are_the_sums_of_each_pairs_own_gradient_by_its_own_weight(model, temperature):
    sides = weighted_sides(model, micro_batch(ROWS), METHOD.pair_weight, SETTINGS, temperature)
    for side, expected in zip(sides, by_pair(model.lm, temperature), strict=True):
        torch.testing.assert_close(side, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


def test_micro_batches_add_up(model):
    whole = weighted_sides(model, micro_batch(ROWS), METHOD.pair_weight, SETTINGS)
    parts = [weighted_sides(model, micro_batch([row]), METHOD.pair_weight, SETTINGS) for row in ROWS]
    for side, found in zip(whole, zip(*parts, strict=True), strict=True):
        torch.testing.assert_close(sum(found), side, rtol=0, atol=1e-5 * float(side.abs().max()))


def test_nothing_is_left_behind_in_the_parameters(model):
    model.zero_grad(set_to_none=True)
    weighted_sides(model, micro_batch(ROWS), METHOD.pair_weight, SETTINGS)
    assert all(p.grad is None for p in model.parameters())


def test_parameters_that_are_fixed_or_unused_do_not_count(model):
    model.lm.unused = torch.nn.Parameter(torch.ones(3))
    first = next(model.parameters()).requires_grad_(False)
    try:
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        sides = weighted_sides(model, micro_batch(ROWS), METHOD.pair_weight, SETTINGS)
        assert [len(side) for side in sides] == [trained, trained] and all(side.norm() > 0 for side in sides)
    finally:
        del model.lm.unused
        first.requires_grad_(True)
