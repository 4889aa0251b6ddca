"""The parts of a model that a CPU computes faster in another way, put in place of transformers' own, for one model alone.

Norms and rotary embeddings, in float32 and bfloat16: transformers writes both as chains of small operations, each of which
reads and writes the whole tensor, and autograd doubles the chain. Here each is one function with its own gradient. The numbers
are the same up to rounding; in bfloat16 a norm is computed in float32, and rounded once.

Linear layers, in bfloat16: a CPU without fast bfloat16 instructions computes a product faster in float32.

Each module of the model gets a class derived from its own. No class, function or module of transformers changes, so
other models in the process compute as before.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from itertools import pairwise
from time import perf_counter
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn

_ROTARY = "apply_rotary_pos_emb"
"""The function that transformers' attention modules call, a global name in their files."""

Rotary = Callable[..., tuple[Tensor, Tensor]]


def with_cpu_kernels(model: nn.Module) -> nn.Module:
    """Replace the classes of the model's modules, in place, and return it.

    Only modules that compute what this file computes are replaced. This is tested by numbers, since families differ:
    Gemma's norm adds 1 to its weight; some rotary embeddings rotate neighbouring numbers, or only a part of them.
    """
    classes: dict[type, type] = {}
    for module in model.modules():
        cls = type(module)
        if cls not in classes:
            classes[cls] = _faster_class(module)
        module.__class__ = classes[cls]
    return model


def _faster_class(module: nn.Module) -> type:
    cls = type(module)
    if cls.__module__ == __name__:  # replaced before
        return cls
    if cls is nn.Linear:
        return Linear
    if "RMSNorm" in cls.__name__ and hasattr(module, "variance_epsilon"):
        return _with_fast_norm(cls) if _is_plain_norm(module) else cls
    return _with_fast_rotary(cls)


class Linear(nn.Linear):
    """`nn.Linear`, its product computed in float32 where that is faster. Weights, inputs and outputs keep their type."""

    def forward(self, input: Tensor) -> Tensor:
        if not faster_in_float32(input):
            return super().forward(input)
        bias = None if self.bias is None else self.bias.float()
        return nn.functional.linear(input.float(), self.weight.float(), bias).to(input.dtype)


def faster_in_float32(tensor: Tensor) -> bool:
    """Whether a product with this tensor is computed faster in float32."""
    return tensor.dtype == torch.bfloat16 and tensor.device.type == "cpu" and not _bfloat16_is_faster()


@cache
def _bfloat16_is_faster() -> bool:
    """Whether this CPU multiplies matrices of bfloat16 faster than of float32: timed, once in a process. The instructions alone do
    not tell: those of AVX-512 ran at half of float32's rate on an Intel Xeon, and at four times that rate on an AMD EPYC."""
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return False
    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        one, other = _sample_numbers(256, 512).to(dtype), _sample_numbers(512, 512).to(dtype)
        ends = [perf_counter()]
        for _ in range(6):
            one @ other
            ends.append(perf_counter())
        seconds[dtype] = min(end - before for before, end in pairwise(ends))
    return seconds[torch.bfloat16] < seconds[torch.float32]


# Norms


