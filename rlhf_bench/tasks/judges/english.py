"""What judges of English texts share: words, nouns in both numbers, how near a count is, and rhymes."""

from __future__ import annotations

import re
from functools import lru_cache

_WORD = re.compile(r"\w+(?:['\N{RIGHT SINGLE QUOTATION MARK}-]\w+)*")


def words_of(text: str) -> list[str]:
    """The words in lower case, without punctuation; "don't" and "long-lasting" are one word each."""
    return _WORD.findall(text.lower())


def names(noun: str, words: list[str]) -> bool:
    """Whether one of the words is the noun, which may be a plural, or its singular: "pens" or "pen" for "pens"."""
    singulars = {noun[:-1], noun[:-2], f"{noun[:-3]}y"} if noun.endswith("s") else set()
    return not singulars.isdisjoint(words) or noun in words


def nearness(given: int, asked: int) -> float:
    """How near a number is to the one asked for: 1 where they are equal, down to 0 at none or at twice as many."""
    return max(0.0, 1 - abs(given - asked) / asked)


def rhyme(one: str, other: str) -> bool:
    """Whether two different words sound alike from the last stressed vowel on, in some pronunciation of the CMU Pronouncing
    Dictionary; a primary stress is as good as a secondary one. A word that it lacks rhymes with none."""
    return one != other and not _endings(one).isdisjoint(_endings(other))


@lru_cache(maxsize=4096)
def _endings(word: str) -> frozenset[str]:
    import pronouncing  # reads the whole dictionary, which takes a second: no other task needs it

    spoken = (phones.partition("#")[0].strip() for phones in pronouncing.phones_for_word(word))
    return frozenset(pronouncing.rhyming_part(phones.replace("2", "1")) for phones in spoken)
