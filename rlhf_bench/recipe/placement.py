"""The recipe's `placement` section: which role gets how many processors."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal

from pydantic import Field, model_validator

from rlhf_bench.core.errors import check_agreement
from rlhf_bench.core.settings import Section
from rlhf_bench.models.flops import ModelShape

UNIT_ROUNDOFF = {"float32": 2.0**-24, "bfloat16": 2.0**-8}
"""By number format: the largest relative error of one rounding."""
ROUNDINGS = 4.0
"""Default of `sync_tolerance`, in roots of the number of roundings times the error of one: five to ten times what healthy
models have (docs/benchmarks.md)."""


class RolePlacement(Section):
    actors: int = Field(1, ge=1, description="processes of this role (for the learner: ranks)")
    cpus: int = Field(1, ge=1, description="cores of each actor: its number of threads")
    gpus: int = Field(0, ge=0, description="GPUs of each actor")
    memory_gib: float = Field(
        8,
        gt=0,
        description="host memory of each actor, GiB: what `rlhf-bench manifest` asks for, and what limits the number of fleets",
    )


class RolloutPlacement(RolePlacement):
    concurrent_requests: int = Field(256, ge=1, description="sequences that an engine decodes at once")
    cache_mib: int = Field(128, ge=16, description="key-value cache of an engine without a GPU, MiB")
    gpu_memory_fraction: float = Field(0.5, gt=0, lt=1, description="share of a GPU's memory that an engine uses")


class LearnerPlacement(RolePlacement):
    zero_stage: Literal[0, 1, 2, 3] = Field(
        0, description="what DeepSpeed shards over ranks: nothing, optimizer, gradients, weights"
    )


class Device(Section):
    """What one GPU (or one core, without GPUs) can do. Only the forecast of `check` uses it."""

    memory_gib: float = Field(79.0, gt=0, description="memory of a GPU; the default is an H100 of 80 GB")
    peak_tflops: float | None = Field(
        None,
        gt=0,
        description="peak speed, 10¹² FLOP/s; null uses the data sheet of an H100 SXM, 989 in bfloat16 and 67 in float32; without GPUs a core of this machine is timed",
    )
    utilisation: float | None = Field(
        None,
        gt=0,
        le=1,
        description="share of the peak that a run reaches; null uses 0.3 on GPUs, and what was measured on cores (docs/compute.md)",
    )


class Placement(Section):
    """Which role gets which part of the cluster."""

    colocated: bool = Field(
        True, description="actor i of every role shares one bundle of CPUs and GPUs; otherwise each has its own"
    )
    pinned: bool = Field(
        False,
        description="every role only on nodes that offer a Ray resource of its name (rollout, scorer, learner, evaluator); needs colocated: false",
    )
    fleets: int | None = Field(
        None,
        ge=1,
        description="how many fleets, each with all roles, may train arms at once; null: as many as the cluster has room for, or one where the budget is in device_seconds",
    )
    timeout_seconds: float = Field(300, gt=0, description="how long to wait for the cluster to have room")
    rollout: RolloutPlacement = Field(default_factory=RolloutPlacement, description="the vLLM engines that sample")
    scorer: RolePlacement = Field(default_factory=RolePlacement, description="the reward model")
    learner: LearnerPlacement = Field(default_factory=LearnerPlacement, description="the DeepSpeed ranks that train")
    evaluator: RolloutPlacement = Field(
        default_factory=RolloutPlacement, description="the engine that answers held-out prompts; one actor"
    )
    device: Device = Field(
        default_factory=Device, description="speed and memory of a GPU or core, for the forecast of `check`"
    )
    weight_sync: Literal["object_store", "nccl", "ipc"] = Field(
        "object_store", description="how weights reach the engines; nccl and ipc need GPUs"
    )
    sync_tolerance: float | None = Field(
        None,
        gt=0,
        description="largest gap between engine and learner log-probs after a sync: the median over tokens of |difference| / (1 - log p); null: by number format and depth (docs/architecture.md#weight-sync)",
    )

    @model_validator(mode="after")
    def _possible(self) -> Placement:
        check_agreement(self._conflicts())
        return self

    def _conflicts(self) -> Iterator[str]:
        if self.evaluator.actors != 1:
            yield "evaluator.actors must be 1: snapshots are evaluated one after the other"
        if self.pinned and self.colocated:
            yield "pinned: true gives every role nodes of its own, and colocated: true puts all roles together; set colocated: false"
        if self.weight_sync != "object_store" and not (self.rollout.gpus and self.learner.gpus):
            yield f"weight_sync: {self.weight_sync} needs GPUs for rollout and learner; use object_store without them"
        if self.weight_sync == "ipc" and not self.colocated:
            yield "weight_sync: ipc needs colocated: true (it shares a GPU's memory); use nccl across GPUs"

    def tolerance(self, dtype: Literal["float32", "bfloat16"], shape: ModelShape) -> float:
        """`sync_tolerance`, or its default for a model of this number format and shape. Each layer adds two terms to the residual
        stream. In bfloat16 each is rounded once, since sums are kept in float32; in float32 as often as it has summands. Errors
        are independent, so they add up as a root."""
        roundings = (2 * shape.layers + 1) * (shape.attention_width if dtype == "float32" else 1)
        return self.sync_tolerance or ROUNDINGS * UNIT_ROUNDOFF[dtype] * math.sqrt(roundings)

    def roles(self, scorer: bool) -> dict[str, RolePlacement]:
        """Placements by role; `scorer` says whether an arm uses the reward model, and so needs that role."""
        roles: dict[str, RolePlacement] = {
            "learner": self.learner,
            "rollout": self.rollout,
            "evaluator": self.evaluator,
        }
        return roles | ({"scorer": self.scorer} if scorer else {})