class _RmsNorm(torch.autograd.Function):
    """x · r · weight with r = 1 / √(mean x² + ε): [..., H] -> [..., H]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        exact = x.float()
        r = torch.linalg.vecdot(exact, exact).div_(x.shape[-1]).add_(epsilon).rsqrt_()
        ctx.save_for_backward(x, weight, r)
        return torch.mul(exact, r[..., None]).mul_(weight).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor | None, None]:
        x, weight, r = ctx.saved_tensors
        exact, scale, upstream = x.float(), weight.float(), gradients[0].float()
        by_x = upstream * exact
        to_weight = (r.flatten() @ by_x.flatten(0, -2)).to(weight.dtype) if ctx.needs_input_grad[1] else None
        along = (by_x @ scale).mul_(r.pow(3)).div_(-x.shape[-1])
        by_input = (upstream * scale).mul_(r[..., None]).addcmul_(exact, along[..., None])
        return by_input.to(x.dtype), to_weight, None


def _with_fast_norm(cls: type[nn.Module]) -> type[nn.Module]:
    def forward(self: Any, hidden_states: Tensor) -> Tensor:
        if not _here(hidden_states, self.weight):
            return cls.forward(self, hidden_states)
        return _RmsNorm.apply(hidden_states, self.weight, self.variance_epsilon)

    return type(cls.__name__, (cls,), {"forward": forward})


def _is_plain_norm(module: Any) -> bool:
    """Whether a new module of the same class gives the numbers of `_RmsNorm`."""
    with torch.no_grad():
        if getattr(module, "weight", None) is None:
            return False
        x, weight = _sample_numbers(3, module.weight.numel()), _sample_numbers(module.weight.numel())
        try:
            trial = type(module)(len(weight), eps=module.variance_epsilon)
        except TypeError:  # its constructor takes other arguments
            return False
        trial.weight.copy_(weight)
        return torch.allclose(trial(x), _RmsNorm.apply(x, weight, module.variance_epsilon), rtol=1e-5, atol=1e-6)


# Rotary embeddings


class _Rotate(torch.autograd.Function):
    """Rotates the pairs (x_i, x_{i+D/2}), each by its angle: x [1, H, N, D]; cos and sin [1, 1, N, D], both halves alike."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _rotated(x, cos, sin)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return _rotated(gradients[0], cos, -sin), None, None


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    out = torch.empty_like(x)
    (first, second), (to_first, to_second) = x.chunk(2, -1), out.chunk(2, -1)
    cos, sin = cos.chunk(2, -1)[0], sin.chunk(2, -1)[0]
    torch.mul(first, cos, out=to_first).addcmul_(second, sin, value=-1)
    torch.mul(second, cos, out=to_second).addcmul_(first, sin)
    return out


def _with_fast_rotary(cls: type[nn.Module]) -> type[nn.Module]:
    """The class with a copy of its `forward` in which the global name of the rotary function stands for a faster one."""
    forward = cls.forward
    if not isinstance(forward, FunctionType) or _ROTARY not in forward.__code__.co_names:
        return cls
    original = forward.__globals__.get(_ROTARY)
    if original is None or not _is_plain_rotary(original):
        return cls
    names = {**forward.__globals__, _ROTARY: _fast_rotary(original)}
    copy = FunctionType(forward.__code__, names, forward.__name__, forward.__defaults__, forward.__closure__)
    copy.__kwdefaults__ = forward.__kwdefaults__
    return type(cls.__name__, (cls,), {"forward": copy})


def _fast_rotary(original: Rotary) -> Rotary:
    """For query [1, H, N, D] and key [1, H or fewer, N, D]; other number formats and devices go to `original`."""

    def rotary(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int = 1) -> tuple[Tensor, Tensor]:
        if not _here(q, k, cos, sin):
            return original(q, k, cos, sin, unsqueeze_dim)
        cos, sin = cos.unsqueeze(unsqueeze_dim), sin.unsqueeze(unsqueeze_dim)
        return _Rotate.apply(q, cos, sin), _Rotate.apply(k, cos, sin)

    return rotary


def _is_plain_rotary(function: Rotary) -> bool:
    """Whether it gives the numbers of `_Rotate`."""
    q, k, angles = _sample_numbers(1, 2, 3, 8), _sample_numbers(1, 1, 3, 8), _sample_numbers(1, 3, 4).repeat(1, 1, 2)
    cos, sin = angles.cos(), angles.sin()
    try:
        expected = function(q, k, cos, sin)
    except (TypeError, ValueError, RuntimeError):  # it takes other arguments, or these in other shapes
        return False
    pairs = zip(expected, _fast_rotary(function)(q, k, cos, sin), strict=True)
    return all(one.shape == other.shape and torch.allclose(one, other, rtol=1e-5, atol=1e-6) for one, other in pairs)


# Both


def _here(*tensors: Tensor) -> bool:
    """Whether all are on a CPU and of one format that is computed here."""
    (first, *_) = tensors
    return first.dtype in (torch.float32, torch.bfloat16) and all(
        t.device.type == "cpu" and t.dtype == first.dtype for t in tensors
    )


def _sample_numbers(*shape: int) -> Tensor:
    """Normal numbers, the same in every call. torch's global random state stays as it is."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))
