"""Does a run today give what was recorded? Every number that both have, compared to the last bit, and what they were made with.

Pure functions on the contents of `base.json` and `results.json`. Weights are compared by their SHA-256: where those of a base
policy are the same, so are all numbers that follow from it by the same code, versions and threads.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from rlhf_bench.results.base import recorded_seeds

Value = float | str | None
Outcome = Literal["same", "differs", "not recorded"]
BASE_SCORES = ("score", "greedy_score")
SEED_NUMBERS = ("status", "updates", "score", "kl", "weights")
"""What is compared of an arm and seed that has ended."""


@dataclass(frozen=True, slots=True)
class Check:
    """One fact as it was recorded, and as it is now. `number`: whether it is a result; otherwise it is what a result was made
    with. None where a side does not have it; a side that never records it is no failure, but proves nothing."""

    name: str
    recorded: Value
    now: Value
    number: bool = True

    @property
    def outcome(self) -> Outcome:
        if self.recorded is None:
            return "not recorded"
        return "same" if self.recorded == self.now else "differs"

    @property
    def line(self) -> str:
        """`same: base policy, score in_distribution: 0.5117`; of what differs, both values and by how much."""
        if self.outcome == "same":
            return f"same: {self.name}: {_shown(self.now)}"
        if self.outcome == "not recorded":
            return f"not recorded: {self.name}; now {_shown(self.now)}"
        by = ""
        if isinstance(self.recorded, int | float) and isinstance(self.now, int | float):
            by = f", differs by {self.now - self.recorded:+.3g}"
        return f"DIFFERS: {self.name}: recorded {_shown(self.recorded)}, now {_shown(self.now)}{by}"


def made_with(recorded: Mapping[str, Any], now: Mapping[str, Any]) -> list[Check]:
    """What the numbers depend on beyond the recipe: `results.json` of both."""
    checks = [Check("commit", recorded.get("commit") or None, now.get("commit") or None, number=False)]
    checks.append(Check("machine", _machine(recorded), _machine(now), number=False))
    for key, what in (("threads", "threads of {}"), ("versions", "version of {}")):
        before, after = recorded.get(key) or {}, now.get(key) or {}
        names = [name for name in {**before, **after} if name in after or key == "versions"]  # roles that work now
        checks += [Check(what.format(name), before.get(name), after.get(name), number=False) for name in names]
    return checks


def base_checks(recorded: Mapping[str, Any], now: Mapping[str, Any]) -> list[Check]:
    """Of the base policy, or of each seed's that was made now: `base.json` of both."""
    seeds = recorded_seeds(now)
    if not seeds:
        return list(_base("base policy", recorded, now))
    before = recorded_seeds(recorded)
    return [one for seed in seeds for one in _base(f"base policy of seed {seed}", before.get(seed, {}), seeds[seed])]


def arm_checks(recorded: Mapping[str, Any], now: Mapping[str, Any]) -> list[Check]:
    """Of every arm and seed that ran now and is recorded: `results.json` of both."""
    before = {(arm, one["seed"]): one for arm, found in recorded["arms"].items() for one in found["seeds"]}
    return [
        Check(f"{arm} · seed {one['seed']}, {key}", before[arm, one["seed"]].get(key), one.get(key))
        for arm, found in now["arms"].items()
        for one in found["seeds"]
        if (arm, one["seed"]) in before
        for key in SEED_NUMBERS
    ]


def _machine(results: Mapping[str, Any]) -> str | None:
    """Without the memory that happened to be free as Ray started: no number depends on it."""
    return re.sub(r" \d+ GiB for Ray,", "", str(results.get("machine") or "")) or None


def _base(whose: str, recorded: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[Check]:
    yield Check(f"{whose}, weights", recorded.get("weights"), now.get("weights"))
    for key in BASE_SCORES:
        before = recorded.get(key) or {}
        for split, value in (now.get(key) or {}).items():
            yield Check(f"{whose}, {key} {split}", before.get(split), value)


def _shown(value: Value) -> str:
    """Enough of a digest to tell it from another; every digit of a number."""
    if isinstance(value, str) and len(value) == 64:
        return f"{value[:16]}…"
    return "none" if value is None else repr(value) if isinstance(value, float) else str(value)
