"""DeepSpeed with 1 or 2 ranks and every ZeRO stage, against a plain PyTorch loop over unpadded sequences."""

import copy
from dataclasses import dataclass, replace

import numpy as np
import pytest

from rlhf_bench.compute.engine_time import EngineTime
from rlhf_bench.core.types import Row
from rlhf_bench.methods import METHODS
from rlhf_bench.methods.base import Adam
from rlhf_bench.methods.dpo import DPOSettings
from rlhf_bench.training.roles import Step

EOS, BETA, RATE, MAX_NORM = 2, 0.5, 1e-3, 0.5
DPO, ADAPTIVE = METHODS["dpo"], METHODS["adaptive_flex_dpo"]
SETTINGS = DPOSettings(beta=BETA)
PAIRS = [
    Row("a", (1, 5, 6), ((7, 8, EOS), (9, EOS))),
    Row("b", (1, 4), ((11, EOS), (12, 13, 14, 15, 3, EOS))),
    Row("c", (1, 5, 9, 6, 10), ((4, 4, EOS), (8, 8, EOS))),
    Row("d", (1, 15, 14), ((13, 12, 11, 10, 9, EOS), (5, EOS))),
    Row("e", (1, 6), ((EOS,), (7, EOS))),
]
# Few tokens in a micro-batch: ranks have several of them, and not the same number. In the second update one of two ranks has
# none.
BETA_CHOSEN, BETA_REJECTED, TEMPERATURE = 0.5, 0.2, 0.8
WEIGHTED = ADAPTIVE.settings(beta_chosen=BETA_CHOSEN).resolve_at(0.0, {"beta_rejected": BETA_REJECTED})
TOKENS_PER_MICRO_BATCH = 16
UPDATES = [PAIRS, PAIRS[3:4], PAIRS[:3]]
RATES = [RATE, 2 / 3 * RATE, RATE / 3]  # as a schedule gives them
ADAM = Adam((0.8, 0.97), 1e-4)


@dataclass(frozen=True)
class Trained:
    losses: list[float]
    norms: list[float]
    weights: dict[str, np.ndarray]
    logprobs: list[tuple[np.ndarray, ...]]


def gap(weights, others) -> float:
    assert weights.keys() == others.keys()
    return max(float(np.abs(weights[name] - others[name]).max()) for name in weights)


@pytest.fixture(scope="module")
def model(write_llama, tmp_path_factory):
    return write_llama(tmp_path_factory.mktemp("policy"))


@pytest.fixture(scope="module")
def oracle(model) -> Trained:
    """Every response on its own behind its prompt; autograd, gradient clipping and AdamW as PyTorch has them."""
    import torch
    from transformers import AutoModelForCausalLM

    policy = AutoModelForCausalLM.from_pretrained(model)
    reference = copy.deepcopy(policy).requires_grad_(False)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=RATE, betas=(0.8, 0.97), eps=1e-4, weight_decay=0.0)

    def logprobs(lm, prompt, response):
        ids = torch.tensor([[*prompt, *response]])
        logp = lm(input_ids=ids).logits[0, :-1].log_softmax(-1)
        return logp.gather(1, ids[0, 1:, None])[len(prompt) - 1 :, 0]

    def logratio(row, response):
        return (logprobs(policy, row.prompt_ids, response) - logprobs(reference, row.prompt_ids, response)).sum()

    losses, norms = [], []
    for rows, rate in zip(UPDATES, RATES, strict=True):
        optimizer.param_groups[0]["lr"] = rate
        margins = torch.stack([logratio(r, r.responses[0]) - logratio(r, r.responses[1]) for r in rows])
        loss = torch.log1p(torch.exp(-BETA * margins)).mean()
        optimizer.zero_grad()
        loss.backward()
        losses.append(loss.item())
        norms.append(torch.nn.utils.clip_grad_norm_(policy.parameters(), MAX_NORM).item())
        optimizer.step()
    assert min(norms) > MAX_NORM  # or clipping would not be tested
    with torch.no_grad():
        measured = [tuple(logprobs(policy, r.prompt_ids, a).numpy() for a in r.responses) for r in PAIRS]
    return Trained(losses, norms, {n: p.detach().numpy() for n, p in policy.named_parameters()}, measured)


