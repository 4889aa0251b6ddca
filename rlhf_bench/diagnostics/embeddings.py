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
class TokenNumbers:
    """Per response token [T], at temperature 1."""

    logprobs: Tensor  # nats
    entropy: Tensor  # of the distribution the token was drawn from, nats
    confidence: Tensor  # probability of that distribution's likeliest token


def token_numbers(model: Any, batch: MicroBatch) -> TokenNumbers:
    """What `TokenLogprobs` answers, entropies, and the argmax token's confidence, in float32; logits by chunks, as there."""
    states, size = predictor_states(model, batch), tokens_in_chunk(len(model.lm.get_output_embeddings().weight))
    parts = [_of_states(model, *part) for part in zip(states.split(size), batch.targets.split(size), strict=True)]
    return TokenNumbers(*(torch.cat(numbers) for numbers in zip(*parts, strict=True)))


def _of_states(model: Any, states: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    logp = model.logits(states).log_softmax(-1)
    return logp.gather(1, targets[:, None]).squeeze(1), -(logp.exp() * logp).sum(-1), logp.amax(-1).exp()


def ches(model: Any, batch: MicroBatch) -> tuple[Tensor, Tensor]:
    """Centred hidden embedding similarity of each pair [P], and its length-normalised form [P], in float64.

        ⟨H⁺, H⁻⟩ − ‖H⁺‖²,   H± = Σ of `predictor_states` over the response        (arXiv 2410.08847, definition 2)
        ⟨h⁺, h⁻⟩ − ‖h⁺‖²,   h± = H± / |a±|                                        (there, section 6)

    `batch` has two responses per pair: chosen, rejected, chosen, …
    """
    states = predictor_states(model, batch).double()
    sums = states.new_zeros(batch.responses, states.shape[1]).index_add(0, batch.response_index, states)
    lengths = batch.response_index.bincount(minlength=batch.responses).double()[:, None]
    return _centred_similarity(sums), _centred_similarity(sums / lengths)


def _centred_similarity(sides: Tensor) -> Tensor:
    """[2P, H] in the order chosen, rejected, … -> [P]"""
    chosen, rejected = sides[0::2], sides[1::2]
    return (chosen * (rejected - chosen)).sum(-1)
