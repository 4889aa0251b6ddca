"""An update's data on its way from samples or pairs to the learner."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

import numpy as np
from pydantic import PlainSerializer, PlainValidator, TypeAdapter

from rlhf_bench.core.types import Row
from rlhf_bench.methods.base import Measured
from rlhf_bench.training.roles import Measures, Pending

_MEASURES: TypeAdapter[Measures] = TypeAdapter(Measures)


@dataclass(frozen=True)
class Known:
    """What was pending when a checkpoint was written, and is known since."""

    value: Measures

    def result(self) -> Measures:
        return self.value


def _known(data: Any) -> Pending[Measures]:
    return Known(_MEASURES.validate_python(data)) if isinstance(data, (list, tuple)) else data


PendingMeasures = Annotated[
    Any,  # Pending[Measures]: a Protocol, of which pydantic can make no schema
    PlainValidator(_known),
    PlainSerializer(lambda pending: _MEASURES.dump_python(pending.result(), mode="json")),
]
"""A forward pass that the learner has been asked for. As plain data it is what the pass has found, which is waited for."""


@dataclass(frozen=True)
class Batch:
    """An update's data, or a chunk of it. `rewards`: per row, one number per response."""

    rows: list[Row]
    rewards: list[tuple[float, ...]]
    metrics: dict[str, float]
    fixed: bool  # the same rows come again: what was measured on them under the reference stays true
    asked: dict[str, PendingMeasures] = field(default_factory=dict)  # forward passes of a chunk, by what they measure
    measured: Measured = field(default_factory=dict)  # of a whole update: what they have found


def joined(chunks: Sequence[Batch]) -> Batch:
    """All chunks of an update as one, before anything is measured."""
    rows, rewards = ([x for chunk in chunks for x in getattr(chunk, name)] for name in ("rows", "rewards"))
    metrics = {key: value for chunk in chunks for key, value in chunk.metrics.items()}
    return Batch(rows, rewards, metrics, chunks[-1].fixed)


def mismatched(rows: Sequence[Row], max_length: int) -> list[Row]:
    """Each row's prompt with the responses of the row after it, cut to what the context has room for."""
    others = [*rows[1:], rows[0]]
    return [
        Row(row.id, row.prompt_ids, tuple(a[: max_length - len(row.prompt_ids)] for a in other.responses))
        for row, other in zip(rows, others, strict=True)
    ]


def not_finite(batch: Batch) -> str | None:
    """What is wrong with an update's numbers before anything has learned from them. A reward of nan, or of −∞ in a pair,
    marks a response that did not end."""
    if any(reward == math.inf for rewards in batch.rewards for reward in rewards):
        return "a reward is not finite"
    for name, rows in batch.measured.items():
        if not all(np.isfinite(numbers).all() for row in rows for numbers in row):
            return f"{name} not finite"
    return None


def sample_logprob(measured: Measured) -> Mapping[str, float]:
    """Mean log-probability (nats) of the policy's own samples, where a method measures it."""
    if "logprobs" not in measured:
        return {}
    return {"sample_logprob": float(np.mean([a.sum() for row in measured["logprobs"] for a in row]))}
