"""Gradients of pairs from one pass: on every family against the gradients of each pair by itself, and what is left to that way."""

import gc
import weakref

import pytest
import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    Phi3Config,
    Qwen2Config,
    Qwen3Config,
)

from rlhf_bench.core.types import Row
from rlhf_bench.diagnostics.gradients import side_gradients
from rlhf_bench.diagnostics.pair_gradients import gradients_together, why_not_together
from rlhf_bench.models.attention import PACKED_ROWS, register
from rlhf_bench.models.cpu_kernels import with_cpu_kernels
from rlhf_bench.models.heads import TokenLogprobs
from rlhf_bench.models.packing import micro_batch

register()

PAD = 0
SIZES = {"vocab_size": 31, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "pad_token_id": PAD}
GATED = SIZES | {"intermediate_size": 48, "num_key_value_heads": 1, "head_dim": 16, "max_position_embeddings": 64}
FAMILIES = {
    "llama": LlamaConfig(**GATED, tie_word_embeddings=True),
    "llama, untied": LlamaConfig(**GATED, tie_word_embeddings=False),
    "llama, biases": LlamaConfig(**GATED, attention_bias=True, mlp_bias=True, tie_word_embeddings=True),
    "qwen2": Qwen2Config(**GATED, tie_word_embeddings=True),  # biases of query, key and value
    "qwen3": Qwen3Config(**GATED, tie_word_embeddings=True),  # norms of query and key
    "mistral": MistralConfig(**GATED, sliding_window=6, tie_word_embeddings=False),
    "gemma2": Gemma2Config(  # norms of 1 + weight, embeddings scaled, logits capped
        **GATED, sliding_window=6, query_pre_attn_scalar=24, attn_logit_softcapping=2.0, final_logit_softcapping=3.0
    ),
    "gemma3": Gemma3TextConfig(**GATED, sliding_window=6, query_pre_attn_scalar=24),
    "phi3": Phi3Config(**GATED, tie_word_embeddings=False),  # joined projections
    "gpt2": GPT2Config(
        **SIZES, n_positions=64, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0
    ),  # transposed weights, positions
}
# A padding id within prompt and response; sides of one token, and sides so long that matrices are cheaper than products.
ROWS = [
    Row("a", (1, 2, PAD, 3), ((4, 5, 6, 2), (7, 2))),
    Row("b", (8,), ((9,), (10, PAD, 12, 13, 14, 2))),
    Row("c", (6, 5, 4, 3), (tuple(range(3, 30)), (20, 19, *range(5, 25), 2))),
    Row("d", (1, 3, 5, 7, 9, 11, 13), ((4, 4, 4), (4, 5))),
]  # fmt: skip


def build(config, dtype=torch.float32):
    """Random weights, every one of them: fresh biases are 0 and fresh norms 1, and would hide what is left out."""
    torch.manual_seed(0)
    lm = AutoModelForCausalLM.from_config(config, attn_implementation=PACKED_ROWS).to(dtype).eval()
    with torch.no_grad():
        for parameter in lm.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return TokenLogprobs(with_cpu_kernels(lm))


def one_by_one(model, rows):
    return [side_gradients(model, micro_batch([row])) for row in rows]


def test_sides_of_one_prompt_share_nothing_of_it():
    """Elsewhere rows share what their prompts begin with; here each side needs gradients of its own."""
    model, row = build(FAMILIES["llama"]), Row("e", tuple(range(3, 28)), ((4, 5, 2), (7, 2)))
    assert_same(gradients_together(model, [row])[0], one_by_one(model, [row]), 1e-4)


def assert_same(found, expected, rel):
    for one, other in zip(found, expected, strict=True):
        assert (one.chosen_norm, one.rejected_norm) == pytest.approx((other.chosen_norm, other.rejected_norm), rel=rel)
        assert one.dot == pytest.approx(other.dot, abs=rel * other.chosen_norm * other.rejected_norm)


@pytest.mark.parametrize("family", FAMILIES)
def test_they_are_those_of_each_pair_by_itself(family):
    model = build(FAMILIES[family])
    assert why_not_together(model) is None
    found, _ = gradients_together(model, ROWS)
    assert_same(found, one_by_one(model, ROWS), rel=2e-5)
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_of_a_pass_is_left(family):
    """An evaluator once kept the activations of every evaluation."""
    model, ended = build(FAMILIES[family]), []
    for module in model.lm.modules():
        if isinstance(module, nn.Linear):
            module.register_forward_hook(
                lambda _module, _inputs, output: weakref.finalize(output, ended.append, 1) and None
            )
    for passes in (1, 2):
        gradients_together(model, ROWS)
        gc.collect()
        assert len(ended) == passes * sum(isinstance(m, nn.Linear) for m in model.lm.base_model.modules())


def test_in_float64_they_agree_to_more_digits():
    """As far as the head's logits go, which are float32 in either way."""
    model = build(FAMILIES["gpt2"], torch.float64)
    assert_same(gradients_together(model, ROWS)[0], one_by_one(model, ROWS), rel=2e-7)


def test_in_bfloat16_they_are_within_its_rounding():
    model = build(FAMILIES["llama"], torch.bfloat16)
    assert_same(gradients_together(model, ROWS)[0], one_by_one(model, ROWS), rel=0.03)


def test_a_pair_has_the_same_gradients_whatever_is_beside_it():
    model = build(FAMILIES["llama"])
    alone = [gradients_together(model, [row])[0][0] for row in ROWS]
    assert_same(gradients_together(model, ROWS)[0], alone, rel=2e-5)
    with torch.no_grad():  # as an engine in the same process may have set it
        assert_same(gradients_together(model, ROWS[::-1])[0], alone[::-1], rel=2e-5)


class Gate(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner, self.strength = inner, nn.Parameter(torch.ones(()))

    def forward(self, x):
        return self.strength * self.inner(x)


def test_a_model_that_is_not_understood_is_named():
    experts = MixtralConfig(**GATED, num_local_experts=2, num_experts_per_tok=1)
    assert why_not_together(build(experts)) == "it has layers of type MixtralTopKRouter"
    model = build(FAMILIES["llama"])
    layers = model.lm.model.layers
    layers[0].mlp = Gate(layers[0].mlp)
    assert why_not_together(model) == "it has layers of type Gate"
    model = build(FAMILIES["llama"])
    model.lm.model.layers[1].mlp = model.lm.model.layers[0].mlp
    assert why_not_together(model) == "its layers of type Linear are not called once with all tokens"
    model = build(FAMILIES["llama"])
    model.lm.model.layers[1].mlp.up_proj.weight = model.lm.model.layers[0].mlp.up_proj.weight
    assert why_not_together(model) == "layers of type Linear share their weights"
    model = build(FAMILIES["llama"])
    model.lm.model.norm.weight.requires_grad_(False)
    assert why_not_together(model) == "some of its weights are fixed"


def test_an_embedding_that_is_no_lookup_is_named():
    class Shifted(nn.Embedding):
        def forward(self, ids):
            return super().forward(ids) + 1

    model = build(FAMILIES["llama"])
    model.lm.model.embed_tokens.__class__ = Shifted
    assert why_not_together(model) == "its Shifted does more than multiply rows by a number"
