"""What every task offers, and how tasks draw: reproducibly, without repeats, split by construction."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any, TypeVar

from pydantic import BaseModel

from rlhf_bench.core.errors import BadInput
from rlhf_bench.core.types import ALL_SPLITS, Demonstration, Judgement, LabelledText, Prompt, Split, TextPair

Item = TypeVar("Item", bound=Hashable)

PAIRS, HELD_OUT_PAIRS, LABELLED = "pairs", "held-out pairs", "labelled responses"
HELD_OUT_FRACTION = 0.1
"""The share of the training distribution that is kept for `in_distribution`."""
MAX_DRAWN = 1_000_000
"""Maximum number of prompts of a split: drawing them takes half a minute, and all are kept in memory."""
_PATIENCE = 100_000
"""After this many draws in a row without a new item, all items count as found."""


@dataclass(frozen=True)
class Task:
    """A task as functions that are deterministic in their arguments.

    `prompts(split, count, seed)`: distinct prompts. A text belongs to one split whatever the seed, ids are unique
    across splits, and fewer prompts with the same seed are a prefix of more.
    `demonstrations(count, seed)`: one response each to `prompts("train", count, seed)`, at the settings' noise; of a
    mixture, half of them, and as many of its second task.
    `judge(prompt, response)`: rule based, exact, and total: any text gets a judgement.
    `settle(asked)`: called before `judge` is asked for all of these: what takes long is done in parallel and remembered. None
    where nothing does.
    `pairs(count, seed)`: off-policy preferences that come with the data; None where the task has none. `held_out_pairs(count,
    seed)`: more of them, on held-out prompts; None where `pairs` gives those too.
    `labelled(count, seed)`: responses that come with a label in place of a pair; None where none do. `no_pairs`: why these make no
    pairs, where they should.
    `corpus()`: texts with every character and word that any prompt or right answer can need.
    `right_response(prompt)`: the one response that the judge scores 1, where it scores every other one 0: the probability of
    that response is a policy's expected score. None where the task has no such response.
    `splits`: the splits that have prompts. `notes`: what the user should know about how the data was made. `leaves_out`: whether
    rows that cannot be encoded are left out and counted, and not refused. `sizes`: how many prompts each split has, and how many
    `PAIRS`, `HELD_OUT_PAIRS` and `LABELLED` there are; empty for a task that draws as many as one likes.

    They raise BadInput where more is asked for than there is."""

    name: str
    prompts: Callable[[Split, int, int], list[Prompt]]
    demonstrations: Callable[[int, int], list[Demonstration]]
    judge: Callable[[Prompt, str], Judgement]
    pairs: Callable[[int, int], list[TextPair]] | None
    corpus: Callable[[], list[str]]
    right_response: Callable[[Prompt], str] | None = None
    settle: Callable[[Sequence[tuple[Prompt, str]]], None] | None = None
    splits: tuple[Split, ...] = ALL_SPLITS
    notes: tuple[str, ...] = ()
    leaves_out: bool = False
    held_out_pairs: Callable[[int, int], list[TextPair]] | None = None
    labelled: Callable[[int, int], list[LabelledText]] | None = None
    no_pairs: str = ""
    sizes: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class TaskKind:
    """One entry of the registry: the settings model and the function that builds the task from it."""

    settings: type[BaseModel]
    build: Callable[[Any], Task]


def check_installed(kind: str, extra: str, module: str) -> None:
    """BadInput where the package is missing that this kind of task alone needs: it comes with an extra of the project's."""
    if find_spec(module) is None:
        raise BadInput(
            f"task.kind: {kind} needs the package {module.replace('_', '-')}, which is not installed; install it with "
            f"python -m pip install --editable '.[{extra}]', or choose another task"
        )


def generator(*parts: object) -> random.Random:
    """A random generator for one purpose, seeded by these names and numbers: the same in every process."""
    return random.Random("/".join(map(str, parts)))


def fraction(text: str) -> float:
    """A fixed pseudo-random number in [0, 1) for a text. It decides splits, so it must never depend on a seed."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=6).digest(), "big") / 2**48


def is_held_out(text: str) -> bool:
    """True for the tenth of all texts that belongs to `in_distribution` and never to `train`."""
    return fraction(text) < HELD_OUT_FRACTION


def distinct(draw: Callable[[], Item | None], count: int, what: str) -> list[Item]:
    """The first `count` different items that `draw` gives; None is a draw to skip. BadInput once nothing new comes."""
    if count > MAX_DRAWN:
        raise BadInput(f"task {what}: {count} prompts are asked for, and at most {MAX_DRAWN} are drawn; ask for fewer")
    found: dict[Item, None] = {}
    misses = 0
    while len(found) < count:
        item = draw()
        if item is not None and item not in found:
            found[item] = None
            misses = 0
            continue
        misses += 1
        if misses == _PATIENCE:
            raise BadInput(
                f"task {what}: {count} different prompts are asked for, and these settings allow about {len(found)}; "
                "ask for fewer or widen the task's settings"
            )
    return list(found)


def check_enough(items: Sequence[object], count: int, what: str) -> None:
    """BadInput where there are fewer than `count` items."""
    if count > len(items):
        raise BadInput(f"task {what}: {count} are asked for and {len(items)} are there; ask for at most {len(items)}")


def choose(items: Sequence[Item], count: int, rng: random.Random, what: str) -> list[Item]:
    """`count` of the items in random order. BadInput where there are fewer."""
    check_enough(items, count, what)
    shuffled = list(items)
    rng.shuffle(shuffled)
    return shuffled[:count]
