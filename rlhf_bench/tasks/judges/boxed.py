"""Answers in \\boxed{}, compared by their worth (worth.py)."""

from __future__ import annotations

from collections.abc import Iterable

from rlhf_bench.core.types import Judgement
from rlhf_bench.tasks.judges.worth import Comparer

_BOX = "\\boxed{"
MAX_CHARACTERS = 300
"""Maximum length of an answer. Right answers are short, and the time to parse LaTeX grows with the length."""
_comparer = Comparer()


def last_boxed(text: str) -> str | None:
    """What stands in the last \\boxed{…}, braces counted; None where there is none, or it does not close."""
    start = text.rfind(_BOX)
    depth = 0
    for at in range(start + len(_BOX) - 1, len(text) if start >= 0 else 0):
        depth += {"{": 1, "}": -1}.get(text[at], 0)
        if depth == 0:
            return text[start + len(_BOX) : at].strip()
    return None


def judge_boxed(response: str, reference: str) -> Judgement:
    """Score 1 where the last \\boxed{} of the response is worth what the reference's is: 1/2 is \\frac{1}{2} is 0.5. A
    reference without a box is the answer itself.

    Parts: `answer`, which is the score; `format`: the response has a box that closes; `undecided`: what is in it costs too much
    to compare, and counts as wrong."""
    given, right = last_boxed(response), _right_answer(reference)
    equal: bool | None = given == right
    if given is not None and _comparable(right, given):
        equal = _comparer.equal(right, given)
    score = float(equal or False)
    return Judgement(score, {"answer": score, "format": float(given is not None), "undecided": float(equal is None)})


def settle_boxed(asked: Iterable[tuple[str, str]]) -> None:
    """Compare many responses with their references at once, in parallel: `judge_boxed` then knows what each is worth."""
    pairs = ((_right_answer(reference), last_boxed(response)) for response, reference in asked)
    _comparer.settle((right, given) for right, given in pairs if given is not None and _comparable(right, given))


def _right_answer(reference: str) -> str:
    boxed = last_boxed(reference)
    return reference.strip() if boxed is None else boxed


def _comparable(right: str, given: str) -> bool:
    return given not in ("", right) and max(len(right), len(given)) <= MAX_CHARACTERS