@pytest.fixture(scope="module")
def groups(start):
    """A group of one rank and one of two, started once."""
    from actors.learner.group import LearnerGroup
    from actors.learner.rank import LearnerRank

    found = {
        count: LearnerGroup(
            [start(LearnerRank, i, count, 1, 0, 0, "float32") for i in range(count)],
            1,
            0,
            TOKENS_PER_MICRO_BATCH,
            EngineTime(),
        )
        for count in (1, 2)
    }
    for group in found.values():
        group.join()
    return found


@pytest.fixture(
    scope="module", params=[(s, r) for r in (1, 2) for s in (0, 1, 2, 3)], ids=lambda p: f"zero{p[0]}-ranks{p[1]}"
)
def group(request, cluster, groups):
    """The group at one ZeRO stage, set in its living processes: a stage matters only to what is loaded after it."""
    stage, ranks = request.param
    group = groups[ranks]
    set_stage(group, stage, cluster)
    yield group
    group.free("policy")
    group.free("reference")


def set_stage(group, stage, ray):
    def change(rank, stage):
        rank.setup = replace(rank.setup, zero_stage=stage)

    ray.get([rank.__ray_call__.remote(change, stage) for rank in group.ranks])


def train(group, model, ray) -> Trained:
    group.load("policy", model, learning_rate=RATE, max_grad_norm=MAX_NORM, adam=ADAM)
    group.load("reference", model)
    losses, norms = [], []
    for rows, rate in zip(UPDATES, RATES, strict=True):
        reference, _ = group.measure("reference", rows)
        rows = DPO.prepare(rows, [(1.0, 0.0)] * len(rows), {"reference_logprobs": reference}, SETTINGS, {}).rows
        (means,), _ = group.steps([Step(DPO.objectives[0], rows, SETTINGS, rate)])
        losses.append(means["loss"])
        norms.append(means["grad_norm"])
    weights = {name.removeprefix("lm."): array.copy() for name, array in ray.get(group.weights("policy")).items()}
    return Trained(losses, norms, weights, group.measure("policy", PAIRS)[0])


@pytest.fixture(scope="module")
def trained(group, model, cluster) -> Trained:
    return train(group, model, cluster)


def test_every_stage_and_number_of_ranks_gives_the_same_update(trained, oracle):
    np.testing.assert_allclose(trained.losses, oracle.losses, rtol=1e-5)
    np.testing.assert_allclose(trained.norms, oracle.norms, rtol=1e-4)
    # AdamW divides every gradient by its own size. Where a gradient is little more than rounding, its sign decides about a
    # step of the full learning rate; so weights are compared to within a share of a step, and not to the last bit.
    assert gap(trained.weights, oracle.weights) < 0.02 * RATE


def test_no_other_process_can_take_the_port_at_which_ranks_meet(start, cluster):
    import socket

    from actors.learner.rank import LearnerRank

    rank = start(LearnerRank, 0, 1, 1, 0, 0, "float32")
    node, port = cluster.get(rank.open_store.remote())
    with pytest.raises(OSError, match="in use"):
        socket.create_server(("", port))
    socket.create_server(("127.0.0.2", port)).close()  # it listens at the node's own address, and at no other
    cluster.get(rank.join.remote(node, port))


def test_measuring_gives_the_same_numbers(trained, oracle):
    for numbers, expected in zip(trained.logprobs, oracle.logprobs, strict=True):
        for one, other in zip(numbers, expected, strict=True):
            np.testing.assert_allclose(one, other, atol=1e-4)


