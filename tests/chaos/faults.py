"""Which faults there are: what is done to which role, in which phase of the run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

Kind = Literal["exhaust", "kill", "freeze"]
KINDS: tuple[Kind, ...] = get_args(Kind)
ROLES = ("rollout", "scorer", "learner", "evaluator")
PHASES = {
    "generate": "rollout", "score": "scoring", "train": "learning", "sync": "sync", "evaluate": "evaluation",
    "checkpoint": "saving",
}  # fmt: skip
"""Phase -> the driver's activity (`engine_time.Activity`) at whose beginning the fault comes."""


@dataclass(frozen=True)
class Fault:
    """SIGKILL, SIGSTOP, or the loss of all free memory, for actor 0 of a role, at the beginning of a phase."""

    kind: Kind
    role: str
    phase: str

    def __str__(self) -> str:
        return f"{self.kind} {self.role} in {self.phase}"


@dataclass(frozen=True)
class Outcome:
    """`noticed`: whether an actor was started again for it (one without free memory may never need more).
    `seconds`: from the fault until the run made progress, by an update or an evaluation."""

    fault: Fault
    noticed: bool
    seconds: float


def every_fault() -> list[Fault]:
    """Roles alternate, so that each is up again long before its next fault."""
    return [Fault(kind, role, phase) for kind in KINDS for phase in PHASES for role in ROLES]


SAMPLE: Sequence[Fault] = (
    Fault("kill", "rollout", "generate"),
    Fault("kill", "scorer", "score"),
    Fault("freeze", "learner", "train"),
    Fault("exhaust", "rollout", "generate"),
    Fault("freeze", "rollout", "sync"),
    Fault("kill", "learner", "checkpoint"),
    Fault("kill", "evaluator", "evaluate"),
    Fault("freeze", "evaluator", "score"),
)
"""One of each kind, for every role that can be at work then."""
