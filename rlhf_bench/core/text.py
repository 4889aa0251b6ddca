"""Text as it may go out to a terminal or a log: answers of a model, the user's data, recipes, other programs' errors.

Such text may hold characters that act instead of show: a terminal obeys control sequences (clear the screen, rewrite
the title, go back over what was said), and bidirectional overrides show words in another order than they stand.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence

_ACTING = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")  # controls, formats, surrogates, no glyph, other line ends
_NOT_ASCII = re.compile(r"[^\n\t -~]")
_USER = re.compile(
    r"(?<=://)[^\s/?#]*:[^\s/?#]*@|(?<=http://)[^\s/?#]+@|(?<=https://)[^\s/?#]+@"
    r"|(?<=://)[^\s/?#:@]*:(?!\d{1,5}[/?#])\S*@",  # a password with a slash in it, which is no port either
    re.IGNORECASE,
)
_PASSWORD = re.compile(r"(?<=[?&]password=)[^\s&#]+", re.IGNORECASE)


def in_codes(text: str) -> str:
    """`text` with every character that would act, hide or reorder written as its code point, "⟨U+202E⟩".

    Line ends and tabs stay as they are.
    """
    return _NOT_ASCII.sub(lambda found: _shown(found[0]), text)


def without_passwords(text: str) -> str:
    """`text` without the secrets of the addresses in it: a user with a password, a web address's user, which may be a
    token, and a query's password. What is an address without one stays as it is."""
    return _PASSWORD.sub("…", _USER.sub("…@", text))


def printable(text: str) -> str:
    """`text` as a terminal or a log may have it: in codes, and without passwords."""
    return without_passwords(in_codes(text))


def one_line(text: str) -> str:
    """The same on one line, whatever ends a line in it: no text can pass for a further line of the program's own."""
    return printable(" ".join(text.splitlines()))


def _shown(character: str) -> str:
    return f"⟨U+{ord(character):04X}⟩" if unicodedata.category(character) in _ACTING else character


def listed(names: Sequence[str]) -> str:
    """At least one name, as prose: "a", "a and b", "a, b and c"."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


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
