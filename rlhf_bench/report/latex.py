"""The report's tables as LaTeX, for papers: booktabs, one file a table, to be taken in by \\input."""

from __future__ import annotations

import re
from collections.abc import Sequence

from rlhf_bench.core.text import in_codes
from rlhf_bench.report.tables import Row

_CHARACTERS = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "_": r"\_", "%": r"\%", "&": r"\&", "#": r"\#", "$": r"\$",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"$<$", ">": r"$>$", "|": r"$|$",
    "−": "$-$", "–": "--", "×": r"$\times$", "·": r"$\cdot$", "±": r"$\pm$", "½": r"$\frac{1}{2}$", "≤": r"$\leq$",
    "≥": r"$\geq$", "⁺": "$^{+}$", "⁻": "$^{-}$", "α": r"$\alpha$", "β": r"$\beta$", "γ": r"$\gamma$", "η": r"$\eta$",
    "κ": r"$\kappa$", "λ": r"$\lambda$", "π": r"$\pi$", "σ": r"$\sigma$", "θ": r"$\theta$", "Δ": r"$\Delta$",
    "∇": r"$\nabla$", "‖": r"$\|$", "⟨": r"$\langle$", "⟩": r"$\rangle$", "…": r"\ldots{}",
}  # fmt: skip
_MINUS = re.compile(r"(?<![\w.)\]])-(?=\.?\d)")


def latex_table(rows: Sequence[Row]) -> str:
    """The rows, at least one, as a tabular: names to the left, numbers to the right. Letters beyond ASCII that have no
    command here stand as they are, which takes UTF-8 input and a font that has them."""
    headings = list(rows[0])
    lines = [
        r"% needs \usepackage{booktabs}",
        rf"\begin{{tabular}}{{{''.join('r' if _numeric(rows, heading) else 'l' for heading in headings)}}}",
        r"\toprule",
        _line(headings),
        r"\midrule",
        *(_line(list(row.values())) for row in rows),
        r"\bottomrule",
        r"\end{tabular}",
    ]
    return "\n".join(lines) + "\n"


def escaped(text: str) -> str:
    """Text as LaTeX shows it: none of its characters acts, and a number's hyphen is a minus."""
    text = _MINUS.sub("−", in_codes(" ".join(text.split())))
    return "".join(_CHARACTERS.get(character, character) for character in text)


def _line(cells: Sequence[str]) -> str:
    # In braces: a row that begins with [ would be taken for an argument of the line break before it.
    return " & ".join(f"{{{escaped(cell)}}}" if cell.startswith("[") else escaped(cell) for cell in cells) + r" \\"


def _numeric(rows: Sequence[Row], heading: str) -> bool:
    cells = [row[heading] for row in rows if row[heading]]
    return all(re.match(r"[<+−–-]?\s*[\d.]|–", cell) for cell in cells)
