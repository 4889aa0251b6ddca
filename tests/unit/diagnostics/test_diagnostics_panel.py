"""The panel on a tiny model: every number against loops over plain sequences, and against the page that defines it."""

import itertools
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, LlamaConfig

from rlhf_bench.core.types import Pair, Prompt, Row
from rlhf_bench.diagnostics.embeddings import ches, next_token
from rlhf_bench.diagnostics.gradients import pair_logprobs_of, partials
from rlhf_bench.diagnostics.likelihood import numbers_of_evaluated
from rlhf_bench.diagnostics.panel import Panel
from rlhf_bench.diagnostics.probes import PROBE_SETS, make_probes
from rlhf_bench.diagnostics.reward_models import ScoredSamples
from rlhf_bench.diagnostics.scoring import Scorer
from rlhf_bench.methods import METHODS
from rlhf_bench.models import lm_head
from rlhf_bench.models.attention import PACKED_ROWS, register
from rlhf_bench.models.flops import ModelShape
from rlhf_bench.models.heads import TokenLogprobs
from rlhf_bench.models.packing import micro_batch

register()

EOS, VOCABULARY = 2, 31
PAGE = Path(__file__).parents[3] / "docs" / "diagnostics.md"
BY_THE_EVALUATOR = {"kl", "kl_error", "entropy", "argmax_confidence", "diagnostics/seconds", "diagnostics/flops"}
"""Made of samples that only an engine can draw, or by the clock: tests/engines/test_evaluator.py sees to them."""
NO_SAMPLES = ScoredSamples.of([], np.array([]), np.array([]))
BY_REWARD_MODELS = {
    f"{key}/{name}" for key in ("reward_model", "gold_reward_model") for name in NO_SAMPLES.numbers(1.0)
}


def documented() -> set[str]:
    """Names in the first column of the page's tables."""
    rows = re.findall(r"^\| (`[^|]*`) \|", PAGE.read_text("utf-8"), re.MULTILINE)
    return {name for row in rows for name in re.findall(r"`([^`]+)`", row)}


def build(seed):
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=64,
        pad_token_id=0,
        tie_word_embeddings=True,
        initializer_range=0.3,
    )
    torch.manual_seed(seed)
    return TokenLogprobs(AutoModelForCausalLM.from_config(config, attn_implementation=PACKED_ROWS).eval())


@pytest.fixture(scope="module")
def models():
    """Reference and policy: unlike each other, so that no log-ratio is 0."""
    return build(0), build(1)


def pair(name, prompt, chosen, rejected):
    return Pair(name, Prompt(name, "", "", token_ids=prompt), (*chosen, EOS), (*rejected, EOS))


MAIN = [
    pair("a", (5, 6), (10, 11, 12), (10, 12)),
    pair("b", (5, 7, 8, 9), (13, 14), (14, 13, 15, 16, 17)),
    pair("c", (5,), (15, 3), (16,)),
    pair("d", (9, 4, 4), (19, 20, 21, 22), (19, 20, 22, 21)),
]
OTHER = [pair("e", (7, 7), (3, 4), (4, 3)), pair("f", (8,), (11,), (12, 12))]
PAIRS = {"in_distribution": MAIN, "out_of_distribution": OTHER, "unseen": OTHER[:1]}
PROBES = make_probes(MAIN, [[(6, EOS)], [(6, 6, EOS)], [(6,)], [(7, EOS)]], [], {EOS}, VOCABULARY, 64, 0)


OWN = {
    "on_policy": [
        pair("g", (5, 6), (10, 11, 12), (6, 6)),
        pair("h", (5,), (16,), (4, 4, 4)),
        pair("i", (3,), (8,), (9,)),
    ],
    "chosen_on_policy": [pair("j", (5, 6), (10, 11, 12), (10, 12)), pair("k", (5,), (16,), (16, 16))],
}


