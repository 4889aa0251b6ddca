"""Losses beside those of TRL 1.16, whose trainers' own code is called with log-probabilities in the place of a model's.

Where the two normalise differently, the test says so: that is a choice, and not a mistake of either.
"""

from types import SimpleNamespace
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch
from trl.experimental.cpo import CPOTrainer
from trl.experimental.orpo import ORPOTrainer
from trl.trainer.dpo_trainer import DPOTrainer
from trl.trainer.grpo_trainer import GRPOTrainer
from trl.trainer.kto_trainer import KTOTrainer
from trl.trainer.rloo_trainer import RLOOTrainer

from rlhf_bench.core.types import Row
from rlhf_bench.methods import METHODS
from rlhf_bench.methods.base import Outputs, PairLogprobs
from rlhf_bench.methods.kto import response_loss

LENGTHS = [3, 5, 2, 4]  # chosen, chosen, rejected, rejected: two pairs
WIDTH = max(LENGTHS)
RNG = np.random.default_rng(4)
OWN, REFERENCE = (torch.from_numpy(RNG.normal(-1.5, 0.8, (4, WIDTH))).clamp(max=-0.05) for _ in range(2))
MASK = (torch.arange(WIDTH)[None] < torch.tensor(LENGTHS)[:, None]).double()


def pairs_of(own):
    """The pairs of a table of token log-probabilities [4, WIDTH]."""
    sums, reference, tokens = (own * MASK).sum(1), (REFERENCE * MASK).sum(1), MASK.sum(1)
    return PairLogprobs(sums[:2], sums[2:], reference[:2], reference[2:], tokens[:2], tokens[2:])


def accelerator():
    same = MagicMock()
    same.gather_for_metrics = same.gather = lambda x: x
    same.reduce = lambda x, reduction: x
    same.device, same.num_processes = "cpu", 1
    return same


def model_of(table):
    """What TRL's fused head would say of the completions: the prompt is one token, so its columns are those behind it."""
    logprobs = table * MASK
    zeros = torch.zeros_like(logprobs)
    found = SimpleNamespace(log_probs=logprobs, entropy=zeros, mean_logits=zeros, is_top1=zeros.bool())
    model = MagicMock(side_effect=lambda **_: found)
    model.training = True
    return model


def inputs():
    mask = torch.cat([torch.zeros(4, 1), MASK], 1).long()
    return {
        "input_ids": torch.ones(4, WIDTH + 1).long(),
        "attention_mask": torch.ones_like(mask),
        "completion_mask": mask,
    }


def trls_dpo(kind, own, **more):
    settings = {"loss_types": [kind], "loss_weights": [1.0], "beta": 0.3, "label_smoothing": 0.0} | more
    trainer = MagicMock(
        accelerator=accelerator(), aux_loss_enabled=False, ld_alpha=None, precompute_ref_logps=False, ref_model=model_of(REFERENCE),
        f_divergence_type="reverse_kl", use_weighting=False, _total_train_tokens=0, _tp_size=1, **settings,
    )  # fmt: skip
    return DPOTrainer._compute_loss(trainer, model_of(own), inputs(), False)


def ours(name, own, **settings):
    method = METHODS[name]
    return method.pair_loss(pairs_of(own), method.settings(**settings)).mean()


def same_value_and_gradient(one, other):
    found = []
    for loss in (one, other):
        own = OWN.clone().requires_grad_()
        value = loss(own)
        found.append((value.detach(), torch.autograd.grad(value, own)[0]))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-9)
    assert found[0][1].abs().max() > 1e-3


@pytest.mark.parametrize(("kind", "trl", "name", "settings"), [
    ("sigmoid", {}, "dpo", {"beta": 0.3}),
    ("robust", {"label_smoothing": 0.2}, "robust_dpo", {"beta": 0.3, "label_noise": 0.2}),
])  # fmt: skip
def test_losses_of_trls_dpo_trainer(kind, trl, name, settings):
    same_value_and_gradient(lambda own: trls_dpo(kind, own, **trl), lambda own: ours(name, own, **settings))


@pytest.mark.parametrize(("kind", "beta", "name", "settings"), [
    ("sigmoid_norm", 2.0, "length_normalised_dpo", {"beta": 2.0}),
    ("ipo", 0.3, "ipo", {"tau": 0.3, "log_probs": "mean"}),
])  # fmt: skip
def test_losses_that_trl_takes_per_token(kind, beta, name, settings):
    """TRL averages IPO over tokens, as our `log_probs: mean` does; our default is the paper's sum, as OpenRLHF's is."""
    same_value_and_gradient(lambda own: trls_dpo(kind, own, beta=beta), lambda own: ours(name, own, **settings))


