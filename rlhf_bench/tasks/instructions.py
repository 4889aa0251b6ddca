"""Short requests with one to three instructions that a rule can verify, in IFEval's kinds (arXiv 2311.07911), for a chat model.

"Write a short note about tea. Do not use any commas. Use the word garden." wants an answer that does all of it. The score is the
share of instructions followed; the verifiers are those of `if-verifiable`.

Splits. A prompt's text decides between `train` and `in_distribution`. A fifth of all pairs of kinds is reserved:
`out_of_distribution` prompts combine such kinds, and no other prompt of the task's own does. `unseen` prompts are about
reserved topics or, where `ifeval` names its file, are IFEval's own."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache, partial
from itertools import combinations
from pathlib import Path
from typing import Literal

from pydantic import Field

from rlhf_bench.core.settings import Section
from rlhf_bench.core.types import Demonstration, Judgement, Prompt, Split, TextPair, Turn
from rlhf_bench.core.unusable import Unusable
from rlhf_bench.tasks.base import Task, choose, distinct, fraction, generator, is_held_out
from rlhf_bench.tasks.defects import RULE_MADE
from rlhf_bench.tasks.instruction_kinds import KINDS, Arguments, compatible, write
from rlhf_bench.tasks.judges.ifeval import IDS, KWARGS, judge_ifeval, reference_of
from rlhf_bench.tasks.loading.rows import read_rows

RESERVED_PAIRS = 0.2
"""The share of pairs of kinds that only `out_of_distribution` prompts combine."""
REQUESTS = (
    "Write a short note about {}.",
    "Tell a friend about {}.",
    "Write a few sentences about {}.",
    "Write a diary entry about {}.",
)
TOPICS = tuple(
    """tea,old books,rainy days,bicycles,gardening,the sea,chess,cooking soup,winter walks,train rides,birds,painting,museums,
swimming,baking bread,hiking,jazz,city parks,learning Spanish,photography,cats,dogs,board games,camping,chocolate,yoga,letters,
knitting,mountains,night skies,farmers markets,sailing,running,puzzles,coffee,old films,fishing,balloons,lakes,theater""".replace(
        "\n", ""
    ).split(",")
)
RESERVED_TOPICS = ("beekeeping", "lighthouses", "pottery", "snowflakes", "violins", "deserts")


class InstructionsSettings(Section):
    """Requests of the project's own; IFEval's, if given, are for evaluation alone."""

    kind: Literal["instructions"] = Field(
        "instructions", description="Requests with instructions that rules verify, in IFEval's kinds, for a chat model."
    )
    max_constraints: int = Field(3, ge=1, le=3, description="Most instructions in a training prompt.")
    noise: float = Field(0.3, ge=0, le=1, description="Share of demonstrations that break one of their instructions.")
    ifeval: Path | None = Field(
        None, description="IFEval's input_data.jsonl: its prompts are then the split unseen. null: reserved topics are."
    )
    max_prompt_characters: int | None = Field(None, ge=1, description="Leave out IFEval's longer prompts.")


@dataclass(frozen=True)
class Brief:
    """What a prompt asks for. `asked`: the instructions in order, as IFEval's ids and arguments (JSON)."""

    request: str
    topic: str
    asked: tuple[tuple[str, str], ...]

    @property
    def instructions(self) -> dict[str, Arguments]:
        return {name: json.loads(arguments) for name, arguments in self.asked}

    def prompt(self, identity: str) -> Prompt:
        told = [KINDS[name].say(arguments) for name, arguments in self.instructions.items()]
        text = " ".join([self.request.format(self.topic), *told])
        reference = {IDS: list(self.instructions), KWARGS: list(self.instructions.values())}
        return Prompt(identity, text, json.dumps(reference), turns=(Turn("user", text),))


def build(settings: InstructionsSettings) -> Task:
    """Reads IFEval's file, if there is one. BadInput where it cannot be read."""
    ifeval, notes = _ifeval(settings) if settings.ifeval is not None else (None, ())
    return Task(
        name="instructions",
        prompts=partial(_prompts, settings, ifeval),
        demonstrations=partial(_demonstrations, settings),
        judge=_judge,
        pairs=partial(_pairs, settings),
        corpus=partial(_corpus, ifeval or []),
        notes=notes,
    )


@cache
def reserved_pairs() -> frozenset[tuple[str, str]]:
    """The pairs of kinds, each in alphabetic order, that are out of distribution."""
    pairs = [pair for pair in combinations(sorted(KINDS), 2) if compatible(*pair)]
    return frozenset(pair for pair in pairs if fraction(f"instructions {' '.join(pair)}") < RESERVED_PAIRS)


