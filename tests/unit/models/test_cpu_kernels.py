"""CPU kernels: the numbers and gradients of transformers' own for each family, and no change that another model sees."""

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

from rlhf_bench.core.types import Row
from rlhf_bench.models import attention, cpu_kernels
from rlhf_bench.models.cpu_kernels import Linear, faster_in_float32, with_cpu_kernels
from rlhf_bench.models.heads import TokenLogprobs
from rlhf_bench.models.packing import micro_batch

SIZES = {"vocab_size": 31, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
SIZES |= {"intermediate_size": 24, "num_key_value_heads": 1}
CONFIGS = {
    "llama": LlamaConfig(**SIZES),
    "qwen2": Qwen2Config(**SIZES),
    "qwen3": Qwen3Config(**SIZES, head_dim=8),
    "mistral": MistralConfig(**SIZES),
}


def file_of(family):
    return importlib.import_module(f"transformers.models.{family}.modeling_{family}")


def rotaries(model):
    """The rotary function that each attention module of the model calls."""
    attentions = [type(m) for m in model.modules() if type(m).__name__.endswith("Attention")]
    return [cls.forward.__globals__["apply_rotary_pos_emb"] for cls in attentions]


def norms(model):
    return [type(m).forward for m in model.modules() if "RMSNorm" in type(m).__name__]


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def hidden_states_of(model):
    return model(input_ids=torch.arange(1, 10)[None], output_hidden_states=True).hidden_states[-1]


@pytest.mark.parametrize("family", CONFIGS)
def test_each_familys_norms_and_rotary_embedding_are_replaced(family):
    model = with_cpu_kernels(AutoModelForCausalLM.from_config(CONFIGS[family]))
    assert {f.__module__ for f in [*norms(model), *rotaries(model)]} == {"rlhf_bench.models.cpu_kernels"}


@pytest.mark.parametrize("family", CONFIGS)
def test_other_models_of_the_family_compute_as_before(family, monkeypatch):
    """One made before and one made after: bit for bit the same, by transformers' own functions."""
    names = vars(file_of(family)).copy()
    forwards = {name: cls.forward for name, cls in names.items() if isinstance(cls, type) and hasattr(cls, "forward")}
    torch.manual_seed(0)
    before = AutoModelForCausalLM.from_config(CONFIGS[family])
    expected = hidden_states_of(before)
    ours = AutoModelForCausalLM.from_config(CONFIGS[family])
    ours.load_state_dict(before.state_dict())
    close(hidden_states_of(with_cpu_kernels(ours)), expected)
    after = AutoModelForCausalLM.from_config(CONFIGS[family])
    after.load_state_dict(before.state_dict())
    assert torch.equal(hidden_states_of(before), expected) and torch.equal(hidden_states_of(after), expected)
    assert vars(file_of(family)) == names and {n: names[n].forward for n in forwards} == forwards

    calls = []
    original = names["apply_rotary_pos_emb"]
    monkeypatch.setattr(
        file_of(family), "apply_rotary_pos_emb", lambda *args, **kwargs: calls.append(1) or original(*args, **kwargs)
    )
    hidden_states_of(ours)
    assert not calls
    for model in (before, after):
        hidden_states_of(model)
    assert len(calls) == 2 * SIZES["num_hidden_layers"]


def test_a_second_call_changes_nothing():
    model = with_cpu_kernels(AutoModelForCausalLM.from_config(CONFIGS["llama"]))
    before = [type(m) for m in model.modules()]
    assert [type(m) for m in with_cpu_kernels(model).modules()] == before


def test_gradient_checkpointing_gives_the_same_gradients():
    torch.manual_seed(0)
    model = with_cpu_kernels(AutoModelForCausalLM.from_config(CONFIGS["qwen3"])).train()
    found = []
    for kwargs in (None, {"use_reentrant": False}):
        if kwargs:
            model.gradient_checkpointing_enable(kwargs)
        loss = hidden_states_of(model).square().sum()
        found.append(torch.autograd.grad(loss, [p for n, p in model.named_parameters() if "lm_head" not in n]))
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)


def test_what_computes_something_else_is_left_as_it_is():
    """Gemma's norm adds 1 to its weight; GPT-2 has neither norm nor rotary embedding, nor `nn.Linear` in its layers."""
    gemma = with_cpu_kernels(AutoModelForCausalLM.from_config(Gemma2Config(**SIZES, head_dim=8)))
    assert {f.__module__ for f in norms(gemma)} == {"transformers.models.gemma2.modeling_gemma2"}
    gpt2 = AutoModelForCausalLM.from_config(GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=31)).base_model
    before = [type(m) for m in gpt2.modules()]
    assert [type(m) for m in with_cpu_kernels(gpt2).modules()] == before


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
        assert type(with_cpu_kernels(nn.Sequential(norm))[0]) is before


