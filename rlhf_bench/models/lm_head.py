"""The language-model head in chunks of tokens, so that the logits of a batch, tokens × vocabulary, never exist at once.

In training the gradient of a chunk of whole rows is taken as soon as its logits are there. Only the logits of a row that is
longer than a chunk are computed twice.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from rlhf_bench.models.packing import MicroBatch, ResponseSlice

LOGITS_IN_CHUNK = 2**24
"""Size of a chunk of logits: 64 MiB of float32."""
SMALLEST_PROBABILITY = 1e-30
"""Below it a float32 loses digits, and in the end all of them. The logarithm of a smaller probability is computed from the
logits."""

Sums = tuple[Tensor, dict[str, Tensor]]
"""A loss and named numbers, each summed over the units of some rows."""
LossOfRows = Callable[[ResponseSlice, Tensor, Tensor], Sums]
"""Responses of some rows, log-probabilities [t] and entropies [t] of their tokens -> sums."""


def tokens_in_chunk(vocabulary: int) -> int:
    return max(1, LOGITS_IN_CHUNK // vocabulary)


@dataclass(frozen=True)
class Head:
    """The last linear layer: logits = hidden · weightᵀ + bias, capped where the model caps them, and divided
    by the temperature."""

    weight: Tensor  # [V, H]
    bias: Tensor | None  # [V]
    temperature: float
    cap: float | None

    def chunks(self, tokens: int) -> list[slice]:
        size = tokens_in_chunk(len(self.weight))
        return [slice(at, min(at + size, tokens)) for at in range(0, tokens, size)]

    def logits(self, hidden: Tensor, room: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Logits [t, H] -> [t, V] in float32, written to `room` if given; and the slope of the cap, where there is a cap."""
        if room is None:
            logits = nn.functional.linear(hidden, self.weight, self.bias).float()
        else:
            logits = torch.mm(hidden, self.weight.t(), out=room[: len(hidden)])
            if self.bias is not None:
                logits += self.bias
        slope = None
        if self.cap is not None:
            bent = torch.tanh(logits / self.cap)
            logits, slope = self.cap * bent, 1 - bent**2
        return (logits / self.temperature if self.temperature != 1 else logits), slope

    def room(self, tokens: int) -> Tensor | None:
        """Memory for the logits of a chunk, which every chunk uses again: a product takes a third longer where it is written to
        memory that is not in a cache. None where products are not in float32."""
        if self.weight.dtype != torch.float32:
            return None
        vocabulary = len(self.weight)
        return self.weight.new_empty(min(tokens, tokens_in_chunk(vocabulary)), vocabulary)

    def logprobs(self, hidden: Tensor, targets: Tensor, room: Tensor | None) -> Tensor:
        """Log-probabilities of the targets: [t, H], [t] -> [t]."""
        return self._softmax_(hidden, self.logits(hidden, room)[0], targets)[0]

    def chunk(self, hidden: Tensor, targets: Tensor, room: Tensor | None) -> _Chunk:
        """What a loss and its gradient need, for t tokens: [t, H], [t] -> t tokens. Its errors may be stored in `room`."""
        logits, slope = self.logits(hidden, room)
        # Entropy is −logprob − Σ_v errors · logits. Where logits are a plain product in float32 the sum is that of
        # hidden · (errors · weight), which is needed anyway. This saves a pass over the vocabulary and a copy.
        plain = slope is None and self.weight.dtype == torch.float32
        logprobs, errors = self._softmax_(hidden, logits if plain else logits.clone(), targets)
        if not plain:
            rest = torch.linalg.vecdot(errors, logits)
        if slope is not None:
            errors *= slope
        by_hidden = errors.to(self.weight.dtype) @ self.weight
        if plain:
            rest = torch.linalg.vecdot(hidden, by_hidden)
            rest = (rest if self.bias is None else rest + errors @ self.bias) / self.temperature
        return _Chunk(logprobs, -logprobs - rest, errors, by_hidden)

    def errors(self, hidden: Tensor, targets: Tensor, room: Tensor | None) -> Tensor:
        """The errors of `chunk`, computed again."""
        logits, slope = self.logits(hidden, room)
        errors = _less_one_(torch.softmax(logits, -1, out=logits), targets)
        return errors if slope is None else errors.mul_(slope)

    def _softmax_(self, hidden: Tensor, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probabilities of the targets [t]; and probabilities less 1 at the target [t, V], in place of the logits."""
        probabilities = torch.softmax(logits, -1, out=logits)
        chosen = probabilities.gather(1, targets[:, None]).squeeze(1)
        logprobs = chosen.log()
        vanishing = (chosen < SMALLEST_PROBABILITY).nonzero().squeeze(1)
        if len(vanishing):
            logits_again = self.logits(hidden[vanishing])[0]
            logprobs[vanishing] = logits_again.log_softmax(-1).gather(1, targets[vanishing, None]).squeeze(1)
        return logprobs, _less_one_(probabilities, targets)


def _less_one_(probabilities: Tensor, targets: Tensor) -> Tensor:
    return probabilities.scatter_add_(1, targets[:, None], probabilities.new_full((len(targets), 1), -1.0))


@dataclass(frozen=True)
class _Chunk:
    """The head's results for t tokens. `errors` are probabilities less 1 at the target, times the cap's slope: the gradient
    of −temperature · logprob by hidden · weightᵀ."""

    logprobs: Tensor  # [t] float32
    entropy: Tensor  # [t] float32
    errors: Tensor | None  # [t, V] float32
    by_hidden: Tensor  # [t, H]: errors · weight


class _Gradients:
    """Gradients of the head: by hidden states, and by weight and bias summed over chunks."""

    def __init__(self, head: Head, hidden: Tensor, to_weight: bool, to_bias: bool):
        self.head, self.hidden, self.to_weight, self.to_bias = head, hidden, to_weight, to_bias
        self.by_hidden = torch.empty_like(hidden)
        # In float32 even where the weights are not, since many chunks are summed.
        self.by_weight: Tensor | None = None
        self.by_bias: Tensor | None = None

    def add(self, part: slice, errors: Tensor, by_hidden: Tensor, upstream: Tensor) -> None:
        """Add the gradients of the tokens of this part. `upstream` is ∂loss/∂logprob [t]."""
        dtype = self.hidden.dtype
        scale = -upstream / self.head.temperature
        torch.mul(by_hidden, scale[:, None], out=self.by_hidden[part])
        if self.to_weight:
            left, right = errors.to(dtype).t(), (self.hidden[part] * scale[:, None]).to(dtype)
            if self.by_weight is None:
                self.by_weight = (left @ right).float()
            elif left.dtype == torch.float32:
                self.by_weight.addmm_(left, right)
            else:
                self.by_weight += left @ right
        if self.to_bias:
            by_bias = scale @ errors
            self.by_bias = by_bias if self.by_bias is None else self.by_bias.add_(by_bias)

    def scaled(self, factor: Tensor | float) -> tuple[Tensor, Tensor | None, Tensor | None]:
        dtype = self.head.weight.dtype
        rest = (None if g is None else g.mul_(factor).to(dtype) for g in (self.by_weight, self.by_bias))
        return self.by_hidden.mul_(factor), *rest


class ChunkedLogprobs(torch.autograd.Function):
    """hidden [T, H] -> log-probabilities [T], float32. The backward pass computes each chunk's logits again."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        temperature: float,
        cap: float | None,
    ) -> Tensor:
        ctx.save_for_backward(hidden, weight, bias, targets)
        ctx.temperature, ctx.cap = temperature, cap
        head = Head(weight, bias, temperature, cap)
        room = head.room(len(targets))
        return torch.cat([head.logprobs(hidden[part], targets[part], room) for part in head.chunks(len(targets))])

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Any, ...]:
        hidden, weight, bias, targets = ctx.saved_tensors
        head = Head(weight, bias, ctx.temperature, ctx.cap)
        back = _Gradients(head, hidden, ctx.needs_input_grad[1], ctx.needs_input_grad[2])
        room = head.room(len(targets))
        for part in head.chunks(len(targets)):
            errors = head.errors(hidden[part], targets[part], room)
            back.add(part, errors, errors.to(weight.dtype) @ weight, gradients[0][part])
        return *back.scaled(1.0), None, None, None


