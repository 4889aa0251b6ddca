"""Rows as trees: the same numbers and gradients as each response on its own, however rows are grouped."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakIdKeyDictionary
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    Gemma2Config,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
)

from rlhf_bench.core.types import Row
from rlhf_bench.diagnostics.embeddings import next_token
from rlhf_bench.methods import METHODS
from rlhf_bench.methods.base import Objective, sum_by_response
from rlhf_bench.methods.supervised import REWARD_MODEL, SFT
from rlhf_bench.models import layout, lm_head, packing
from rlhf_bench.models.attention import PACKED_ROWS, register
from rlhf_bench.models.heads import ResponseValues, TokenLogprobs
from rlhf_bench.models.layout import Layout
from rlhf_bench.models.loading import load_model
from rlhf_bench.models.packing import micro_batch, prefix_of, split_by_tokens
from rlhf_bench.training.objective import loss_sums

register()

VOCABULARY, PAD = 31, 30
SIZES = {"vocab_size": VOCABULARY, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
SIZES |= {"intermediate_size": 24, "max_position_embeddings": 64, "num_labels": 1, "pad_token_id": PAD}
CONFIGS = {
    "llama": LlamaConfig(**SIZES, num_key_value_heads=1, initializer_range=0.3),
    "qwen2": Qwen2Config(**SIZES, num_key_value_heads=2, initializer_range=0.3),
    "qwen3": Qwen3Config(**SIZES, head_dim=8, num_key_value_heads=1, initializer_range=0.3),
    "gpt2": GPT2Config(**SIZES, initializer_range=0.3),
    "gemma2": Gemma2Config(  # caps its scores and its logits, and every other layer looks back three tokens only
        **SIZES,
        head_dim=8,
        num_key_value_heads=1,
        initializer_range=0.3,
        sliding_window=3,
        attn_logit_softcapping=2.0,
        final_logit_softcapping=3.0,
        query_pre_attn_scalar=8,
    ),
    "mistral": MistralConfig(**SIZES, num_key_value_heads=2, initializer_range=0.3, sliding_window=4),
}
BIASED = "llama with a bias in its head"
ROWS = [
    Row("a", (1, 2, 3), ((4, 5, 6, 2), (7, 2))),
    Row("b", (8,), ((9,), (10, 11, 12, 13, 14, 2))),
    Row("c", (1, 3, 5, 7, 9, 11, 13), ((4, 4, 4), (4, 5))),
    Row("d", (21, 22), ((2,), (23, 2))),
    Row("e", (6, 5, 4, 3), ((20, 19, 18, 2), (20, 19, 2))),
]


SHARED = (15, 16, 17)


@pytest.fixture(autouse=True, params=["as_it_is", "in_pieces", "shared_prefix", "shared_prefix_in_pieces"])
def size_of_pieces(request, monkeypatch):
    """Everything also with every row in attention calls of its own, and logits in chunks of a few tokens; and with prompts that
    begin alike."""
    if "in_pieces" in request.param:
        monkeypatch.setattr(layout, "CALL_IN_SCORES", -1)
        monkeypatch.setattr(lm_head, "LOGITS_IN_CHUNK", 4 * VOCABULARY)
    if "shared" in request.param:
        monkeypatch.setattr(packing, "FEWEST_SHARED", len(SHARED))
        rows = [replace(row, prompt_ids=(*SHARED, *row.prompt_ids)) for row in ROWS]
        monkeypatch.setitem(globals(), "ROWS", rows)
        assert micro_batch(rows).layout.prefix == len(SHARED)


def build(name, auto):
    torch.manual_seed(0)
    return auto.from_config(CONFIGS[name], attn_implementation=PACKED_ROWS).eval()


def causal(name):
    if name != BIASED:
        return TokenLogprobs(build(name, AutoModelForCausalLM))
    lm = build("llama", AutoModelForCausalLM)
    lm.lm_head.bias = nn.Parameter(torch.randn(VOCABULARY))
    return TokenLogprobs(lm)


def scalar(name):
    return ResponseValues(build(name, AutoModelForSequenceClassification))


def alone(lm, row, response):
    """One sequence, no padding, the library's own causal mask and positions: logits of the response's tokens [n, V]."""
    ids = torch.tensor([[*row.prompt_ids, *response]])
    return plain(lm, ids).logits[0, len(row.prompt_ids) - 1 : -1]


def plain(lm, ids):
    """By the library's own attention, written out."""
    lm.set_attn_implementation("eager")
    try:
        return lm(ids)
    finally:
        lm.set_attn_implementation(PACKED_ROWS)


