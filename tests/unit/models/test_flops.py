"""The ledger's formulas against the operations that PyTorch counts while a model runs."""

import copy
from dataclasses import replace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    DynamicCache,
    GPT2Config,
    LlamaConfig,
    Qwen2Config,
)

from rlhf_bench.core.types import Row
from rlhf_bench.methods import METHODS
from rlhf_bench.models import lm_head
from rlhf_bench.models.attention import PACKED_ROWS, register
from rlhf_bench.models.flops import ModelShape, forward_flops, generation_flops, side_gradients_flops, training_flops
from rlhf_bench.models.heads import ResponseValues, TokenLogprobs
from rlhf_bench.models.lora import add_adapters
from rlhf_bench.models.packing import layout_of, micro_batch
from rlhf_bench.models.settings import LoraSettings
from rlhf_bench.training.objective import weighted_sides

register()

VOCABULARY = 50
SIZES = {"vocab_size": VOCABULARY, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_labels": 1}
SIZES |= {"intermediate_size": 96, "max_position_embeddings": 256, "pad_token_id": 0}
CONFIGS = {
    "llama": LlamaConfig(**SIZES, tie_word_embeddings=True),
    "llama, untied, grouped queries": LlamaConfig(**SIZES, num_key_value_heads=2, tie_word_embeddings=False),
    "qwen2": Qwen2Config(**SIZES, num_key_value_heads=2),
    "gpt2": GPT2Config(**SIZES),
}
SHORT = [Row("a", (1,) * 5, ((2,) * 4, (2,) * 3)), Row("b", (1,), ((2,) * 2, (2,) * 6)), Row("c", (1,), ((2,),) * 2)]
LONG = [Row("a", (1,) * 60, ((2,) * 70, (2,) * 60)), Row("b", (3,) * 80, ((2,) * 40, (2,) * 50))]
ALIKE = [Row("a", (1,) * 60, ((2,) * 70,)), *(Row("b", (1,) * n, ((2,) * 4, (2,) * 3)) for n in (31, 32, 35))]
# The fused kernel that attention runs on a CPU is missing from the counter's table; its GPU twins' formulas are there.
FUSED = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, out_shape=None, **__: (
        sdpa_flop_count(q, k, v)
    ),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: lambda grad, q, k, v, *_, out_shape=None, **__: (
        sdpa_backward_flop_count(grad, q, k, v)
    ),
}


def model_of(name, kind, layers=2):
    auto = AutoModelForCausalLM if kind == "causal" else AutoModelForSequenceClassification
    config = copy.deepcopy(CONFIGS[name])
    config.num_hidden_layers = layers
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:1] * layers
    torch.manual_seed(0)
    lm = auto.from_config(config, attn_implementation=PACKED_ROWS).eval()
    return TokenLogprobs(lm) if kind == "causal" else ResponseValues(lm)


def counted(model, rows, backward, fused):
    """FLOPs of one forward pass (and of its backward pass) as PyTorch counts them."""
    batch = micro_batch(rows)
    backend = SDPBackend.FLASH_ATTENTION if fused else SDPBackend.MATH
    with sdpa_kernel(backend), FlopCounterMode(display=False, custom_mapping=FUSED if fused else None) as counter:
        if backward and isinstance(model, TokenLogprobs):
            model(batch, 1.0, lambda rows, logprobs, entropy: (logprobs.sum(), {}))[0].backward()
        elif backward:
            found = model(batch)
            (found if isinstance(model, TokenLogprobs) else torch.cat(found)).sum().backward()
        else:
            model(batch)
    return counter.get_total_flops()


def test_what_all_prompts_begin_with_is_counted_once():
    assert layout_of(ALIKE).tokens == sum(row.tokens for row in ALIKE) - 3 * 30


def heads_of(rows, kind):
    return sum(r.response_tokens + (len(r.responses) if kind == "scalar" else 0) for r in rows)


def formula(of, model, kind, rows):
    return of(ModelShape.of(model.lm), layout_of(rows), heads_of(rows, kind))