def panel(models, budget=64, pairs=PAIRS, probes=PROBES, gradient_pairs=2, own=None):
    scorer = Scorer(ModelShape.of(models[0].lm), budget, "cpu")
    return Panel(models[0], pairs, "in_distribution", probes, gradient_pairs, scorer, own)


def plain_logprob(model, prompt, response):
    logits = model.lm(torch.tensor([[*prompt, *response]])).logits[0, len(prompt) - 1 : -1]
    return logits.log_softmax(-1)[range(len(response)), list(response)].sum()


@torch.no_grad()
def plain_sides(model, pairs):
    """[P, 2]"""
    sides = [[plain_logprob(model, p.prompt.token_ids, a) for a in (p.chosen_ids, p.rejected_ids)] for p in pairs]
    return np.array([[float(x) for x in row] for row in sides])


@torch.no_grad()
def plain_ches(model, prompt, chosen, rejected):
    """By loops over positions: from the last prompt token up to the one before the last response token."""
    sums = []
    for response in (chosen, rejected):
        ids = [*prompt, *response]
        states = model.lm(torch.tensor([ids]), output_hidden_states=True).hidden_states[-1][0].double()
        total = torch.zeros(states.shape[1], dtype=torch.float64)
        for position in range(len(prompt) - 1, len(ids) - 1):
            total += states[position]
        sums.append(total)
    up, down = sums
    whole = sum(float(u * d) for u, d in zip(up, down, strict=True)) - sum(float(u) ** 2 for u in up)
    up, down = up / len(chosen), down / len(rejected)
    return whole, float(up @ down) - float(up.norm()) ** 2


def embedded(model, rows):
    """Log-probabilities [P, 2], and CHES of each pair."""
    logprobs, sums = Scorer(ModelShape.of(model.lm), 24, "cpu").embed(model, rows)
    return logprobs.reshape(-1, 2), ches(*torch.from_numpy(sums).reshape(len(rows), 2, -1).unbind(1))


def test_ches_by_loops_over_positions_comes_with_the_log_probabilities(models):
    rows = [Row(p.id, p.prompt.token_ids, (p.chosen_ids, p.rejected_ids)) for p in MAIN]
    logprobs, whole = embedded(models[0], rows)
    expected = [plain_ches(models[0], p.prompt.token_ids, p.chosen_ids, p.rejected_ids) for p in MAIN]
    assert whole.tolist() == pytest.approx([e[0] for e in expected], rel=1e-4)
    np.testing.assert_allclose(logprobs, plain_sides(models[0], MAIN), rtol=1e-4)


def test_ches_of_a_pair_of_equal_sides_is_zero_and_of_opposite_order_differs(models):
    rows = [Row("same", (5, 6), ((7, 8, 2), (7, 8, 2))), Row("not", (5, 6), ((7, 8, 2), (9, 3, 2)))]
    _, (same, other) = embedded(models[0], rows)
    assert float(same) == pytest.approx(0, abs=1e-3) and abs(float(other)) > 0.1


@pytest.mark.parametrize(("temperature", "reference_temperature"), [(1.0, 1.0), (0.5, 1.0), (0.7, 0.7)])
def test_the_next_tokens_distributions_are_the_models_own(models, temperature, reference_temperature):
    """KL, entropy and largest probability by plain sequences, one after the other, and torch's own distributions."""
    rows = [Row("r", (5, 6), ((7, 8, 2), (9, 2))), Row("s", (4,), ((3,),))]
    batch = micro_batch(rows)
    with torch.no_grad():
        found = next_token(*models[::-1], batch, temperature, reference_temperature)
        largest, entropy, kl = [], [], []
        for row in rows:
            for response in row.responses:
                whole = torch.tensor([[*row.prompt_ids, *response]])
                places = slice(len(row.prompt_ids) - 1, len(row.prompt_ids) + len(response) - 1)
                q, p = (
                    torch.distributions.Categorical(logits=model.lm(whole).logits[0, places] / t)
                    for model, t in zip(models, (reference_temperature, temperature), strict=True)
                )
                largest += p.probs.amax(-1).tolist()
                entropy += p.entropy().tolist()
                kl += torch.distributions.kl_divergence(p, q).tolist()
    assert found.kl.tolist() == pytest.approx(kl, rel=1e-4)
    assert found.entropy.tolist() == pytest.approx(entropy, rel=1e-5)
    assert found.confidence.tolist() == pytest.approx(largest, rel=1e-5)


