"""A section of the report: what it is about, what is seen, its plots and its tables."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rlhf_bench.report.plots.style import Plot
from rlhf_bench.report.tables import Row


@dataclass(frozen=True, slots=True)
class Table:
    """A table with the sentence that introduces it."""

    caption: str
    rows: Sequence[Row]


@dataclass(frozen=True, slots=True)
class Section:
    """`about` explains the property and never changes; `seen` is computed from the data, or says what is missing.

    `draw` makes the plots; a docs page does without them.
    """

    anchor: str
    title: str
    about: str
    seen: tuple[str, ...]
    draw: Callable[[], tuple[Plot, ...]] = tuple
    tables: tuple[Table, ...] = ()


def tables_of(*found: Table) -> tuple[Table, ...]:
    """Those that have rows."""
    return tuple(table for table in found if table.rows)
