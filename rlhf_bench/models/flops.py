"""Floating-point operations, counted from shapes (a multiply-add is two). docs/compute.md derives each formula.

The count is of what is executed: in attention, all scores of the blocks that the kernel is called on, masked or not
(`layout.Layout.scores`). Element-wise work (norms, activations, softmax, optimizer) is left out, as in
`torch.utils.flop_counter`, against which a test holds these formulas to 3 %.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from torch import nn

from rlhf_bench.models.layout import Layout
from rlhf_bench.models.lm_head import tokens_in_chunk


@dataclass(frozen=True)
class ModelShape:
    """What the formulas need to know about a decoder."""

    matmul_weights: int  # weights of the backbone's linear layers, all layers together
    layers: int
    attention_width: int  # query heads × head size
    head_weights: int  # hidden × vocabulary, or hidden × 1
    parameters: int  # all of them, shared ones once
    linear_width: int  # inputs and outputs of the backbone's linear layers together: numbers that a token keeps for the backward pass
    vocabulary: int  # rows of the head; 1 of a scalar one
    lora_rank: int = 0  # of the adapters beside these layers, which alone are trained then; 0 without adapters

    @classmethod
    def of(cls, model: nn.Module) -> ModelShape:
        """The shape of a Hugging Face model without adapters, which may be on the meta device."""
        config = model.config
        head = model.get_output_embeddings() or model.score
        linears = [
            m.weight
            for m in model.modules()
            if (isinstance(m, nn.Linear) or type(m).__name__ == "Conv1D") and m is not head
        ]
        size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        return cls(
            sum(w.numel() for w in linears),
            config.num_hidden_layers,
            config.num_attention_heads * size,
            head.weight.numel(),
            sum(p.numel() for p in model.parameters()),
            sum(sum(w.shape) for w in linears),
            len(head.weight),
        )

    @property
    def adapter_weights(self) -> int:
        """A layer of i inputs and o outputs has adapters of r × i and o × r."""
        return self.lora_rank * self.linear_width

    @property
    def trained(self) -> int:
        """Number of parameters that are trained."""
        return self.adapter_weights or self.parameters

    @property
    def merged(self) -> ModelShape:
        """The same with its adapters merged into the weights, as engines, reference and scorer hold it."""
        return replace(self, lora_rank=0)


ATTENTION_BACKWARD = 2.5
"""A fused attention kernel recomputes the scores in its backward pass: five products of the forward's size against two."""


def forward_flops(shape: ModelShape, layout: Layout, head_positions: int) -> float:
    """One forward pass over packed rows, the head applied at `head_positions`."""
    return _linear(shape, layout, head_positions) + _attention(shape, layout)


def training_flops(shape: ModelShape, layout: Layout, head_positions: int) -> float:
    """Forward and backward: products with weights cost twice the forward again, once where these are frozen (only their
    inputs need a gradient); attention 2.5 times. For a row longer than a chunk of logits the head runs once more."""
    again = sum(n for row in layout.rows if (n := sum(row.responses)) > tokens_in_chunk(shape.vocabulary))
    forward = forward_flops(shape, layout, head_positions)
    return forward + _backward(shape, layout, head_positions) + 2.0 * shape.head_weights * again


def side_gradients_flops(shape: ModelShape, layout: Layout, head_positions: int) -> float:
    """One forward pass and two backward passes over pairs, each of which computes the logits once more."""
    backward = _backward(shape, layout, head_positions) + 2.0 * shape.head_weights * head_positions
    return forward_flops(shape, layout, head_positions) + 2.0 * backward


def input_gradients_flops(shape: ModelShape, layout: Layout, head_positions: int) -> float:
    """One forward pass, and a backward one to the inputs of every layer and to no weight. The logits are computed once."""
    shape = shape.merged
    return 2.0 * _linear(shape, layout, head_positions) + (1.0 + ATTENTION_BACKWARD) * _attention(shape, layout)


def _backward(shape: ModelShape, layout: Layout, head_positions: int) -> float:
    linear, attention = _linear(shape, layout, head_positions), _attention(shape, layout)
    frozen = _linear(shape.merged, layout, head_positions) if shape.lora_rank else 0.0
    return 2.0 * linear - frozen + ATTENTION_BACKWARD * attention


def _linear(shape: ModelShape, layout: Layout, head_positions: int) -> float:
    weights = shape.matmul_weights + shape.adapter_weights
    return 2.0 * weights * layout.tokens + 2.0 * shape.head_weights * head_positions


def _attention(shape: ModelShape, layout: Layout) -> float:
    return 4.0 * shape.layers * shape.attention_width * layout.scores


def generation_flops(shape: ModelShape, requests: Iterable[tuple[int, int, int]]) -> float:
    """Sampling with a key-value cache by an engine, which holds merged weights.

    Each request: (prompt tokens, how many of them came from the prefix cache, response tokens).

    Position t attends to t+1 keys; the head runs once for each response token; the last response token is never fed.
    """
    total = 0.0
    for prompt, cached, response in requests:
        end = prompt + max(response - 1, 0)
        fed = end - cached
        keys = (end * (end + 1) - cached * (cached + 1)) / 2
        total += 2.0 * shape.matmul_weights * fed + 4.0 * shape.layers * shape.attention_width * keys
        total += 2.0 * shape.head_weights * response
    return total
