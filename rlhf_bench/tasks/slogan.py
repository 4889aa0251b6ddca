"""Slogans in English, for a chat model, with the slogan metrics of 3D-Properties (arXiv 2406.07327): word count and content.

"Write a slogan of exactly 6 words for pencils. Use the word light. Reply with the slogan only." wants, for example, "Choose
light pencils for bright ideas."

Splits. A prompt's text decides between `train` and `in_distribution`. `unseen` prompts are for reserved products, which
training never shows. `out_of_distribution` prompts are harder: one or two words more than any in training, or two words to
use, or both."""

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
from rlhf_bench.tasks.judges.english import names, nearness, words_of

PRODUCTS = tuple(
    """pencils notebooks bicycles lamps candles kettles guitars tents boots jackets umbrellas mirrors chairs carpets
cameras headphones puzzles kites rakes helmets kayaks drums backpacks sofas pillows blankets ovens toasters blenders
coffee tea honey cheese bread chocolate soap shampoo perfume paint yogurt""".split()
)
RESERVED_PRODUCTS = ("violins", "telescopes", "olives", "skateboards", "lemonade", "toothpaste")
PROMISES = tuple(
    """light fresh bold pure smart warm strong simple gentle quiet quick rich soft steady bright modern classic clever
handy sunny tidy tough vivid wild young safe calm fair honest proud crisp smooth natural elegant cozy friendly lively
reliable charming royal""".split()
)
_HEADS = ("", "Choose", "Enjoy", "Discover", "Simply choose", "Come discover", "Go and find", "Always bring along")
"""What may come before: no word, one, two or three."""
_TAILS = tuple(
    """
daily|forever|everywhere|together
every day|at home|for everyone|made better
for happy days|for our families|that never fail|worth every penny
for all of us|made with great care|for a better morning|that make you smile
for people who love life|from our hands into yours|that everybody dreams of owning|whenever life asks for more
for those who expect much more|made to last a whole lifetime|because you deserve the very best
that turn an ordinary day into joy|made by experts who know their craft|because life is much better with them
""".strip().splitlines()
)
"""What may come behind, by length: one word in the first line, up to seven in the last."""


class SloganSettings(Section):
    """How many words the training prompts ask for."""

    kind: Literal["slogan"] = Field("slogan", description="Slogans in English for a product, for a chat model.")
    min_words: int = Field(4, ge=4, le=8, description="Fewest words that a training prompt asks for.")
    max_words: int = Field(8, ge=4, le=8, description="Most words that a training prompt asks for.")
    noise: float = Field(
        0.3,
        ge=0,
        le=1,
        description="Share of demonstrations with one defect: in the number of words, product, promise, or a word twice.",
    )

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min_words > self.max_words:
            raise ValueError("min_words is above max_words; lower the first or raise the second")
        return self


@dataclass(frozen=True)
class Brief(defects.Brief):
    """What a prompt asks for: `words` words for `product` that have every word of `promises`, "light" or "light,pure"."""

    words: int
    product: str
    promises: str

    @property
    def text(self) -> str:
        used = self.promises.split(",")
        use = f"Use the word{'s' if len(used) > 1 else ''} {' and '.join(used)}."
        return f"Write a slogan of exactly {self.words} words for {self.product}. {use} Reply with the slogan only."


def build(settings: SloganSettings) -> Task:
    return brief_task(
        name="slogan",
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
    asked = [Brief(words, "tea", promises).text for words in range(4, 11) for promises in ("light", "light,pure")]
    return [" ".join(table) for table in (PRODUCTS + RESERVED_PRODUCTS, PROMISES, _HEADS, _TAILS)] + asked


def _draw(settings: SloganSettings, split: Split, rng: random.Random) -> Brief | None:
    """One random brief of the split, or None where the draw fell into another split."""
    product = rng.choice(RESERVED_PRODUCTS if split == "unseen" else PRODUCTS)
    if split == "out_of_distribution":
        words, promises = (
            rng.randint(settings.min_words, settings.max_words + 2),
            rng.sample(PROMISES, rng.randint(1, 2)),
        )
        harder = words > settings.max_words or len(promises) > 1
        return Brief(words, product, ",".join(promises)) if harder else None
    brief = Brief(rng.randint(settings.min_words, settings.max_words), product, rng.choice(PROMISES))
    if split != "unseen" and is_held_out(brief.text) != (split == "in_distribution"):
        return None
    return brief


Defect = Literal["words", "product", "promise", "distinct"]
DEFECTS: tuple[Defect, ...] = get_args(Defect)


def write(brief: Brief, rng: random.Random, defect: Defect | None = None) -> str:
    """A slogan to a brief of one promise; with a defect, exactly that part of its judgement is short of 1, and with a wrong
    number of words both parts on it."""
    length = brief.words + (rng.choice((-1, 1)) if defect == "words" else 0)
    product = rng.choice([p for p in PRODUCTS if p != brief.product]) if defect == "product" else brief.product
    promise = rng.choice([p for p in PROMISES if p != brief.promises]) if defect == "promise" else brief.promises
    middle = [promise, *([promise] if defect == "distinct" else []), product]
    head = rng.choice([h for h in _HEADS if 0 <= length - len(middle) - len(h.split()) <= len(_TAILS)])
    behind = length - len(middle) - len(head.split())
    tail = rng.choice(_TAILS[behind - 1].split("|")) if behind else ""
    return f"{' '.join(filter(None, [head, *middle, tail])).capitalize()}."


def _judge(prompt: Prompt, response: str) -> Judgement:
    """The mean of five parts. `words`: how near their number is; `exact`: it is right; `product`: it is named, in either
    number; `promise`: the share of the words to use that occur; `distinct`: no word is there twice."""
    brief, words = Brief.of(prompt), words_of(response)
    promises = brief.promises.split(",")
    parts = {
        "words": nearness(len(words), brief.words),
        "exact": float(len(words) == brief.words),
        "product": float(names(brief.product, words)),
        "promise": sum(promise in words for promise in promises) / len(promises),
        "distinct": float(bool(words) and len(set(words)) == len(words)),
    }
    return Judgement(sum(parts.values()) / len(parts), parts)
