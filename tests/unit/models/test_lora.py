"""Adapters beside a model: what they change, what they leave, and the plain model they are merged into."""

import copy
import re

import pytest
import torch
from transformers import AutoModelForCausalLM, GemmaConfig, GPT2Config, LlamaConfig, Qwen2Config

from rlhf_bench.core.errors import BadInput
from rlhf_bench.core.types import Row
from rlhf_bench.methods import METHODS
from rlhf_bench.models.loading import load_model
from rlhf_bench.models.lora import add_adapters, plain_state_dict, plain_weights
from rlhf_bench.models.packing import micro_batch
from rlhf_bench.models.settings import LoraSettings
from rlhf_bench.recipe import parse_recipe
from rlhf_bench.training.objective import weighted_sides

SIZES = {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "pad_token_id": 0}
SIZES |= {"intermediate_size": 48, "max_position_embeddings": 64}
CONFIGS = {
    "llama": LlamaConfig(**SIZES, num_key_value_heads=2, tie_word_embeddings=True),
    "llama, untied": LlamaConfig(**SIZES, tie_word_embeddings=False),
    "qwen2": Qwen2Config(**SIZES, num_key_value_heads=2),
    "gemma": GemmaConfig(**SIZES, num_key_value_heads=1, head_dim=8),
    "gpt2": GPT2Config(**SIZES),
}
EVERY = pytest.mark.parametrize("name", CONFIGS)
KINDS = pytest.mark.parametrize("kind", ["causal", "scalar"])
LORA = LoraSettings(rank=3, alpha=12.0)
ROWS = [Row("a", (1, 2, 3), ((4, 5, 6), (7, 8))), Row("b", (9,), ((10, 11), (12, 13, 14, 15)))]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A folder of random weights for each configuration."""
    found = {}
    for name, config in CONFIGS.items():
        torch.manual_seed(1)
        model = AutoModelForCausalLM.from_config(copy.deepcopy(config))
        for parameter in model.parameters():  # biases and norms too, so that one that gets lost is noticed
            torch.nn.init.normal_(parameter, std=0.2)
        found[name] = tmp_path_factory.mktemp("model")
        model.save_pretrained(found[name])
    return found


def adapted(folder, kind="causal", dtype="float32", seed=0):
    model = load_model(str(folder), kind, dtype, seed)
    add_adapters(model, LORA, seed)
    return model


def learn(model, steps=3):
    """A few steps of Adam on whatever learns."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.05, weight_decay=0.0)
    for _ in range(steps):
        answer = model(micro_batch(ROWS))
        (answer if isinstance(answer, torch.Tensor) else answer[0]).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


def answers(model):
    with torch.no_grad():
        answer = model(micro_batch(ROWS))
        return answer if isinstance(answer, torch.Tensor) else torch.cat(answer)


def names(model):
    return [name for name, _ in model.lm.named_parameters()]


@KINDS
@EVERY
def test_fresh_adapters_change_no_answer(name, kind, folders):
    plain, model = load_model(str(folders[name]), kind, "float32", 0), adapted(folders[name], kind)
    assert torch.equal(answers(model), answers(plain))


@KINDS
@EVERY
def test_only_adapters_and_a_scalar_head_learn(name, kind, folders):
    model = adapted(folders[name], kind)
    before = {key: p.detach().clone() for key, p in model.lm.named_parameters()}
    learn(model)
    changed = {key for key, p in model.lm.named_parameters() if not torch.equal(p, before[key])}
    adapters = {key for key in before if re.search(r"\.lora_[AB]\.", key)}
    assert changed == adapters | ({"score.weight"} if kind == "scalar" else set())


@EVERY
def test_every_linear_layer_of_the_backbone_has_an_adapter_and_the_head_has_none(name, folders):
    plain, model = load_model(str(folders[name]), "causal", "float32", 0).lm, adapted(folders[name]).lm
    linears = {key for key, m in plain.base_model.named_modules() if getattr(m, "weight", torch.zeros(0)).dim() == 2}
    embeddings = {key for key, m in plain.base_model.named_modules() if isinstance(m, torch.nn.Embedding)}
    layers = {key for key, m in model.base_model.named_modules() if hasattr(m, "lora_A")}
    assert layers == linears - embeddings
    assert type(model.get_output_embeddings()) is type(plain.get_output_embeddings())
    sizes = [p.numel() for key, p in model.named_parameters() if "lora_" in key]
    wide = sum(sum(plain.base_model.get_submodule(key).weight.shape) for key in layers)
    assert sum(sizes) == LORA.rank * wide


@KINDS
@EVERY
def test_the_merged_weights_are_a_plain_models_and_answer_as_the_adapted_model_does(name, kind, folders):
    model, plain = learn(adapted(folders[name], kind)), load_model(str(folders[name]), kind, "float32", 0)
    weights = list(plain_weights(model.lm))
    assert [w.name for w in weights] == names(plain)
    for weight in weights:
        plain.lm.get_parameter(weight.name).data.copy_(weight.value())
    moved = (answers(plain) - answers(load_model(str(folders[name]), kind, "float32", 0))).abs().max()
    assert torch.allclose(answers(plain), answers(model), atol=2e-5, rtol=1e-5) and moved > 0.01


