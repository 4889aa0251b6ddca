"""How fast a device is: a core of this machine, which is timed, or a GPU, by its data sheet."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from dataclasses import dataclass
from time import thread_time
from typing import TYPE_CHECKING

from rlhf_bench.recipe import Recipe, RolePlacement

if TYPE_CHECKING:
    import torch

GPU_TFLOPS = {"float32": 67.0, "bfloat16": 989.0}
"""Peak of an H100 SXM without sparsity, from NVIDIA's data sheet."""
GPU_BYTES_PER_SECOND = 3.35e12
"""Of an H100 SXM's memory, from the same sheet."""
GPU_UTILISATION = 0.3
"""Share of a GPU's peak that training is assumed to reach. Not measured."""

SMALLEST, LARGEST, LONG_ENOUGH = 128, 1024, 0.01
"""Sides of the square matrices whose product is timed: they double until one product takes so many seconds. Without
instructions for it, a CPU multiplies bfloat16 a hundred times slower than float32."""
COPIED_BYTES, ROUNDS = 2**26, 15


@dataclass(frozen=True)
class Speed:
    """Of one core or one GPU."""

    learner_flops: float  # FLOP/s of a large matrix product, by the way that learner, scorer and evaluator take
    engine_flops: float  # the same in the number format of the model, as vLLM takes it
    bytes_per_second: float  # that a core copies, or a GPU reads
    cores: int | None = None  # of the machine that was timed; None where nothing was

    def times(self, devices: int) -> Speed:
        """Of so many together."""
        flops, engine = self.learner_flops * devices, self.engine_flops * devices
        return Speed(flops, engine, self.bytes_per_second * devices, self.cores)


@dataclass(frozen=True)
class Speeds:
    """Of the devices that a recipe's roles have. `core` is None where every role has GPUs."""

    core: Speed | None
    gpu: Speed

    def of(self, role: RolePlacement) -> Speed:
        """Of one actor of the role."""
        if role.gpus:
            return self.gpu.times(role.gpus)
        assert self.core is not None, "speeds_of times a core for every role without GPUs"
        return self.core.times(role.cpus)


def speeds_of(recipe: Recipe) -> Speeds:
    """`placement.device` says them, or this machine's core is timed now: a fraction of a second."""
    device, dtype = recipe.placement.device, recipe.model.dtype
    gpu_flops = (device.peak_tflops or GPU_TFLOPS[dtype]) * 1e12
    gpu = Speed(gpu_flops, gpu_flops, GPU_BYTES_PER_SECOND)
    roles = recipe.placement.roles(scorer=True).values()
    if all(role.gpus for role in roles):
        return Speeds(None, gpu)
    core = core_speed(dtype)
    if device.peak_tflops and not any(role.gpus for role in roles):
        core = Speed(device.peak_tflops * 1e12, device.peak_tflops * 1e12, core.bytes_per_second, core.cores)
    return Speeds(core, gpu)


@functools.cache
def core_speed(dtype: str) -> Speed:
    """Of one core of this machine, timed: the best of a few short rounds."""
    import torch

    from rlhf_bench.models.cpu_kernels import faster_in_float32

    wanted = getattr(torch, dtype)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        engine = _product_flops(wanted)
        learner = _product_flops(torch.float32) if faster_in_float32(torch.empty(0, dtype=wanted)) else engine
        source, target = (torch.zeros(COPIED_BYTES, dtype=torch.uint8) for _ in range(2))
        copying = _best_seconds(lambda: target.copy_(source))
    finally:
        torch.set_num_threads(threads)
    return Speed(learner, engine, COPIED_BYTES / copying, os.cpu_count())


def _product_flops(number_format: torch.dtype) -> float:
    """FLOP/s of a square product."""
    import torch

    side, seconds = SMALLEST // 2, 0.0
    while seconds < LONG_ENOUGH and side < LARGEST:
        side *= 2
        one = torch.ones(side, side, dtype=number_format)
        seconds = _best_seconds(functools.partial(torch.mm, one, one))
    return 2 * side**3 / seconds


def _best_seconds(call: Callable[[], object]) -> float:
    """This thread's own time, of a few calls, after one that does not count: as if nothing else ran on the machine."""
    call()
    found = []
    for _ in range(ROUNDS):
        began = thread_time()
        call()
        found.append(thread_time() - began)
    return min(found)
