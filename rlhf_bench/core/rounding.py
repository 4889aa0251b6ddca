"""How far two numbers that a model computes may be apart by its number format alone."""

from __future__ import annotations

ROUNDING = {"float32": 2.0**-19, "bfloat16": 2.0**-5}
"""Number format -> the largest gap that says nothing, relative to a number's size.

A network computes a number another way when its row is packed with others. Scores of 128 responses, computed alone and
packed by networks of 2 to 12 layers, were up to 1.5e-6 (float32) and 0.021 (bfloat16) apart, in units of the larger of
the score and the deviation of scores. These are the next powers of two: 16 and 4 units in the last place.
"""


def rounding_of(number: float, dtype: str, unit: float = 1.0) -> float:
    """How far another number of this size may be from `number` and mean the same. Sums that cancel are as far off as their
    parts, so the size is at least `unit`, that of an ordinary number of the kind."""
    return ROUNDING[dtype] * max(abs(number), unit)