def test_a_finished_policy_is_a_hugging_face_folder(group, trained, tmp_path):
    from transformers import AutoModelForCausalLM

    group.save("policy", tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert gap({n: p.detach().numpy() for n, p in loaded.named_parameters()}, trained.weights) == 0
    assert loaded.get_output_embeddings().weight is loaded.get_input_embeddings().weight


def test_loading_again_forgets_weights_and_optimizer(group, trained, model, cluster):
    assert gap(train(group, model, cluster).weights, trained.weights) < 1e-6


def learn(group, updates) -> list[float]:
    """Losses of DPO steps against the start, whose log-probabilities are taken as they are in the policy at hand."""
    zero = (np.zeros(1), np.zeros(1))
    work = [
        Step(DPO.objectives[0], [Row(r.id, r.prompt_ids, r.responses, {"reference_logprob": zero}) for r in rows], SETTINGS, RATE)
        for rows in updates
    ]  # fmt: skip
    return [means["loss"] for means in group.steps(work)[0]]


def test_training_resumes_from_a_checkpoint_to_the_last_bit(group, trained, model, cluster, tmp_path):
    group.load("policy", model, learning_rate=RATE, max_grad_norm=MAX_NORM)
    learn(group, UPDATES[:2])
    sums = group.save_state(str(tmp_path))
    losses = learn(group, UPDATES[2:])
    weights = {name: array.copy() for name, array in cluster.get(group.weights("policy")).items()}
    group.load("policy", model, learning_rate=RATE, max_grad_norm=MAX_NORM)
    group.load_state(str(tmp_path), list(sums))
    assert learn(group, UPDATES[2:]) == losses
    assert gap(cluster.get(group.weights("policy")), weights) == 0
    assert gap(weights, cluster.get(group.weights("policy"))) == 0 < len(sums)


def test_a_step_whose_gradient_is_not_finite_leaves_no_trace(group, trained, model, cluster):
    def weights():
        return {name: array.copy() for name, array in cluster.get(group.weights("policy")).items()}

    zero, spoiled = (np.zeros(1), np.zeros(1)), (np.full(1, np.nan), np.zeros(1))
    rows = [Row(r.id, r.prompt_ids, r.responses, {"reference_logprob": zero}) for r in PAIRS]
    bad = [*rows[:2], Row("x", (1, 4), PAIRS[2].responses, {"reference_logprob": spoiled}), *rows[3:]]
    good, wrong = (Step(DPO.objectives[0], some, SETTINGS, RATE) for some in (rows, bad))
    group.load("policy", model, learning_rate=RATE, max_grad_norm=MAX_NORM)
    alone = [group.steps([good])[0][0] for _ in range(2)]
    expected = weights()
    group.load("policy", model, learning_rate=RATE, max_grad_norm=MAX_NORM)
    found = [group.steps([step])[0][0] for step in (good, wrong, wrong, good)]
    assert [means["skipped"] for means in found] == [0, 1, 1, 0]
    assert not np.isfinite(found[1]["loss"]) and [found[0], found[3]] == alone
    assert gap(weights(), expected) == 0


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1)])
def test_another_number_of_ranks_resumes_from_a_checkpoint(stage, before, after, groups, model, cluster, tmp_path):
    for group in groups.values():
        set_stage(group, stage, cluster)
        group.load("policy", model, learning_rate=RATE, max_grad_norm=MAX_NORM)
    learn(groups[before], UPDATES[:2])
    sums = groups[before].save_state(str(tmp_path))
    groups[after].load_state(str(tmp_path), list(sums))
    np.testing.assert_allclose(learn(groups[after], UPDATES[2:]), learn(groups[before], UPDATES[2:]), rtol=1e-5)
    weights = [{n: a.copy() for n, a in cluster.get(g.weights("policy")).items()} for g in groups.values()]
    assert gap(*weights) < 0.02 * RATE
    for group in groups.values():
        group.free("policy")


def test_the_cost_of_steps_is_known_before_them(group, trained):
    rows = [Row(r.id, r.prompt_ids, r.responses, {"reference_logprob": (np.zeros(1), np.zeros(1))}) for r in PAIRS]
    work = [Step(DPO.objectives[0], rows, SETTINGS, 0.0), Step(DPO.objectives[0], rows[:3], SETTINGS, 0.0)]
    before = group.steps_cost(work)
    _, cost = group.steps(work)
    assert (cost.flops, cost.trained_tokens) == (before.flops, before.trained_tokens)
    assert cost.device_seconds > 0 and cost.trained_tokens == sum(r.response_tokens for r in [*PAIRS, *PAIRS[:3]])


def test_steps_in_one_call_are_steps_one_by_one(group, trained, model, cluster):
    rows = [Row(r.id, r.prompt_ids, r.responses, {"reference_logprob": (np.zeros(1), np.zeros(1))}) for r in PAIRS]
    work = [Step(DPO.objectives[0], rows[i : i + 3], SETTINGS, RATE / (i + 1)) for i in range(3)]
    group.load("policy", model, learning_rate=RATE, max_grad_norm=MAX_NORM)
    single = [group.steps([step])[0][0] for step in work]
    alone = {name: array.copy() for name, array in cluster.get(group.weights("policy")).items()}
    group.load("policy", model, learning_rate=RATE, max_grad_norm=MAX_NORM)
    together, _ = group.steps(work)
    assert together == single
    assert gap(cluster.get(group.weights("policy")), alone) == 0