def in_training(model, batch, temperature=1.0):
    """What a loss is handed: log-probabilities and entropies of all response tokens."""
    handed = []

    def loss_of(rows, logprobs, entropy):
        handed.append((logprobs.detach(), entropy))
        return logprobs.sum(), {}

    model(batch, temperature, loss_of)
    return (torch.cat(numbers) for numbers in zip(*handed, strict=True))


def every_response(rows):
    return [(row, response) for row in rows for response in row.responses]


@pytest.mark.parametrize("name", [*CONFIGS, BIASED])
def test_a_tree_row_gives_the_log_probabilities_of_each_response_alone(name):
    model = causal(name)
    with torch.no_grad():
        logprobs = model(micro_batch(ROWS))
        looked = next_token(model, model, micro_batch(ROWS))  # what the evaluator computes of the same
        logits = [alone(model.lm, *one) for one in every_response(ROWS)]
    targets = [torch.tensor(response) for _, response in every_response(ROWS)]
    categorical = [torch.distributions.Categorical(logits=x) for x in logits]
    torch.testing.assert_close(logprobs, torch.cat([c.log_prob(t) for c, t in zip(categorical, targets, strict=True)]))
    trained, entropy = in_training(model, micro_batch(ROWS))
    torch.testing.assert_close(trained, logprobs)
    torch.testing.assert_close(entropy, torch.cat([c.entropy() for c in categorical]))
    torch.testing.assert_close(looked.entropy, entropy)
    torch.testing.assert_close(looked.confidence, torch.cat([c.probs.amax(-1) for c in categorical]))


@pytest.mark.parametrize("name", CONFIGS)
def test_as_many_responses_as_ppo_draws_share_a_prompt(name):
    model, many = (
        causal(name),
        Row("many", ROWS[0].prompt_ids, ((4, 5), (6,), (7, 8, 9, 2), (4, 5, 2), (10, 2), (11, 12, 2))),
    )
    rows = [ROWS[1], many, ROWS[2]]
    tokens = [torch.tensor(response) for _, response in every_response(rows)]
    each = torch.cat(
        [
            alone(model.lm, *one).log_softmax(-1)[range(len(t)), t]
            for one, t in zip(every_response(rows), tokens, strict=True)
        ]
    )
    together = model(micro_batch(rows))
    torch.testing.assert_close(together, each)
    weights = torch.arange(1.0, len(each) + 1) / len(each)
    found, expected = (
        torch.autograd.grad((numbers * weights).sum(), list(model.parameters())) for numbers in (together, each)
    )
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


