"""What each arm has spent, and when it stops. Every role's work is charged here and nowhere else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from rlhf_bench.core.costs import UNCHARGED_PHASES, Column, Cost, Phase


@dataclass
class Ledger:
    """One arm's account under one budget: `limit` units of `column`.

    An arm stops before the first update that would pass the limit. What an update will cost is known before its
    training starts (token counts are), except for sampling and seconds: there the most costly update so far is the
    forecast.
    """

    column: Column
    limit: float
    by_phase: dict[Phase, Cost] = field(default_factory=dict)
    reserved: list[tuple[Phase, Cost]] = field(default_factory=list)
    max_update_cost: float = 0.0  # in `column`
    update_began_at: float = 0.0  # spent and reserved by then, in `column`

    def charge(self, phase: Phase, cost: Cost) -> None:
        self.by_phase[phase] = self.by_phase.get(phase, Cost()) + cost

    def charge_all(self, other: Ledger) -> None:
        """Move everything that was charged to another ledger into this one. The other is empty afterwards."""
        for phase, cost in other.by_phase.items():
            self.charge(phase, cost)
        other.by_phase.clear()

    def reserve(self, phase: Phase, cost: Cost) -> None:
        """Work that is pending: it takes up room at once, and is charged by `commit` when it is done."""
        self.reserved.append((phase, cost))

    def commit(self, cost: Cost) -> None:
        """Charge what the oldest reserved work has come to."""
        phase, _ = self.reserved.pop(0)
        self.charge(phase, cost)

    def total(self) -> Cost:
        return _total(self.by_phase)

    @property
    def spent(self) -> float:
        return getattr(self.total(), self.column)

    @property
    def fraction(self) -> float:
        return self.spent / self.limit

    @property
    def committed(self) -> float:
        """Spent and reserved, as a share of the limit."""
        return self._committed() / self.limit

    def begin_update(self) -> bool:
        """False when an update as costly as the most costly so far would pass the limit: then the arm ends here."""
        self.update_began_at = self._committed()
        return self.update_began_at + self.max_update_cost <= self.limit

    def has_room_for(self, cost: Cost) -> bool:
        """Whether the rest of this update, at this cost, stays within the limit."""
        return self._committed() + getattr(cost, self.column) <= self.limit

    def end_update(self) -> float:
        """What the update has come to, in `column`; seconds of pending work are not known yet."""
        cost = self._committed() - self.update_began_at
        self.max_update_cost = max(self.max_update_cost, cost)
        return cost

    def _committed(self) -> float:
        # Summed phase by phase, in the order in which it will be charged: the same sum bit for bit.
        by_phase = dict(self.by_phase)
        for phase, cost in self.reserved:
            by_phase[phase] = by_phase.get(phase, Cost()) + cost
        return getattr(_total(by_phase), self.column)


def _total(by_phase: Mapping[Phase, Cost]) -> Cost:
    return sum((c for p, c in by_phase.items() if p not in UNCHARGED_PHASES), Cost())
