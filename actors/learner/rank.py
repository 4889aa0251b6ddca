"""The learner: N ranks of one DeepSpeed group, as Ray actors. The only file that imports deepspeed.

Each rank holds up to three models: the policy, a frozen reference, and a critic (also the reward model in
training). Models are loaded anew for every arm and seed; the processes stay.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from dataclasses import replace
from time import perf_counter
from typing import Any

import numpy as np
import ray

from actors.learner.deepspeed_engine import MODEL_HEAD, ModelName, engine_config, has_full_gradients
from actors.learner.training_state import SHARD_BYTES, TRAINING_STATE
from actors.monitoring.trace import Profiled, noted
from actors.supervision.heartbeat import Heartbeat
from rlhf_bench.core.types import Row
from rlhf_bench.methods.base import PairLoss, PerResponse
from rlhf_bench.models.flops import ModelShape
from rlhf_bench.models.loading import load_model
from rlhf_bench.models.lora import add_adapters, plain_state_dict, plain_weights
from rlhf_bench.models.packing import micro_batch
from rlhf_bench.models.settings import LoraSettings
from rlhf_bench.training.checkpoints import fetch, put
from rlhf_bench.training.roles import Step


class LearnerRank(Profiled, Heartbeat):
    """One rank. Methods are called on all ranks at once: they hold collectives."""

    @noted
    def __init__(
        self, rank: int, ranks: int, cpus: int, gpus: int, zero_stage: int, dtype: str, lora: LoraSettings | None = None
    ):
        os.environ |= {
            "RANK": str(rank),
            "WORLD_SIZE": str(ranks),
            "LOCAL_RANK": "0" if gpus else str(rank),
            "LOCAL_SIZE": str(ranks),
        }
        os.environ["DS_ACCELERATOR"] = "cuda" if gpus else "cpu"
        import torch

        torch.set_num_threads(cpus)
        self.rank, self.ranks, self.zero_stage, self.dtype, self.lora = rank, ranks, zero_stage, dtype, lora
        self.device = "cuda" if gpus else "cpu"
        self.models: dict[ModelName, Any] = {}
        self.trained: set[ModelName] = set()  # those that are not frozen
        self.most_norm: dict[ModelName, float] = {}  # their gradients' at most
        self.source: Any = None
        self.store: Any = None  # of rank 0: where the others meet it

    def open_store(self) -> tuple[str, int]:
        """Begin to listen for all ranks, on rank 0: its node, and a port that nobody can take any more."""
        from torch.distributed import TCPStore

        node = ray.util.get_node_ip_address()
        self.store = TCPStore(node, 0, is_master=True, wait_for_workers=False)
        return node, self.store.port

    def address(self) -> tuple[str, int]:
        """Where rank 0 can be met: its node and a port that is free on it."""
        with socket.socket() as s:
            s.bind(("", 0))
            return ray.util.get_node_ip_address(), s.getsockname()[1]

    def ping(self) -> None:
        """An answer says that this rank lives and waits for no other."""

    @noted
    def join(self, address: str, port: int) -> None:
        import logging

        import deepspeed
        import torch

        logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
        # DeepSpeed would compile a shared-memory op for ranks on one CPU node, under a file lock that a killed process
        # leaves behind and the next one waits for without end. gloo does the same work without it.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        backend = "nccl" if self.device == "cuda" else "gloo"
        store = self.store or torch.distributed.TCPStore(address, port)
        torch.distributed.init_process_group(backend, store=store, rank=self.rank, world_size=self.ranks)
        deepspeed.init_distributed(backend, verbose=False)  # takes the group that there is

    @noted
    def load(
        self, name: ModelName, path: str, seed: int, learning_rate: float | None, max_grad_norm: float
    ) -> ModelShape:
        """(Re)place a model by the weights at `path`. Without a learning rate it is frozen; with one, and `lora`, fresh
        adapters learn in place of the weights."""
        import deepspeed
        import torch

        self.free(name)
        module = load_model(path, MODEL_HEAD[name], self.dtype, seed)
        shape = ModelShape.of(module.lm)
        if learning_rate is not None and self.lora is not None:
            add_adapters(module, self.lora, seed)
            shape = replace(shape, lora_rank=self.lora.rank)
        module.to(self.device)
        self.trained.discard(name)
        if learning_rate is None and self.zero_stage < 3:
            self.models[name] = module.eval().requires_grad_(False)
            return shape
        optimizer = None
        if learning_rate is not None:
            self.trained.add(name)
            self.most_norm[name] = max_grad_norm
            learning = [p for p in module.parameters() if p.requires_grad]
            optimizer = torch.optim.AdamW(learning, lr=learning_rate, weight_decay=0.0, betas=(0.9, 0.95), fused=True)
        config = engine_config(self.zero_stage, self.dtype, max_grad_norm)
        engine, *_ = deepspeed.initialize(model=module, optimizer=optimizer, config=config)
        if hasattr(engine.optimizer, "check_grad_overflow"):  # else only in 16 bits
            engine.optimizer.check_grad_overflow = True
        self.models[name] = engine
        return shape

    @noted
    def measure(
        self, name: ModelName, rows: Sequence[Row], plan: list[list[int]], idle: int, temperature: float
    ) -> tuple[dict[int, PerResponse], float]:
        """Log-probs (causal) or values (scalar) per response token, `{row index: one array per response}`; and the
        seconds it took."""
        import torch

        began = perf_counter()
        model = self.models[name]
        model.eval()
        found: dict[int, PerResponse] = {}
        with torch.no_grad():
            for indices in plan:
                part = [rows[i] for i in indices]
                batch = micro_batch(part).to(self.device)
                numbers = model(batch, temperature) if MODEL_HEAD[name] == "causal" else model(batch)[0]
                flat = np.split(
                    numbers.float().cpu().numpy(), np.cumsum([len(r) for row in part for r in row.responses])[:-1]
                )
                at = 0
                for i, row in zip(indices, part, strict=True):
                    found[i] = tuple(flat[at : at + len(row.responses)])
                    at += len(row.responses)
            for _ in range(idle):
                model(micro_batch(rows[:1]).to(self.device))
        return found, perf_counter() - began

    @noted
    def steps(
        self, work: Sequence[Step], plans: list[list[list[int]]], idle: list[int], units: list[int], temperature: float
    ) -> tuple[list[dict[str, float]], float]:
        """Optimizer steps one after another, each over this rank's share of its units: see `_step`. And the seconds."""
        began = perf_counter()
        shares = zip(work, plans, idle, units, strict=True)
        sums = [self._step(step, plan, empty, count, temperature) for step, plan, empty, count in shares]
        return sums, perf_counter() - began

    def _step(self, step: Step, plan: list[list[int]], idle: int, units: int, temperature: float) -> dict[str, float]:
        """Sums of the loss and metrics over this rank's share of `units` units, the gradient's norm before clipping, and
        whether the step was skipped, since that is not finite."""
        import torch

        from rlhf_bench.training.objective import loss_sums

        engine = self.models[step.objective.model]
        engine.train()
        for group in engine.optimizer.param_groups:
            group["lr"] = step.learning_rate
        sums: dict[str, torch.Tensor] = {}
        batches = [micro_batch([step.rows[i] for i in part]) for part in plan] + [
            micro_batch(step.rows[:1], weight=0.0)
        ] * idle
        for i, batch in enumerate(batches):
            engine.set_gradient_accumulation_boundary(i == len(batches) - 1)
            loss, metrics = loss_sums(step.objective, engine, batch.to(self.device), step.settings, temperature)
            # DeepSpeed averages over ranks; × ranks / units makes that the mean over all units everywhere.
            with self._alone(engine):
                engine.backward(loss * (batch.weight * self.ranks / units))
            for key, value in {"loss": loss.detach(), **metrics}.items():
                sums[key] = sums.get(key, torch.zeros(())) + batch.weight * value.cpu()
        norm = self._full_gradient_norm(engine)
        skipped = self._forget_if_not_finite(engine, norm)
        if not skipped:
            if norm is not None and norm > (most := self.most_norm[step.objective.model]):
                torch.nn.utils.clip_grads_with_norm_(engine.module.parameters(), most, torch.tensor(norm))
            engine.step()
            skipped = bool(getattr(engine.optimizer, "overflow", False))  # ZeRO 1 and 2 look for themselves
        if norm is None:
            norm = engine.get_global_grad_norm()
        return {key: float(value) for key, value in sums.items()} | {
            "grad_norm": float("nan") if norm is None else float(norm),
            "skipped": float(skipped),
        }

    def _alone(self, engine: Any) -> Any:
        """One rank has nobody to reduce gradients with; DeepSpeed would copy them to and fro all the same."""
        import contextlib

        return engine.no_sync() if self.ranks == 1 and self.zero_stage == 0 else contextlib.nullcontext()

    def _forget_if_not_finite(self, engine: Any, norm: float | None) -> bool:
        """Drop gradients that are not finite, alike on all ranks, before they reach the weights."""
        if norm is not None and not np.isfinite(norm):
            engine.module.zero_grad(set_to_none=True)
            return True
        if self.zero_stage == 3 and engine.optimizer.has_overflow():
            engine.optimizer.zero_grad(set_to_none=True)
            engine.optimizer.averaged_gradients = {}
            return True
        return False

    @noted
    def side_gradients(
        self, weight: PairLoss, rows: Sequence[Row], plan: list[list[int]], settings: Any, temperature: float
    ) -> tuple[list[float], float]:
        """‖G⁺‖², ‖G⁻‖² and ⟨G⁺, G⁻⟩ of the weighted sums over all ranks' pairs, see `weighted_sides`; and the seconds."""
        import torch

        began = perf_counter()

        from rlhf_bench.training.objective import weighted_sides

        module = self.models["policy"].module.train()
        sides = torch.zeros(2, sum(p.numel() for p in module.parameters() if p.requires_grad), device=self.device)
        for indices in plan:
            batch = micro_batch([rows[i] for i in indices]).to(self.device)
            for side, found in zip(sides, weighted_sides(module, batch, weight, settings, temperature), strict=True):
                side += found
        if self.ranks > 1:
            torch.distributed.all_reduce(sides)
        chosen, rejected = sides.double()
        found = [float(chosen @ chosen), float(rejected @ rejected), float(chosen @ rejected)]
        return found, perf_counter() - began

    def _full_gradient_norm(self, engine: Any) -> float | None:
        """Without ZeRO the full gradients are here; None where a sharded optimizer knows the norm only after its step."""
        import torch

        if has_full_gradients(self.zero_stage, self.dtype):
            return float(
                torch.nn.utils.get_total_norm([p.grad for p in engine.module.parameters() if p.grad is not None])
            )
        return None

    @noted
    def weights(self, name: ModelName) -> tuple[dict[str, np.ndarray] | None, None]:
        """Full weights by Hugging Face name, gathered where ZeRO-3 shards them and with adapters merged; None except on rank 0.
        And a second None, which the driver waits for: so it sees an error, and need not fetch the weights.

        Where nothing had to be gathered or merged these are the parameters' own memory: Ray copies what a call returns before the
        next call begins.
        """
        import torch

        found = {}
        for weight in plain_weights(self._module(name)):
            with self._gathered(list(weight.parameters)):
                if self.rank == 0:
                    value = weight.value().cpu()
                    if self.zero_stage == 3:  # else it is gone with the gathering
                        value = value.clone()
                    found[weight.name] = (value if value.dtype == torch.float32 else value.view(torch.uint16)).numpy()
        return (found if self.rank == 0 else None), None

    @noted
    def save(self, name: ModelName, path: str) -> None:
        """Write a Hugging Face folder from rank 0, adapters merged."""
        module = self._module(name)
        with self._gathered(list(module.parameters())):
            if self.rank == 0:
                module.save_pretrained(path, state_dict=plain_state_dict(module), safe_serialization=True)

    @noted
    def save_state(self, folder: str) -> dict[str, str]:
        """Write what training goes on from into `folder`, a path or URI: of every trained model the full float32 weights that
        learn, and Adam's moments, whatever shards them, so that another number of ranks can go on; and this rank's random numbers.
        Names and SHA-256 of what this rank has written."""
        import torch
        from safetensors.torch import save

        generators = {"cpu": torch.get_rng_state()}
        if self.device == "cuda":
            generators["cuda"] = torch.cuda.get_rng_state()
        file = f"rng-{self.rank}.safetensors"
        sums = {file: put(f"{folder}/{file}", save(generators))}
        for model in sorted(self.trained & set(self.models)):
            shard: dict[str, torch.Tensor] = {}
            shards = 0
            parameters = [(name, p) for name, p in self._module(model).named_parameters() if p.requires_grad]
            for i, (name, parameter) in enumerate(parameters):
                for key in TRAINING_STATE:
                    value = self._full(model, parameter, key)
                    if self.rank == 0 and value is not None:
                        shard[f"{key}/{name}"] = value.detach().to("cpu", copy=True).contiguous()
                size = sum(t.numel() * t.element_size() for t in shard.values())
                if shard and (size > SHARD_BYTES or i == len(parameters) - 1):
                    shards += 1
                    file = f"{model}-{shards:05d}.safetensors"
                    sums[file] = put(f"{folder}/{file}", save(shard))
                    shard = {}
        return sums

    @noted
    def load_state(self, folder: str, files: Sequence[str]) -> None:
        """Take up what `save_state` wrote, into models that `load` has placed."""
        import torch
        from safetensors.torch import load

        for model in sorted(self.trained & set(self.models)):
            parameters, begun = dict(self._module(model).named_parameters()), False
            for file in (f for f in files if f.startswith(f"{model}-")):
                # In one order on all ranks, which safetensors does not promise: what follows holds collectives.
                for key, value in sorted(load(fetch(f"{folder}/{file}")).items()):
                    what, _, name = key.partition("/")
                    if what != "weight" and not begun:
                        self._begin_optimizer(model)
                        begun = True
                    self._set_full(model, parameters[name], what, value.to(self.device))
        if f"rng-{self.rank}.safetensors" in files:  # a rank that there was not keeps its own
            generators = load(fetch(f"{folder}/rng-{self.rank}.safetensors"))
            torch.set_rng_state(generators["cpu"])
            if self.device == "cuda" and "cuda" in generators:
                torch.cuda.set_rng_state(generators["cuda"])

    def _adam(self, model: ModelName) -> Any:
        """torch's optimizer, inside whatever DeepSpeed has wrapped around it."""
        optimizer = self.models[model].optimizer
        return getattr(optimizer, "optimizer", optimizer)

    def _full(self, model: ModelName, parameter: Any, key: str) -> Any:
        """The parameter itself, or one of Adam's numbers on it, whole. None where there is none yet."""
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        if key == "step":
            return next((state["step"] for state in self._adam(model).state.values() if "step" in state), None)
        if self._sharded:
            return (
                safe_get_full_fp32_param(parameter)
                if key == "weight"
                else safe_get_full_optimizer_state(parameter, key)
            )
        return parameter if key == "weight" else self._adam(model).state[parameter].get(key)

    def _begin_optimizer(self, model: ModelName) -> None:
        """DeepSpeed makes room for its moments in the first step, so one is taken without a gradient. All that it changes is
        what a checkpoint overwrites."""
        if self._sharded:
            engine = self.models[model]
            engine.train()
            found = engine(micro_batch([Row("", (0,), ((0,), (0,)))]).to(self.device))
            numbers = found if MODEL_HEAD[model] == "causal" else found[0]
            engine.backward(0.0 * numbers.sum())
            engine.step()

    def _set_full(self, model: ModelName, parameter: Any, key: str, value: Any) -> None:
        import deepspeed
        import torch
        from deepspeed.utils import (
            safe_set_full_fp32_param,
            safe_set_full_optimizer_state,
            safe_set_local_fp32_param,
            safe_set_local_optimizer_state,
        )

        with torch.no_grad():
            if not self._sharded:
                if key == "weight":
                    parameter.copy_(value)
                else:
                    self._adam(model).state[parameter][key] = value.clone()
            elif key == "step":
                for state in self._adam(model).state.values():
                    state["step"] = value.clone()
            elif self.zero_stage == 3:
                size = -(-value.numel() // self.ranks)  # a rank's part; the last one's is filled up
                flat = torch.nn.functional.pad(value.flatten(), (0, size * self.ranks - value.numel()))
                part = flat[self.rank * size : (self.rank + 1) * size]
                if key == "weight":
                    safe_set_local_fp32_param(parameter, part)
                    with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
                        parameter.copy_(value)
                else:
                    safe_set_local_optimizer_state(parameter, part, key)
            elif key == "weight":
                safe_set_full_fp32_param(parameter, value)
                parameter.copy_(value)
            else:
                safe_set_full_optimizer_state(parameter, value, key)

    @property
    def _sharded(self) -> bool:
        """Does DeepSpeed keep float32 weights and moments of its own, apart from the model's?"""
        return self.zero_stage > 0 or self.dtype != "float32"

    def _module(self, name: ModelName) -> Any:
        model = self.models[name]
        return getattr(model, "module", model).lm

    def _gathered(self, parameters: list[Any]) -> Any:
        import contextlib

        import deepspeed

        return deepspeed.zero.GatheredParameters(parameters) if self.zero_stage == 3 else contextlib.nullcontext()

    def send_weights(self, name: ModelName, backend: str, engines: list[Any], address: str, port: int) -> None:
        """Push weights GPU to GPU with vLLM's own trainer engine (nccl or ipc). See weight_sync.py."""
        from actors.weight_sync import trainer_engine

        if self.source is None:
            self.source = trainer_engine(
                backend, self.rank, engines, address, port, lambda: self._module(name), self._gathered
            )
        self.source.send_weights()

    def free(self, name: ModelName) -> None:
        old = self.models.pop(name, None)
        if hasattr(old, "destroy"):
            old.destroy()