class _Live(TorchDispatchMode):
    """Most rows over the vocabulary that are there at once, in all tensors together that do not share memory; the head's
    weight, turned over, aside."""

    def __init__(self):
        super().__init__()
        self.rows, self.live = 0, WeakIdKeyDictionary()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        found = function(*args, **(kwargs or {}))
        for made in found if isinstance(found, (tuple, list)) else (found,):
            over_vocabulary = isinstance(made, torch.Tensor) and made.shape[-1:] == (VOCABULARY,)
            if over_vocabulary and made.shape != (SIZES["hidden_size"], VOCABULARY):
                self.live[made] = True
        memory = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() // t.element_size() for t in self.live}
        self.rows = max(self.rows, sum(memory.values()) // VOCABULARY)
        return found


@pytest.mark.parametrize("objective", [SFT, None], ids=["loss", "logprobs"])
def test_all_logits_are_never_there_at_once(monkeypatch, objective):
    """Forward and backward: no more rows at a time than a chunk's, of the 28 that the batch has."""
    monkeypatch.setattr(lm_head, "LOGITS_IN_CHUNK", 5 * VOCABULARY)
    model, batch = causal("llama"), micro_batch(ROWS)
    assert len(batch.targets) == 28
    with _Live() as live:
        if objective is None:
            model(batch).sum().backward()
        else:
            loss_sums(objective, model, batch, None, 1.0)[0].backward()
    assert 0 < live.rows <= 5
    with _Live() as live, torch.no_grad():  # and this would see them
        plain(model.lm, batch.input_ids)
    assert live.rows > 28


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_temperature_divides_the_logits(temperature):
    model = causal("llama")
    with torch.no_grad():
        logprobs = model(micro_batch(ROWS[:1]), temperature)
        _, entropy = in_training(model, micro_batch(ROWS[:1]), temperature)
        logits = torch.cat([alone(model.lm, *one) for one in every_response(ROWS[:1])])
    expected = nn.functional.cross_entropy(logits / temperature, torch.tensor([4, 5, 6, 2, 7, 2]), reduction="none")
    torch.testing.assert_close(logprobs, -expected)
    torch.testing.assert_close(entropy, torch.distributions.Categorical(logits=logits / temperature).entropy())


def test_a_probability_that_float32_cannot_hold_has_a_logarithm():
    model = causal("llama")
    with torch.no_grad():
        model.lm.lm_head.weight.mul_(2000)
        logprobs = model(micro_batch(ROWS))
        trained, entropy = in_training(model, micro_batch(ROWS))
        logits = torch.cat([alone(model.lm, *one) for one in every_response(ROWS)]).double()
    targets = torch.tensor([token for _, response in every_response(ROWS) for token in response])
    expected = torch.distributions.Categorical(logits=logits)
    assert (expected.log_prob(targets) < -110).sum() > 5
    for found in (logprobs, trained):
        torch.testing.assert_close(found.double(), expected.log_prob(targets), rtol=1e-5, atol=1e-3)
    # Logits of thousands: a float32 holds them to a thousandth or so, and entropy is a difference of such.
    torch.testing.assert_close(entropy.double(), expected.entropy(), rtol=1e-3, atol=4e-3)


@pytest.mark.parametrize("name", CONFIGS)
def test_values_are_those_of_the_states_before_each_token_and_scores_the_classifiers_own(name):
    model = scalar(name)
    with torch.no_grad():
        values, scores = model(micro_batch(ROWS))
        before, own = [], []
        for row, response in every_response(ROWS):
            ids = torch.tensor([[*row.prompt_ids, *response]])
            own.append(plain(model.lm, ids).logits[0, 0])
            # V of the state a token is chosen in: the classifier's score of what stands before it.
            before += [plain(model.lm, ids[:, : len(row.prompt_ids) + t]).logits[0, 0] for t in range(len(response))]
    torch.testing.assert_close(scores, torch.stack(own))
    torch.testing.assert_close(values, torch.stack(before))


@pytest.mark.parametrize("name", CONFIGS)
def test_other_rows_and_order_change_nothing(name):
    model = causal(name)
    with torch.no_grad():
        together = model(micro_batch(ROWS)).split([r.response_tokens for r in ROWS])
        for order in ([4, 2, 0, 1, 3], [0, 3], [1]):
            rows = [ROWS[i] for i in order]
            parts = model(micro_batch(rows)).split([r.response_tokens for r in rows])
            for i, part in zip(order, parts, strict=True):
                torch.testing.assert_close(part, together[i])


@pytest.mark.parametrize("auto", [AutoModelForCausalLM, AutoModelForSequenceClassification])
def test_a_model_in_training_mode_answers_as_in_evaluation(auto, tmp_path):
    """PPO's ratio is 1 before the first step, and DPO's margin 0, only where training drops nothing out."""
    build("gpt2", auto).save_pretrained(tmp_path)
    model = load_model(str(tmp_path), "causal" if auto is AutoModelForCausalLM else "scalar", "float32", seed=0)
    batch = micro_batch(ROWS)
    with torch.no_grad():
        torch.testing.assert_close(model.train()(batch), model.eval()(batch))


@pytest.mark.parametrize("row", [Row("x", (1,), ((2,), ())), Row("x", (), ((2,),)), Row("x", (1,), ())])
def test_empty_prompts_and_responses_are_refused(row):
    with pytest.raises(ValueError, match="row x: .*at least one token"):
        micro_batch([ROWS[0], row])


def test_the_layout_by_hand():
    batch = micro_batch([Row("r", (5, 6), ((7, 8), (9,))), Row("s", (5,), ((7,),))])
    assert batch.input_ids.tolist() == [[5, 6, 7, 8, 9, 5, 7]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 2, 0, 1]]
    assert batch.predictor.tolist() == [1, 2, 1, 5] and batch.last.tolist() == [3, 4, 6]
    assert batch.targets.tolist() == [7, 8, 9, 7] and batch.response_index.tolist() == [0, 0, 1, 2]
    assert batch.layout == Layout.of([(2, [2, 1]), (1, [1])]) and batch.layout.tokens == 7
    assert sum_by_response(torch.tensor([1.0, 2.0, 4.0, 8.0]), batch.response_index, 3).tolist() == [3, 4, 8]


