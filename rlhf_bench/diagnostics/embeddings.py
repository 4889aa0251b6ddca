"""Numbers from the policy's last hidden states: the next token's distribution, and how similar a pair's sides are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rlhf_bench.models.heads import hidden_states
from rlhf_bench.models.lm_head import tokens_in_chunk
from rlhf_bench.models.packing import MicroBatch


def predictor_states(model: Any, batch: MicroBatch) -> Tensor:
    """Last hidden states [T, H], after the final norm, of the positions that predict the T response tokens: from the
    last prompt token up to, not including, the last response token. `model` is a `heads.TokenLogprobs`."""
    return hidden_states(model.lm.base_model, batch)[batch.predictor]


@dataclass(frozen=True)
class NextToken:
    """The policy's next-token distribution p at every position that predicts a response token [T]."""

    kl: Tensor  # KL(p ‖ q) to the reference's q, over the whole vocabulary, nats; never negative
    entropy: Tensor  # of p, nats
    confidence: Tensor  # p of its likeliest token


def next_token(
    policy: Any, reference: Any, batch: MicroBatch, temperature: float = 1.0, reference_temperature: float = 1.0
) -> NextToken:
    """Both models' distributions over the whole vocabulary, each at its temperature, in float32; logits by chunks. Where they
    are one model it runs once."""
    size = tokens_in_chunk(len(policy.lm.get_output_embeddings().weight))
    states = predictor_states(policy, batch).split(size)
    others = states if reference is policy else predictor_states(reference, batch).split(size)
    parts = []
    for own, other in zip(states, others, strict=True):
        logits = policy.logits(own)
        logp = (logits / temperature).log_softmax(-1)
        logits = logits if reference is policy else reference.logits(other)
        logq = (logits / reference_temperature).log_softmax(-1)
        p = logp.exp()
        # The sum of products that rounding has moved may fall below 0 where p and q are all but equal.
        kl = torch.linalg.vecdot(p, logp - logq).clamp(min=0)
        parts.append((kl, -torch.linalg.vecdot(p, logp), logp.amax(-1).exp()))
    return NextToken(*(torch.cat(numbers) for numbers in zip(*parts, strict=True)))


def summed_states(states: Tensor, batch: MicroBatch) -> Tensor:
    """H = Σ of `predictor_states` over each response: [T, H] -> [R, H], in float64."""
    states = states.double()
    return states.new_zeros(batch.responses, states.shape[1]).index_add(0, batch.response_index, states)


def ches(chosen: Tensor, rejected: Tensor) -> Tensor:
    """Centred hidden embedding similarity of each pair, [P, H], [P, H] -> [P]:

    ⟨H⁺, H⁻⟩ − ‖H⁺‖²,   H± = `summed_states` of the sides       (arXiv 2410.08847, definition 2)
    ⟨h⁺, h⁻⟩ − ‖h⁺‖²,   of h± = H± / |a±|: its length-normalised form                    (there, section 6)
    """
    return (chosen * (rejected - chosen)).sum(-1)
