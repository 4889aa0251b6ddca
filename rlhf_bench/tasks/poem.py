"""Poems in English, for a chat model, with the poem metrics of 3D-Properties (arXiv 2406.07327): number of lines, words in a
line, rhyme, title. (Its tone pattern is of Chinese.) Rhymes are those of the CMU Pronouncing Dictionary.

"Write a poem about cats. Write the title "Sleepy Cats" on the first line, then exactly 2 lines of 5 words each that rhyme in
pairs (AABB). Reply with the title and the poem only." wants, for example, "Sleepy Cats / Kittens sleep by the bay / The cats
wait near hay", each on a line.

Splits. A prompt's text decides between `train` and `in_distribution`. `unseen` prompts are on reserved topics, which training
never shows. `out_of_distribution` prompts are harder: two lines more than any in training, or one or two words a line more,
or crosswise rhymes (ABAB)."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from functools import partial
from typing import Literal, Self, get_args

from pydantic import Field, model_validator

from rlhf_bench.core.errors import check_agreement
from rlhf_bench.core.settings import Section
from rlhf_bench.core.types import Judgement, Prompt, Split
from rlhf_bench.tasks import defects, verse
from rlhf_bench.tasks import verse_words as lexicon
from rlhf_bench.tasks.base import Task, check_installed, is_held_out
from rlhf_bench.tasks.defects import brief_task
from rlhf_bench.tasks.judges.english import names, nearness, rhyme, words_of

PAIRS, CROSSWISE = "AABB", "ABAB"
LineCount = Literal[2, 4]


class PoemSettings(Section):
    """How many lines and words a line the training prompts ask for."""

    kind: Literal["poem"] = Field("poem", description="Rhyming poems in English on a topic, for a chat model.")
    min_lines: LineCount = Field(2, description="Fewest lines that a training prompt asks for: 2 or 4.")
    max_lines: LineCount = Field(4, description="Most lines that a training prompt asks for: 2 or 4.")
    min_words: int = Field(4, ge=4, le=7, description="Fewest words a line that a training prompt asks for.")
    max_words: int = Field(6, ge=4, le=7, description="Most words a line that a training prompt asks for.")
    noise: float = Field(
        0.3,
        ge=0,
        le=1,
        description="Share of demonstrations with one defect: in the number of lines or words, rhyme, topic or title.",
    )

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        ranges = {"lines": (self.min_lines, self.max_lines), "words": (self.min_words, self.max_words)}
        check_agreement(
            f"min_{what} is above max_{what}; lower the first or raise the second"
            for what, (low, high) in ranges.items()
            if low > high
        )
        return self


@dataclass(frozen=True)
class Brief(defects.Brief):
    """What a prompt asks for: `lines` lines of `words` words each about `topic`, rhymed by `scheme`; `mood` is in the title."""

    lines: int
    words: int
    topic: str
    mood: str
    scheme: str

    @property
    def title(self) -> str:
        return f"{self.mood} {self.topic}".title()

    @property
    def text(self) -> str:
        how = "in pairs" if self.scheme == PAIRS else "crosswise"
        return (
            f'Write a poem about {self.topic}. Write the title "{self.title}" on the first line, then exactly {self.lines} lines '
            f"of {self.words} words each that rhyme {how} ({self.scheme}). Reply with the title and the poem only."
        )


def build(settings: PoemSettings) -> Task:
    """BadInput where the pronouncing dictionary is not installed."""
    check_installed("poem", "poem", "pronouncing")
    return brief_task(
        name="poem",
        brief=Brief,
        draw=partial(_draw, settings),
        write=write,
        defects=DEFECTS,
        noise=settings.noise,
        judge=_judge,
        corpus=_corpus,
        chat=True,
    )


def _corpus() -> list[str]:
    asked = [
        Brief(lines, words, topic, "old", scheme).text
        for lines, words in zip((2, 4, 6, 2, 2, 2), range(4, 10), strict=True)
        for topic in verse.ALL_TOPICS
        for scheme in (PAIRS, CROSSWISE)
    ]
    made_of = (lexicon.ADJECTIVES, lexicon.VERBS, lexicon.ADVERBS, lexicon.PREPOSITIONS, lexicon.DETERMINERS)
    lines = [" ".join(words) for words in (*made_of, lexicon.SINGULAR_DETERMINERS, *lexicon.RHYMES)]
    lines += [" ".join(topic.nouns) for topic in verse.ALL_TOPICS.values()]
    return [*asked, *lines, *(line.title() for line in lines), "\n"]


def _draw(settings: PoemSettings, split: Split, rng: random.Random) -> Brief | None:
    """One random brief of the split, or None where the draw fell into another split."""
    harder = split == "out_of_distribution"
    brief = Brief(
        lines=rng.randrange(settings.min_lines, settings.max_lines + (3 if harder else 1), 2),
        words=rng.randint(settings.min_words, settings.max_words + (2 if harder else 0)),
        topic=rng.choice(verse.RESERVED_TOPICS if split == "unseen" else verse.TRAINED_TOPICS),
        mood=rng.choice(lexicon.ADJECTIVES),
        scheme=rng.choice((PAIRS, CROSSWISE)) if harder else PAIRS,
    )
    if harder:
        crosswise = brief.scheme == CROSSWISE
        more = brief.lines > settings.max_lines or brief.words > settings.max_words
        return brief if (brief.lines == 4 if crosswise else more) else None  # ABAB is a name for four lines
    if split != "unseen" and is_held_out(brief.text) != (split == "in_distribution"):
        return None
    return brief


Defect = Literal["lines", "words", "rhyme", "topic", "title"]
DEFECTS: tuple[Defect, ...] = get_args(Defect)


def write(brief: Brief, rng: random.Random, defect: Defect | None = None) -> str:
    """A poem to a brief whose lines rhyme in pairs; with a defect, exactly that part of its judgement is short of 1. A wrong
    number of lines is two too many or, of four, two too few, which also lack in the shares of lines that are right."""
    lines = brief.lines + (rng.choice((-2, 2) if brief.lines > 2 else (2,)) if defect == "lines" else 0)
    lengths = [brief.words] * lines
    strangers = [topic for topic in verse.TRAINED_TOPICS if topic != brief.topic]
    topic = rng.choice(strangers) if defect == "topic" else brief.topic
    title = f"{brief.mood} {rng.choice(strangers)}".title() if defect == "title" else brief.title
    ends = [word for family in rng.sample(lexicon.RHYMES, lines // 2) for word in rng.sample(family, 2)]
    if defect == "words":
        lengths[rng.randrange(lines)] += rng.choice((-1, 1))
    if defect == "rhyme":
        others = [word for family in lexicon.RHYMES for word in family if word != ends[-2]]
        ends[-1] = rng.choice([word for word in others if not rhyme(ends[-2], word)])  # "quay" has two pronunciations
    nouns = [(topic,), *[verse.ALL_TOPICS[topic].nouns] * (lines - 1)]
    written = [" ".join(verse.line(*one, rng)) for one in zip(lengths, nouns, ends, strict=True)]
    return "\n".join([title, *(line[0].upper() + line[1:] for line in written)])


def _judge(prompt: Prompt, response: str) -> Judgement:
    """The mean of six parts. `title`: the first line is the title, marks about it aside. Of the lines behind it (blank ones
    do not count) `lines`: how near their number is, `exact`: it is right, `words`: the share with the right number of words,
    `rhyme`: the share of rhymes that are there, of those asked for or those that so many lines need, whichever are more,
    `topic`: a line names it, in either number."""
    brief = Brief.of(prompt)
    first, *lines = [line for line in response.splitlines() if words_of(line)] or [""]
    verses = [words_of(line) for line in lines]
    most = max(brief.lines, len(verses))
    parts = {
        "title": float(words_of(re.sub(r"(?i)^\W*title\W*:", "", first)) == words_of(brief.title)),
        "lines": nearness(len(verses), brief.lines),
        "exact": float(len(verses) == brief.lines),
        "words": sum(len(words) == brief.words for words in verses) / most,
        "rhyme": _rhymes([words[-1] for words in verses], brief.scheme) / (most // 2),
        "topic": float(any(names(brief.topic, words) for words in verses)),
    }
    return Judgement(sum(parts.values()) / len(parts), parts)


def _rhymes(ends: list[str], scheme: str) -> int:
    """How many of the scheme's pairs of lines rhyme, each on two words that no rhyme before it has."""
    partners = [(0, 1), (2, 3)] if scheme == PAIRS else [(0, 2), (1, 3)]
    found, used = 0, set[str]()
    for one, other in ((start + a, start + b) for start in range(0, len(ends), 4) for a, b in partners):
        if other < len(ends) and rhyme(ends[one], ends[other]) and used.isdisjoint((ends[one], ends[other])):
            found += 1
            used |= {ends[one], ends[other]}
    return found