def test_the_layout_behind_a_prefix_by_hand(monkeypatch):
    monkeypatch.setattr(packing, "FEWEST_SHARED", 2)
    batch = micro_batch([Row("r", (5, 6, 3, 4), ((7, 8), (9,))), Row("s", (5, 6, 3), ((7,),))])
    assert batch.input_ids.tolist() == [[5, 6, 3, 4, 7, 8, 9, 3, 7]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 4, 5, 4, 2, 3]]
    assert batch.predictor.tolist() == [3, 4, 3, 7] and batch.last.tolist() == [5, 6, 8]
    assert batch.layout == Layout.of([(4, [2, 1]), (3, [1])], prefix=2) and batch.layout.tokens == 9


@pytest.mark.parametrize(
    ("prompts", "shared"),
    [
        ([(1, 2, 3), (1, 2, 4, 5)], 2),
        ([(1, 2, 3), (1, 2, 3)], 2),  # a token is left, to predict the responses
        ([(1, 2), (1, 2, 3)], 0),
        ([(1, 2, 3)], 0),
        ([(1, 2, 9), (1, 3, 9), (1, 2, 9)], 0),
    ],
)
def test_what_prompts_begin_with_is_shared_where_it_pays(prompts, shared, monkeypatch):
    monkeypatch.setattr(packing, "FEWEST_SHARED", 2)
    rows = [Row(str(i), ids, ((7,),)) for i, ids in enumerate(prompts)]
    assert prefix_of(rows) == micro_batch(rows).layout.prefix == shared
    assert micro_batch(rows, apart=True).layout.prefix == 0


def test_extras_follow_the_order_of_responses():
    rows = [
        Row("r", (1,), ((2,), (3, 4)), {"a": (np.array([1.0]), np.array([2.0, 3.0]))}),
        Row("s", (1,), ((5,),), {"a": (np.array([4.0]),)}),
    ]
    assert micro_batch(rows).extras["a"].tolist() == [1, 2, 3, 4]


@st.composite
def rows_of_any_length(draw):
    length = st.integers(1, 40)
    responses = st.lists(length, min_size=1, max_size=4)
    lengths = draw(st.lists(st.tuples(length, responses), min_size=1, max_size=30))
    return [Row(str(i), (1,) * p, tuple((2,) * n for n in ns)) for i, (p, ns) in enumerate(lengths)]