def test_scores_are_sums_and_means_over_tokens_whatever_the_micro_batches(models):
    rows = [Row(p.id, p.prompt.token_ids, (p.chosen_ids, p.rejected_ids)) for p in MAIN]
    for budget in (12, 24, 1000):
        scorer = Scorer(ModelShape.of(models[0].lm), budget, "cpu")
        found = scorer.score(models[0], rows)
        np.testing.assert_allclose(found.reshape(-1, 2), plain_sides(models[0], MAIN), rtol=1e-4)
        assert scorer.scored_tokens == sum(r.response_tokens for r in rows)
        with torch.no_grad():
            everything = next_token(*models, micro_batch(rows))
        compared = scorer.compare(*models, rows)
        assert compared.entropy == pytest.approx(float(everything.entropy.mean()), rel=1e-5)
        assert compared.confidence == pytest.approx(float(everything.confidence.mean()), rel=1e-5)
        assert compared.kl.sum() == pytest.approx(float(everything.kl.sum()), rel=1e-5)
        assert scorer.scored_tokens == 3 * sum(r.response_tokens for r in rows)  # both models


def test_a_score_at_a_temperature_is_that_of_the_flatter_or_sharper_distribution(models):
    row = Row("r", (5, 6), ((7, 8, 2),))
    with torch.no_grad():
        logits = models[0].lm(torch.tensor([[5, 6, 7, 8, 2]])).logits[0, 1:4]
    scorer = Scorer(ModelShape.of(models[0].lm), 64, "cpu")
    expected = (logits / 0.5).log_softmax(-1)[range(3), [7, 8, 2]].sum()
    assert scorer.score(models[0], [row], 0.5)[0] == pytest.approx(float(expected), rel=1e-4)


def test_the_sum_of_next_token_kls_is_the_divergence_of_whole_responses(models):
    """All responses of two tokens, or one that ends at once, written out: E_y Σ_t KL_t against Σ_y p(y) log p(y)/q(y)."""
    prompt, tokens = (5, 6), range(VOCABULARY)
    every = [(EOS,), *((a, b) for a, b in itertools.product(tokens, tokens) if a != EOS)]
    rows = [Row(str(i), prompt, (response,)) for i, response in enumerate(every)]
    scorer = Scorer(ModelShape.of(models[0].lm), 4096, "cpu")
    logp, logq = (scorer.score(model, rows) for model in models)
    assert np.exp(logp).sum() == pytest.approx(1, abs=1e-4)
    divergence = (np.exp(logp) * (logp - logq)).sum()
    assert (np.exp(logp) * scorer.compare(*models, rows).kl).sum() == pytest.approx(divergence, rel=1e-4)


def test_a_policy_that_has_hardly_moved_has_a_kl_that_is_hardly_above_0_and_never_below(models):
    near = build(0)
    with torch.no_grad():
        for parameter in near.parameters():
            parameter.mul_(1 + 1e-6)
    rows = [Row(p.id, p.prompt.token_ids, (p.chosen_ids, p.rejected_ids)) for p in MAIN]
    scorer = Scorer(ModelShape.of(near.lm), 64, "cpu")
    kl = scorer.compare(near, models[0], rows).kl
    assert (kl >= 0).all() and kl.max() < 1e-5
    assert (scorer.compare(models[0], models[0], rows).kl == 0).all()


