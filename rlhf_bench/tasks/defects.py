"""Tasks whose prompts are briefs, and whose demonstrations may have one defect: slogans and poems, toy or English."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass
from typing import Any, Self

from rlhf_bench.core.types import Demonstration, Judgement, Prompt, Split, TextPair, Turn
from rlhf_bench.tasks.base import Task, distinct, generator

RULE_MADE = "rule-made"
"""The source of pairs that no model wrote."""


@dataclass(frozen=True)
class Brief:
    """What a prompt asks for. A task derives its own: fields that are whole numbers or single words, and `text`."""

    @property
    def text(self) -> str:
        """The prompt."""
        raise NotImplementedError

    @property
    def answer(self) -> str:
        """What the judge needs: the fields, in order."""
        return " ".join(map(str, astuple(self)))

    @classmethod
    def of(cls, prompt: Prompt) -> Self:
        fields = prompt.answer.split()
        return cls(*(int(field) if field.isdigit() else field for field in fields))


def brief_task(
    name: str,
    brief: type[Brief],
    draw: Callable[[Split, random.Random], Brief | None],
    write: Callable[[Any, random.Random, Any], str],
    defects: Sequence[str],
    noise: float,
    judge: Callable[[Prompt, str], Judgement],
    corpus: Callable[[], list[str]],
    chat: bool = False,
) -> Task:
    """`draw(split, rng)`: a random brief of the split, or None where the draw fell into another split.
    `write(brief, rng, defect)`: a response to the brief; the share `noise` of all demonstrations has one of `defects`.
    `chat`: prompts are messages of the user, and off-policy pairs come with the task: a response without a defect against
    one with. A model from scratch needs the prompt as it is, and a weaker policy of it makes its pairs."""

    def prompts(split: Split, count: int, seed: int) -> list[Prompt]:
        rng = generator(name, split, seed)
        briefs = distinct(lambda: draw(split, rng), count, f"{name}, {split}")
        return [
            Prompt(f"{name}/{split}/{index:06d}", b.text, b.answer, turns=(Turn("user", b.text),) if chat else ())
            for index, b in enumerate(briefs)
        ]

    def demonstrations(count: int, seed: int) -> list[Demonstration]:
        rng = generator(name, "demonstrations", seed)
        written = []
        for prompt in prompts("train", count, seed):
            defect = rng.choice(defects) if rng.random() < noise else None
            written.append(Demonstration(prompt, write(brief.of(prompt), rng, defect)))
        return written

    def pairs(count: int, seed: int) -> list[TextPair]:
        rng = generator(name, "pairs", seed)
        made = []
        for prompt in prompts("train", count, seed):
            asked = brief.of(prompt)
            made.append(TextPair(prompt, write(asked, rng, None), write(asked, rng, rng.choice(defects)), RULE_MADE))
        return made

    return Task(name, prompts, demonstrations, judge, pairs=pairs if chat else None, corpus=corpus)