def test_conservative_dpo_is_trls_label_smoothing_as_its_cpo_trainer_writes_it():
    trainer = SimpleNamespace(alpha=0.0, beta=0.3, label_smoothing=0.2, loss_type="sigmoid", accelerator=accelerator())

    def trl(own):
        pairs = pairs_of(own)
        return CPOTrainer.cpo_loss(trainer, pairs.chosen_logratio, pairs.rejected_logratio)[0].mean()

    settings = {"form": "conservative", "beta": 0.3, "label_noise": 0.2}
    same_value_and_gradient(trl, lambda own: ours("robust_dpo", own, **settings))


def test_cpo():
    """TRL averages the supervised term over all chosen tokens of a batch, we over each response's first: with pairs of one
    length they agree, so the term is left out here, and the lengths stay different."""
    trainer = SimpleNamespace(alpha=0.0, beta=0.3, label_smoothing=0.0, loss_type="sigmoid", accelerator=accelerator())

    def trl(own):
        pairs = pairs_of(own)
        return CPOTrainer.cpo_loss(trainer, pairs.chosen, pairs.rejected)[0].mean()

    same_value_and_gradient(trl, lambda own: ours("cpo", own, beta=0.3, sft_weight=0.0))


def test_orpo():
    """TRL's supervised term is over prompt and response, and over all tokens of a batch; ours over each response by itself. Its
    odds ratio is compared, in float32, which TRL rounds to."""
    trainer = SimpleNamespace(beta=0.2, accelerator=accelerator())

    def trl(own):
        pairs = pairs_of(own)
        chosen, rejected = pairs.chosen / pairs.chosen_tokens, pairs.rejected / pairs.rejected_tokens
        return (-chosen - ORPOTrainer.odds_ratio_loss(trainer, chosen, rejected)[0]).mean()

    same_value_and_gradient(trl, lambda own: ours("orpo", own, odds_weight=0.2))


@pytest.mark.parametrize("mismatched", [1.3, -0.7])
def test_kto(mismatched):
    """TRL's mean is over all examples of a batch, ours over pairs of two. z0 is the mean over both, not below 0."""
    settings = METHODS["kto"].settings(beta=0.4, desirable_weight=1.2, undesirable_weight=0.8)
    known = {"reference_logprobs": [(np.zeros(1), np.zeros(1))], "mismatched_reference_logprobs": [(np.zeros(1),) * 2],
             "mismatched_logprobs": [(np.array([mismatched]), np.array([mismatched]))]}  # fmt: skip
    state = METHODS["kto"].prepare([Row("a", (1,), ((2,), (3,)))], [], known, settings, {}).state
    now = settings.resolve_at(0.0, state)

    def trl(own):
        trainer = MagicMock(
            accelerator=accelerator(), aux_loss_enabled=False, precompute_ref_logps=False, ref_model=model_of(REFERENCE),
            calculate_KL=True, loss_type="kto", beta=0.4, desirable_weight=1.2, undesirable_weight=0.8,
            _total_train_tokens=0, _tp_size=1,
        )  # fmt: skip
        looks = iter([torch.full((4,), mismatched), torch.zeros(4)])
        trainer._compute_kl_logps = lambda *_: next(looks)
        batch = inputs() | {"label": torch.tensor([True, True, False, False])}
        return KTOTrainer._compute_loss(trainer, model_of(own), batch, False)

    same_value_and_gradient(trl, lambda own: METHODS["kto"].pair_loss(pairs_of(own), now).mean())


@pytest.mark.parametrize("labels", [[True, True, False, False], [True, False, False, False]])
def test_kto_on_single_responses(labels):
    """TRL's mean over all examples of a batch, with as many of each label as there are."""
    given = {"beta": 0.4, "desirable_weight": 1.2, "undesirable_weight": 0.8}
    settings = METHODS["kto"].settings(unpaired=True, **given).resolve_at(0.0, {"reference_point": 0.6})

    def trl(own):
        trainer = MagicMock(
            accelerator=accelerator(), aux_loss_enabled=False, precompute_ref_logps=False, ref_model=model_of(REFERENCE),
            calculate_KL=True, loss_type="kto", _total_train_tokens=0, _tp_size=1, **given,
        )  # fmt: skip
        looks = iter([torch.full((4,), 0.6), torch.zeros(4)])
        trainer._compute_kl_logps = lambda *_: next(looks)
        return KTOTrainer._compute_loss(trainer, model_of(own), inputs() | {"label": torch.tensor(labels)}, False)

    def ours_of(own):
        ratio = (own * MASK).sum(1) - (REFERENCE * MASK).sum(1)
        return response_loss(ratio, torch.tensor(labels), settings).mean()

    same_value_and_gradient(trl, ours_of)


# Methods on samples: two prompts, two responses each, in the rows' order.

