"""‖g⁺‖, ‖g⁻‖ and ⟨g⁺, g⁻⟩ of several pairs from one backward pass: exact, and without the gradient of any large weight.

The gradient of a linear layer's weight is Σ_t δ_t x_tᵀ over the tokens, with its inputs x and the gradients δ of its outputs.
So the inner product of two such gradients is

    ⟨Σ_t δ_t x_tᵀ, Σ_s δ_s x_sᵀ⟩ = Σ_t Σ_s ⟨x_t, x_s⟩ ⟨δ_t, δ_s⟩

which needs x and δ alone (Goodfellow 2015, arXiv 1510.01799; "ghost norms" in Li et al. 2022, arXiv 2110.05679). Each side of
a pair is a row of its own, prompt and response, and rows do not see each other. So one backward pass of the sum of all
log-probabilities gives every side its own δ, and a layer's sums are taken as soon as its δ is there.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from rlhf_bench.core.types import Row
from rlhf_bench.methods.base import SideGradients
from rlhf_bench.models.cpu_kernels import Linear
from rlhf_bench.models.heads import TokenLogprobs, hidden_states
from rlhf_bench.models.packing import MicroBatch, micro_batch

GRADIENT_TOKENS = 256
"""Of pairs in one pass, a prompt counted once: enough for products to run at nearly their full rate, and few enough that what a
pass keeps (these tokens, prompts twice) is less than the weights of most models."""
TRIAL = (Row("trial", (0, 1), ((1, 0), (1,))),)
"""What a model is asked to find out how it calls its layers."""


def sides_apart(rows: Sequence[Row]) -> list[Row]:
    """Every side of pairs (chosen, rejected) as a row of its own."""
    return [Row(f"{row.id}/{i}", row.prompt_ids, (side,)) for row in rows for i, side in enumerate(row.responses)]


def why_not_together(model: TokenLogprobs, device: str = "cpu") -> str | None:
    """Why `gradients_together` is not right for this model; None where it is."""
    owners: dict[int, list[nn.Module]] = {}
    for module in model.lm.modules():
        for parameter in module.parameters(recurse=False):
            owners.setdefault(id(parameter), []).append(module)
            if not parameter.requires_grad:
                return "some of its weights are fixed"
            if _kind(module) is None:
                return f"it has layers of type {type(module).__name__}"
    ends = {id(model.lm.get_output_embeddings()), id(model.lm.get_input_embeddings())}
    for sharing in (found for found in owners.values() if len(found) > 1):
        if {id(module) for module in sharing} != ends:
            return f"layers of type {type(sharing[0]).__name__} share their weights"
    batch = micro_batch(TRIAL, apart=True).to(device)
    with torch.no_grad(), _calls(model.lm) as calls:
        hidden_states(model.lm.base_model, batch)
    seen: set[int] = set()
    for call in calls:
        name = type(call.module).__name__
        if id(call.module) in seen or not call.has_all_tokens(batch.layout.tokens):
            return f"its layers of type {name} are not called once with all tokens"
        if _kind(call.module) == "embedding" and not call.is_scaled_lookup():
            return f"its {name} does more than multiply rows by a number"
        seen.add(id(call.module))
    return None


def gradients_together(
    model: TokenLogprobs, rows: Sequence[Row], device: str = "cpu"
) -> tuple[list[SideGradients], float]:
    """Of each pair (chosen, rejected) by itself, with respect to all weights, and the FLOPs of the inner products. All `rows` are
    in one pass. Right where `why_not_together` has nothing to say. `.grad` is left alone."""
    batch = micro_batch(sides_apart(rows), apart=True).to(device)
    places = batch.layout.rows
    pairs = [_Pair(up.start, up.tokens, down.tokens) for up, down in zip(places[::2], places[1::2], strict=True)]
    sums = _Sums(torch.zeros(len(pairs), 3, dtype=torch.float64, device=device), pairs)
    with torch.enable_grad(), _calls(model.lm) as calls, ExitStack() as hooks:
        hidden = hidden_states(model.lm.base_model, batch)[batch.predictor]
        lookups = [call for call in calls if _kind(call.module) == "embedding"]
        for call in calls:
            if (kind := _kind(call.module)) != "embedding":
                # Removed at the end: a hook holds its call, and so the output that it hangs on, in a circle that no garbage
                # collector sees. All activations of every pass would stay.
                hook = call.output.register_hook(partial(sums.linear if kind == "linear" else sums.norm, call))
                hooks.callback(hook.remove)
        by_hidden = sums.head(model, hidden.detach(), batch)
        found = torch.autograd.grad(hidden, [call.output for call in lookups], by_hidden)
    for call, delta in zip(lookups, found, strict=True):
        sums.embedding(call, delta, call.module is model.lm.get_input_embeddings())
    return [SideGradients(math.sqrt(up), math.sqrt(down), dot) for up, down, dot in sums.total.tolist()], sums.flops


@dataclass(frozen=True)
class _Call:
    """A module with weights of its own, and what it made of what."""

    module: Any
    inputs: Tensor  # [1, N, ...], of a norm of single heads also [1, heads, N, ...]
    output: Tensor  # likewise

    def has_all_tokens(self, tokens: int) -> bool:
        shape = self.inputs.shape
        return shape[:2] == (1, tokens) or (_kind(self.module) == "norm" and shape[0] == 1 and shape[2] == tokens)

    @property
    def scale(self) -> Tensor:
        """The number by which an embedding multiplies its rows, as Gemma's does."""
        rows, out = _exact(self.module.weight[self.inputs]), _exact(self.output)
        return (out * rows).sum() / rows.square().sum()

    def is_scaled_lookup(self) -> bool:
        rows, out = _exact(self.module.weight[self.inputs]), _exact(self.output)
        close = torch.allclose(out, self.scale * rows, rtol=1e-2, atol=1e-6)
        return close and not (self.module.scale_grad_by_freq or self.module.max_norm is not None)


