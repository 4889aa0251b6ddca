"""Sums: "37+58=" wants "95"; with working, "12+30+9=" wants "12+30=42;42+9=51;51".

Responses are judged by exact match after stripping white space: an answer followed by anything else is wrong.

Splits. A problem's operands, in sorted order, decide between `train` and `in_distribution`, so that 12+30 and 30+12
are always on the same side. A tenth of all operands is reserved: each `unseen` sum has exactly one of them, and no
sum elsewhere has any. `out_of_distribution` sums have one more digit in every operand, or one more term."""

from __future__ import annotations

import random
from functools import lru_cache, partial
from typing import Literal

from pydantic import Field

from rlhf_bench.core.settings import Section
from rlhf_bench.core.types import Demonstration, Judgement, Prompt, Split, TextPair
from rlhf_bench.tasks.base import Task, distinct, fraction, generator, is_held_out

Operands = tuple[int, ...]


class ArithmeticSettings(Section):
    """Sums of `terms` numbers of `digits` digits each."""

    kind: Literal["arithmetic"] = Field("arithmetic", description="Sums of whole numbers, made by the project itself.")
    digits: int = Field(2, ge=1, le=4, description="Digits of every operand in training.")
    terms: int = Field(2, ge=2, le=4, description="Operands of every sum in training.")
    working: bool = Field(
        False, description="The response must show its running sums; the score then needs answer and working right."
    )
    noise: float = Field(
        0.2, ge=0, le=1, description="Share of demonstrations with a wrong answer (a slip by one in one digit's place)."
    )
    spread_pairs: bool = Field(
        False,
        description="Off-policy pairs come with the task, at every edit distance: the right response against itself "
        "with a random share of its digits changed.",
    )


def build(settings: ArithmeticSettings) -> Task:
    return Task(
        name="arithmetic",
        prompts=partial(_prompts, settings),
        demonstrations=partial(_demonstrations, settings),
        judge=partial(_judge, settings.working),
        pairs=partial(_pairs, settings) if settings.spread_pairs else None,
        right_response=lambda prompt: prompt.answer,
        corpus=lambda: list("0123456789+=;" if settings.working else "0123456789+="),  # one each: BPE merges no digits
    )


@lru_cache
def _operands(digits: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The numbers of so many digits: those for training, and the tenth that is reserved."""
    numbers = range(0 if digits == 1 else 10 ** (digits - 1), 10**digits)
    ranked = sorted(numbers, key=lambda number: fraction(f"operand {number}"))
    reserved = len(ranked) // 10
    return tuple(ranked[reserved:]), tuple(ranked[:reserved])


def _draw(settings: ArithmeticSettings, split: Split, rng: random.Random) -> Operands | None:
    """One random problem of the split, or None where the draw fell into another split."""
    digits, terms = settings.digits, settings.terms
    if split == "out_of_distribution":
        longer = rng.random() < 0.5
        digits, terms = (digits + 1, terms) if longer else (digits, terms + 1)
    common, reserved = _operands(digits)
    operands = [rng.choice(common) for _ in range(terms)]
    if split == "unseen":
        operands[rng.randrange(terms)] = rng.choice(reserved)
    elif split != "out_of_distribution" and is_held_out(f"sum {sorted(operands)}") != (split == "in_distribution"):
        return None
    return tuple(operands)


def _problems(settings: ArithmeticSettings, split: Split, count: int, seed: int) -> list[Operands]:
    rng = generator("arithmetic", split, seed)
    return distinct(lambda: _draw(settings, split, rng), count, f"arithmetic, {split}")


def _prompt(settings: ArithmeticSettings, split: Split, index: int, operands: Operands) -> Prompt:
    text = "+".join(map(str, operands)) + "="
    return Prompt(f"arithmetic/{split}/{index:06d}", text, _response(operands, settings.working))


def _prompts(settings: ArithmeticSettings, split: Split, count: int, seed: int) -> list[Prompt]:
    problems = _problems(settings, split, count, seed)
    return [_prompt(settings, split, index, operands) for index, operands in enumerate(problems)]


def _demonstrations(settings: ArithmeticSettings, count: int, seed: int) -> list[Demonstration]:
    rng = generator("arithmetic", "noise", seed)
    demonstrations = []
    for index, operands in enumerate(_problems(settings, "train", count, seed)):
        prompt = _prompt(settings, "train", index, operands)
        wrong = rng.random() < settings.noise
        response = (
            _response(operands, settings.working, *_slip(operands, settings.working, rng)) if wrong else prompt.answer
        )
        demonstrations.append(Demonstration(prompt, response))
    return demonstrations


def _response(operands: Operands, working: bool, slip_at: int = 0, slip: int = 0) -> str:
    """The response; the running sum with operand number `slip_at` comes out wrong by `slip`, and so does all after.
    `slip_at` = len(operands) is a slip in copying the last running sum: only the answer is wrong."""
    total, steps = operands[0], []
    for position, operand in enumerate(operands[1:], start=1):
        before = total
        total += operand + (slip if position == slip_at else 0)
        steps.append(f"{before}+{operand}={total}")
    answer = total + (slip if slip_at == len(operands) else 0)
    return ";".join([*steps, str(answer)]) if working else str(answer)


def _slip(operands: Operands, working: bool, rng: random.Random) -> tuple[int, int]:
    """Which step goes wrong and by how much: one too many or too few in one place, as with a forgotten carry.
    With working shown, copying the result is a step like any other."""
    position = rng.randrange(1, len(operands) + working)
    right = sum(operands[: position + 1])
    size = 10 ** rng.randrange(len(str(right)))
    return position, size if right < size else rng.choice((-size, size))


def _pairs(settings: ArithmeticSettings, count: int, seed: int) -> list[TextPair]:
    """Right against wrong at every distance. The scores are 1 and 0 whatever the distance, so that it alone varies."""
    rng = generator("arithmetic", "pairs", seed)
    prompts = _prompts(settings, "train", count, seed)
    return [TextPair(p, p.answer, _changed(p.answer, rng), "changed digits") for p in prompts]


def _changed(text: str, rng: random.Random) -> str:
    """The text with 1 to all of its digits replaced by other digits; every number of them is as likely."""
    places = [place for place, character in enumerate(text) if character.isdigit()]
    characters = list(text)
    for place in rng.sample(places, rng.randint(1, len(places))):
        characters[place] = rng.choice([digit for digit in "0123456789" if digit != text[place]])
    return "".join(characters)


def _judge(working: bool, prompt: Prompt, response: str) -> Judgement:
    """`prompt.answer` is the whole right response. Parts: `answer`, and `working` where it is asked for."""
    given = response.strip()
    score = float(given == prompt.answer)
    if not working:
        return Judgement(score, {"answer": score})
    steps, _, answer = given.rpartition(";")
    right_steps, _, right_answer = prompt.answer.rpartition(";")
    return Judgement(score, {"answer": float(answer == right_answer), "working": float(steps == right_steps)})