@pytest.mark.parametrize("family", ["cohere", "glm", "gpt_neox"])  # neighbours; a part of the numbers; no RMS norm
def test_families_that_rotate_other_numbers_keep_their_own_functions_results(family):
    """Whatever is replaced gives what was there before, on numbers that the trial has not seen."""
    original = file_of(family).apply_rotary_pos_emb
    attention_class = next(
        cls for name, cls in vars(file_of(family)).items() if name.endswith("Attention") and isinstance(cls, type)
    )
    holder = nn.Module()
    holder.__class__ = attention_class
    (function,) = rotaries(with_cpu_kernels(nn.Sequential(holder)))
    torch.manual_seed(1)
    q, k, angles = torch.randn(1, 4, 5, 8), torch.randn(1, 2, 5, 8), torch.rand(1, 5, 4).repeat(1, 1, 2)
    found, expected = (rotary(q, k, angles.cos(), angles.sin()) for rotary in (function, original))
    for one, other in zip(found, expected, strict=True):
        close(one, other)


@pytest.mark.parametrize("learns", [True, False], ids=["learns", "frozen"])
def test_a_norm_and_its_gradients(learns):
    torch.manual_seed(0)
    theirs = Qwen2RMSNorm(24, eps=1e-3)  # large enough to matter
    nn.init.normal_(theirs.weight)
    theirs.weight.requires_grad_(learns)
    (ours,) = with_cpu_kernels(nn.Sequential(Qwen2RMSNorm(24, eps=1e-3)))
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
    ours, *_ = rotaries(with_cpu_kernels(AutoModelForCausalLM.from_config(CONFIGS[family])))
    torch.manual_seed(0)
    # As attention has them: heads side by side in memory.
    q, k = (torch.randn(1, 5, heads, 8).transpose(1, 2).requires_grad_() for heads in (4, 2))
    angles = torch.rand(1, 5, 4).repeat(1, 1, 2) * 6
    found, expected = (
        function(q, k, angles.cos(), angles.sin()) for function in (ours, file_of(family).apply_rotary_pos_emb)
    )
    weights = [torch.randn_like(t) for t in found]
    for one, other in zip(found, expected, strict=True):
        close(one, other)
    sums = [sum((t * w).sum() for t, w in zip(both, weights, strict=True)) for both in (found, expected)]
    for one, other in zip(*(torch.autograd.grad(s, [q, k]) for s in sums), strict=True):
        close(one, other)


def test_other_number_formats_are_left_to_transformers():
    torch.manual_seed(0)
    (ours,), theirs = with_cpu_kernels(nn.Sequential(Qwen2RMSNorm(8))), Qwen2RMSNorm(8)
    x = torch.randn(3, 8, dtype=torch.float64)
    assert torch.equal(ours.double()(x), theirs.double()(x))


ROUNDING = {"rtol": 2**-7, "atol": 2**-9}  # of numbers of about 1: half the distance of two neighbours is 2**-9


def rounded(*shape):
    """Numbers of bfloat16, and the same in float64, which learn both."""
    numbers = torch.randn(shape).bfloat16()
    return numbers.requires_grad_(), numbers.detach().double().requires_grad_()


def test_a_norm_in_bfloat16_is_the_exact_one_rounded_once():
    torch.manual_seed(0)
    (ours,), exact = with_cpu_kernels(nn.Sequential(Qwen2RMSNorm(24, eps=1e-3))), Qwen2RMSNorm(24, eps=1e-3).double()
    assert ours.forward.__func__.__module__ == "rlhf_bench.models.cpu_kernels"
    ours.weight, exact.weight = (nn.Parameter(w.detach()) for w in rounded(24))
    x, same = rounded(5, 24)
    weights = torch.randn(5, 24).bfloat16()
    out = ours(x)
    r = (same.square().mean(-1, keepdim=True) + 1e-3).rsqrt()
    expected = same * r * exact.weight
    torch.testing.assert_close(out.double(), expected, rtol=2**-8, atol=1e-7)
    found = torch.autograd.grad((out * weights).sum(), [x, ours.weight])
    for one, other in zip(
        found, torch.autograd.grad((expected * weights.double()).sum(), [same, exact.weight]), strict=True
    ):
        assert one.dtype == torch.bfloat16
        torch.testing.assert_close(one.double(), other, **ROUNDING)


