"""Text that is safe to print to a terminal, a log or Markdown.

Responses of a model, the user's data, recipes and errors of other programs may hold characters that act instead of being
shown: a terminal obeys control sequences (clear the screen, change the title, overwrite earlier lines), and bidirectional
overrides show words in another order.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence

_ACTING = (
    "Cc",
    "Cf",
    "Cs",
    "Co",
    "Cn",
    "Zl",
    "Zp",
)  # controls, formats, surrogates, private use, unassigned, line and paragraph separators
_NOT_ASCII = re.compile(r"[^\n\t -~]")
_USER = re.compile(
    r"(?<=://)[^\s/?#]*:[^\s/?#]*@|(?<=http://)[^\s/?#]+@|(?<=https://)[^\s/?#]+@"
    r"|(?<=://)[^\s/?#:@]*:(?!\d{1,5}[/?#])\S*@",  # a password with a slash in it, which is no port either
    re.IGNORECASE,
)
_PASSWORD = re.compile(
    r"([?&#;][\w.-]*(?:passw(?:or)?d|pwd|passphrase|token|secret|credentials?|signature|api[_-]?key|access[_-]?key)="
    r"|[?&#;](?:key|auth|sig|jwt)=)[^\s&#;]+",
    re.IGNORECASE,
)
"""What a query may call a secret."""


def in_codes(text: str) -> str:
    """`text` with every character that would act, hide or reorder written as its code point, "⟨U+202E⟩".

    Line ends and tabs stay as they are.
    """
    return _NOT_ASCII.sub(lambda found: _shown(found[0]), text)


def without_passwords(text: str) -> str:
    """`text` without the secrets of the addresses in it: a user with a password, a web address's user, which may be a
    token, and a query's password, token or key. What is an address without one stays as it is."""
    return _PASSWORD.sub(r"\1…", _USER.sub("…@", text))


def printable(text: str) -> str:
    """`text` as a terminal or a log may have it: in codes, and without passwords."""
    return without_passwords(in_codes(text))


def one_line(text: str) -> str:
    """The same on one line, so that no part of the text can look like a line of this program."""
    return printable(" ".join(text.splitlines()))


def _shown(character: str) -> str:
    return f"⟨U+{ord(character):04X}⟩" if unicodedata.category(character) in _ACTING else character


def listed(names: Sequence[str]) -> str:
    """One name or more, as prose: "a", "a and b", "a, b and c"."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def table(rows: Sequence[Mapping[str, str]]) -> str:
    """A Markdown table of rows with the same headings; the first column is aligned left."""
    headings = list(rows[0])
    lines = [headings, ["---", *["---:"] * (len(headings) - 1)]]
    lines += [[_cell(cell) for cell in row.values()] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def escaped(text: str) -> str:
    """Text from a recipe or from records, on one line, in which Markdown finds no markup."""
    text = in_codes(" ".join(text.split()))
    for character in "\\`*_<[":
        text = text.replace(character, f"\\{character}")
    return text


def _cell(text: str) -> str:
    return escaped(text).replace("|", "\\|")