@pytest.mark.parametrize("rows", [SHORT, LONG, ALIKE], ids=["short", "long", "alike"])
@pytest.mark.parametrize("kind", ["causal", "scalar"])
@pytest.mark.parametrize("name", CONFIGS)
def test_a_forward_pass(name, kind, rows):
    model = model_of(name, kind)
    with torch.no_grad():
        assert formula(forward_flops, model, kind, rows) == pytest.approx(counted(model, rows, False, False), rel=0.03)


@pytest.mark.parametrize("rows", [SHORT, LONG, ALIKE], ids=["short", "long", "alike"])
@pytest.mark.parametrize("kind", ["causal", "scalar"])
@pytest.mark.parametrize("name", CONFIGS)
def test_forward_and_backward(name, kind, rows):
    model = model_of(name, kind)
    assert formula(training_flops, model, kind, rows) == pytest.approx(counted(model, rows, True, True), rel=0.03)


@pytest.mark.parametrize("rows", [SHORT, LONG], ids=["short", "long"])
def test_rows_longer_than_a_chunk_of_logits_cost_the_head_once_more(rows, monkeypatch):
    model = model_of("llama, untied, grouped queries", "causal")
    whole = formula(training_flops, model, "causal", rows)
    monkeypatch.setattr(lm_head, "LOGITS_IN_CHUNK", 7 * VOCABULARY)
    # Of the short rows the second one alone has more than seven response tokens, eight.
    longer = 8 if rows is SHORT else heads_of(rows, "causal")
    expected = formula(training_flops, model, "causal", rows)
    assert expected - whole == 2 * 64 * VOCABULARY * longer
    assert expected == pytest.approx(counted(model, rows, True, True), rel=0.03)


@pytest.mark.parametrize("adapters", [0, 4])
def test_both_sides_gradients(adapters):
    name = "llama, untied, grouped queries"
    model, shape = adapted(name, "causal", adapters) if adapters else (model_of(name, "causal", LORA_LAYERS), None)
    expected = side_gradients_flops(shape or ModelShape.of(model.lm), layout_of(LONG), heads_of(LONG, "causal"))
    settings = METHODS["simpo"].settings(method="simpo")
    with (
        sdpa_kernel(SDPBackend.FLASH_ATTENTION),
        FlopCounterMode(display=False, custom_mapping=FUSED) as counter,
    ):
        weighted_sides(model, micro_batch(LONG), lambda pairs, _: torch.ones_like(pairs.chosen), settings)
    assert expected == pytest.approx(counter.get_total_flops(), rel=0.03)


def test_without_the_fused_kernels_recomputation_attention_costs_three_times_its_forward():
    """So that the 2.5 of the formula is the kernel's own and covers no error elsewhere."""
    model = model_of("llama", "causal")
    shape = ModelShape.of(model.lm)
    recomputed = 0.5 * 4 * shape.layers * shape.attention_width * layout_of(LONG).scores
    expected = formula(training_flops, model, "causal", LONG) - recomputed
    assert expected == pytest.approx(counted(model, LONG, True, False), rel=0.03)


LORA_LAYERS = 12
"""As many as the smallest pretrained models have: the formula has the frozen weights' backward product for the first
layer's inputs too, which PyTorch leaves out."""


def adapted(name, kind, rank):
    """A model with adapters, and the shape that a learner reports of it."""
    model = model_of(name, kind, LORA_LAYERS)
    shape = replace(ModelShape.of(model.lm), lora_rank=rank)
    add_adapters(model, LoraSettings(rank=rank), 0)
    return model, shape


@pytest.mark.parametrize("rank", [2, 32])
@pytest.mark.parametrize("rows", [SHORT, LONG, ALIKE], ids=["short", "long", "alike"])
@pytest.mark.parametrize("kind", ["causal", "scalar"])
@pytest.mark.parametrize("name", CONFIGS)
def test_with_adapters(name, kind, rows, rank):
    """Backward, frozen weights cost one product instead of two; adapters cost all three."""
    model, shape = adapted(name, kind, rank)
    size = layout_of(rows), heads_of(rows, kind)
    with torch.no_grad():
        assert forward_flops(shape, *size) == pytest.approx(counted(model, rows, False, False), rel=0.03)
    assert training_flops(shape, *size) == pytest.approx(counted(model, rows, True, True), rel=0.03)
    learning = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert shape.trained == learning - (shape.head_weights if kind == "scalar" else 0)