def is_reserved(names: Iterable[str]) -> bool:
    return any(pair in reserved_pairs() for pair in combinations(sorted(names), 2))


def _draw(settings: InstructionsSettings, split: Split, rng: random.Random) -> Brief | None:
    """One random brief of the split, or None where the draw fell into another split."""
    harder = split == "out_of_distribution"
    count = rng.randint(2, max(2, settings.max_constraints)) if harder else rng.randint(1, settings.max_constraints)
    names = rng.sample(list(KINDS), count)
    if not all(compatible(*pair) for pair in combinations(names, 2)) or is_reserved(names) != harder:
        return None
    topic = rng.choice(RESERVED_TOPICS if split == "unseen" else TOPICS)
    asked = tuple((name, json.dumps(KINDS[name].draw(rng))) for name in names)
    brief = Brief(rng.choice(REQUESTS), topic, asked)
    if split in ("train", "in_distribution") and is_held_out(brief.prompt("").text) != (split == "in_distribution"):
        return None
    return brief


def _briefs(settings: InstructionsSettings, split: Split, count: int, seed: int) -> list[Brief]:
    rng = generator("instructions", split, seed)
    return distinct(lambda: _draw(settings, split, rng), count, f"instructions, {split}")


def _prompts(
    settings: InstructionsSettings, ifeval: list[Prompt] | None, split: Split, count: int, seed: int
) -> list[Prompt]:
    if split == "unseen" and ifeval is not None:
        return choose(ifeval, count, generator("instructions", split, seed), "instructions, IFEval's prompts")
    found = _briefs(settings, split, count, seed)
    return [brief.prompt(f"instructions/{split}/{index:06d}") for index, brief in enumerate(found)]


def _demonstrations(settings: InstructionsSettings, count: int, seed: int) -> list[Demonstration]:
    rng = generator("instructions", "demonstrations", seed)
    prompts = _prompts(settings, None, "train", count, seed)
    written = []
    for prompt, brief in zip(prompts, _briefs(settings, "train", count, seed), strict=True):
        broken = rng.choice(list(brief.instructions)) if rng.random() < settings.noise else None
        written.append(Demonstration(prompt, write(brief.topic, brief.instructions, rng, broken)))
    return written


def _pairs(settings: InstructionsSettings, count: int, seed: int) -> list[TextPair]:
    """An answer that follows all instructions against one that breaks one of them."""
    rng = generator("instructions", "pairs", seed)
    prompts = _prompts(settings, None, "train", count, seed)
    made = []
    for prompt, brief in zip(prompts, _briefs(settings, "train", count, seed), strict=True):
        asked = brief.instructions
        right, wrong = write(brief.topic, asked, rng), write(brief.topic, asked, rng, rng.choice(list(asked)))
        made.append(TextPair(prompt, right, wrong, RULE_MADE))
    return made


def _judge(prompt: Prompt, response: str) -> Judgement:
    return judge_ifeval(response, prompt.answer)


def _ifeval(settings: InstructionsSettings) -> tuple[list[Prompt], tuple[str, ...]]:
    """IFEval's prompts that can be verified here, and what the user should know of the others."""
    assert settings.ifeval is not None
    prompts, left_out = dict[str, Prompt](), Counter[str]()
    rows = 0
    for row in read_rows(settings.ifeval, "task.ifeval"):
        rows += 1
        try:
            text, reference = row.text("prompt"), reference_of(row)
        except Unusable as error:
            left_out[error.kind] += 1
            continue
        if settings.max_prompt_characters is not None and len(text) > settings.max_prompt_characters:
            left_out["with a prompt longer than max_prompt_characters"] += 1
        elif text in prompts:
            left_out["with a prompt that came before"] += 1
        else:
            name = f"instructions/unseen/{row.number:06d}"
            prompts[text] = Prompt(name, text, reference, turns=(Turn("user", text),), where=row.where)
    said = f"; left out: {', '.join(f'{count} {kind}' for kind, count in left_out.items())}" if left_out else ""
    return list(prompts.values()), (f"unseen: {len(prompts)} of IFEval's {rows} prompts{said}",)


def _corpus(ifeval: list[Prompt]) -> list[str]:
    """Texts with every character: of all kinds' instructions and answers to them, and of IFEval's prompts."""
    rng = generator("instructions", "corpus")
    briefs = [
        Brief(request, topic, ((name, json.dumps(kind.draw(rng))),))
        for topic in TOPICS + RESERVED_TOPICS
        for request in REQUESTS[:1]
        for name, kind in KINDS.items()
    ]
    answers = [write(brief.topic, brief.instructions, rng) for brief in briefs]
    return [*(brief.prompt("").text for brief in briefs), *answers, *(prompt.text for prompt in ifeval)]
