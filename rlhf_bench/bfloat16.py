"""Products of bfloat16 matrices on a CPU without tiles for them (AMX).

Without any instructions for bfloat16 torch multiplies such matrices one number at a time, tens of times slower than in
float32; with AVX-512's it takes twice as long as in float32. Here they are multiplied in float32, which holds every
bfloat16 exactly, and the result is rounded once, as an instruction for them would.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor, nn


def slow_products(tensor: Tensor) -> bool:
    """Whether a product of this tensor had better be made in float32."""
    return tensor.dtype == torch.bfloat16 and tensor.device.type == "cpu" and not _cpu_has_tiles()


@cache
def _cpu_has_tiles() -> bool:
    return bool(torch.cpu._is_amx_tile_supported())


class Linear(nn.Linear):
    """`nn.Linear`, its product made in float32 where that is faster. Weights and what goes in and out keep their type."""

    def forward(self, input: Tensor) -> Tensor:
        if not slow_products(input):
            return super().forward(input)
        bias = None if self.bias is None else self.bias.float()
        return nn.functional.linear(input.float(), self.weight.float(), bias).to(input.dtype)


def with_fast_products(model: nn.Module) -> nn.Module:
    """Every plain linear layer of the model becomes one of these, in place."""
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = Linear
    return model
