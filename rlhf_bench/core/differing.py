"""Where two nested values differ: every key, with both."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

LONGEST_SHOWN = 80


@dataclass(frozen=True, slots=True)
class Differing:
    """A key in dots, and what stands there in the one and in the other, as JSON that may be cut short."""

    key: str
    one: str
    other: str


def differing(one: Any, other: Any, key: str) -> Iterator[Differing]:
    """Every key at or below `key` whose values are not the same. A mapping on one side only counts as one value."""
    if one == other:
        return
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        for name in dict.fromkeys((*other, *one)):
            yield from differing(one.get(name), other.get(name), f"{key}.{name}")
        return
    yield Differing(key, _shown(one), _shown(other))


def _shown(value: Any) -> str:
    written = json.dumps(value, ensure_ascii=False, default=str)
    return written if len(written) <= LONGEST_SHOWN else f"{written[: LONGEST_SHOWN - 1]}…"