def test_a_rotary_embedding_in_bfloat16():
    ours, *_ = rotaries(with_cpu_kernels(AutoModelForCausalLM.from_config(CONFIGS["llama"])))
    torch.manual_seed(0)
    (q, exact_q), (k, exact_k), angles = (
        rounded(1, 4, 5, 8),
        rounded(1, 2, 5, 8),
        torch.rand(1, 5, 4).repeat(1, 1, 2) * 6,
    )
    turns = [angles.cos().bfloat16(), angles.sin().bfloat16()]
    found = ours(q, k, *turns)
    expected = file_of("llama").apply_rotary_pos_emb(exact_q, exact_k, *(t.double() for t in turns))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=2**-6, atol=2**-6)
    for one, other in zip(
        torch.autograd.grad(sum(t.sum() for t in found), [q, k]),
        torch.autograd.grad(sum(t.sum() for t in expected), [exact_q, exact_k]),
        strict=True,
    ):
        torch.testing.assert_close(one.double(), other, rtol=2**-6, atol=2**-6)


# bfloat16: on a CPU without its instructions products are computed in float32 and rounded

ROWS = [Row("a", (1, 5, 6), ((7, 8, 2), (9, 2))), Row("b", (1, 9), ((4, 4, 4, 2), (5, 2)))]


@pytest.fixture(params=[False, True], ids=["without_instructions", "with_instructions"])
def has_instructions(request, monkeypatch):
    monkeypatch.setattr(cpu_kernels, "_bfloat16_is_faster", lambda: request.param)
    return request.param


def test_a_product_is_the_exact_one_rounded_once(has_instructions):
    torch.manual_seed(0)
    layer, x = nn.Linear(64, 32, dtype=torch.bfloat16), torch.randn(10, 64, dtype=torch.bfloat16)
    exact = x.double() @ layer.weight.double().T + layer.bias.double()
    (fast,) = with_cpu_kernels(nn.Sequential(layer))
    assert type(fast) is Linear and faster_in_float32(x) != has_instructions
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
    sizes = {"vocab_size": 16, "hidden_size": 32, "intermediate_size": 64, "max_position_embeddings": 32}
    config = LlamaConfig(**sizes, num_hidden_layers=2, num_attention_heads=2)
    torch.manual_seed(0)
    found, gradients = {}, {}
    for dtype in (torch.bfloat16, torch.float32):
        torch.manual_seed(1)
        lm = AutoModelForCausalLM.from_config(config, attn_implementation=attention.PACKED_ROWS, dtype=torch.bfloat16)
        model = TokenLogprobs(with_cpu_kernels(lm.to(dtype)))
        logprobs = model(micro_batch(ROWS))
        logprobs.sum().backward()
        found[dtype] = logprobs.detach()
        gradients[dtype] = torch.cat([p.grad.float().flatten() for p in model.parameters()])
    torch.testing.assert_close(found[torch.bfloat16], found[torch.float32], rtol=0, atol=0.02)
    assert torch.cosine_similarity(*gradients.values(), dim=0) > 0.999


@pytest.mark.parametrize("frozen", [False, True])
def test_logits_are_not_rounded_to_bfloat16_and_follow_the_weights(frozen, has_instructions):
    """Log-probabilities of about -100: one of bfloat16 would be off by a quarter. A frozen head has a copy in float32, which is made
    anew when other weights are loaded into it."""
    attention.register()
    sizes = {"vocab_size": 16, "hidden_size": 32, "intermediate_size": 64, "max_position_embeddings": 32}
    config = LlamaConfig(**sizes, num_hidden_layers=1, num_attention_heads=2, initializer_range=1.0)
    torch.manual_seed(0)
    lm = AutoModelForCausalLM.from_config(config, attn_implementation=attention.PACKED_ROWS, dtype=torch.bfloat16)
    model, batch = TokenLogprobs(with_cpu_kernels(lm)).requires_grad_(not frozen), micro_batch(ROWS)
    states = 8 * torch.randn(len(batch.targets), 32).bfloat16()
    for weight in (lm.lm_head.weight.detach().clone(), torch.randn(16, 32).bfloat16()):
        lm.lm_head.weight.detach().copy_(weight)
        exact = (states.double() @ weight.double().T).log_softmax(-1)
        expected = exact.gather(1, batch.targets[:, None]).squeeze(1)
        torch.testing.assert_close(model.of_states(states, batch).double(), expected, rtol=1e-5, atol=1e-4)


def test_float32_is_left_as_it_is(has_instructions):
    assert not faster_in_float32(torch.zeros(1)) and not faster_in_float32(torch.zeros(1, dtype=torch.float64))