class ChunkedLoss(torch.autograd.Function):
    """hidden [T, H] -> the summed loss. A chunk holds whole rows; its gradient is taken while its probabilities are
    in memory. The logits of a row that is longer than a chunk are computed twice."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        batch: MicroBatch,
        temperature: float,
        cap: float | None,
        loss_of: LossOfRows,
        sums: dict[str, Tensor],
    ) -> Tensor:
        head = Head(weight, bias, temperature, cap)
        back = _Gradients(head, hidden, ctx.needs_input_grad[1], ctx.needs_input_grad[2])
        total = hidden.new_zeros((), dtype=torch.float32)
        room = head.room(len(batch.targets))
        for rows in _whole_rows(batch, tokens_in_chunk(len(weight))):
            part = rows.tokens
            pieces = [slice(part.start + p.start, part.start + p.stop) for p in head.chunks(part.stop - part.start)]
            found = []
            for piece in pieces:
                chunk = head.chunk(hidden[piece], batch.targets[piece], room)
                found.append(chunk if len(pieces) == 1 else replace(chunk, errors=None))
                del chunk  # frees its errors before the next chunk's are made
            with torch.enable_grad():
                logprobs = torch.cat([f.logprobs for f in found]).requires_grad_()
                loss, numbers = loss_of(rows, logprobs, torch.cat([f.entropy for f in found]))
                (upstream,) = torch.autograd.grad(loss, logprobs)
            total += loss.detach()
            for name, value in numbers.items():
                sums[name] = sums[name] + value if name in sums else value
            for piece, chunk in zip(pieces, found, strict=True):
                errors = chunk.errors
                if errors is None:
                    errors = head.errors(hidden[piece], batch.targets[piece], room)
                own = upstream[piece.start - part.start : piece.stop - part.start]
                back.add(piece, errors, chunk.by_hidden, own)
        ctx.back = back
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Any, ...]:
        scaled = ctx.back.scaled(gradients[0])
        del ctx.back
        return *scaled, None, None, None, None, None


def _whole_rows(batch: MicroBatch, tokens: int) -> list[ResponseSlice]:
    """The batch in parts of whole rows: each has at most `tokens` response tokens, or is one row."""
    cuts, room = [0], tokens
    for i, row in enumerate(batch.layout.rows):
        own = sum(row.responses)
        if own > room and i > cuts[-1]:
            cuts.append(i)
            room = tokens
        room -= own
    cuts.append(len(batch.layout.rows))
    return [batch.answers(first, last) for first, last in pairwise(cuts)]
