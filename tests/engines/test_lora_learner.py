"""Adapters under DeepSpeed with 1 or 2 ranks and every ZeRO stage, against a plain PyTorch loop that computes with
W + α/r · B A written out."""

from dataclasses import replace

import numpy as np
import pytest

from rlhf_bench.compute.engine_time import EngineTime
from rlhf_bench.core.types import Row
from rlhf_bench.methods import METHODS
from rlhf_bench.methods.dpo import DPOSettings
from rlhf_bench.methods.supervised import REWARD_MODEL
from rlhf_bench.models.settings import LoraSettings
from rlhf_bench.training.roles import Step

EOS, RATE, MAX_NORM, SEED = 2, 1e-2, 0.1, 3
LORA = LoraSettings(rank=2, alpha=8.0)
DPO, SETTINGS = METHODS["dpo"], DPOSettings(beta=0.5)
PAIRS = [
    Row("a", (1, 5, 6), ((7, 8, EOS), (9, EOS))),
    Row("b", (1, 4), ((11, EOS), (12, 13, 14, 15, 3, EOS))),
    Row("c", (1, 5, 9, 6, 10), ((4, 4, EOS), (8, 8, EOS))),
    Row("d", (1, 15, 14), ((13, 12, 11, 10, 9, EOS), (5, EOS))),
]
UPDATES = [PAIRS, PAIRS[2:3], PAIRS[:3]]  # in the second, one of two ranks has nothing
GROUPS = [(0, 1), (2, 1), (0, 2), (1, 2), (2, 2), (3, 2)]


@pytest.fixture(scope="module")
def model(write_llama, tmp_path_factory):
    return write_llama(tmp_path_factory.mktemp("policy"))


@pytest.fixture(scope="module")
def oracle(model):
    """Losses, gradient norms, and the weights at the end: unpadded sequences, autograd through the written-out sum."""
    import torch
    from torch.func import functional_call
    from transformers import AutoModelForCausalLM

    from rlhf_bench.models.loading import load_model
    from rlhf_bench.models.lora import add_adapters

    lm = AutoModelForCausalLM.from_pretrained(model)
    base = {name: p.detach() for name, p in lm.named_parameters()}
    drawn = load_model(str(model), "causal", "float32", SEED)
    add_adapters(drawn, LORA, SEED)
    a = {
        name.replace("lora_A.default.weight", "weight"): p.detach().clone().requires_grad_()
        for name, p in drawn.lm.named_parameters()
        if "lora_A" in name
    }
    b = {name: torch.zeros(len(base[name]), LORA.rank, requires_grad=True) for name in a}
    learning = [p for name in a for p in (a[name], b[name])]
    optimizer = torch.optim.AdamW(learning, lr=RATE, betas=(0.9, 0.95), weight_decay=0.0)

    def weights():
        return base | {name: base[name] + LORA.alpha / LORA.rank * b[name] @ a[name] for name in a}

    def logprob(now, prompt, response):
        ids = torch.tensor([[*prompt, *response]])
        logp = functional_call(lm, now, kwargs={"input_ids": ids}).logits[0, :-1].log_softmax(-1)
        return logp.gather(1, ids[0, 1:, None])[len(prompt) - 1 :].sum()

    losses, norms = [], []
    for rows in UPDATES:
        now = weights()
        margins = torch.stack([
            sum(sign * (logprob(now, r.prompt_ids, y) - logprob(base, r.prompt_ids, y).detach())
                for sign, y in zip((1, -1), r.responses, strict=True)) for r in rows
        ])  # fmt: skip
        loss = torch.log1p(torch.exp(-SETTINGS.beta * margins)).mean()
        optimizer.zero_grad()
        loss.backward()
        losses.append(loss.item())
        norms.append(torch.nn.utils.clip_grad_norm_(learning, MAX_NORM).item())
        optimizer.step()
    assert min(norms) > MAX_NORM
    return losses, norms, {name: value.detach().numpy() for name, value in weights().items()}


@pytest.fixture(scope="module")
def groups(start):
    from actors.learner.group import LearnerGroup
    from actors.learner.rank import LearnerRank

    found = {
        count: LearnerGroup(
            [start(LearnerRank, i, count, 1, 0, 0, "float32", LORA) for i in range(count)], 1, 0, 16, EngineTime()
        )
        for count in (1, 2)
    }
    for group in found.values():
        group.join()
    return found


@pytest.fixture(scope="module", params=GROUPS, ids=lambda p: f"zero{p[0]}-ranks{p[1]}")
def group(request, cluster, groups):
    """The group at one ZeRO stage, set in its living processes: a stage matters only to what is loaded after it."""
    stage, ranks = request.param
    set_stage(groups[ranks], stage, cluster)
    yield groups[ranks]
    for name in ("policy", "reference", "critic"):
        groups[ranks].free(name)


def set_stage(group, stage, ray):
    def change(rank, stage):
        rank.setup = replace(rank.setup, zero_stage=stage)

    ray.get([rank.__ray_call__.remote(change, stage) for rank in group.ranks])


def load(group, model):
    group.load("policy", model, SEED, learning_rate=RATE, max_grad_norm=MAX_NORM)
    group.load("reference", model)


def learn(group, updates):
    """The numbers of every step."""
    found = []
    for rows in updates:
        reference, _ = group.measure("reference", rows)
        rows = DPO.prepare(rows, [(1.0, 0.0)] * len(rows), {"reference_logprobs": reference}, SETTINGS, {}).rows
        found += group.steps([Step(DPO.objectives[0], rows, SETTINGS, RATE)])[0]
    return found


