"""What a first recipe is asked for with, and what it becomes: machine, budget, proposal."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from rlhf_bench.core.errors import BadInput
from rlhf_bench.recipe import Recipe, parse_recipe


@dataclass(frozen=True)
class Machine:
    """What the recipe is to run on."""

    cores: int
    gpus: int = 0
    gpu_gib: float = 0.0


@dataclass(frozen=True)
class Budget:
    """FLOPs for each arm and seed; or seconds of the whole comparison, which the forecast makes FLOPs."""

    flops: float | None = None
    seconds: float | None = None


@dataclass
class Proposal:
    """A recipe as plain data, and (section, sentence) for each thing that was assumed."""

    data: dict[str, Any]
    assumed: list[tuple[str, str]] = field(default_factory=list)

    def recipe(self) -> Recipe:
        return parse_recipe(self.data)

    def assume(self, section: str, sentence: str) -> None:
        self.assumed.append((section, sentence))


_UNITS = {"s": 1.0, "sec": 1.0, "min": 60.0, "h": 3600.0, "d": 86400.0}


def budget_of(text: str) -> Budget:
    """`10min`, `90s`, `2h` and `1d` are a time, a bare number such as 1e14 is FLOPs. BadInput for anything else."""
    if timed := re.fullmatch(rf"(\d+(?:\.\d+)?)\s*({'|'.join(_UNITS)})", text.strip()):
        found = Budget(seconds=float(timed[1]) * _UNITS[timed[2]])
    else:
        try:
            found = Budget(flops=float(text))
        except ValueError:
            raise BadInput(f"--budget: {text} is no budget; write 10min, 90s or 2h, or FLOPs such as 1e14") from None
    amount = found.flops if found.seconds is None else found.seconds
    if not amount or not 0 < amount < 1e30:
        raise BadInput(f"--budget: {text} is no budget; write more than nothing, such as 10min or 1e14")
    return found
