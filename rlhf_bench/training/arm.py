"""What is asked of one arm with one seed, what it shares with other arms, and who watches and keeps it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from rlhf_bench.compute.ledger import Ledger
from rlhf_bench.core.types import EvalPoint, Evaluation
from rlhf_bench.methods.base import Method
from rlhf_bench.recipe import Recipe
from rlhf_bench.training.batch import Batch
from rlhf_bench.training.cache import Cache
from rlhf_bench.training.inputs import Inputs, StartingPoint
from rlhf_bench.training.rollouts import StartSamples
from rlhf_bench.training.state import ArmState


@dataclass(frozen=True)
class ArmSpec:
    """What is asked: a method with its settings under a recipe, and a seed. `name` tells the arm's draws from others'."""

    name: str
    recipe: Recipe
    method: Method
    settings: Any  # of the method's own model
    seed: int

    @property
    def needs(self) -> Sequence[str]:
        """What must be measured on an update's data before the method can learn from it."""
        return self.method.needs(self.settings)

    def settings_now(self, state: ArmState) -> Any:
        """The settings as numbers: schedules at the budget spent so far, and what the method has adapted."""
        return self.settings.resolve_at(min(state.ledger.committed, 1.0), state.method_state)


@dataclass(frozen=True)
class SharedByArms:
    """What all arms of a comparison begin with."""

    inputs: Inputs
    start: StartingPoint
    base: Evaluation  # of the base policy, at the recipe's temperature
    base_at_temperature: Mapping[float, Evaluation]  # of the base policy at others
    start_samples: StartSamples
    cache: Cache


@dataclass(frozen=True)
class ArmObserver:
    """What the loop tells the outside after every update and every evaluation."""

    update: Callable[[int, Mapping[str, float], Ledger], None]
    evaluated: Callable[[EvalPoint, Evaluation], None]
    skipped: Callable[[int, str, Batch], None] = lambda *_: None  # an update, why, and what it would have learned from


class Checkpointer(Protocol):
    """Keeps an arm's state where a later run finds it."""

    def due(self) -> bool:
        """Is it time for a checkpoint?"""

    def save(self, number: int, state: Mapping[str, Any], write: Callable[[str], Mapping[str, str]]) -> None:
        """The arm's state, and what the learner writes into a folder of its own. Ends the run if it was asked to end."""

    def latest(self) -> tuple[Mapping[str, Any], str, Sequence[str]] | None:
        """The arm's state, the learner's folder, and names of files in it; None to begin at the beginning."""
