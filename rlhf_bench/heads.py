"""What a model answers about response tokens: log-probabilities (causal), or values and scores (scalar).

The language-model head is applied at the positions that predict a response token and nowhere else, and in chunks, so
that the logits of a batch, tokens × vocabulary, are never held at once. In training the loss of a chunk is differentiated
as soon as its logits are there, and they are not computed a second time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from rlhf_bench.bfloat16 import slow_products
from rlhf_bench.sequences import Answers, MicroBatch

LOGITS_IN_CHUNK = 2**23
"""Numbers of a chunk of logits: 32 MiB of float32."""

Sums = tuple[Tensor, dict[str, Tensor]]
"""A loss and named numbers, each summed over the units of some rows."""
LossOfRows = Callable[[Answers, Tensor, Tensor], Sums]
"""Responses of some rows, log-probabilities [t] and entropies [t] of their tokens -> sums."""


def hidden_states(backbone: nn.Module, batch: MicroBatch) -> Tensor:
    """Last hidden states of every position: [N, H]."""
    # A mask of four dimensions is handed down as it is: none is built, and attention over packed rows needs none.
    mask = batch.input_ids.new_ones(1, 1, 1, 1).bool()
    out = backbone(
        input_ids=batch.input_ids, position_ids=batch.position_ids, attention_mask=mask, use_cache=False,
        layout=batch.layout,
    )  # fmt: skip
    return out.last_hidden_state[0]


@dataclass(frozen=True)
class _Head:
    """The last linear layer as numbers: logits = hidden · weightᵀ + bias, capped where the model caps them, and divided
    by the temperature."""

    weight: Tensor  # [V, H]
    bias: Tensor | None  # [V]
    temperature: float
    cap: float | None

    def chunks(self, tokens: int) -> list[slice]:
        size = max(1, LOGITS_IN_CHUNK // len(self.weight))
        return [slice(at, min(at + size, tokens)) for at in range(0, tokens, size)]

    def logits(self, hidden: Tensor) -> tuple[Tensor, Tensor | None]:
        """[t, H] -> [t, V] in float32; and where they are capped, the slope of the cap."""
        logits = nn.functional.linear(hidden, self.weight, self.bias).float()
        slope = None
        if self.cap is not None:
            bent = torch.tanh(logits / self.cap)
            logits, slope = self.cap * bent, 1 - bent**2
        return (logits / self.temperature if self.temperature != 1 else logits), slope

    def logprobs(self, hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Log-probabilities of the targets [t] and entropies [t]; all probabilities [t, V], and the cap's slope."""
        logits, slope = self.logits(hidden)
        probabilities = logits.softmax(-1)
        # The normalizer from the likeliest token, whose probability is at least 1/V: cheaper than a second pass of log.
        normalizer = logits.amax(-1) - probabilities.amax(-1).log()
        entropy = normalizer - torch.linalg.vecdot(probabilities, logits)
        return logits.gather(1, targets[:, None]).squeeze(1) - normalizer, entropy, probabilities, slope

    def by_logits(self, probabilities: Tensor, slope: Tensor | None, targets: Tensor, upstream: Tensor) -> Tensor:
        """∂/∂(hidden · weightᵀ) [t, V] of Σ upstream · log-probability, in place of the probabilities."""
        gradient = probabilities.mul_(-upstream[:, None]).scatter_add_(1, targets[:, None], upstream[:, None])
        if slope is not None:
            gradient.mul_(slope)
        if self.temperature != 1:
            gradient.div_(self.temperature)
        return gradient.to(self.weight.dtype)


class _Gradients:
    """What flows back from the head: to the hidden states, and added up over chunks to weight and bias."""

    def __init__(self, head: _Head, hidden: Tensor, to_weight: bool, to_bias: bool):
        self.head, self.hidden = head, hidden
        self.by_hidden = torch.empty_like(hidden)
        # In float32 also where the weights are not: many chunks add up.
        self.by_weight = torch.zeros_like(head.weight, dtype=torch.float32) if to_weight else None
        self.by_bias = torch.zeros_like(head.weight[:, 0], dtype=torch.float32) if to_bias else None

    def add(self, part: slice, by_logits: Tensor) -> None:
        torch.mm(by_logits, self.head.weight, out=self.by_hidden[part])
        if self.by_weight is not None:
            if by_logits.dtype == torch.float32:
                self.by_weight.addmm_(by_logits.t(), self.hidden[part])
            else:
                self.by_weight += by_logits.t() @ self.hidden[part]
        if self.by_bias is not None:
            self.by_bias += by_logits.sum(0)

    def scaled(self, factor: Tensor | float) -> tuple[Tensor, Tensor | None, Tensor | None]:
        dtype = self.head.weight.dtype
        rest = (None if g is None else g.mul_(factor).to(dtype) for g in (self.by_weight, self.by_bias))
        return self.by_hidden.mul_(factor), *rest


