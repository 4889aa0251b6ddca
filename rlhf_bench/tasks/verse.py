"""Toy poems, a title and a few rhyming lines, with the poem metrics of 3D-Properties (arXiv 2406.07327), for a small model
trained from scratch; `poem` is the task in English.

"write 2 lines of 5 words on cats rhyming with day :" wants, for example,
"the whisker / kittens sleep near the bay / lions often wait by hay": a title, then the lines, each after a "/".

Splits. A prompt's text decides between `train` and `in_distribution`. `unseen` prompts are on reserved topics, whose
words training never shows. `out_of_distribution` prompts ask for one line or one word a line more or fewer than any
in training."""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import partial
from typing import Literal, Self, get_args

from pydantic import Field, model_validator

from rlhf_bench.core.errors import check_agreement
from rlhf_bench.core.settings import Section
from rlhf_bench.core.types import Judgement, Prompt, Split
from rlhf_bench.tasks import defects
from rlhf_bench.tasks import verse_words as lexicon
from rlhf_bench.tasks.base import Task, is_held_out
from rlhf_bench.tasks.defects import brief_task

SEPARATOR = "/"
ALL_TOPICS = lexicon.TOPICS | lexicon.RESERVED_TOPICS
TRAINED_TOPICS, RESERVED_TOPICS = tuple(lexicon.TOPICS), tuple(lexicon.RESERVED_TOPICS)
RHYME_WORDS = tuple(lexicon.RHYME_FAMILY)


class VerseSettings(Section):
    """How many lines and words a line the training prompts ask for."""

    kind: Literal["verse"] = Field(
        "verse", description="Toy poems in few words, for a small model trained from scratch."
    )
    min_lines: int = Field(2, ge=2, le=5, description="Fewest lines a training prompt asks for.")
    max_lines: int = Field(3, ge=2, le=5, description="Most lines a training prompt asks for.")
    min_words: int = Field(4, ge=4, le=8, description="Fewest words a line that a training prompt asks for.")
    max_words: int = Field(6, ge=4, le=8, description="Most words a line that a training prompt asks for.")
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
    """What a prompt asks for: `lines` lines of `words` words on `topic`, every line rhyming with `rhyme`."""

    lines: int
    words: int
    topic: str
    rhyme: str

    @property
    def text(self) -> str:
        return f"write {self.lines} lines of {self.words} words on {self.topic} rhyming with {self.rhyme} :"


def build(settings: VerseSettings) -> Task:
    return brief_task(
        name="verse",
        brief=Brief,
        draw=partial(_draw, settings),
        write=write,
        defects=DEFECTS,
        noise=settings.noise,
        judge=_judge,
        corpus=_corpus,
    )


def _corpus() -> list[str]:
    """Every word and number of the task, whatever the settings: tokenizers of different settings are the same.

    Each line stands there twice, the second time after a space: BPE takes a word and the space before it as one token."""
    topics = [" ".join(topic.nouns + topic.titles) for topic in ALL_TOPICS.values()]
    fillers = (lexicon.ADJECTIVES, lexicon.VERBS, lexicon.ADVERBS, lexicon.PREPOSITIONS, lexicon.ASKING)
    openers = (lexicon.TITLE_OPENERS, lexicon.DETERMINERS, lexicon.SINGULAR_DETERMINERS)
    numbers = " ".join(map(str, range(2, 10)))
    lines = [*topics, *map(" ".join, lexicon.RHYMES + fillers + openers), numbers, SEPARATOR]
    return [*lines, *(f" {line}" for line in lines)]


# Prompts


def _draw(settings: VerseSettings, split: Split, rng: random.Random) -> Brief | None:
    """One random brief of the split, or None where the draw fell into another split."""
    line_counts = range(settings.min_lines, settings.max_lines + 1)
    word_counts = range(settings.min_words, settings.max_words + 1)
    topics = RESERVED_TOPICS if split == "unseen" else TRAINED_TOPICS
    topic, rhyme = rng.choice(topics), rng.choice(RHYME_WORDS)
    if split == "out_of_distribution":
        lines = rng.randrange(max(2, settings.min_lines - 1), settings.max_lines + 2)
        words = rng.randrange(settings.min_words - 1, settings.max_words + 2)
        trained = lines in line_counts and words in word_counts
        return None if trained else Brief(lines, words, topic, rhyme)
    brief = Brief(rng.choice(line_counts), rng.choice(word_counts), topic, rhyme)
    if split != "unseen" and is_held_out(brief.text) != (split == "in_distribution"):
        return None
    return brief


