"""Numbers of a method's settings that may change with the budget spent."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, TypeAdapter, model_validator

from rlhf_bench.core.settings import Section


class Schedule(Section):
    """A number that changes with the share of the budget that is spent."""

    kind: Literal["constant", "linear", "cosine"] = Field(
        description="constant: start throughout; linear: a straight line; cosine: half a wave, slow at both ends"
    )
    start: float = Field(gt=0, description="the value when nothing is spent")
    end: float = Field(gt=0, description="the value when the budget is spent; constant needs none")

    @model_validator(mode="before")
    @classmethod
    def _constant_ends_where_it_starts(cls, data: Any) -> Any:
        if isinstance(data, Mapping) and data.get("kind") == "constant" and "start" in data:
            return {"end": data["start"], **data}
        return data

    @model_validator(mode="after")
    def _constant_has_one_value(self) -> Schedule:
        if self.kind == "constant" and self.end != self.start:
            raise ValueError("a constant schedule has one value: leave out end, or use kind: linear or cosine")
        return self

    def resolve_at(self, fraction: float) -> float:
        """The value at this fraction of the budget; beyond 1, which the last update may reach, the value at the end."""
        done = min(max(fraction, 0.0), 1.0)
        if self.kind == "cosine":
            done = (1 - math.cos(math.pi * done)) / 2
        return self.start + (self.end - self.start) * done


_POSITIVE: TypeAdapter[float] = TypeAdapter(Annotated[float, Field(gt=0, allow_inf_nan=False)])


def _number_or_schedule(value: Any) -> float | Schedule:
    """A number or a schedule, decided by the value's shape, so that a mistake gives one error and not one for each kind."""
    if isinstance(value, (Mapping, Schedule)):
        return Schedule.model_validate(value)
    return _POSITIVE.validate_python(value)


Scheduled = Annotated[float | Schedule, BeforeValidator(_number_or_schedule)]
"""A setting above 0 that may follow a schedule."""


def resolved(strength: float | Schedule) -> float:
    """A strength as a plain number, after `MethodSettings.resolve_at`. TypeError for a schedule."""
    if isinstance(strength, Schedule):
        raise TypeError("a schedule has no value of its own: call settings.resolve_at(fraction, state) first")
    return strength