class _Logprobs(torch.autograd.Function):
    """hidden [T, H] -> log-probabilities [T] and entropies [T], float32; only the first has a gradient. The backward
    pass computes each chunk's logits again."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        temperature: float,
        cap: float | None,
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(hidden, weight, bias, targets)
        ctx.temperature, ctx.cap = temperature, cap
        head = _Head(weight, bias, temperature, cap)
        found = [head.logprobs(hidden[part], targets[part])[:2] for part in head.chunks(len(targets))]
        logprobs, entropy = (torch.cat(numbers) for numbers in zip(*found, strict=True))
        ctx.mark_non_differentiable(entropy)
        return logprobs, entropy

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Any, ...]:
        hidden, weight, bias, targets = ctx.saved_tensors
        head = _Head(weight, bias, ctx.temperature, ctx.cap)
        back = _Gradients(head, hidden, ctx.needs_input_grad[1], ctx.needs_input_grad[2])
        for part in head.chunks(len(targets)):
            _, _, probabilities, slope = head.logprobs(hidden[part], targets[part])
            back.add(part, head.by_logits(probabilities, slope, targets[part], gradients[0][part]))
        return *back.scaled(1.0), None, None, None


class _Loss(torch.autograd.Function):
    """hidden [T, H] -> the summed loss. Every chunk is whole rows; its gradient is taken while its probabilities are
    there. A chunk of one row that is longer than that has its logits computed twice."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, batch: MicroBatch, temperature: float,
        cap: float | None, loss_of: LossOfRows, sums: dict[str, Tensor],
    ) -> Tensor:  # fmt: skip
        head = _Head(weight, bias, temperature, cap)
        back = _Gradients(head, hidden, ctx.needs_input_grad[1], ctx.needs_input_grad[2])
        total = hidden.new_zeros((), dtype=torch.float32)
        for rows in _whole_rows(batch, max(1, LOGITS_IN_CHUNK // len(weight))):
            part = rows.tokens
            pieces = [slice(part.start + p.start, part.start + p.stop) for p in head.chunks(part.stop - part.start)]
            found = [head.logprobs(hidden[p], batch.targets[p]) for p in pieces]
            if len(pieces) > 1:
                found = [(logprobs, entropy, None, None) for logprobs, entropy, _, _ in found]
            with torch.enable_grad():
                logprobs = torch.cat([f[0] for f in found]).requires_grad_()
                loss, numbers = loss_of(rows, logprobs, torch.cat([f[1] for f in found]))
                (upstream,) = torch.autograd.grad(loss, logprobs)
            total += loss.detach()
            for name, value in numbers.items():
                sums[name] = sums[name] + value if name in sums else value
            for piece, (_, _, probabilities, slope) in zip(pieces, found, strict=True):
                targets = batch.targets[piece]
                if probabilities is None:
                    _, _, probabilities, slope = head.logprobs(hidden[piece], targets)
                own = upstream[piece.start - part.start : piece.stop - part.start]
                back.add(piece, head.by_logits(probabilities, slope, targets, own))
        ctx.back = back
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Any, ...]:
        scaled = ctx.back.scaled(gradients[0])
        del ctx.back
        return *scaled, None, None, None, None, None


def _whole_rows(batch: MicroBatch, tokens: int) -> list[Answers]:
    """The batch in parts of whole rows with at most so many response tokens, or one row."""
    cuts, room = [0], tokens
    for i, row in enumerate(batch.layout.rows):
        own = sum(row.responses)
        if own > room and i > cuts[-1]:
            cuts.append(i)
            room = tokens
        room -= own
    cuts.append(len(batch.layout.rows))
    return [batch.answers(first, last) for first, last in pairwise(cuts)]


class TokenLogprobs(nn.Module):
    """A causal language model that answers with log-probabilities and entropies of the response tokens.

    forward(batch) -> (logprobs [T], entropy [T]), float32, nats, at `temperature`. Entropies have no gradient.
    forward(batch, temperature, loss_of) -> (loss [], numbers []): what `loss_of` says of the batch's rows, summed.
    """

    def __init__(self, causal_lm: nn.Module):
        super().__init__()
        self.lm = causal_lm

    def forward(self, batch: MicroBatch, temperature: float = 1.0, loss_of: LossOfRows | None = None) -> Any:
        hidden, weight, bias, cap = self._numbers(hidden_states(self.lm.base_model, batch)[batch.predictor])
        if loss_of is None:
            return _Logprobs.apply(hidden, weight, bias, batch.targets, temperature, cap)
        sums: dict[str, Tensor] = {}
        loss = _Loss.apply(hidden, weight, bias, batch, temperature, cap, loss_of, sums)
        return loss, sums

    def logits(self, hidden: Tensor) -> Tensor:
        """All logits of last hidden states: [T, H] -> [T, V], float32, at temperature 1, capped where the model caps them."""
        hidden, weight, bias, cap = self._numbers(hidden)
        return _Head(weight, bias, 1.0, cap).logits(hidden)[0]

    def _numbers(self, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor | None, float | None]:
        """Hidden states, and the head's weight, bias and cap, in the format that they are multiplied in."""
        head = self.lm.get_output_embeddings()
        weight, bias = head.weight, head.bias
        if slow_products(hidden):
            hidden, weight, bias = hidden.float(), weight.float(), None if bias is None else bias.float()
        return hidden, weight, bias, getattr(self.lm.config, "final_logit_softcapping", None)


class ResponseValues(nn.Module):
    """A one-label sequence classifier that answers with values and scores: the critic, and the reward model in training.

    forward(batch) -> (values [T]: V of the state each response token is chosen in, scores [R]: read at the last token),
    both less `offset`, the mean score of the start policy's samples: what is given as reward has its mean at 0.
    """

    def __init__(self, classifier: nn.Module, offset: float = 0.0):
        super().__init__()
        self.lm, self.offset = classifier, offset

    def forward(self, batch: MicroBatch) -> tuple[Tensor, Tensor]:
        hidden = hidden_states(self.lm.base_model, batch)
        both = self.lm.score(torch.cat([hidden[batch.predictor], hidden[batch.last]])).squeeze(-1).float() - self.offset
        return both[: len(batch.predictor)], both[len(batch.predictor) :]
