"""What a judge is asked, and how its reply is read."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from rlhf_bench.core.contests import Contest, Verdict
from rlhf_bench.core.errors import BadInput

OWN_PROMPT = Path(__file__).with_name("prompt.txt")
PLACES = ("{prompt}", "{first}", "{second}")
MAX_BYTES = 100_000
_PLACE = re.compile("|".join(map(re.escape, PLACES)))
_MARKS: dict[str, Verdict] = {"A": "first", "B": "second", "C": "tie"}
_MARK = re.compile(r"\[\[([ABC])\]\]")
MARKS = tuple(f"[[{letter}]]" for letter in _MARKS)
"""What stands for a verdict in a reply: the first response is better, the second one is, a tie."""


@dataclass(frozen=True, slots=True)
class JudgePrompt:
    """A user message with the places {prompt}, {first} and {second}."""

    text: str

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.text.encode()).hexdigest()

    def message(self, contest: Contest, own_first: bool) -> str:
        """Every place is filled once: what looks like a place in a response stays as it is."""
        shown = (contest.own, contest.other) if own_first else (contest.other, contest.own)
        filled = dict(zip(PLACES, (contest.prompt, *shown), strict=True))
        return _PLACE.sub(lambda place: filled[place[0]], self.text)


def read_prompt(path: Path | None) -> JudgePrompt:
    """That of a file, or the project's own. Raises BadInput with all that is wrong with it."""
    file = path or OWN_PROMPT
    try:
        if file.stat().st_size > MAX_BYTES:
            raise BadInput(
                f"--prompt {file}: is longer than {MAX_BYTES} bytes; give a text file with {', '.join(PLACES)}"
            )
        text = file.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is no text in UTF-8"
        raise BadInput(
            f"--prompt {file}: cannot be read ({reason}); give a text file with {', '.join(PLACES)}"
        ) from None
    missing = [place for place in PLACES if place not in text]
    unnamed = [mark for mark in MARKS if mark not in text]
    problems = [f"--prompt {file}: has no {place}; write it where the text belongs" for place in missing]
    problems += [f"--prompt {file}: never names {mark}; ask for {', '.join(MARKS)} as the verdict" for mark in unnamed]
    if problems:
        raise BadInput(*problems)
    return JudgePrompt(text)


def verdict(reply: str) -> Verdict | None:
    """The last mark in a reply: a judge may reason first, and name the marks while it does. None where there is none."""
    found = _MARK.findall(reply)
    return _MARKS[found[-1]] if found else None
