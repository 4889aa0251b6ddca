"""An arm's state between two updates as plain data, and back: what a checkpoint holds of the driver.

Not in it is what the same recipe makes again: models at the start, pairs, reference log-probabilities, and the start
policy's samples, which a run keeps in a folder of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from rlhf_bench.compute.ledger import Ledger
from rlhf_bench.core.costs import Cost
from rlhf_bench.core.types import Row
from rlhf_bench.methods.base import Measured
from rlhf_bench.training.experience import Batch, FixedPairs
from rlhf_bench.training.roles import Means, Measures, Pending, Step

if TYPE_CHECKING:
    from rlhf_bench.training.loop import ArmTrainer


@dataclass(frozen=True)
class Known:
    """What was under way when a checkpoint was written, and is known since."""

    value: Any

    def result(self) -> Any:
        return self.value


def state_of(run: ArmTrainer) -> dict[str, Any]:
    """Between two updates: none may be under way."""
    assert not run.handed_in and not run.ledger.reserved
    return {
        "rounds": run.rounds,
        "version": run.version,
        "synced": run.synced,
        "status": run.status,
        "skipped_in_a_row": run.skipped_in_a_row,
        "adapted": run.state,
        "paid_for": sorted(run.paid_for),
        "marks": list(run.marks_left),
        "seconds": run.seconds,
        "ledger": _ledger(run.ledger),
        "minibatches": run.rng.bit_generator.state,
        "sampler": {
            "prompts": run.sampler.rng.bit_generator.state,
            "queue": run.sampler.queue,
            "drawn": run.sampler.drawn,
            "ledger": None if run.sampler.ledger is run.ledger else _ledger(run.sampler.ledger),
        },
        "pairs": {"rng": run.source.rng.bit_generator.state, "order": run.source.order}
        if isinstance(run.source, FixedPairs)
        else None,
        "ahead": None if run.ahead is None else [_part(part) for part in run.ahead],
    }


def restore(run: ArmTrainer, state: Mapping[str, Any]) -> None:
    """Lay what `state_of` gave over an arm that has just begun."""

    run.rounds, run.version, run.synced = state["rounds"], state["version"], state["synced"]
    run.status, run.skipped_in_a_row = state["status"], state["skipped_in_a_row"]
    run.state, run.paid_for = state["adapted"], set(state["paid_for"])
    run.marks_left, run.seconds_before = list(state["marks"]), state["seconds"]
    _fill(run.ledger, state["ledger"])
    run.rng.bit_generator.state = state["minibatches"]
    sampler = state["sampler"]
    run.sampler.rng.bit_generator.state = sampler["prompts"]
    run.sampler.queue, run.sampler.drawn = list(sampler["queue"]), sampler["drawn"]
    if sampler["ledger"] is not None:
        run.sampler.ledger = Ledger(run.ledger.column, run.ledger.limit)
        _fill(run.sampler.ledger, sampler["ledger"])
    if isinstance(run.source, FixedPairs):
        run.source.rng.bit_generator.state = state["pairs"]["rng"]
        run.source.order = list(state["pairs"]["order"])
    run.ahead = None
    if state["ahead"] is not None:
        run.ahead = [
            PendingChunk(_drawn(part["drawn"]), {name: Known(_measures(m)) for name, m in part["measured"].items()})
            for part in state["ahead"]
        ]


def _ledger(ledger: Ledger) -> dict[str, Any]:
    return {
        "by_phase": {phase: cost.as_dict() for phase, cost in ledger.by_phase.items()},
        "max_update_cost": ledger.max_update_cost,
        "update_began_at": ledger.update_began_at,
    }


def _fill(ledger: Ledger, state: Mapping[str, Any]) -> None:
    ledger.by_phase = {phase: Cost(**cost) for phase, cost in state["by_phase"].items()}
    ledger.reserved.clear()
    ledger.max_update_cost, ledger.update_began_at = state["max_update_cost"], state["update_began_at"]


def _part(part: Any) -> dict[str, Any]:
    drawn = part.drawn
    measured = {name: under_way.result() for name, under_way in part.asked.items()}
    return {
        "drawn": {
            "rows": [_row(row) for row in drawn.rows], "rewards": drawn.rewards, "metrics": drawn.metrics, "fixed": drawn.fixed,
        },
        "measured": {
            name: {"rows": [_arrays(row) for row in rows], "cost": asdict(cost)} for name, (rows, cost) in measured.items()
        },
    }  # fmt: skip


def _drawn(data: Mapping[str, Any]) -> Batch:
    rows = [
        Row(
            r["id"],
            tuple(r["prompt"]),
            tuple(map(tuple, r["responses"])),
            {k: _back(v) for k, v in r["extras"].items()},
        )
        for r in data["rows"]
    ]
    return Batch(rows, [tuple(r) for r in data["rewards"]], data["metrics"], data["fixed"])


def _row(row: Row) -> dict[str, Any]:
    return {
        "id": row.id, "prompt": row.prompt_ids, "responses": row.responses,
        "extras": {name: _arrays(arrays) for name, arrays in row.extras.items()},
    }  # fmt: skip


def _measures(data: Mapping[str, Any]) -> tuple[list[tuple[np.ndarray, ...]], Cost]:
    return [_back(row) for row in data["rows"]], Cost(**data["cost"])


def _arrays(arrays: Sequence[np.ndarray]) -> list[tuple[str, list[float]]]:
    # Numbers of JSON are decimal, and long enough to come back as the same binary ones.
    return [(str(array.dtype), array.tolist()) for array in arrays]


def _back(arrays: Sequence[tuple[str, list[float]]]) -> tuple[np.ndarray, ...]:
    return tuple(np.array(numbers, dtype=dtype) for dtype, numbers in arrays)


@dataclass(frozen=True)
class PendingUpdate:
    """An update whose optimizer steps the learner has been handed: its number, what is known of it, what is to come."""

    version: int
    metrics: Mapping[str, float]
    steps: Sequence[Step] = ()
    owed: Cost = Cost()  # promised, for what was measured
    under_way: Pending[Means] | None = None  # None: there was nothing to learn from
    data: UpdateData | None = None


@dataclass(frozen=True)
class PendingChunk:
    """A part of an update's data, and what the learner has been asked to measure on it."""

    drawn: Batch
    asked: Mapping[str, Pending[Measures]]


@dataclass(frozen=True)
class UpdateData:
    """All of an update's data, what was measured on it, and what is still to be charged for that."""

    drawn: Batch
    measured: Measured
    owed: Cost = Cost()
