"""What stands between a decoder's products, on a CPU in float32: RMS norm and rotary embedding in fewer passes over memory.

transformers writes both as chains of small operations, each of which reads and writes the whole tensor, and autograd
doubles the chain. Here each is one function with its own gradient. The numbers are the same to float32 rounding.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

_ROTARY = "apply_rotary_pos_emb"


class _RmsNorm(torch.autograd.Function):
    """x · r · weight with r = 1 / √(mean x² + ε): [..., H] -> [..., H]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        r = torch.linalg.vecdot(x, x).div_(x.shape[-1]).add_(epsilon).rsqrt_()
        ctx.save_for_backward(x, weight, r)
        return torch.mul(x, r[..., None]).mul_(weight)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor | None, None]:
        x, weight, r = ctx.saved_tensors
        (upstream,) = gradients
        by_x = upstream * x
        to_weight = r.flatten() @ by_x.flatten(0, -2) if ctx.needs_input_grad[1] else None
        along = (by_x @ weight).mul_(r.pow(3)).div_(-x.shape[-1])
        return (upstream * weight).mul_(r[..., None]).addcmul_(x, along[..., None]), to_weight, None


class _Rotary(torch.autograd.Function):
    """Turns the pairs (x_i, x_{i+D/2}) by an angle each: [1, H, N, D], cos and sin [1, 1, N, D], their halves alike."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _turned(x, cos, sin)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return _turned(gradients[0], cos, -sin), None, None


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    out = torch.empty_like(x)
    (first, second), (to_first, to_second) = x.chunk(2, -1), out.chunk(2, -1)
    cos, sin = cos.chunk(2, -1)[0], sin.chunk(2, -1)[0]
    torch.mul(first, cos, out=to_first).addcmul_(second, sin, value=-1)
    torch.mul(second, cos, out=to_second).addcmul_(first, sin)
    return out


def _here(*tensors: Tensor) -> bool:
    return all(t.device.type == "cpu" and t.dtype == torch.float32 for t in tensors)


def _of(cls: type[nn.Module]) -> type[nn.Module]:
    """The norm's class with the forward pass of this file, where that is meant for its tensors."""

    def forward(self: Any, hidden_states: Tensor) -> Tensor:
        if not _here(hidden_states, self.weight):
            return cls.forward(self, hidden_states)
        return _RmsNorm.apply(hidden_states, self.weight, self.variance_epsilon)

    return type(cls.__name__, (cls,), {"forward": forward})


def _rotary_of(original: Callable[..., tuple[Tensor, Tensor]]) -> Callable[..., tuple[Tensor, Tensor]]:
    def rotary(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int = 1) -> tuple[Tensor, Tensor]:
        if not _here(q, k, cos, sin):
            return original(q, k, cos, sin, unsqueeze_dim)
        cos, sin = cos.unsqueeze(unsqueeze_dim), sin.unsqueeze(unsqueeze_dim)
        return _Rotary.apply(q, cos, sin), _Rotary.apply(k, cos, sin)

    rotary.replaces = original  # type: ignore[attr-defined]
    return rotary


def with_fewer_passes(model: nn.Module) -> nn.Module:
    """The model with this file's norms and rotary embedding, in place: of those that compute what these do, which is tried
    out, since families differ (Gemma's norm adds 1 to its weight; some turn neighbours, or a part of the numbers)."""
    classes: dict[type, type] = {}
    for module in model.modules():
        cls = type(module)
        if "RMSNorm" in cls.__name__ and hasattr(module, "variance_epsilon"):
            if cls not in classes:
                classes[cls] = _of(cls) if _same_norm(module) else cls
            module.__class__ = classes[cls]
    # Attention finds its rotary embedding by name in its own file, so there it is put.
    for file in {type(module).__module__ for module in model.modules() if type(module).__name__.endswith("Attention")}:
        original = getattr(sys.modules[file], _ROTARY, None)
        if original is not None and not hasattr(original, "replaces") and _same_rotary(original):
            setattr(sys.modules[file], _ROTARY, _rotary_of(original))
    return model


def _same_norm(module: Any) -> bool:
    with torch.no_grad():
        if getattr(module, "weight", None) is None:
            return False
        x, weight = _numbers(3, module.weight.numel()), _numbers(module.weight.numel())
        try:
            trial = type(module)(len(weight), eps=module.variance_epsilon)
        except TypeError:  # is made of other arguments
            return False
        trial.weight.copy_(weight)
        return torch.allclose(trial(x), _RmsNorm.apply(x, weight, module.variance_epsilon), rtol=1e-5, atol=1e-6)


def _same_rotary(function: Callable[..., tuple[Tensor, Tensor]]) -> bool:
    q, k, angles = _numbers(1, 2, 3, 8), _numbers(1, 1, 3, 8), _numbers(1, 3, 4).repeat(1, 1, 2)
    cos, sin = angles.cos(), angles.sin()
    try:
        expected = function(q, k, cos, sin)
    except (TypeError, ValueError, RuntimeError):  # takes other arguments, or these in other shapes
        return False
    pairs = zip(expected, _rotary_of(function)(q, k, cos, sin), strict=True)
    return all(one.shape == other.shape and torch.allclose(one, other, rtol=1e-5, atol=1e-6) for one, other in pairs)


def _numbers(*shape: int) -> Tensor:
    """Some, always the same, without touching torch's random numbers."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


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