def test_an_engine_holds_merged_weights_and_pays_for_no_adapter():
    shape = ModelShape.of(model_of("llama", "causal").lm)
    lora, size = replace(shape, lora_rank=8), (layout_of(SHORT), 18)
    assert generation_flops(lora, [(7, 0, 9)]) == generation_flops(shape, [(7, 0, 9)])
    assert forward_flops(lora.merged, *size) == forward_flops(shape, *size) < forward_flops(lora, *size)
    assert (lora.merged, shape.trained) == (shape, shape.parameters)


def one_token_at_a_time(lm, prompt, cached, response):
    """FLOPs of decoding with a key-value cache: every token fed alone, the head run where one is chosen."""
    cache, total = DynamicCache(config=lm.config), 0
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        for t in range(prompt + response - 1):
            with FlopCounterMode(display=False) as counter:
                hidden = lm.base_model(torch.tensor([[1]]), past_key_values=cache, use_cache=True).last_hidden_state
                if t >= prompt - 1:
                    lm.get_output_embeddings()(hidden)
            total += counter.get_total_flops() if t >= cached else 0
    return total


@pytest.mark.parametrize("name", ["llama, untied, grouped queries", "gpt2"])
@pytest.mark.parametrize("request_", [(7, 0, 9), (7, 4, 9), (12, 0, 1), (1, 0, 5)], ids=str)
def test_generation(name, request_):
    lm = model_of(name, "causal").lm
    expected = one_token_at_a_time(lm, *request_)
    assert generation_flops(ModelShape.of(lm), [request_]) == pytest.approx(expected, rel=0.03)


def test_generation_adds_up_over_requests():
    shape = ModelShape(1000, 2, 16, 500, 2000, 100, 50)
    requests = [(7, 0, 9), (7, 4, 9), (12, 0, 1)]
    assert generation_flops(shape, requests) == sum(generation_flops(shape, [one]) for one in requests)
    assert generation_flops(shape, []) == 0


@pytest.mark.parametrize(("name", "linear", "other", "width"), [
    # Llama's layer: q, k, v, o of 64×64 and three of 64×96, so 4 × 128 + 3 × 160 inputs and outputs. Else: two norms a layer, one at the end, the embedding.
    ("llama", 4 * 64**2 + 3 * 64 * 96, 2 * 128 + 64 + 50 * 64, 4 * 128 + 3 * 160),
    # Half as many key and value heads; the head's matrix is a second one beside the embedding.
    ("llama, untied, grouped queries", 3 * 64**2 + 3 * 64 * 96, 2 * 128 + 64 + 2 * 50 * 64, 2 * 128 + 2 * 96 + 3 * 160),
    # GPT-2's layer: 64×192, 64×64, 64×256, 256×64. Else: their biases, norms with biases, embeddings of positions too.
    ("gpt2", 12 * 64**2, 2 * (192 + 64 + 256 + 64 + 256) + 128 + 50 * 64 + 256 * 64, 256 + 128 + 2 * 320),
])  # fmt: skip
def test_the_shape_read_off_a_model(name, linear, other, width):
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(CONFIGS[name])
    assert ModelShape.of(model) == ModelShape(2 * linear, 2, 64, 50 * 64, 2 * linear + other, 2 * width, 50)


def test_a_scalar_head_has_one_column():
    shape = ModelShape.of(model_of("gpt2", "scalar").lm)
    assert (shape.head_weights, shape.matmul_weights) == (64, 2 * 12 * 64**2)


def test_a_head_size_of_its_own_counts():
    config = LlamaConfig(**SIZES, head_dim=32)
    with torch.device("meta"):
        assert ModelShape.of(AutoModelForCausalLM.from_config(config)).attention_width == 4 * 32