def test_every_number_by_hand(models):
    reference, policy = models
    look = panel(models, gradient_pairs=3).look(policy)
    now, before = plain_sides(policy, MAIN), plain_sides(reference, MAIN)
    ratios = now - before
    expected = {
        "chosen_logprob": now[:, 0].mean(),
        "rejected_logprob": now[:, 1].mean(),
        "chosen_logratio": ratios[:, 0].mean(),
        "rejected_logratio": ratios[:, 1].mean(),
        "margin": (ratios[:, 0] - ratios[:, 1]).mean(),
        "accuracy": (ratios[:, 0] > ratios[:, 1]).mean(),
        "displaced": (ratios[:, 0] < 0).mean(),
        "probes/dropped": sum(PROBES.dropped.values()),
    }
    for split, pairs in list(PAIRS.items())[1:]:
        moved = plain_sides(policy, pairs) - plain_sides(reference, pairs)
        expected[f"accuracy/{split}"] = (moved[:, 0] > moved[:, 1]).mean()
    for name in PROBE_SETS:
        with torch.no_grad():
            here, there = (
                np.mean([float(plain_logprob(m, row.prompt_ids, row.responses[0])) for row in PROBES.rows[name]])
                for m in (policy, reference)
            )
        expected |= {f"probe/{name}": here, f"probe/{name}_logratio": here - there}
    static = [plain_ches(reference, p.prompt.token_ids, p.chosen_ids, p.rejected_ids) for p in MAIN]
    expected["ches"], expected["ches_normalised"] = np.mean(static, axis=0)
    norms, cosines, falling = [], [], []
    for p in MAIN[:3]:
        sides = []
        for response in (p.chosen_ids, p.rejected_ids):
            policy.zero_grad()
            plain_logprob(policy, p.prompt.token_ids, response).backward()
            sides.append(torch.cat([q.grad.flatten() for q in policy.parameters()]))
        policy.zero_grad()
        norms.append([float(s.norm()) for s in sides])
        cosines.append(float(sides[0] @ sides[1]) / math.prod(norms[-1]))
        falling.append(float(sides[0] @ sides[1]) > norms[-1][0] ** 2)
    expected["gradient/chosen_norm"], expected["gradient/rejected_norm"] = np.mean(norms, axis=0)
    expected |= {"gradient/cosine": np.mean(cosines), "gradient/falling": np.mean(falling)}
    assert look.numbers == pytest.approx({k: float(v) for k, v in expected.items()}, rel=1e-3, abs=1e-4)


def test_a_row_for_every_pair_of_every_split(models):
    looks = panel(models).look(models[1]).pairs
    assert [(p.split, p.pair_id) for p in looks] == [(split, p.id) for split, found in PAIRS.items() for p in found]
    for split, found in PAIRS.items():
        rows = [p for p in looks if p.split == split]
        now, before = plain_sides(models[1], found), plain_sides(models[0], found)
        assert [(p.chosen_logprob, p.rejected_logprob) for p in rows] == [pytest.approx(n, rel=1e-4) for n in now]
        assert [(p.chosen_logratio, p.rejected_logratio) for p in rows] == [
            pytest.approx(d, rel=1e-3, abs=1e-4) for d in now - before
        ]
        for row, p in zip(rows, found, strict=True):
            assert (row.chosen_tokens, row.rejected_tokens) == (len(p.chosen_ids), len(p.rejected_ids))
            expected = plain_ches(models[0], p.prompt.token_ids, p.chosen_ids, p.rejected_ids)
            assert (row.ches, row.ches_normalised) == pytest.approx(expected, rel=1e-4)
    assert looks[0].edit_distance == 1 / 4  # 10 11 12 end -> 10 12 end