def plain_sides(model, rows):
    """Mean over pairs of w ∇θ log π(a±|x) with w = σ(−m) written out; one unpadded sequence and backward pass a side."""
    import torch
    from transformers import AutoModelForCausalLM

    lm, totals = AutoModelForCausalLM.from_pretrained(model), []
    for row in rows:
        found = []
        for response in row.responses:
            ids = torch.tensor([[*row.prompt_ids, *response]])
            logp = (lm(input_ids=ids).logits[0, len(row.prompt_ids) - 1 : -1] / TEMPERATURE).log_softmax(-1)
            logprob = logp[range(len(response)), list(response)].sum()
            gradient = torch.cat([g.flatten() for g in torch.autograd.grad(logprob, list(lm.parameters()))]).double()
            found.append((logprob.item(), gradient))
        up, down = (lp - float(r[0]) for (lp, _), r in zip(found, row.extras["reference_logprob"], strict=True))
        weight = 1 / (1 + np.exp(BETA_CHOSEN * up - BETA_REJECTED * down))
        totals.append([weight * gradient for _, gradient in found])
    return [sum(side) / len(rows) for side in zip(*totals, strict=True)]


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("stage", [0, 2])
def test_both_sides_gradients_are_those_of_plain_torch_and_leave_training_as_it_was(
    stage, ranks, groups, model, oracle, cluster
):
    import torch

    from rlhf_bench.diagnostics.gradients import side_gradients
    from rlhf_bench.models.loading import load_model
    from rlhf_bench.models.packing import micro_batch

    group, rng = groups[ranks], np.random.default_rng(0)
    set_stage(group, stage, cluster)
    group.load("policy", model, learning_rate=RATE, max_grad_norm=MAX_NORM, adam=ADAM)
    group.load("reference", model)
    for count in (5, 1):  # with one pair, the second of two ranks has none
        rows = [
            Row(r.id, r.prompt_ids, r.responses, {"reference_logprob": tuple(rng.normal(-4 * len(a), 2, 1) for a in r.responses)})
            for r in PAIRS[:count]
        ]  # fmt: skip
        before = group.side_gradients_cost(rows)
        sides, cost = group.side_gradients(ADAPTIVE, rows, WEIGHTED, TEMPERATURE)
        chosen, rejected = plain_sides(model, rows)
        np.testing.assert_allclose(
            [sides.chosen_norm, sides.rejected_norm, sides.dot],
            [float(chosen.norm()), float(rejected.norm()), float(chosen @ rejected)], rtol=1e-4,
        )  # fmt: skip
        assert (cost.flops, cost.scored_tokens) == (before.flops, sum(r.response_tokens for r in rows))
        assert cost.flops > 0 and cost.device_seconds > 0

    # Where the policy is the reference, every weight is one half; the diagnostics weigh all pairs by one.
    at_reference = [
        Row(r.id, r.prompt_ids, r.responses, {"reference_logprob": tuple(np.array([a.sum()]) for a in logprobs)})
        for r, logprobs in zip(PAIRS, group.measure("policy", PAIRS)[0], strict=True)
    ]
    sides, _ = group.side_gradients(ADAPTIVE, at_reference, WEIGHTED)
    with torch.enable_grad():
        expected = side_gradients(load_model(str(model), "causal", "float32", 0).eval(), micro_batch(PAIRS))
    np.testing.assert_allclose(
        [2 * sides.chosen_norm, 2 * sides.rejected_norm, sides.cosine],
        [expected.chosen_norm, expected.rejected_norm, expected.cosine], rtol=1e-4,
    )  # fmt: skip

    # The same updates as above, with a measurement before each: the hooks of a sharded optimizer must not see it.
    for rows, rate in zip(UPDATES, RATES, strict=True):
        reference, _ = group.measure("reference", rows)
        rows = DPO.prepare(rows, [(1.0, 0.0)] * len(rows), {"reference_logprobs": reference}, SETTINGS, {}).rows
        group.side_gradients(ADAPTIVE, rows, WEIGHTED)
        group.steps([Step(DPO.objectives[0], rows, SETTINGS, rate)])
    weights = {n.removeprefix("lm."): a.copy() for n, a in cluster.get(group.weights("policy")).items()}
    assert gap(weights, oracle.weights) < 0.02 * RATE
    group.free("policy")
    group.free("reference")