@contextmanager
def _calls(lm: nn.Module) -> Iterator[list[_Call]]:
    """The calls of all modules with weights of their own within the block, in order."""
    calls: list[_Call] = []

    def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
        calls.append(_Call(module, [*args, *kwargs.values()][0], output))

    with ExitStack() as stack:
        for module in lm.modules():
            if next(module.parameters(recurse=False), None) is not None:
                stack.callback(module.register_forward_hook(note, with_kwargs=True).remove)
        yield calls


def _kind(module: nn.Module) -> str | None:
    """How the gradient of a module's own weights is composed; None where that is not known."""
    if type(module) in (nn.Linear, Linear) or type(module).__name__ == "Conv1D":  # GPT-2's: a transposed weight
        return "linear"
    if isinstance(module, nn.Embedding):
        return "embedding"
    return "norm" if type(module).__name__.endswith(("RMSNorm", "LayerNorm")) else None


@dataclass(frozen=True)
class _Pair:
    """Where a pair's tokens stand: the chosen side's, and behind them the rejected one's."""

    start: int
    chosen: int
    rejected: int

    @property
    def sides(self) -> tuple[slice, slice]:
        middle = self.start + self.chosen
        return slice(self.start, middle), slice(middle, middle + self.rejected)

    @property
    def whole(self) -> slice:
        return slice(self.start, self.start + self.chosen + self.rejected)


