"""Tables and text as Markdown, whoever wrote the text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rlhf_bench.core.text import in_codes


def table(rows: Sequence[Mapping[str, str]]) -> str:
    """Rows with the same headings, the first column to the left."""
    headings = list(rows[0])
    lines = [headings, ["---", *["---:"] * (len(headings) - 1)]]
    lines += [[_cell(cell) for cell in row.values()] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def escaped(text: str) -> str:
    """Text of the recipe's author, or of the records, as text: no markup, one line."""
    text = in_codes(" ".join(text.split()))
    for character in "\\`*_<[":
        text = text.replace(character, f"\\{character}")
    return text


def _cell(text: str) -> str:
    return escaped(text).replace("|", "\\|")
