"""What the instructions task asks for, in IFEval's kinds, and a writer who can do all of it: rules, no model.

Left out of IFEval's kinds are those that need a download, and those that are about a whole answer's form or language and go
with hardly any other: JSON, two responses, a repeated prompt, fixed options, sections, first words, another language."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Arguments = dict[str, Any]

KEYWORDS = tuple("morning window castle pocket river music summer bridge kitchen candle island ticket blanket".split())
FORBIDDEN = tuple("very good really people because think great things best never always important".split())
END_PHRASES = ("That is all for now.", "Thank you for reading this.", "I hope this helps you.", "Have a wonderful day.")
PLACEHOLDERS = ("[name]", "[place]", "[date]", "[number]")
_FILLERS = tuple(
    """
It is a part of my day.|I learned about it from an old friend.|You can start with a small step.|We talk about it on quiet evenings.
There is much to see and to learn.|My family enjoys it as well.|It makes a long week feel short.|I would like to tell you more about it.
Take your time and look at it closely.|Many of my friends feel the same way.|The first time was a surprise for all of us.
Each year we find something new in it.
""".strip()
    .replace("\n", "|")
    .split("|")
)
"""Sentences without a comma, a keyword or a forbidden word."""


@dataclass(frozen=True)
class Kind:
    """One kind of instruction: how its arguments are drawn, how a prompt says it, and which kinds it does not go with."""

    name: str
    draw: Callable[[random.Random], Arguments]
    say: Callable[[Arguments], str]
    without: tuple[str, ...] = ()


def _some(argument: str) -> Callable[[random.Random], Arguments]:
    return lambda rng: {argument: rng.randint(2, 3)}


def _none(rng: random.Random) -> Arguments:
    return {}


WORDS, EXISTENCE, FREQUENCY = "length_constraints:number_words", "keywords:existence", "keywords:frequency"
FORBIDS, PLACES, POSTSCRIPT = (
    "keywords:forbidden_words",
    "detectable_content:number_placeholders",
    "detectable_content:postscript",
)
BULLETS, HIGHLIGHTS = "detectable_format:number_bullet_lists", "detectable_format:number_highlighted_sections"
TITLE, END, QUOTATION = "detectable_format:title", "startend:end_checker", "startend:quotation"
NO_COMMA, LOWER, UPPER = "punctuation:no_comma", "change_case:english_lowercase", "change_case:english_capital"
PARAGRAPHS = "length_constraints:number_paragraphs"

KINDS = {
    kind.name: kind
    for kind in (
        Kind(
            WORDS,
            lambda rng: {"relation": rng.choice(("at least", "less than")), "num_words": rng.choice((40, 50, 60))},
            lambda a: f"Use {'at least' if a['relation'] == 'at least' else 'fewer than'} {a['num_words']} words.",
        ),
        Kind(
            EXISTENCE, lambda rng: {"keywords": [rng.choice(KEYWORDS)]}, lambda a: f"Use the word {a['keywords'][0]}."
        ),
        Kind(
            FREQUENCY,
            lambda rng: {"relation": "at least", "keyword": rng.choice(KEYWORDS), "frequency": rng.randint(2, 3)},
            lambda a: f"Use the word {a['keyword']} at least {a['frequency']} times.",
            without=(EXISTENCE,),
        ),
        Kind(
            FORBIDS,
            lambda rng: {"forbidden_words": [rng.choice(FORBIDDEN)]},
            lambda a: f"Do not use the word {a['forbidden_words'][0]}.",
        ),
        Kind(
            PLACES,
            _some("num_placeholders"),
            lambda a: f"Use at least {a['num_placeholders']} placeholders in square brackets, such as [name].",
        ),
        Kind(POSTSCRIPT, lambda rng: {"postscript_marker": "P.S."}, lambda a: "Add a postscript that starts with P.S."),
        Kind(
            BULLETS,
            _some("num_bullets"),
            lambda a: f"Write exactly {a['num_bullets']} bullet points, each on a line that starts with a dash.",
            without=(PARAGRAPHS,),
        ),
        Kind(
            HIGHLIGHTS,
            _some("num_highlights"),
            lambda a: f"Highlight at least {a['num_highlights']} parts with asterisks, *like this*.",
        ),
        Kind(
            TITLE,
            _none,
            lambda a: "Give it a title in double angular brackets, such as <<title>>.",
            without=(QUOTATION,),
        ),
        Kind(
            END,
            lambda rng: {"end_phrase": rng.choice(END_PHRASES)},
            lambda a: f'End with the exact words "{a["end_phrase"]}" and nothing after them.',
        ),
        Kind(QUOTATION, _none, lambda a: "Put the whole answer in double quotation marks."),
        Kind(NO_COMMA, _none, lambda a: "Do not use any commas."),
        Kind(LOWER, _none, lambda a: "Write in lowercase letters only.", without=(UPPER,)),
        Kind(UPPER, _none, lambda a: "Write in capital letters only."),
        Kind(
            PARAGRAPHS,
            _some("num_paragraphs"),
            lambda a: f"Write exactly {a['num_paragraphs']} paragraphs, separated by lines of three asterisks: ***",
        ),
    )
}


def compatible(one: str, other: str) -> bool:
    return one != other and other not in KINDS[one].without and one not in KINDS[other].without


def write(topic: str, asked: dict[str, Arguments], rng: random.Random, broken: str | None = None) -> str:
    """An answer about the topic that follows all that is asked; of `broken`, one of them, it does the opposite."""
    if broken in (FORBIDS, NO_COMMA):
        extra = [f"It is {asked[FORBIDS]['forbidden_words'][0]} for me." if broken == FORBIDS else "Yes, it is so."]
    else:
        extra = []
    done = {name: arguments for name, arguments in asked.items() if name != broken}
    sentences = [f"I enjoy {topic}.", *extra, *_demanded(asked, broken)]
    units = _units(asked, broken)
    fillers = rng.sample(_FILLERS, len(_FILLERS))
    least = (
        5 if LOWER in asked or UPPER in asked else 2
    )  # whether so little is English, the verifiers cannot always tell
    while len(sentences) < max(least, units) or _short(sentences, asked, broken):
        sentences.append(fillers.pop())
    blocks = [" ".join(sentences[unit::units]) for unit in range(units)]
    text = "\n".join(f"- {block}" for block in blocks) if BULLETS in asked else "\n***\n".join(blocks)
    if TITLE in done:
        text = f"<<About {topic}>>\n{text}"
    if POSTSCRIPT in done:
        text += "\nP.S. Write to me soon."
    if END in done:
        text += f"\n{asked[END]['end_phrase']}"
    text = text.lower() if LOWER in done else text.upper() if UPPER in done else text
    text = f"\n{text}" if BULLETS in asked and QUOTATION in done else text  # a bullet point begins its line
    return f'"{text}"' if QUOTATION in done else text


def _demanded(asked: dict[str, Arguments], broken: str | None) -> list[str]:
    """The sentences that keywords, placeholders and highlights need; one too few of what is broken."""
    counts = {EXISTENCE: 1 if EXISTENCE in asked else 0}
    for name, argument in ((FREQUENCY, "frequency"), (PLACES, "num_placeholders"), (HIGHLIGHTS, "num_highlights")):
        counts[name] = asked[name][argument] if name in asked else 0
    if broken in counts:
        counts[broken] -= 1
    found = []
    if counts[EXISTENCE]:
        found.append(f"It fits the {asked[EXISTENCE]['keywords'][0]}.")
    if counts[FREQUENCY]:
        keyword = asked[FREQUENCY]["keyword"]
        found += [f"{start} the {keyword}." for start in ("I see", "You need", "Here is")[: counts[FREQUENCY]]]
    if counts[PLACES]:
        found.append(f"Ask {' or '.join(PLACEHOLDERS[: counts[PLACES]])}.")
    return found + [f"It is *so {how}*." for how in ("lovely", "calm", "bright")[: counts[HIGHLIGHTS]]]


def _units(asked: dict[str, Arguments], broken: str | None) -> int:
    """How many bullet points or paragraphs: one too many where their number is broken."""
    for name, argument in ((BULLETS, "num_bullets"), (PARAGRAPHS, "num_paragraphs")):
        if name in asked:
            return asked[name][argument] + (broken == name)
    return 1


def _short(sentences: list[str], asked: dict[str, Arguments], broken: str | None) -> bool:
    """Whether words are still missing: to have as many as asked for, or too many where fewer are asked for and that is
    broken."""
    if WORDS not in asked or (asked[WORDS]["relation"] == "at least") == (broken == WORDS):
        return False
    return len(" ".join(sentences).replace("-", " ").split()) < asked[WORDS]["num_words"]
