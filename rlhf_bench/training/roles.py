"""The four roles as the experiment sees them. `actors/` fills them with Ray, vLLM and DeepSpeed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

from rlhf_bench.compute.engine_time import EngineTime
from rlhf_bench.core.costs import Cost
from rlhf_bench.core.types import Evaluation, Group, Prompt, Row, Sampling
from rlhf_bench.methods.base import STAGE_ADAM, Adam, Method, Objective, PerResponse, SideGradients
from rlhf_bench.training.sync_check import Probe

Snapshot = Any
"""A policy's weights at one moment; what it is made of is the roles' business."""


@dataclass(frozen=True)
class Step:
    """One optimizer step: on which rows, towards what, at what rate."""

    objective: Objective
    rows: Sequence[Row]
    settings: Any  # of the method's own model; None for a stage
    learning_rate: float

    @property
    def units(self) -> int:
        """How many rows or response tokens the loss is averaged over."""
        if self.objective.unit == "row":
            return len(self.rows)
        return sum(r.response_tokens for r in self.rows)


T = TypeVar("T", covariant=True)


class Pending(Protocol[T]):
    """Work that a role has been handed, while the driver continues."""

    def result(self) -> T:
        """Wait for it."""


Scores = tuple[list[list[float]], Cost]
"""Per row, a score per response; and what they cost."""
Measures = tuple[list[PerResponse], Cost]
"""Per row, one array per response: log-probs (policy, reference) or values (critic) of its tokens; and what they cost."""
Means = tuple[list[dict[str, float]], Cost]
"""Per step, means of loss and metrics over all its units and `grad_norm` before clipping; and what all of them cost."""


@dataclass(frozen=True)
class RolloutChunk:
    """Some of the prompts that were asked for, all of whose samples are there."""

    indices: Sequence[int]  # of the prompts, among those asked for
    groups: Sequence[Group]
    cost: Cost


class RolloutPool(Protocol):
    def stream(self, prompts: Sequence[Prompt], sampling: Sampling) -> Iterator[RolloutChunk]:
        """`sampling.count` samples for each prompt, chunk by chunk: the engines continue while a chunk is being used."""

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> tuple[list[Group], Cost]:
        """`sampling.count` samples for each prompt, in the prompts' order."""

    def check(self, probe: Probe) -> float:
        """The largest gap between any engine's log-probs of the probe and the learner's. RunFailed where that is beyond its
        tolerance, or where an engine does not hold the learner's weights."""


class RewardScorer(Protocol):
    def load(self, path: Path, dtype: str) -> None: ...

    def rounding(self, score: float) -> float:
        """How far another score may be from this one and mean the same, by the number format it was computed in."""

    def begin_score(self, rows: Sequence[Row]) -> Pending[Scores]:
        """Hand rows in, without waiting."""

    def score(self, rows: Sequence[Row]) -> Scores:
        """Hand rows in, and wait."""


class LearnerGroup(Protocol):
    devices: int  # CPU cores, or GPUs, of all ranks together
    first_step_began: float | None  # of `perf_counter`; None before any

    def load(
        self,
        name: Any,
        path: Path,
        seed: int = 0,
        learning_rate: float | None = None,
        max_grad_norm: float = 1.0,
        adam: Adam = STAGE_ADAM,
    ) -> None:
        """Place (or replace) policy, reference or critic. Without a learning rate it is frozen."""

    def begin_measure(self, name: Any, rows: Sequence[Row], temperature: float = 1.0) -> Pending[Measures]:
        """Hand rows in for a forward pass, without waiting."""

    def measure(self, name: Any, rows: Sequence[Row], temperature: float = 1.0) -> Measures:
        """Hand rows in for a forward pass, and wait."""

    def measure_cost(self, name: Any, rows: Sequence[Row]) -> Cost:
        """What that would cost, but for seconds."""

    def begin_steps(self, work: Sequence[Step], temperature: float = 1.0) -> Pending[Means]:
        """Hand in optimizer steps, to be taken one after another, without waiting. Whatever is asked of the learner afterwards
        waits for them."""

    def steps(self, work: Sequence[Step], temperature: float = 1.0) -> Means:
        """Hand in optimizer steps, and wait."""

    def steps_cost(self, work: Sequence[Step]) -> Cost:
        """What they would cost, but for seconds."""

    def side_gradients(
        self, method: Method, rows: Sequence[Row], settings: Any, temperature: float = 1.0
    ) -> tuple[SideGradients, Cost]:
        """The two sides' batch gradients under the method's weights, for a method that adapts by them."""

    def side_gradients_cost(self, rows: Sequence[Row]) -> Cost:
        """What that would cost, but for seconds."""

    def weights(self, name: Any) -> Snapshot: ...

    def checksums(self, name: Any) -> Mapping[str, int]:
        """Of every tensor of these weights, by name, see `rlhf_bench.models.checksum`."""

    def save(self, name: Any, path: Path) -> None: ...

    def save_state(self, folder: str) -> dict[str, str]:
        """What training resumes from, written into `folder`, a path or URI. Returns names of files and their SHA-256."""

    def load_state(self, folder: str, files: Sequence[str]) -> None:
        """Go on from there, with models that `load` has placed: on as many ranks as there are now."""

    def free(self, name: Any) -> None: ...


class Evaluator(Protocol):
    def submit(
        self,
        weights: Snapshot,
        version: int,
        label: Any,
        *,
        draws: str,
        temperature: float | None = None,
        own: str | None = None,
    ) -> None:
        """Hand in a snapshot. `draws` names what its samples are drawn for: every name has draws of its own. With a
        `temperature` the responses are sampled at that one, and only what depends on it is measured. `own`: the one kind of
        own pairs to look at besides the fixed ones; None for all kinds."""

    def collect(self, wait: bool = False) -> list[tuple[Any, Evaluation]]: ...


class WeightSync(Protocol):
    def send(self, version: int) -> Snapshot | None:
        """Bring every engine of the pool to the learner's current policy."""


@dataclass(frozen=True)
class Roles:
    pool: RolloutPool
    scorer: RewardScorer | None
    learner: LearnerGroup
    evaluator: Evaluator
    sync: WeightSync
    engine_time: EngineTime = field(default_factory=EngineTime)  # when any of them was at work
