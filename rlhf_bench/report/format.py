"""Numbers and generated text as a reader should see them."""

from __future__ import annotations

import math
from collections.abc import Mapping

from rlhf_bench.core.text import in_codes

ABSENT = "–"
"""Stands where a number was not recorded."""

UNIT_NAMES = {
    "flops": "FLOP",
    "generated_tokens": "generated tokens",
    "trained_tokens": "trained tokens",
    "scored_tokens": "scored tokens",
    "judge_queries": "judge queries",
    "device_seconds": "device-seconds",
}
_PREFIXES = ("", "k", "M", "G", "T", "P", "E", "Z")


def decimal(value: float, digits: int = 3, sign: bool = False) -> str:
    """`value` with `digits` decimals; `ABSENT` for nan."""
    if math.isnan(value):
        return ABSENT
    return f"{value:{'+' if sign else ''}.{digits}f}"


def quantity(value: float, column: str = "") -> str:
    """`value` to three digits with an SI prefix, and its unit where `column` names one: "1.5 TFLOP", "12.3k"."""
    if not math.isfinite(value):
        return ABSENT
    power = 0
    # Compared as printed: 999 999 becomes 1M, not 1000k.
    while float(f"{abs(value):.3g}") >= 1000 and power < len(_PREFIXES) - 1:
        value, power = value / 1000, power + 1
    digits, prefix = f"{value:.3g}", _PREFIXES[power]
    if column == "flops":
        return f"{digits} {prefix}FLOP"
    return f"{digits}{prefix} {UNIT_NAMES[column]}" if column else f"{digits}{prefix}"


def each(facts: Mapping[str, str]) -> str:
    """ "torch 2.11, ray 2.55"; empty without any."""
    return ", ".join(f"{name} {value}" for name, value in facts.items())


def duration(seconds: float) -> str:
    """Seconds as a reader says them: "42.0 s", "12 min 5 s" or "3 h 20 min"."""
    if not math.isfinite(seconds):
        return ABSENT
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def visible(text: str) -> str:
    """`text` with every character that would act, hide or reorder instead of show made visible.

    Line ends and tabs keep their effect and get a mark; other control and formatting characters (zero width,
    bidirectional overrides) and whatever has no glyph are written as their code point, "⟨U+202E⟩".
    Escaping for HTML is the template's work.
    """
    return in_codes(text).replace("\n", "↵\n").replace("\t", "⇥\t")