@settings(deadline=None)
@given(rows_of_any_length(), st.integers(1, 5), st.integers(16, 400))
def test_a_split_is_a_balanced_partition_within_the_budget(rows, ranks, budget):
    plan = split_by_tokens(rows, ranks, budget)
    assert len(plan) == ranks
    assert sorted(i for rank in plan for part in rank for i in part) == list(range(len(rows)))
    for part in (part for rank in plan for part in rank):
        assert part and (len(part) == 1 or micro_batch([rows[i] for i in part]).layout.tokens <= budget)
    loads = [sum(rows[i].tokens for part in rank for i in part) for rank in plan]
    assert max(loads) - min(loads) <= max(row.tokens for row in rows)
    assert plan == split_by_tokens(rows, ranks, budget)


OBJECTIVES = [
    pytest.param(objective, settings, id=f"{name}-{objective.model}")
    for name, objective, settings in [
        ("sft", SFT, None),
        ("reward_model", REWARD_MODEL, None),
        *((m.name, objective, m.settings()) for m in METHODS.values() for objective in m.objectives),
    ]
]


def with_extras(rows, seed=0):
    """Rows with whatever any objective looks at: numbers per response and per token."""
    rng = np.random.default_rng(seed)
    per_token = ("old_logprobs", "old_values", "advantages", "returns", "weight", "reference_gap")
    return [
        Row(
            r.id,
            r.prompt_ids,
            r.responses,
            {
                "reference_logprob": tuple(rng.normal(-8, 2, 1) for _ in r.responses),
                **{name: tuple(rng.normal(-1, 1, len(a)) for a in r.responses) for name in per_token},
            },
        )
        for r in rows
    ]


def gradient(objective: Objective, settings, model, rows, plan) -> torch.Tensor:
    """What the ranks of a plan add up to: each takes the sum over its units, divided by the units of all."""
    units = len(rows) if objective.unit == "row" else sum(r.response_tokens for r in rows)
    model.zero_grad()
    for part in (part for rank in plan for part in rank):
        loss, _ = loss_sums(objective, model, micro_batch([rows[i] for i in part]), settings)
        (loss / units).backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize(("objective", "settings"), OBJECTIVES)
def test_gradients_do_not_hang_on_micro_batches_ranks_or_order(objective, settings):
    model = (causal if objective.model == "policy" else scalar)("llama")
    rows = with_extras(ROWS)
    whole = gradient(objective, settings, model, rows, [[[0, 1, 2, 3, 4]]])
    assert whole.norm() > 1e-4
    # What order of adding leaves of float32, in units of the gradient: losses differ in size by five thousand.
    rounding = 1e-5 * float(whole.abs().max())
    plans = [split_by_tokens(rows, *sizes) for sizes in ((1, 16), (1, 30), (2, 30), (3, 1000), (7, 16))]
    for plan in (*plans, [[[3, 1, 0, 4, 2]]]):
        torch.testing.assert_close(gradient(objective, settings, model, rows, plan), whole, rtol=0, atol=rounding)


@pytest.mark.parametrize("name", [*CONFIGS, BIASED])
def test_a_tree_rows_gradient_is_that_of_separate_sequences(name):
    """DPO's gradient through loss_sums, against plain forward passes and the formula written out."""
    model, rows, arm = causal(name), with_extras(ROWS), METHODS["dpo"].settings(beta=0.3)
    tree = gradient(METHODS["dpo"].objectives[0], arm, model, rows, [[[0, 1, 2, 3, 4]]])
    model.zero_grad()
    for row in rows:
        ratios = []
        for response, reference in zip(row.responses, row.extras["reference_logprob"], strict=True):
            logprobs = alone(model.lm, row, response).log_softmax(-1)
            ratios.append(logprobs[range(len(response)), list(response)].sum() - float(reference[0]))
        ((1 + torch.exp(-0.3 * (ratios[0] - ratios[1]))).log() / len(rows)).backward()
    separate = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    torch.testing.assert_close(tree, separate, rtol=1e-4, atol=1e-6)
