"""Norms and rotary embeddings in fewer passes: the numbers and gradients of transformers' own, for each family."""

import importlib

import pytest
import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
)
from transformers.models.qwen2.modeling_qwen2 import Qwen2RMSNorm

from rlhf_bench.models.cpu_kernels import with_fewer_passes

SIZES = {"vocab_size": 31, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
SIZES |= {"intermediate_size": 24, "num_key_value_heads": 1}
CONFIGS = {
    "llama": LlamaConfig(**SIZES),
    "qwen2": Qwen2Config(**SIZES),
    "qwen3": Qwen3Config(**SIZES, head_dim=8),
    "mistral": MistralConfig(**SIZES),
}


def rotary_of(family):
    return importlib.import_module(f"transformers.models.{family}.modeling_{family}").apply_rotary_pos_emb


def norms(model):
    return [type(m).forward for m in model.modules() if "RMSNorm" in type(m).__name__]


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("family", CONFIGS)
def test_each_familys_norms_and_rotary_embedding_are_replaced(family):
    model = with_fewer_passes(AutoModelForCausalLM.from_config(CONFIGS[family]))
    assert {f.__module__ for f in norms(model)} == {"rlhf_bench.models.cpu_kernels"}
    assert rotary_of(family).__module__ == "rlhf_bench.models.cpu_kernels"


def test_what_computes_something_else_is_left_as_it_is():
    """Gemma's norm adds 1 to its weight; GPT-2 has neither."""
    for config in (Gemma2Config(**SIZES, head_dim=8), GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=31)):
        model = AutoModelForCausalLM.from_config(config)
        before = [type(m) for m in model.modules()]
        assert [type(m) for m in with_fewer_passes(model).modules()] == before


class OtherRMSNorm(Qwen2RMSNorm):
    """Of a family that calls its norm the same and computes another."""

    def forward(self, hidden_states):
        return super().forward(hidden_states) + 1


class OtherArgumentsRMSNorm(Qwen2RMSNorm):
    def __init__(self, config):
        super().__init__(config["hidden_size"])


class WeightlessRMSNorm(Qwen2RMSNorm):
    def __init__(self):
        super().__init__(4)
        self.weight = None


def test_a_norm_is_tried_out_before_it_is_replaced():
    norms = OtherRMSNorm(4), OtherArgumentsRMSNorm({"hidden_size": 4}), WeightlessRMSNorm()
    for norm in norms:
        before = type(norm)
        assert type(with_fewer_passes(nn.Sequential(norm))[0]) is before


@pytest.mark.parametrize("family", ["cohere", "glm", "gpt_neox"])  # neighbours; a part of the numbers; no RMS norm
def test_families_that_turn_other_numbers_keep_their_own_functions_results(family):
    """Whatever is replaced gives what was there before, on numbers that the trial has not seen."""
    theirs = importlib.import_module(f"transformers.models.{family}.modeling_{family}")
    original = theirs.apply_rotary_pos_emb
    holder = type("SomeAttention", (nn.Module,), {"__module__": theirs.__name__})
    with_fewer_passes(nn.Sequential(holder()))
    torch.manual_seed(1)
    q, k, angles = torch.randn(1, 4, 5, 8), torch.randn(1, 2, 5, 8), torch.rand(1, 5, 4).repeat(1, 1, 2)
    for one, other in zip(
        theirs.apply_rotary_pos_emb(q, k, angles.cos(), angles.sin()), original(q, k, angles.cos(), angles.sin()),
        strict=True,
    ):  # fmt: skip
        close(one, other)


@pytest.mark.parametrize("learns", [True, False], ids=["learns", "frozen"])
def test_a_norm_and_its_gradients(learns):
    torch.manual_seed(0)
    theirs = Qwen2RMSNorm(24, eps=1e-3)  # large enough to matter
    nn.init.normal_(theirs.weight)
    theirs.weight.requires_grad_(learns)
    (ours,) = with_fewer_passes(nn.Sequential(Qwen2RMSNorm(24, eps=1e-3)))
    ours.weight = theirs.weight
    for shape in ((2, 7, 24), (1, 3, 2, 24)):  # hidden states; query heads, as in Qwen3
        x = torch.randn(shape, requires_grad=True)
        wanted = [x, theirs.weight] if learns else [x]
        weights = torch.randn(shape)
        close(ours(x), theirs(x))
        found, expected = (torch.autograd.grad((norm(x) * weights).sum(), wanted) for norm in (ours, theirs))
        for one, other in zip(found, expected, strict=True):
            close(one, other)


@pytest.mark.parametrize("family", CONFIGS)
def test_a_rotary_embedding_and_its_gradients(family):
    with_fewer_passes(AutoModelForCausalLM.from_config(CONFIGS[family]))
    ours = rotary_of(family)
    torch.manual_seed(0)
    # As attention has them: heads side by side in memory.
    q, k = (torch.randn(1, 5, heads, 8).transpose(1, 2).requires_grad_() for heads in (4, 2))
    angles = torch.rand(1, 5, 4).repeat(1, 1, 2) * 6
    found, expected = (function(q, k, angles.cos(), angles.sin()) for function in (ours, ours.replaces))
    weights = [torch.randn_like(t) for t in found]
    for one, other in zip(found, expected, strict=True):
        close(one, other)
    sums = [sum((t * w).sum() for t, w in zip(both, weights, strict=True)) for both in (found, expected)]
    for one, other in zip(*(torch.autograd.grad(s, [q, k]) for s in sums), strict=True):
        close(one, other)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_number_formats_are_left_to_transformers(dtype):
    torch.manual_seed(0)
    (ours,), theirs = with_fewer_passes(nn.Sequential(Qwen2RMSNorm(8))), Qwen2RMSNorm(8)
    x = torch.randn(3, 8, dtype=dtype)
    assert torch.equal(ours.to(dtype)(x), theirs.to(dtype)(x))
