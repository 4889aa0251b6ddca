"""What training resumes from, to files and back: the weights that learn, Adam's moments, and random number generators.

Files hold full float32 arrays whatever ZeRO stage shards them, so that another number of ranks can resume. Every function
holds collectives: all ranks call it together.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from safetensors.torch import load, save

from actors.learner.deepspeed_engine import DeepSpeedModel, RankSetup
from rlhf_bench.core.types import Row
from rlhf_bench.models.packing import micro_batch
from rlhf_bench.training.checkpoints import fetch, put

TRAINING_STATE = ("exp_avg", "exp_avg_sq", "step", "weight")
"""What Adam resumes from, per parameter; in a checkpoint `weight/NAME` and so on. Moments come first: see `_load_model`."""

SHARD_BYTES = 2**27
"""The most that a file of a checkpoint holds, but for a tensor that is larger. Rank 0 has three times as much in memory while
it writes: a copy of the tensors, their bytes, and the file's."""


def save_state(models: Iterable[DeepSpeedModel], setup: RankSetup, folder: str) -> dict[str, str]:
    """Write the state of all trained models into `folder`, a path or URI, from rank 0, and each rank's random number
    generators. Names and SHA-256 of the files that this rank has written."""
    sums = _save_generators(setup, folder)
    for model in _trained(models):
        for number, shard in enumerate(_shards(model), 1):
            file = f"{model.name}-{number:05d}.safetensors"
            sums[file] = put(f"{folder}/{file}", save(shard))
    return sums


def load_state(models: Iterable[DeepSpeedModel], setup: RankSetup, folder: str, files: Sequence[str]) -> None:
    """Take up what `save_state` wrote into `files` of `folder`."""
    for model in _trained(models):
        _load_model(model, folder, [file for file in files if file.startswith(f"{model.name}-")])
    if _generators_file(setup) in files:  # a rank that was not there then keeps its own
        _load_generators(setup, folder)


def _trained(models: Iterable[DeepSpeedModel]) -> list[DeepSpeedModel]:
    """In one order on all ranks."""
    return sorted((model for model in models if model.trained), key=lambda model: model.name)


def _generators_file(setup: RankSetup) -> str:
    return f"rng-{setup.rank}.safetensors"


def _save_generators(setup: RankSetup, folder: str) -> dict[str, str]:
    generators = {"cpu": torch.get_rng_state()}
    if setup.device == "cuda":
        generators["cuda"] = torch.cuda.get_rng_state()
    file = _generators_file(setup)
    return {file: put(f"{folder}/{file}", save(generators))}


def _load_generators(setup: RankSetup, folder: str) -> None:
    generators = load(fetch(f"{folder}/{_generators_file(setup)}"))
    torch.set_rng_state(generators["cpu"])
    if setup.device == "cuda" and "cuda" in generators:
        torch.cuda.set_rng_state(generators["cuda"])


def _shards(model: DeepSpeedModel) -> Iterator[dict[str, torch.Tensor]]:
    """On rank 0 the state in parts; nothing on other ranks."""

    def tensors() -> Iterator[tuple[str, torch.Tensor]]:
        for name, parameter in model.lm.named_parameters():
            for key in TRAINING_STATE if parameter.requires_grad else ():
                value = _full(model, parameter, key)
                if model.setup.rank == 0 and value is not None:
                    yield f"{key}/{name}", value.detach()

    return in_shards(tensors(), SHARD_BYTES)


def in_shards(tensors: Iterable[tuple[str, torch.Tensor]], most: int) -> Iterator[dict[str, torch.Tensor]]:
    """Copies of named tensors on the CPU, in order, in parts of at most so many bytes, or of one tensor that is larger. No part
    is empty. Only one part is held."""
    shard, size = dict[str, torch.Tensor](), 0
    for name, tensor in tensors:
        if shard and size + tensor.nbytes > most:
            yield shard
            shard, size = {}, 0
        shard[name] = tensor.to("cpu", copy=True).contiguous()
        size += tensor.nbytes
    if shard:
        yield shard


def _load_model(model: DeepSpeedModel, folder: str, files: Sequence[str]) -> None:
    parameters, begun = dict(model.lm.named_parameters()), False
    for file in sorted(files):  # moments, where there are any, come before weights: making room for them takes a step
        # In one order on all ranks, which safetensors does not promise: what follows holds collectives.
        for key, value in sorted(load(fetch(f"{folder}/{file}")).items()):
            what, _, name = key.partition("/")
            if what != "weight" and not begun:
                _make_moments(model)
                begun = True
            _set_full(model, parameters[name], what, value.to(model.setup.device))


def _adam(model: DeepSpeedModel) -> Any:
    """torch's optimizer, inside whatever DeepSpeed has wrapped around it."""
    return getattr(model.optimizer, "optimizer", model.optimizer)


def _make_moments(model: DeepSpeedModel) -> None:
    """DeepSpeed allocates its moments in the first step, so one is taken with a gradient of zero. A checkpoint overwrites all
    that it changes."""
    if model.setup.has_master_weights:
        model.model.train()
        numbers = model.numbers(micro_batch([Row("", (0,), ((0,), (0,)))]))
        model.model.backward(0.0 * numbers.sum())
        model.model.step()


def _full(model: DeepSpeedModel, parameter: Any, key: str) -> Any:
    """The parameter itself, or one of Adam's numbers on it, whole. None where there is none yet."""
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

    if key == "step":
        return next((state["step"] for state in _adam(model).state.values() if "step" in state), None)
    if not model.setup.has_master_weights:
        return parameter if key == "weight" else _adam(model).state[parameter].get(key)
    if key == "weight":
        return safe_get_full_fp32_param(parameter)
    return safe_get_full_optimizer_state(parameter, key)


@torch.no_grad()
def _set_full(model: DeepSpeedModel, parameter: Any, key: str, value: torch.Tensor) -> None:
    if not model.setup.has_master_weights:
        if key == "weight":
            parameter.copy_(value)
        else:
            _adam(model).state[parameter][key] = value.clone()
    elif key == "step":
        for state in _adam(model).state.values():
            state["step"] = value.clone()
    elif model.setup.zero_stage == 3:
        _set_sharded(model.setup, parameter, key, value)
    else:
        _set_master(parameter, key, value)


def _set_master(parameter: Any, key: str, value: torch.Tensor) -> None:
    """DeepSpeed's float32 copy of a parameter that is whole on every rank, or a moment of it."""
    from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

    if key == "weight":
        safe_set_full_fp32_param(parameter, value)
        parameter.copy_(value)
    else:
        safe_set_full_optimizer_state(parameter, value, key)


def _set_sharded(setup: RankSetup, parameter: Any, key: str, value: torch.Tensor) -> None:
    """This rank's share of a parameter that ZeRO-3 shards, or of a moment of it."""
    import deepspeed
    from deepspeed.utils import safe_set_local_fp32_param, safe_set_local_optimizer_state

    size = -(-value.numel() // setup.ranks)  # of a share; the last one is filled up with zeros
    flat = torch.nn.functional.pad(value.flatten(), (0, size * setup.ranks - value.numel()))
    share = flat[setup.rank * size : (setup.rank + 1) * size]
    if key == "weight":
        safe_set_local_fp32_param(parameter, share)
        with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
            parameter.copy_(value)
    else:
        safe_set_local_optimizer_state(parameter, share, key)
