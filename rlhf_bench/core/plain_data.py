"""Arrays and random generators as plain data and back: annotated types by which pydantic writes and reads records.

Numbers of JSON are decimal, and long enough to come back as the same binary ones.
"""

from __future__ import annotations

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