# Demonstrations: a small template grammar, and one defect where noise strikes


Defect = Literal["lines", "words", "rhyme", "topic", "title"]
DEFECTS: tuple[Defect, ...] = get_args(Defect)


def write(brief: Brief, rng: random.Random, defect: Defect | None = None) -> str:
    """A poem to the brief; with a defect, exactly that part of its judgement is short of 1."""
    lines = brief.lines + (rng.choice((-1, 1)) if defect == "lines" else 0)
    lengths = [brief.words] * lines
    family = lexicon.RHYME_FAMILY[brief.rhyme]
    ends = rng.sample([word for word in lexicon.RHYMES[family] if word != brief.rhyme], lines)
    strangers = [topic for topic in TRAINED_TOPICS if topic != brief.topic]
    topic = rng.choice(strangers) if defect == "topic" else brief.topic
    title_topic = rng.choice(strangers) if defect == "title" else brief.topic
    spoilt = rng.randrange(lines)
    if defect == "words":
        lengths[spoilt] += rng.choice((-1, 1))
    if defect == "rhyme":
        ends[spoilt] = rng.choice([word for word in RHYME_WORDS if lexicon.RHYME_FAMILY[word] != family])
    title = [rng.choice(lexicon.TITLE_OPENERS), rng.choice(ALL_TOPICS[title_topic].titles)]
    verses = [line(length, ALL_TOPICS[topic].nouns, end, rng) for length, end in zip(lengths, ends, strict=True)]
    return f" {SEPARATOR} ".join(" ".join(words) for words in [title, *verses])


def line(length: int, nouns: tuple[str, ...], end: str, rng: random.Random) -> list[str]:
    """`length` words, 3 to 9: "kittens near bay" up to "the old kittens sleep softly near the quiet bay"."""
    optional = rng.sample(("determiner", "adjective", "adverb", "end_determiner", "end_adjective"), max(0, length - 4))
    slots = {
        "determiner": lexicon.DETERMINERS,
        "adjective": lexicon.ADJECTIVES,
        "noun": nouns,
        "verb": lexicon.VERBS,
        "adverb": lexicon.ADVERBS,
        "preposition": lexicon.PREPOSITIONS,
        "end_determiner": lexicon.SINGULAR_DETERMINERS,
        "end_adjective": lexicon.ADJECTIVES,
        "end": (end,),
    }
    present = {"noun", "preposition", "end", *optional} | ({"verb"} if length > 3 else set())
    return [rng.choice(words) for slot, words in slots.items() if slot in present]


# The judge


def _judge(prompt: Prompt, response: str) -> Judgement:
    """The mean of five parts. `lines`, `topic` (some line has one of the topic's nouns) and `title` (an opener and one
    of the topic's title words, nothing else) are 0 or 1. `words` and `rhyme` are the share of lines that are right, of
    the lines asked for or written, whichever are more. A line rhymes by the table of sounds, with an end that is
    neither the prompt's own word nor an earlier line's end."""
    brief = Brief.of(prompt)
    topic = ALL_TOPICS[brief.topic]
    title, *verses = (part.split() for part in response.split(SEPARATOR))
    most = max(brief.lines, len(verses))
    right_length = sum(len(verse) == brief.words and all(map(str.isalpha, verse)) for verse in verses)
    parts = {
        "lines": float(len(verses) == brief.lines),
        "words": right_length / most,
        "rhyme": _rhyming(verses, brief.rhyme) / most,
        "topic": float(any(word in topic.nouns for verse in verses for word in verse)),
        "title": float(len(title) == 2 and title[0] in lexicon.TITLE_OPENERS and title[1] in topic.titles),
    }
    return Judgement(sum(parts.values()) / len(parts), parts)


def _rhyming(verses: list[list[str]], rhyme: str) -> int:
    """How many lines end in a fresh word of the family that `rhyme` belongs to."""
    family = lexicon.RHYMES[lexicon.RHYME_FAMILY[rhyme]]
    ends = {verse[-1] for verse in verses if verse} & set(family)
    return len(ends - {rhyme})
