"""Everything that an arm's future depends on, as one record. A checkpoint is its JSON, and the learner's files beside it.

Not in it is what the same recipe makes again: models at the start, fixed pairs, reference log-probabilities, and the start
policy's samples, which a run keeps in a folder of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import PlainSerializer, TypeAdapter

from rlhf_bench.compute.ledger import Ledger
from rlhf_bench.core.costs import Column
from rlhf_bench.core.plain_data import RandomGenerator
from rlhf_bench.core.types import Pair
from rlhf_bench.training.batch import Batch


@dataclass
class ShuffleState:
    """An order of things that are used once per epoch, each epoch in a new order: `queue` are indices still to come."""

    rng: RandomGenerator
    queue: list[int] = field(default_factory=list)

    def next(self, count: int, *of: int) -> list[int]:
        """The next `count` indices below `of`. Of several numbers each is a block: an epoch shuffles the first block, then
        the indices that follow it, and so on."""
        while len(self.queue) < count:
            at = 0
            for size in of:
                self.queue += (at + self.rng.permutation(size)).tolist()
                at += size
        now, self.queue = self.queue[:count], self.queue[count:]
        return now


@dataclass
class SamplerState:
    """Which training prompts come next, and how often the policy has been sampled: each time has a seed of its own."""

    prompts: ShuffleState
    calls: int = 0


@dataclass
class ArmState:
    """One arm and seed between two updates."""

    ledger: Ledger
    sampler: SamplerState
    pairs: ShuffleState  # of an arm whose pairs come again
    minibatch_rng: RandomGenerator
    marks_left: list[float]  # fractions of the budget at which to evaluate
    waiting: list[Pair] = field(default_factory=list)  # drawn from the start policy, and not yet trained on
    updates_began_at: float = 0.0  # share of the budget that was spent before the first update
    rounds: int = 0  # how often data was drawn
    version: int = 0  # weight updates so far
    synced_version: int = 0  # of the weights that the engines hold
    skipped_in_a_row: int = 0
    free_in_a_row: int = 0  # updates that spent nothing of the budget's column
    status: Literal["done", "diverged"] = "done"
    method_state: dict[str, float] = field(default_factory=dict)
    charged_rows: Annotated[set[str], PlainSerializer(sorted)] = field(default_factory=set)  # for reference log-probs
    seconds: float = 0.0  # of this arm, in runs before this one
    prefetched: list[Batch] | None = None  # chunks that are drawn and not yet trained on
    prefetch_ledger: Ledger | None = None  # what drawing them cost: charged with the update that learns from them

    @classmethod
    def begin(cls, column: Column, limit: float, seed: int, marks: tuple[float, ...] = ()) -> ArmState:
        """Before the first update. Each random generator has a stream of its own under the arm's seed."""
        prompts, pairs, minibatches = (np.random.default_rng([seed, stream]) for stream in (1, 2, 3))
        return cls(
            ledger=Ledger(column, limit),
            sampler=SamplerState(ShuffleState(prompts)),
            pairs=ShuffleState(pairs),
            minibatch_rng=minibatches,
            marks_left=[mark for mark in marks if mark < 1],
        )

    @property
    def done(self) -> float:
        """How far the updates had come when this one began, as a share of the budget that was left for them: 0 at the first
        one, below 1 at every one."""
        left = 1.0 - self.updates_began_at
        spent = self.ledger.update_began_at / self.ledger.limit - self.updates_began_at
        return min(max(spent / left, 0.0), 1.0) if left > 0 else 0.0

    def to_json(self) -> dict[str, Any]:
        """As plain data. Nothing may be reserved: an update that is pending is waited for before."""
        assert not self.ledger.reserved, "an update is pending"
        return _ARM_STATE.dump_python(self, mode="json")

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> ArmState:
        """What `to_json` gave. Raises pydantic's ValidationError where it is something else."""
        return _ARM_STATE.validate_python(data)


_ARM_STATE: TypeAdapter[ArmState] = TypeAdapter(ArmState)