def test_pairs_of_own_kinds_are_looked_at_one_by_one_and_change_no_other_number(models):
    reference, policy = models
    alone, look = panel(models).look(policy), panel(models, own=OWN | {"rejected_on_policy": []}).look(policy)
    assert look.numbers == pytest.approx(alone.numbers, rel=1e-4, abs=1e-4)
    assert [p.pair_id for p in look.pairs if p.kind == "fixed"] == [p.pair_id for p in alone.pairs]
    own = [p for p in look.pairs if p.kind != "fixed"]
    assert [(p.kind, p.split, p.pair_id) for p in own] == [(k, "in_distribution", p.id) for k in OWN for p in OWN[k]]
    for kind, found in OWN.items():
        rows = [p for p in own if p.kind == kind]
        now, before = plain_sides(policy, found), plain_sides(reference, found)
        for row, p, logprobs, moved in zip(rows, found, now, now - before, strict=True):
            assert (row.chosen_logprob, row.rejected_logprob) == pytest.approx(logprobs, rel=1e-4)
            assert (row.chosen_logratio, row.rejected_logratio) == pytest.approx(moved, rel=1e-3, abs=1e-4)
            assert (row.chosen_tokens, row.rejected_tokens) == (len(p.chosen_ids), len(p.rejected_ids))
            expected = plain_ches(reference, p.prompt.token_ids, p.chosen_ids, p.rejected_ids)
            assert (row.ches, row.ches_normalised) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("kind", [*OWN, "fixed"])
def test_an_arm_is_looked_at_on_pairs_of_its_own_kind_alone(models, kind):
    looking = panel(models, own=OWN, gradient_pairs=0)
    every, looked = looking.look(models[1]), looking.look(models[1], own=kind)
    assert {p.kind for p in looked.pairs} == {"fixed", kind}
    kept = [p for p in every.pairs if p.kind in ("fixed", kind)]
    assert [p.pair_id for p in looked.pairs] == [p.pair_id for p in kept]
    for one, other in zip(looked.pairs, kept, strict=True):
        assert one.chosen_logprob == pytest.approx(other.chosen_logprob, rel=1e-5)
        assert one.rejected_logratio == pytest.approx(other.rejected_logratio, rel=1e-3, abs=1e-4)
    assert looked.numbers == pytest.approx(every.numbers, rel=1e-4, abs=1e-4) and looked.flops < every.flops
    known = looking.look(models[0], own=kind, is_reference=True)
    assert {p.kind for p in known.pairs} == {"fixed", kind} and known.flops == 0


def test_whatever_is_asked_of_a_response_it_is_computed_once(models):
    """Sides that pairs, splits and kinds share, and probes."""
    looking = panel(models, own=OWN, gradient_pairs=0)
    pairs = [p for found in (*PAIRS.values(), *OWN.values()) for p in found]
    asked = {(p.prompt.token_ids, side) for p in pairs for side in (p.chosen_ids, p.rejected_ids)}
    asked |= {(row.prompt_ids, row.responses[0]) for rows in PROBES.rows.values() for row in rows}
    computed = [(row.prompt_ids, response) for row in looking.rows for response in row.responses]
    assert len(computed) == len(set(computed)) and set(computed) == asked
    assert len(looking.rows) == len({prompt for prompt, _ in asked})  # and so is every prompt
    narrow = panel(models, budget=16, own=OWN, gradient_pairs=0)
    assert all(row.tokens <= 16 for row in narrow.rows) and len(narrow.rows) > len(looking.rows)
    looking.scorer.scored_tokens = 0
    looking.look(models[1])
    assert looking.scorer.scored_tokens == sum(len(response) for _, response in asked)


def test_the_references_own_numbers_are_not_computed_again(models):
    looking = panel(models, own=OWN, gradient_pairs=0)
    known = looking.look(models[0], is_reference=True)
    assert known.flops == 0
    again = looking.look(models[0])
    assert known.numbers == again.numbers and known.pairs == again.pairs and again.flops > 0


def test_a_model_compared_with_itself_runs_once(models):
    rows = [Row("r", (5, 6), ((7, 8, 2), (9, 2)))]
    one, two = (Scorer(ModelShape.of(models[0].lm), 64, "cpu") for _ in range(2))
    alike, apart = one.compare(models[0], models[0], rows, 0.5, 1.0), two.compare(models[0], build(0), rows, 0.5, 1.0)
    np.testing.assert_array_equal(alike.kl, apart.kl)
    assert (alike.entropy, alike.confidence) == (apart.entropy, apart.confidence)
    assert 2 * one.flops == two.flops and 2 * one.scored_tokens == two.scored_tokens


