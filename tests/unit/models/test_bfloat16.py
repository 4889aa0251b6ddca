"""On a CPU without bfloat16 instructions products are made in float32 and rounded: the same numbers, sooner."""

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig

from rlhf_bench.core.types import Row
from rlhf_bench.models import attention
from rlhf_bench.models import cpu_kernels as bfloat16
from rlhf_bench.models.cpu_kernels import Linear, slow_products, with_fast_products
from rlhf_bench.models.heads import TokenLogprobs
from rlhf_bench.models.packing import micro_batch

ROWS = [Row("a", (1, 5, 6), ((7, 8, 2), (9, 2))), Row("b", (1, 9), ((4, 4, 4, 2), (5, 2)))]


@pytest.fixture(params=[False, True], ids=["without_instructions", "with_instructions"])
def has_instructions(request, monkeypatch):
    monkeypatch.setattr(bfloat16, "_cpu_has_tiles", lambda: request.param)
    return request.param


def test_a_product_is_the_exact_one_rounded_once(has_instructions):
    torch.manual_seed(0)
    layer, x = nn.Linear(64, 32, dtype=torch.bfloat16), torch.randn(10, 64, dtype=torch.bfloat16)
    exact = x.double() @ layer.weight.double().T + layer.bias.double()
    (fast,) = with_fast_products(nn.Sequential(layer))
    assert type(fast) is Linear and slow_products(x) != has_instructions
    out = fast(x)
    assert out.dtype == torch.bfloat16 and (out.double() - exact).abs().max() <= exact.abs().max() * 2**-8
    if not has_instructions:
        torch.testing.assert_close(out, exact.to(torch.bfloat16), rtol=2**-7, atol=0)
    out.float().sum().backward()
    assert layer.weight.grad.dtype == torch.bfloat16
    torch.testing.assert_close(
        layer.weight.grad, x.double().sum(0).expand(32, 64).to(torch.bfloat16), rtol=2**-7, atol=1e-6
    )


def test_a_model_answers_as_the_same_model_in_float32_to_bfloat16s_precision(has_instructions):
    attention.register()
    config = LlamaConfig(vocab_size=16, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
                         max_position_embeddings=32)  # fmt: skip
    torch.manual_seed(0)
    found, gradients = {}, {}
    for dtype in (torch.bfloat16, torch.float32):
        torch.manual_seed(1)
        lm = AutoModelForCausalLM.from_config(config, attn_implementation=attention.PACKED_ROWS, dtype=torch.bfloat16)
        model = TokenLogprobs(with_fast_products(lm.to(dtype)))
        logprobs = model(micro_batch(ROWS))
        logprobs.sum().backward()
        found[dtype] = logprobs.detach()
        gradients[dtype] = torch.cat([p.grad.float().flatten() for p in model.parameters()])
    torch.testing.assert_close(found[torch.bfloat16], found[torch.float32], rtol=0, atol=0.02)
    assert torch.cosine_similarity(*gradients.values(), dim=0) > 0.999


def test_float32_is_left_as_it_is(has_instructions):
    assert not slow_products(torch.zeros(1)) and not slow_products(torch.zeros(1, dtype=torch.float64))
