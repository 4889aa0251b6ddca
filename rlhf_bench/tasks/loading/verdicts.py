"""Rows as other layouts have them, brought into TRL's columns: a prompt in several columns, two answers with verdicts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

from rlhf_bench.core.unusable import Unusable
from rlhf_bench.tasks.loading.rows import FileRow, Spelled

JOINED = " + "
"""Between the names of columns that are joined."""


class NoPreference(Unusable):
    """A row whose verdicts prefer neither answer: no fault of the row."""


def said(value: object) -> str:
    """A verdict as text: 1 and "1" say the same, and so do true and "true"."""
    if isinstance(value, list | dict):
        raise ValueError("a verdict is a text or a number")
    if isinstance(value, bool):
        return str(value).lower()
    return value.text if isinstance(value, Spelled) else str(value).strip()


def joined(row: FileRow, columns: Sequence[str]) -> FileRow:
    """With a column of the texts of all of these, a blank line between two. Empty ones are passed over."""
    texts = [row.text(column) for column in columns if row.get(column) not in (None, "")]
    return _with(row, {JOINED.join(columns): "\n\n".join(texts)})


def decided(
    row: FileRow, answers: tuple[str, str], columns: Sequence[str], values: tuple[str, str], sides: tuple[str, str]
) -> FileRow:
    """With the columns `sides`, (chosen, rejected): the answer that more than half of the verdicts name, and the other one."""
    votes = Counter(said(row.get(column)) for column in columns)
    better = [at for at, value in enumerate(values) if 2 * votes[value] > len(columns)]
    if not better:
        raise NoPreference(
            row.where, f"the verdicts in {', '.join(columns)} prefer neither answer", "with no preferred answer"
        )
    chosen, rejected = answers[better[0]], answers[1 - better[0]]
    return _with(row, {sides[0]: row.text(chosen), sides[1]: row.text(rejected)})


def _with(row: FileRow, more: Mapping[str, object]) -> FileRow:
    return replace(row, values={**row.values, **more})