def test_the_reference_looked_at_has_moved_nowhere(models):
    reference = models[0]
    numbers = panel(models).look(reference).numbers
    moved = [k for k in numbers if k.endswith("logratio")] + ["margin", "displaced", "accuracy", "accuracy/unseen"]
    assert len(moved) == 9 + 1 and all(numbers[k] == 0 for k in moved)


def test_looking_changes_nothing_and_micro_batches_change_no_number(models):
    before = [p.detach().clone() for p in models[1].parameters()]
    once, small = panel(models).look(models[1]), panel(models, budget=10).look(models[1])
    assert all(torch.equal(a, b) for a, b in zip(before, models[1].parameters(), strict=True))
    assert all(p.grad is None for p in models[1].parameters())
    assert small.numbers == pytest.approx(once.numbers, rel=1e-3, abs=1e-4)


def test_what_is_not_there_is_left_out(models):
    none = make_probes([], [], [], {EOS}, VOCABULARY, 64, 0)
    empty = panel(models, pairs={}, probes=none).look(models[1])
    assert empty.numbers == {} and empty.pairs == () and empty.flops == 0
    without = panel(models, pairs={"in_distribution": MAIN, "unseen": []}, gradient_pairs=0).look(models[1])
    assert not [k for k in without.numbers if k.startswith(("gradient/", "accuracy/"))]


def test_a_smaller_set_of_probes_leaves_the_others_where_they_are(models):
    """Sets are scored together: their borders must hold."""
    fewer = make_probes(MAIN[1:3], [[(6, 6, EOS)], [(6,)]], MAIN, {EOS}, VOCABULARY, 64, 0)
    numbers = panel(models, pairs={"in_distribution": MAIN[1:3]}, probes=fewer).look(models[1]).numbers
    for name, rows in fewer.rows.items():
        with torch.no_grad():
            expected = np.mean([float(plain_logprob(models[1], r.prompt_ids, r.responses[0])) for r in rows])
        assert numbers[f"probe/{name}"] == pytest.approx(expected, rel=1e-4)


def test_the_cost_is_what_torch_counts(models):
    """A forward pass over all responses; one forward and backward for the gradients of pairs, and inner products."""
    looking = panel(models, gradient_pairs=3)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        look = looking.look(models[1])
    assert look.flops == pytest.approx(counter.get_total_flops(), rel=0.05)
    assert look.flops > 0 and look.seconds > 0


def test_the_page_names_every_number_and_no_other(models):
    look = panel(models).look(models[1])
    main = pair_logprobs_of([p for p in look.pairs if p.split == "in_distribution"])
    method = METHODS["dpo"]
    derived = set(partials(method.pair_loss, main, method.settings().resolve_at(0.0, {})))
    own = {f"own/{name}" for name in derived | set(numbers_of_evaluated(look.pairs))}
    produced = set(look.numbers) | derived | own
    assert documented() == produced | BY_THE_EVALUATOR | BY_REWARD_MODELS


def test_distributions_come_by_chunks_of_logits(models, monkeypatch):
    batch = micro_batch([Row("r", (5, 6), ((7, 8, 2), (9, 2))), Row("s", (4,), ((3,),))])
    with torch.no_grad():
        whole = next_token(*models, batch)
        seen, logits = [], TokenLogprobs.logits
        monkeypatch.setattr(lm_head, "LOGITS_IN_CHUNK", 2 * models[0].lm.config.vocab_size)
        monkeypatch.setattr(
            TokenLogprobs, "logits", lambda self, states: seen.append(len(states)) or logits(self, states)
        )
        pieces = next_token(*models, batch)
    assert seen == [2, 2] * 3  # of both models
    for name in ("kl", "entropy", "confidence"):
        torch.testing.assert_close(getattr(pieces, name), getattr(whole, name))
