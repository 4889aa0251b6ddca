"""Log-probabilities of fixed rows under the start policy: measured once for all arms and seeds that learn from them.

They are kept in the cache, keyed by data and weights, and no reference model is held while such an arm trains. Every
arm still pays for each row's forward pass when it first uses the row, as if it had made it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rlhf_bench.core.costs import Cost
from rlhf_bench.core.errors import RunFailed
from rlhf_bench.core.types import Row
from rlhf_bench.methods.base import PerResponse
from rlhf_bench.models.weights import weights_digest
from rlhf_bench.training.cache import Cache
from rlhf_bench.training.roles import LearnerGroup

RowKey = tuple[tuple[int, ...], tuple[tuple[int, ...], ...]]


@dataclass(frozen=True)
class ReferenceLogprobs:
    """Per row, one array per response with the log-probability (nats) of each of its tokens."""

    by_row: Mapping[RowKey, PerResponse]
    seconds_per_flop: float  # of a device, in the pass that measured them

    def of(self, rows: Sequence[Row]) -> list[PerResponse]:
        """Raises RunFailed where a row was not among those that were measured."""
        found = [self.by_row.get(_key(row)) for row in rows]
        for row, logprobs in zip(rows, found, strict=True):
            if logprobs is None:
                raise RunFailed(
                    f"reference log-probs: row {row.id} is not among the {len(self.by_row)} that were measured before training"
                )
        return [logprobs for logprobs in found if logprobs is not None]

    def cost(self, learner: LearnerGroup, rows: Sequence[Row]) -> Cost:
        """What the forward pass over these rows comes to."""
        cost = learner.measure_cost("policy", rows)  # of the reference's shape
        return cost + Cost(device_seconds=cost.flops * self.seconds_per_flop)


def reference_logprobs(
    learner: LearnerGroup, store: Cache, reference: Path, rows: Sequence[Row], temperature: float, measured_by: Any
) -> ReferenceLogprobs:
    """From the cache, or by a pass over all rows, which loads the model and frees it again. `measured_by`: what else
    the numbers and their seconds depend on, such as the number format and the learner's placement."""
    data = hashlib.sha256(repr([_key(row) for row in rows]).encode()).hexdigest()
    key = [weights_digest(reference), data, temperature, measured_by]

    def make(folder: Path) -> dict[str, Any]:
        learner.load("reference", reference)
        found, cost = learner.measure("reference", rows, temperature)
        learner.free("reference")
        np.save(folder / "logprobs.npy", np.concatenate([a for numbers in found for a in numbers]))
        return {"flops": cost.flops, "device_seconds": cost.device_seconds}

    folder, made, _ = store.get("reference", key, make)
    ends = np.cumsum([len(response) for row in rows for response in row.responses])[:-1]
    each = iter(np.split(np.load(folder / "logprobs.npy"), ends))
    by_row = {_key(row): tuple(next(each) for _ in row.responses) for row in rows}
    return ReferenceLogprobs(by_row, made["device_seconds"] / made["flops"])


def _key(row: Row) -> RowKey:
    return row.prompt_ids, row.responses
