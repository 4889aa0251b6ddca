"""Arrays and random generators as plain data and back: annotated types by which pydantic writes and reads records.

Numbers of JSON are decimal, and long enough to come back as the same binary ones.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import fields
from typing import Annotated, Any

import numpy as np
from pydantic import PlainSerializer, PlainValidator


def _array(data: Any) -> np.ndarray:
    if isinstance(data, np.ndarray):
        return data
    dtype, numbers = data
    return np.array(numbers, dtype=dtype)


def _array_data(array: np.ndarray) -> tuple[str, list[float]]:
    return str(array.dtype), array.tolist()


def _generator(state: Any) -> np.random.Generator:
    if isinstance(state, np.random.Generator):
        return state
    generator = np.random.default_rng()
    generator.bit_generator.state = state
    return generator


Array = Annotated[np.ndarray, PlainValidator(_array), PlainSerializer(_array_data, return_type=tuple[str, list[float]])]
"""A one-dimensional array: its number format and its numbers."""

RandomGenerator = Annotated[
    np.random.Generator, PlainValidator(_generator), PlainSerializer(lambda generator: generator.bit_generator.state)
]
"""A random generator: its state, so that it continues where it was."""


def content_digest(records: Any) -> str:
    """SHA-256 of what records hold, in their fields' order: whatever the fields are called, and without those that do not
    count for equality. Records are dataclasses, in lists and dictionaries as deep as they like."""
    return hashlib.sha256(json.dumps(records, default=_values).encode()).hexdigest()


def _values(record: Any) -> Any:
    if isinstance(record, np.ndarray):
        return _array_data(record)
    return [getattr(record, field.name) for field in fields(record) if field.compare]