@dataclass
class _Sums:
    """What the layers add up to, pair by pair: ‖g⁺‖², ‖g⁻‖², ⟨g⁺, g⁻⟩ [P, 3]."""

    total: Tensor
    pairs: Sequence[_Pair]
    flops: float = 0.0
    # By pair, of a head that is tied to the embedding: hidden states [T, H], δ of the logits of the pair's own L tokens [T, L],
    # and how many of T are the chosen side's.
    tied: list[tuple[Tensor, Tensor, int]] = field(default_factory=list)

    def linear(self, call: _Call, delta: Tensor) -> None:
        for i, pair in enumerate(self.pairs):
            self._products(i, pair.chosen, _exact(call.inputs[0, pair.whole]), _exact(delta[0, pair.whole]))
            if call.module.bias is not None:
                self._vectors(i, [_exact(delta[0, side]).sum(0) for side in pair.sides])

    def norm(self, call: _Call, delta: Tensor) -> None:
        """The few weights of a norm: their gradients themselves, side by side."""
        weights, tokens = list(call.module.parameters(recurse=False)), sum(p.chosen + p.rejected for p in self.pairs)
        for i, pair in enumerate(self.pairs):
            found = []
            for side in pair.sides:
                with torch.enable_grad():
                    out = call.module.forward(_tokens_first(call.inputs, tokens)[:, side].detach())  # past the hooks
                gradients = torch.autograd.grad(out, weights, _tokens_first(delta, tokens)[:, side])
                found.append(torch.cat([_exact(g).flatten() for g in gradients]))
            self._vectors(i, found)

    def embedding(self, call: _Call, delta: Tensor, is_input: bool) -> None:
        """A token adds its δ to the row of its id. A tied head adds to all rows."""
        scale, padding = call.scale, call.module.padding_idx
        for i, pair in enumerate(self.pairs):
            ids, added = call.inputs[0, pair.whole], scale * _exact(delta[0, pair.whole])
            if padding is not None:  # torch never moves this row
                added = added.masked_fill((ids == padding)[:, None], 0.0)
            self._add(i, pair.chosen, pair.chosen, (ids[:, None] == ids) * (added @ added.t()))
            self.flops += 2.0 * added.shape[1] * len(ids) ** 2
            if is_input and self.tied:
                states, of_ids, chosen = self.tied[i]
                products = of_ids * (states @ added.t())
                self._add(i, chosen, pair.chosen, products)
                self._add(i, pair.chosen, chosen, products.t())
                self.flops += 2.0 * added.shape[1] * len(ids) * len(states)

    def head(self, model: TokenLogprobs, hidden: Tensor, batch: MicroBatch) -> Tensor:
        """The gradient of all log-probabilities, summed, by `hidden` [T, H], the states that predict. Logits of a pair at a
        time."""
        layer = model.lm.get_output_embeddings()
        is_tied = layer.weight is model.lm.get_input_embeddings().weight
        lengths, at, by_hidden = batch.response_index.bincount().tolist(), 0, torch.empty_like(hidden)
        for i, pair in enumerate(self.pairs):
            chosen, rejected = lengths[2 * i : 2 * i + 2]
            part, at = slice(at, at + chosen + rejected), at + chosen + rejected
            with torch.no_grad():
                states, head = model.head(hidden[part])
                found = head.chunk(states, batch.targets[part], None)
            assert found.errors is not None
            by_hidden[part] = -found.by_hidden
            states = _exact(states)
            delta = -found.errors.to(states.dtype)
            self._products(i, chosen, states, delta)
            if layer.bias is not None:
                self._vectors(i, [delta[:chosen].sum(0), delta[chosen:].sum(0)])
            if is_tied:
                self.tied.append((states, delta[:, batch.input_ids[0, pair.whole]], chosen))
        return by_hidden

    def _products(self, i: int, chosen: int, a: Tensor, b: Tensor) -> None:
        """Add what Σ_t a_t b_tᵀ [A, B] gives, of which the first `chosen` tokens are the chosen side's: from products of tokens,
        or from the matrices of both sides where these are cheaper, as for long responses."""
        tokens, (inputs, outputs) = len(a), (a.shape[1], b.shape[1])
        if tokens * (inputs + outputs) <= inputs * outputs:
            self._add(i, chosen, chosen, (a @ a.t()).mul_(b @ b.t()))
            self.flops += 2.0 * tokens**2 * (inputs + outputs)
        else:
            self._vectors(i, [(a[side].t() @ b[side]).flatten() for side in (slice(chosen), slice(chosen, None))])
            self.flops += 2.0 * tokens * inputs * outputs

    def _vectors(self, i: int, sides: Sequence[Tensor]) -> None:
        up, down = sides
        self.total[i] += torch.stack([up @ up, down @ down, up @ down])

    def _add(self, i: int, above: int, left: int, products: Tensor) -> None:
        """Add inner products of what single tokens contribute. The first `above` rows, and the first `left` columns, are tokens of
        the chosen side."""
        up, down = products[:above, :left].sum(), products[above:, left:].sum()
        self.total[i] += torch.stack([up, down, products[:above, left:].sum()])


def _tokens_first(x: Tensor, tokens: int) -> Tensor:
    """[1, N, ...]. Where there are as many heads as tokens the strides tell which is which: a token holds its heads."""
    _, dim = max((x.stride(dim), dim) for dim in (1, 2) if x.shape[dim] == tokens)
    return x.transpose(1, dim)


def _exact(numbers: Tensor) -> Tensor:
    """In float32, or in float64 where they are."""
    return numbers.detach().to(torch.promote_types(numbers.dtype, torch.float32))
