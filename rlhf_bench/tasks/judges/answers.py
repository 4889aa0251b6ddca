"""Exact rules for answers: text against text, number against number."""

from __future__ import annotations

import re
from collections import Counter
from decimal import Decimal

from rlhf_bench.core.types import Judgement

_NUMBER = re.compile(r"(?:-\s*)?(?:(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+)")
_MINUS_SIGN = "\N{MINUS SIGN}"


def final_number(text: str, marker: str) -> Decimal | None:
    """The number after the last `marker`: "... #### $1,080" is 1080. Dollar signs and thousands commas are dropped.

    None where there is no marker, or not exactly one number after it: two candidates are a hedge, not an answer."""
    _, found, rest = text.rpartition(marker)
    numbers = _NUMBER.findall(rest.replace("$", "").replace(_MINUS_SIGN, "-"))
    return Decimal(re.sub(r"[,\s]", "", numbers[0])) if found and len(numbers) == 1 else None


def reference_number(reference: str, marker: str) -> Decimal | None:
    """A reference's number, which may stand alone ("72") or in a worked solution ("... #### 72")."""
    return final_number(reference if marker in reference else marker + reference, marker)


def judge_number(response: str, reference: str, marker: str) -> Judgement:
    """Score 1 where response and reference end in the same number, compared exactly as decimals (72 is 72.0).

    Parts: `answer`, which is the score, and `format`: the response has the marker and one number after it."""
    given, right = final_number(response, marker), reference_number(reference, marker)
    score = float(given is not None and given == right)
    return Judgement(score, {"answer": score, "format": float(given is not None)})


def judge_exact(response: str, reference: str) -> Judgement:
    """Score 1 where response and reference are the same text, white space at the ends aside."""
    score = float(response.strip() == reference.strip())
    return Judgement(score, {"answer": score})


def judge_overlap(response: str, reference: str) -> Judgement:
    """F1 of the words that response and reference share, each as often as both have it; case and punctuation aside.

    A crude stand-in for quality, where a reference is one good answer among many and a reward model is the teacher."""
    given, wanted = (Counter(re.findall(r"\w+", text.lower())) for text in (response, reference))
    score = 2 * (given & wanted).total() / max(given.total() + wanted.total(), 1)
    return Judgement(score, {"words": score})