def sent(group, ray, name="policy"):
    return {key: array.copy() for key, array in ray.get(group.weights(name)).items()}


def gap(weights, others):
    assert weights.keys() == others.keys()
    return max(float(np.abs(weights[name] - others[name]).max()) for name in weights)


def base_of(model):
    from safetensors.numpy import load_file

    return load_file(model / "model.safetensors")


def test_every_stage_sends_the_merge_of_what_plain_torch_learns(group, model, oracle, cluster):
    load(group, model)
    assert gap(sent(group, cluster), base_of(model)) == 0
    found, (losses, norms, weights) = learn(group, UPDATES), oracle
    np.testing.assert_allclose([means["loss"] for means in found], losses, rtol=1e-4)
    np.testing.assert_allclose([means["grad_norm"] for means in found], norms, rtol=1e-3)
    merged = sent(group, cluster)
    moved = gap(merged, base_of(model))
    # Adam divides a gradient by its own size; where that is rounding alone, a step is too. Hence not to the last bit.
    assert gap(merged, weights) < 0.02 * moved and moved > RATE
    adapted = {name for name, array in merged.items() if not np.array_equal(array, base_of(model)[name])}
    assert adapted == {name for name in merged if "proj" in name}


def test_a_finished_policy_is_a_plain_folder_that_answers_as_the_adapted_one(group, model, cluster, tmp_path):
    from transformers import AutoModelForCausalLM

    load(group, model)
    learn(group, UPDATES)
    group.save("policy", tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert gap({n: p.detach().numpy() for n, p in loaded.named_parameters()}, sent(group, cluster)) == 0
    adapted, _ = group.measure("policy", PAIRS)
    group.load("policy", tmp_path)
    for one, other in zip(adapted, group.measure("policy", PAIRS)[0], strict=True):
        np.testing.assert_allclose(np.concatenate(one), np.concatenate(other), atol=1e-4)


def test_training_resumes_from_a_checkpoint_of_adapters_to_the_last_bit(group, model, cluster, tmp_path):
    from safetensors import safe_open

    load(group, model)
    learn(group, UPDATES[:2])
    sums = group.save_state(str(tmp_path))
    after, weights = learn(group, UPDATES[2:]), sent(group, cluster)
    with safe_open(tmp_path / "policy-00001.safetensors", "np") as kept:
        assert {key.split("/")[0] for key in kept.keys()} == {"weight", "exp_avg", "exp_avg_sq", "step"}
        assert all("lora_" in key for key in kept.keys())
    load(group, model)
    group.load_state(str(tmp_path), list(sums))
    assert learn(group, UPDATES[2:]) == after
    assert gap(sent(group, cluster), weights) == 0 < len(sums)


@pytest.mark.parametrize("stage", [0, 2, 3])
@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1)])
def test_another_number_of_ranks_resumes_from_a_checkpoint(stage, before, after, groups, model, cluster, tmp_path):
    for group in groups.values():
        set_stage(group, stage, cluster)
        load(group, model)
    learn(groups[before], UPDATES[:2])
    sums = groups[before].save_state(str(tmp_path))
    groups[after].load_state(str(tmp_path), list(sums))
    one, other = (learn(groups[ranks], UPDATES[2:]) for ranks in (before, after))
    np.testing.assert_allclose(one[0]["loss"], other[0]["loss"], rtol=1e-5)
    weights = [sent(group, cluster) for group in groups.values()]
    assert gap(*weights) < 0.02 * gap(weights[0], base_of(model))
    for group in groups.values():
        group.free("policy")
        group.free("reference")


def test_a_reward_model_learns_its_whole_head_and_is_saved_as_a_plain_folder(group, model, cluster, tmp_path):
    from rlhf_bench.models.loading import load_model

    start = load_model(str(model), "scalar", "float32", SEED).lm
    group.load("critic", model, SEED, learning_rate=RATE)
    group.steps([Step(REWARD_MODEL, PAIRS, None, RATE)] * 2)
    weights = sent(group, cluster, "critic")
    assert {n for n, p in start.named_parameters() if not np.array_equal(weights[n], p.detach().numpy())} == {
        name for name in weights if "proj" in name or name == "score.weight"
    }
    group.save("critic", tmp_path)
    loaded = load_model(str(tmp_path), "scalar", "float32", 0).lm
    assert gap({n: p.detach().numpy() for n, p in loaded.named_parameters()}, weights) == 0
    group.free("critic")


def test_a_step_costs_less_than_one_that_trains_all_weights(group, model):
    from rlhf_bench.models.flops import training_flops
    from rlhf_bench.models.packing import layout_of, split_by_tokens

    load(group, model)
    rows = [Row(r.id, r.prompt_ids, r.responses, {"reference_logprob": (np.zeros(1), np.zeros(1))}) for r in PAIRS]
    step = Step(DPO.objectives[0], rows, SETTINGS, 0.0)
    _, cost = group.steps([step])
    shape = group.shapes["policy"]
    assert shape.lora_rank == LORA.rank and group.shapes["reference"] == shape.merged
    parts = [[rows[i] for i in part] for rank in split_by_tokens(rows, len(group.ranks), 16) for part in rank]
    lora, whole = (
        sum(training_flops(s, layout_of(p), sum(r.response_tokens for r in p)) for p in parts)
        for s in (shape, shape.merged)
    )
    assert cost.flops == group.steps_cost([step]).flops == pytest.approx(lora) and lora < whole