OLD = (OWN + torch.from_numpy(RNG.normal(0, 0.25, OWN.shape))).clamp(max=-0.01)
REWARDS = [[1.0, 0.2], [0.0, 0.7]]
ROWS = [Row(str(i), (1,), tuple((2,) * n for n in LENGTHS[2 * i : 2 * i + 2])) for i in (0, 1)]


def by_response(table):
    flat = [row[:n].numpy() for row, n in zip(table, LENGTHS, strict=True)]
    return [tuple(flat[:2]), tuple(flat[2:])]


def our_samples(name, own, **settings):
    method, arm = METHODS[name], METHODS[name].settings(**settings)
    known = {"logprobs": by_response(OLD), "reference_logprobs": by_response(REFERENCE)}
    found = method.prepare(ROWS, REWARDS, known, arm, {})
    extras = {
        key: torch.from_numpy(np.concatenate([a for row in found.rows for a in row.extras[key]]))
        for key in found.rows[0].extras
    }
    index = torch.arange(4).repeat_interleave(torch.tensor(LENGTHS))
    out = Outputs(index, 4, extras, logprobs=own[MASK.bool()], entropy=torch.zeros(len(index)))
    return method.objectives[0].loss(out, arm)[0].mean(), [a[0] for row in found.rows for a in row.extras["advantages"]]


@pytest.mark.parametrize(("loss_type", "over"), [("grpo", "responses"), ("bnpo", "tokens")])
@pytest.mark.parametrize("kl", [0.0, 0.3])
def test_grpo(loss_type, over, kl):
    """TRL divides by the deviation over n − 1 and adds 1e-4 to it, we over n; so the advantages are ours here. Its Dr. GRPO
    divides by a constant where we count tokens, a factor that is the same for all tokens of an update."""
    settings = {"average_over": over, "kl_coefficient": kl, "clip_high": 0.3}
    advantages = torch.tensor(our_samples("grpo", OWN, **settings)[1])
    ends = torch.tensor(REWARDS, dtype=torch.float64)
    by_trl = (ends - ends.mean(1, keepdim=True)) / (ends.std(1, keepdim=True) + 1e-4)
    torch.testing.assert_close(advantages, by_trl.flatten() * 2**0.5, rtol=1e-3, atol=0)

    def trl(own):
        trainer = MagicMock(
            accelerator=accelerator(), aux_loss_enabled=False, top_entropy_quantile=1.0, off_policy_mask_threshold=None,
            importance_sampling_level="token", beta=kl, loss_type=loss_type, epsilon_low=0.2, epsilon_high=0.3,
            use_vllm=False, current_gradient_accumulation_steps=1, _entropy_bonus_enabled=False,
            args=SimpleNamespace(delta=None, use_bias_correction_kl=False),
        )  # fmt: skip
        trainer.model.training = True
        trainer._get_per_token_logps_and_entropies = lambda *_, **__: (own, torch.zeros_like(own), None)
        ids = torch.ones(4, WIDTH).long()
        batch = {"prompt_ids": ids[:, :1], "prompt_mask": ids[:, :1], "completion_ids": ids, "completion_mask": MASK,
                 "advantages": advantages, "old_per_token_logps": OLD, "ref_per_token_logps": REFERENCE}  # fmt: skip
        return GRPOTrainer._compute_loss(trainer, None, batch)

    same_value_and_gradient(trl, lambda own: our_samples("grpo", own, **settings)[0])


def test_rloo():
    """TRL clips the ratio of whole responses, and averages over them; we clip each token's and average over tokens. At the
    policy that sampled the gradients are the same but for that count, and everywhere the advantages are."""
    old = OLD.clone().requires_grad_()
    loss, advantages = our_samples("rloo", old, kl_coefficient=0.1)
    earned = torch.tensor(REWARDS, dtype=torch.float64) - 0.1 * ((OLD - REFERENCE) * MASK).sum(1).reshape(2, 2)
    torch.testing.assert_close(torch.tensor(advantages), (earned - earned.flip(1)).flatten(), rtol=1e-9, atol=0)
    trainer = MagicMock(accelerator=accelerator(), aux_loss_enabled=False, epsilon_low=0.2, epsilon_high=0.2)
    trainer.model.training = True
    again = OLD.clone().requires_grad_()
    trainer._get_per_token_logps_and_entropies = lambda *_, **__: (again, torch.zeros_like(again), None)
    ids = torch.ones(4, WIDTH).long()
    batch = {"prompt_ids": ids[:, :1], "prompt_mask": ids[:, :1], "completion_ids": ids, "completion_mask": MASK,
             "advantages": torch.tensor(advantages), "old_logps": (OLD * MASK).sum(1)}  # fmt: skip
    theirs = torch.autograd.grad(RLOOTrainer._compute_loss(trainer, None, batch), again)[0]
    own = torch.autograd.grad(loss, old)[0]
    torch.testing.assert_close(own * sum(LENGTHS) / len(LENGTHS), theirs, rtol=1e-9, atol=1e-12)
