"""One rank of the learner as a Ray actor: what may be asked of it, and how ranks find each other.

A rank holds up to three models: the policy, a frozen reference, and a critic (also the reward model while it is trained).
Models are loaded anew for every arm and seed; the processes stay.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Sequence
from time import perf_counter
from typing import Any

import numpy as np
import ray
import torch

from actors.allocator import give_back
from actors.learner import training_state
from actors.learner.deepspeed_engine import DeepSpeedModel, ModelName, RankSetup
from actors.monitoring.trace import Traced, traced
from actors.supervision.heartbeat import Heartbeat
from rlhf_bench.core.types import Row
from rlhf_bench.methods.base import Adam, PairLoss, PerResponse
from rlhf_bench.models.flops import ModelShape
from rlhf_bench.models.settings import LoraSettings
from rlhf_bench.training.roles import Step


class LearnerRank(Traced, Heartbeat):
    """Methods are called on all ranks at once: they hold collectives."""

    @traced
    def __init__(
        self, rank: int, ranks: int, cpus: int, gpus: int, zero_stage: int, dtype: str, lora: LoraSettings | None = None
    ):
        # DeepSpeed reads these as it is imported.
        os.environ |= {
            "RANK": str(rank),
            "WORLD_SIZE": str(ranks),
            "LOCAL_RANK": "0" if gpus else str(rank),
            "LOCAL_SIZE": str(ranks),
            "DS_ACCELERATOR": "cuda" if gpus else "cpu",
        }
        torch.set_num_threads(cpus)
        self.setup = RankSetup(rank, ranks, zero_stage, dtype, "cuda" if gpus else "cpu", lora)
        self.models: dict[ModelName, DeepSpeedModel] = {}
        self.weight_sender: Any = None  # vLLM's, once weights were sent from GPU to GPU
        self.store: Any = None  # of rank 0: where the others meet it

    def open_store(self) -> tuple[str, int]:
        """Begin to listen for all ranks, on rank 0: its node, and a port that no other process can take any more.

        It listens at the address that the node has in the cluster, where the store itself would take every address."""
        node = ray.util.get_node_ip_address()
        listener = socket.create_server((node, 0), family=socket.AF_INET6 if ":" in node else socket.AF_INET)
        port = listener.getsockname()[1]
        self.store = torch.distributed.TCPStore(
            node, port, is_master=True, wait_for_workers=False, master_listen_fd=listener.detach()
        )
        return node, port

    def address(self) -> tuple[str, int]:
        """Where rank 0 can be met: its node and a port that is free on it."""
        with socket.socket() as s:
            s.bind(("", 0))
            return ray.util.get_node_ip_address(), s.getsockname()[1]

    def ping(self) -> None:
        """An answer says that this rank lives and waits for no other."""

    @traced
    def join(self, address: str, port: int) -> None:
        """Wait until all ranks have met at rank 0's store."""
        import deepspeed

        logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
        # DeepSpeed would compile a shared-memory op for ranks on one CPU node, under a file lock that a killed process
        # leaves behind and the next one waits for without end. gloo does the same work without it.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        backend = "nccl" if self.setup.device == "cuda" else "gloo"
        store = self.store or torch.distributed.TCPStore(address, port)
        setup = self.setup
        torch.distributed.init_process_group(backend, store=store, rank=setup.rank, world_size=setup.ranks)
        deepspeed.init_distributed(backend, verbose=False)  # takes the group that there is

    @traced
    def load(
        self, name: ModelName, path: str, seed: int, learning_rate: float | None, max_grad_norm: float, adam: Adam
    ) -> ModelShape:
        """Place a model, or replace it; see `DeepSpeedModel`."""
        self.free(name)  # first: there may be no memory for both
        self.models[name] = DeepSpeedModel(name, path, self.setup, seed, learning_rate, max_grad_norm, adam)
        return self.models[name].shape

    @traced
    def measure(
        self, name: ModelName, rows: Sequence[Row], plan: list[list[int]], idle: int, temperature: float
    ) -> tuple[dict[int, PerResponse], float]:
        """See `DeepSpeedModel.measure`; and the seconds it took."""
        began = perf_counter()
        return self.models[name].measure(rows, plan, idle, temperature), perf_counter() - began

    @traced
    def steps(
        self, work: Sequence[Step], plans: list[list[list[int]]], idle: list[int], units: list[int], temperature: float
    ) -> tuple[list[dict[str, float]], float]:
        """Optimizer steps one after another, each over this rank's share of its units, see `DeepSpeedModel.step`; and the
        seconds they took."""
        began = perf_counter()
        sums = [
            self.models[step.objective.model].step(step, plan, empty, count, temperature)
            for step, plan, empty, count in zip(work, plans, idle, units, strict=True)
        ]
        return sums, perf_counter() - began

    @traced
    def side_gradients(
        self, weight: PairLoss, rows: Sequence[Row], plan: list[list[int]], settings: Any, temperature: float
    ) -> tuple[list[float], float]:
        """Of the policy, see `DeepSpeedModel.side_gradients`; and the seconds it took."""
        began = perf_counter()
        return self.models["policy"].side_gradients(weight, rows, plan, settings, temperature), perf_counter() - began

    @traced
    def weights(self, name: ModelName) -> tuple[dict[str, np.ndarray] | None, None]:
        """See `DeepSpeedModel.weights`; None except on rank 0. And a second None, which the driver waits for: so it sees an
        error, and need not fetch the weights.

        Some arrays are the parameters' own memory: Ray copies what a call returns before the next call begins.
        """
        found = dict(self.models[name].weights())
        return (found if self.setup.rank == 0 else None), None

    @traced
    def checksums(self, name: ModelName) -> dict[str, int]:
        """See `DeepSpeedModel.checksums`."""
        return self.models[name].checksums()

    @traced
    def save(self, name: ModelName, path: str) -> None:
        """Write a Hugging Face folder from rank 0, adapters merged."""
        self.models[name].save(path)

    @traced
    def save_state(self, folder: str) -> dict[str, str]:
        """Write what training resumes from; names and SHA-256 of this rank's files. See `training_state`."""
        return training_state.save_state(self.models.values(), self.setup, folder)

    @traced
    def load_state(self, folder: str, files: Sequence[str]) -> None:
        """Take up what `save_state` wrote, into models that `load` has placed."""
        training_state.load_state(self.models.values(), self.setup, folder, files)

    def send_weights(self, name: ModelName, backend: str, engines: list[Any], address: str, port: int) -> None:
        """Push weights GPU to GPU with vLLM's own trainer engine (nccl or ipc). See weight_sync.py."""
        from actors.weight_sync import trainer_engine

        if self.weight_sender is None:
            self.weight_sender = trainer_engine(
                backend, self.setup.rank, engines, address, port, lambda: self.models[name]
            )
        self.weight_sender.send_weights()

    def free(self, name: ModelName) -> None:
        """No effect where there is no such model."""
        if name in self.models:
            self.models.pop(name).destroy()
            give_back()
