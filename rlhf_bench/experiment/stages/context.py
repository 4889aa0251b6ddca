"""What every stage works with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from rlhf_bench.recipe import Recipe
from rlhf_bench.training.cache import Cache
from rlhf_bench.training.inputs import Inputs
from rlhf_bench.training.roles import Roles


@dataclass(frozen=True)
class StageContext:
    recipe: Recipe
    inputs: Inputs
    roles: Roles
    cache: Cache
    say: Callable[[str], None]
    seed: int = 0  # of the comparison, where each has stages of its own

    def seed_of(self, stage: int) -> int:
        """A stage's own seed, below 1000, as a seed of the comparison varies it."""
        return stage + 1000 * self.seed
