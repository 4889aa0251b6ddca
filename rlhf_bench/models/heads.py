"""What a model answers about response tokens: log-probabilities (causal), or values and scores (scalar).

The language-model head (`lm_head.py`) is applied only at the positions that predict a response token.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rlhf_bench.core.types import Combine
from rlhf_bench.models.lm_head import ChunkedLogprobs, ChunkedLoss, Head, LossOfRows
from rlhf_bench.models.packing import MicroBatch


def hidden_states(backbone: nn.Module, batch: MicroBatch) -> Tensor:
    """Last hidden states of every position: [N, H]."""
    # A mask of four dimensions is handed down as it is: none is built, and attention over packed rows needs none.
    mask = batch.input_ids.new_ones(1, 1, 1, 1).bool()
    out = backbone(
        input_ids=batch.input_ids,
        position_ids=batch.position_ids,
        attention_mask=mask,
        use_cache=False,
        layout=batch.layout,
    )
    return out.last_hidden_state[0]


class TokenLogprobs(nn.Module):
    """A causal language model that answers with log-probabilities of the response tokens.

    forward(batch) -> logprobs [T], float32, nats, at `temperature`.
    forward(batch, temperature, loss_of) -> (loss [], numbers []): what `loss_of` says of the batch's rows, summed.
    """

    def __init__(self, causal_lm: nn.Module):
        super().__init__()
        self.lm = causal_lm
        self._float32_head: tuple[tuple[int, int], Tensor] | None = (
            None  # of a frozen one, and which weights it was made from
        )

    def forward(self, batch: MicroBatch, temperature: float = 1.0, loss_of: LossOfRows | None = None) -> Any:
        states = hidden_states(self.lm.base_model, batch)[batch.predictor]
        if loss_of is None:
            return self.of_states(states, batch, temperature)
        hidden, weight, bias, cap = self._numbers(states)
        sums: dict[str, Tensor] = {}
        loss = ChunkedLoss.apply(hidden, weight, bias, batch, temperature, cap, loss_of, sums)
        return loss, sums

    def of_states(self, states: Tensor, batch: MicroBatch, temperature: float = 1.0) -> Tensor:
        """logprobs [T] from the last hidden states [T, H] of the positions that predict."""
        hidden, weight, bias, cap = self._numbers(states)
        return ChunkedLogprobs.apply(hidden, weight, bias, batch.targets, temperature, cap)

    def logits(self, hidden: Tensor) -> Tensor:
        """All logits of last hidden states: [T, H] -> [T, V], float32, at temperature 1, capped where the model caps them."""
        hidden, head = self.head(hidden)
        return head.logits(hidden)[0]

    def head(self, hidden: Tensor) -> tuple[Tensor, Head]:
        """Hidden states in the format that they are multiplied in, and the head at temperature 1."""
        hidden, weight, bias, cap = self._numbers(hidden)
        return hidden, Head(weight, bias, 1.0, cap)

    def _numbers(self, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor | None, float | None]:
        """Hidden states, and the head's weight, bias and cap, in the format that they are multiplied in."""
        head = self.lm.get_output_embeddings()
        weight, bias = head.weight, head.bias
        # On a CPU also where bfloat16 is faster: a logit of 16 would be rounded to 1/16, and a response's log-probability by as much
        # as a method moves it. On a GPU it is as the libraries have it.
        if hidden.dtype == torch.bfloat16 and hidden.device.type == "cpu":
            hidden, weight, bias = hidden.float(), self._in_float32(weight), None if bias is None else bias.float()
        return hidden, weight, bias, getattr(self.lm.config, "final_logit_softcapping", None)

    def _in_float32(self, weight: Tensor) -> Tensor:
        """A copy of the head's weight. That of a frozen head, as beside adapters, is kept: with a new one in every micro-batch the
        allocator, which finds no hole for it among activations, takes more memory for each."""
        if weight.requires_grad:
            return weight.float()
        made_from = (weight.data_ptr(), weight._version)
        if self._float32_head is None or self._float32_head[0] != made_from:
            self._float32_head = (made_from, weight.float())
        return self._float32_head[1]


class ResponseValues(nn.Module):
    """A one-label sequence classifier that answers with values and scores: the critic, and the reward model in training.

    forward(batch) -> (values [T]: V of the state each response token is chosen in, scores [R]: read at the last token),
    both less `offset`, the mean score of the base policy's samples, so that rewards have a mean of 0.
    """

    def __init__(self, classifier: nn.Module, offset: float = 0.0):
        super().__init__()
        self.lm, self.offset = classifier, offset

    def forward(self, batch: MicroBatch) -> tuple[Tensor, Tensor]:
        hidden = hidden_states(self.lm.base_model, batch)
        both = self.lm.score(torch.cat([hidden[batch.predictor], hidden[batch.last]])).squeeze(-1).float() - self.offset
        return both[: len(batch.predictor)], both[len(batch.predictor) :]


def combined(of_members: Tensor, how: Combine) -> Tensor:
    """What an ensemble says of what its k members say: [k, N] -> [N]. The mean, or the smallest: the worst case, which counts
    no answer as good that a single member doubts (arXiv 2310.02743)."""
    return of_members.mean(0) if how == "mean" else of_members.min(0).values


class RewardEnsemble(nn.Module):
    """Reward models that answer as one: forward(batch) as `ResponseValues`, scale × the members' combined answers − offset."""

    def __init__(self, members: Sequence[ResponseValues], how: Combine, scale: float, offset: float):
        super().__init__()
        self.members, self.how, self.scale, self.offset = nn.ModuleList(members), how, scale, offset

    @property
    def lm(self) -> nn.Module:
        """The first member's: all have one shape."""
        return self.members[0].lm

    def forward(self, batch: MicroBatch) -> tuple[Tensor, Tensor]:
        values, scores = zip(*(member(batch) for member in self.members), strict=True)
        return self._as_one(values), self._as_one(scores)

    def _as_one(self, answers: Sequence[Tensor]) -> Tensor:
        return self.scale * combined(torch.stack(list(answers)), self.how) - self.offset