@KINDS
@EVERY
def test_the_merge_is_pefts_own(name, kind, folders):
    from peft.tuners.lora import LoraLayer

    model = learn(adapted(folders[name], kind))
    before = {key: p.detach().clone() for key, p in model.lm.named_parameters()}
    found = {w.name: w.value().clone() for w in plain_weights(model.lm)}
    assert all(torch.equal(p, before[key]) for key, p in model.lm.named_parameters())  # nothing was merged in place
    own = copy.deepcopy(model.lm)
    for module in own.modules():
        if isinstance(module, LoraLayer):
            module.merge()
    merged = {key.replace(".base_layer", ""): p for key, p in own.named_parameters() if "lora_" not in key}
    assert found.keys() == merged.keys()
    assert all(torch.allclose(found[key], merged[key], atol=1e-6) for key in found)


@KINDS
@EVERY
def test_a_saved_folder_is_a_plain_model_that_transformers_loads(name, kind, folders, tmp_path):
    model = learn(adapted(folders[name], kind))
    model.lm.save_pretrained(tmp_path, state_dict=plain_state_dict(model.lm))
    assert not list(tmp_path.glob("adapter*"))
    loaded = load_model(str(tmp_path), kind, "float32", 5)  # a head that is missing would be drawn from another seed
    assert names(loaded) == names(load_model(str(folders[name]), kind, "float32", 0))
    assert torch.allclose(answers(loaded), answers(model), atol=2e-5, rtol=1e-5)


def test_the_seed_draws_the_adapters(folders):
    one, same, other = (learn(adapted(folders["llama"], seed=seed)) for seed in (1, 1, 2))
    assert torch.equal(answers(one), answers(same)) and not torch.equal(answers(one), answers(other))


@EVERY
def test_without_adapters_the_weights_are_the_parameters_own_memory(name, folders):
    lm = load_model(str(folders[name]), "causal", "float32", 0).lm
    found = {w.name: w.value().data_ptr() for w in plain_weights(lm)}
    assert found == {key: p.data_ptr() for key, p in lm.named_parameters()}


@EVERY
def test_in_16_bits_adapters_have_16_bits_and_the_merge_is_rounded_once(name, folders):
    model = learn(adapted(folders[name], dtype="bfloat16"))
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    for weight in plain_weights(model.lm):
        if weight.layer is None:
            continue
        base, a, b = (p.detach().double() for p in weight.parameters)
        delta = LORA.alpha / LORA.rank * b @ a
        exact = base + (delta.T if name == "gpt2" else delta)
        assert torch.allclose(weight.value().double(), exact, rtol=2**-7, atol=2**-8)
    assert torch.isfinite(answers(model)).all()


def test_both_sides_gradients_are_those_of_the_adapters(folders):
    """What Adaptive Flex-DPO measures: against autograd on each side's log-probability by itself."""
    model = learn(adapted(folders["llama"]), 1)
    batch = micro_batch(ROWS)

    def weight(pairs, settings):
        return torch.ones_like(pairs.chosen)

    chosen, rejected = weighted_sides(model, batch, weight, METHODS["simpo"].settings(method="simpo"))
    learning = [p for p in model.parameters() if p.requires_grad]
    logprobs = model(batch)
    first = torch.autograd.grad(logprobs[batch.response_index % 2 == 0].sum(), learning, retain_graph=True)
    second = torch.autograd.grad(logprobs[batch.response_index % 2 == 1].sum(), learning)
    assert torch.allclose(chosen, torch.cat([g.flatten() for g in first]), atol=1e-6)
    assert torch.allclose(rejected, torch.cat([g.flatten() for g in second]), atol=1e-6)


RECIPE = {"name": "r", "task": {"kind": "arithmetic"}, "compute": {"limit": 1e12}, "arms": {"a": {"method": "dpo"}}}
MODEL = {"name_or_path": "some/model", "tokenizer": {"kind": "pretrained", "name_or_path": "some/model"}}


@pytest.mark.parametrize(("lora", "line"), [
    ({"rank": 0}, r"model\.lora\.rank: .*greater than or equal to 1.*"),
    ({"rank": 1.5}, r"model\.lora\.rank: .*"),
    ({"alpha": 0}, r"model\.lora\.alpha: .*greater than 0.*"),
    ({"dropout": 0.1}, r"model\.lora\.dropout: .*"),
    (True, r"model\.lora: .*"),
])  # fmt: skip
def test_settings_that_are_wrong_are_named(lora, line):
    with pytest.raises(BadInput) as refused:
        parse_recipe(RECIPE | {"model": MODEL | {"lora": lora}})
    assert len(refused.value.problems) == 1 and re.fullmatch(line, refused.value.problems[0]), refused.value.problems


def test_adapters_beside_untrained_weights_are_refused():
    with pytest.raises(
        BadInput, match=r"model\.lora needs model\.name_or_path: .*; name a model, or remove model\.lora"
    ):
        parse_recipe(RECIPE | {"model": {"lora": {}}})


@pytest.mark.parametrize("way", ["nccl", "ipc"])
def test_a_weight_sync_that_would_send_them_unmerged_is_refused(way):
    gpus = {"rollout": {"gpus": 1}, "learner": {"gpus": 1}, "weight_sync": way}
    with pytest.raises(BadInput, match=rf"placement\.weight_sync: {way} .*model\.lora.*; use object_store"):
        parse_recipe(RECIPE | {"model": MODEL | {"lora": {}}, "placement": gpus})
    parse_recipe(RECIPE | {"model": MODEL, "placement": gpus})
