"""Two responses to one prompt, and what a judge that compares them has said."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

Verdict = Literal["first", "second", "tie"]
"""Of a judge that was shown two responses, one after the other."""


@dataclass(frozen=True, slots=True)
class Contest:
    """Two responses to one prompt. The win rate is that of `own`, the policy under evaluation."""

    prompt: str
    own: str
    other: str

    @property
    def extra_length(self) -> int:
        """By how many characters `own` is longer."""
        return len(self.own) - len(self.other)


@dataclass(frozen=True, slots=True)
class Judged:
    """A judge's verdicts on a contest: with `own` shown first, and with `own` shown second. None where there is none yet."""

    own_first: Verdict | None
    own_second: Verdict | None

    @property
    def preference(self) -> float:
        """From 0 (`other` won twice) over .5 to 1 (`own` won twice), each order counts half; nan while a verdict is missing."""
        if self.own_first is None or self.own_second is None:
            return math.nan
        return (_WON[self.own_first] + 1 - _WON[self.own_second]) / 2


_WON: dict[Verdict, float] = {"first": 1.0, "tie": 0.5, "second": 0.0}
"""What a verdict is worth to the response that was shown first."""
