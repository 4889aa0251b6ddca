"""Toy slogans in a vocabulary of 200 words, for a small model trained from scratch; `slogan` is the task in English.

"slogan of 5 words for bread with crisp :" wants, for example, "choose golden crisp bread daily": it begins with a call,
names the product, keeps the promise, has as many words as asked for, and none of them twice.

Splits. A prompt's text decides between `train` and `in_distribution`. `unseen` prompts are for reserved products, which
training never shows. `out_of_distribution` prompts ask for one word more or fewer than any in training."""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import partial
from typing import Literal, Self, get_args

from pydantic import Field, model_validator

from rlhf_bench.core.settings import Section
from rlhf_bench.core.types import Judgement, Prompt, Split
from rlhf_bench.tasks import defects
from rlhf_bench.tasks.base import Task, is_held_out
from rlhf_bench.tasks.defects import brief_task

PRODUCTS = tuple(
    """bread coffee honey cheese apples noodles soap candles lamps chairs carpets mirrors bicycles helmets tents kayaks
boots scarves jackets watches pencils notebooks radios cameras guitars drums puzzles kites seeds rakes kettles knives""".split()
)
RESERVED_PRODUCTS = ("olives", "pillows", "skates", "violins")
PROMISES = tuple(
    """crisp pure light warm strong simple honest smart bold calm fair quick rich soft steady true vivid wild young safe
modern classic handy nimble royal sunny tidy tough vital witty zesty neat""".split()
)
CALLS = ("choose", "try", "find", "love", "share", "enjoy", "welcome", "bring", "get", "pick")
FILLERS = ("golden", "local", "lasting", "finest", "proven", "everyday", "genuine", "family")
ENDS = ("daily", "now", "anywhere", "forever", "today", "proudly", "tonight", "together")


class ToySloganSettings(Section):
    """How many words the training prompts ask for."""

    kind: Literal["toy_slogan"] = Field(
        "toy_slogan", description="Toy slogans in few words, for a small model trained from scratch."
    )
    min_words: int = Field(4, ge=4, le=8, description="Fewest words that a training prompt asks for.")
    max_words: int = Field(7, ge=4, le=8, description="Most words that a training prompt asks for.")
    noise: float = Field(
        0.3,
        ge=0,
        le=1,
        description="Share of demonstrations with one defect: in the number of words, call, product, promise, or a word twice.",
    )

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min_words > self.max_words:
            raise ValueError("min_words is above max_words; lower the first or raise the second")
        return self


@dataclass(frozen=True)
class Brief(defects.Brief):
    """What a prompt asks for: `words` words for `product` that have `promise` among them."""

    words: int
    product: str
    promise: str

    @property
    def text(self) -> str:
        return f"slogan of {self.words} words for {self.product} with {self.promise} :"


def build(settings: ToySloganSettings) -> Task:
    return brief_task(
        name="toy_slogan",
        brief=Brief,
        draw=partial(_draw, settings),
        write=write,
        defects=DEFECTS,
        noise=settings.noise,
        judge=_judge,
        corpus=_corpus,
    )


def _corpus() -> list[str]:
    """Every word and number, whatever the settings; each line a second time after a space, as BPE takes words."""
    tables = (PRODUCTS, RESERVED_PRODUCTS, PROMISES, CALLS, FILLERS, ENDS, map(str, range(3, 10)))
    lines = [*map(" ".join, tables), "slogan of words for with :"]
    return [*lines, *(f" {line}" for line in lines)]


def _draw(settings: ToySloganSettings, split: Split, rng: random.Random) -> Brief | None:
    """One random brief of the split, or None where the draw fell into another split."""
    product = rng.choice(RESERVED_PRODUCTS if split == "unseen" else PRODUCTS)
    promise = rng.choice(PROMISES)
    if split == "out_of_distribution":
        return Brief(rng.choice((settings.min_words - 1, settings.max_words + 1)), product, promise)
    brief = Brief(rng.randint(settings.min_words, settings.max_words), product, promise)
    if split != "unseen" and is_held_out(brief.text) != (split == "in_distribution"):
        return None
    return brief


Defect = Literal["words", "call", "product", "promise", "distinct"]
DEFECTS: tuple[Defect, ...] = get_args(Defect)


def write(brief: Brief, rng: random.Random, defect: Defect | None = None) -> str:
    """A slogan to the brief; with a defect, exactly that part of its judgement is short of 1."""
    length = brief.words + (rng.choice((-1, 1)) if defect == "words" else 0)
    product = rng.choice([p for p in PRODUCTS if p != brief.product]) if defect == "product" else brief.product
    promise = rng.choice([p for p in PROMISES if p != brief.promise]) if defect == "promise" else brief.promise
    before = rng.randint(0, length - 3)
    around = [rng.sample(FILLERS, before), rng.sample(ENDS, length - 3 - before)]
    if defect == "distinct":
        rng.choice([side for side in around if side])[0] = promise
    call = rng.choice([f for f in FILLERS if f not in around[0]]) if defect == "call" else rng.choice(CALLS)
    return " ".join([call, *around[0], promise, product, *around[1]])


def _judge(prompt: Prompt, response: str) -> Judgement:
    """The mean of five parts, each 0 or 1: `words`, their number; `call`, the first is one; `product` and `promise`, both
    are there; `distinct`, no word is there twice."""
    brief, words = Brief.of(prompt), response.split()
    parts = {
        "words": float(len(words) == brief.words and all(map(str.isalpha, words))),
        "call": float(bool(words) and words[0] in CALLS),
        "product": float(brief.product in words),
        "promise": float(brief.promise in words),
        "distinct": float(bool(words) and len(set(words)) == len(words)),
    }
    return Judgement(sum(parts.values()) / len(parts), parts)
