"""Two tasks in one: the base policy knows both, preference methods train on the first, and the second is only evaluated.

This measures transfer: what training on one task does to the policy's answers in another, which no pair and no training
prompt shows.

Splits. `train`, `in_distribution` and `out_of_distribution` are the first task's. `unseen` holds the second task's
in-distribution prompts; the first task's own unseen prompts are left out. Ids begin with the key of the task that they
belong to, `train/arithmetic/train/000007` or `transfer/verse/in_distribution/000007`, and that beginning decides which
judge is asked."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import zip_longest
from typing import Literal, Self, TypeVar

from pydantic import Field, field_validator, model_validator

from rlhf_bench.core.errors import BadInput, Problems
from rlhf_bench.core.settings import Section
from rlhf_bench.core.types import Demonstration, Judgement, LabelledText, Prompt, Split, TextPair
from rlhf_bench.tasks.base import Task
from rlhf_bench.tasks.registry import SINGLE_TASKS, AnySingleSettings, SingleTaskSettings

Given = TypeVar("Given", TextPair, LabelledText)


class MixtureSettings(Section):
    """Two tasks of different kinds; each takes the keys of its kind."""

    kind: Literal["mixture"] = Field("mixture", description="Two tasks: one to train on, one to see the effect on.")
    train: SingleTaskSettings = Field(description="The task that methods train on, of any kind but mixture.")
    transfer: SingleTaskSettings = Field(
        description="The task whose in-distribution prompts are the split unseen, of any kind but mixture. "
        "Half the demonstrations are its own."
    )

    @field_validator("train", "transfer", mode="before")
    @classmethod
    def _no_mixture(cls, task: object) -> object:
        if isinstance(task, Mapping) and task.get("kind") == "mixture":
            raise ValueError(f"mixtures do not nest; give a task of kind {' or '.join(SINGLE_TASKS)}")
        return task

    @model_validator(mode="after")
    def _two_kinds(self) -> Self:
        if self.train.kind == self.transfer.kind:  # the same prompt could then belong to both, with two right answers
            raise ValueError(f"train and transfer are both of kind {self.train.kind}; give two different kinds")
        return self


Label = Literal["train", "transfer"]


def build(settings: MixtureSettings) -> Task:
    """Builds both tasks. BadInput with what is wrong with either, by its key below `task.train` or `task.transfer`."""
    given: dict[Label, AnySingleSettings] = {"train": settings.train, "transfer": settings.transfer}
    problems, parts = Problems(), dict[Label, Task]()
    for label in given:
        with problems.step():
            parts[label] = _part(label, given[label])
    problems.refuse()
    first, second = parts["train"], parts["transfer"]
    return Task(
        name="mixture",
        prompts=partial(_prompts, first, second),
        demonstrations=partial(_demonstrations, first, second),
        judge=partial(_judge, {"train": first, "transfer": second}),
        settle=partial(_settle, {"train": first, "transfer": second}),
        pairs=first.pairs,
        held_out_pairs=first.held_out_pairs,
        labelled=first.labelled,
        no_pairs=first.no_pairs,
        corpus=lambda: list(dict.fromkeys([*first.corpus(), *second.corpus()])),
        splits=(*(split for split in first.splits if split != "unseen"), "unseen"),
        notes=first.notes + second.notes,
        leaves_out=first.leaves_out or second.leaves_out,
    )


_KEY = re.compile(r"(^|\s)task\.(?=\w+: )")  # a key of the recipe in an error, such as "task.folder: there is no"


def _part(label: Label, settings: AnySingleSettings) -> Task:
    """The task as a part of the mixture: the same, with the label before its ids, in its errors' keys and its notes."""
    with _keys_below(label):
        task = SINGLE_TASKS[settings.kind].build(settings)

    def of_part(prompt: Prompt) -> Prompt:
        return replace(prompt, id=f"{label}/{prompt.id}")

    def prompts(split: Split, count: int, seed: int) -> list[Prompt]:
        return [of_part(prompt) for prompt in task.prompts(split, count, seed)]

    def demonstrations(count: int, seed: int) -> list[Demonstration]:
        with _keys_below(label):
            return [replace(d, prompt=of_part(d.prompt)) for d in task.demonstrations(count, seed)]

    def relabelled(draw: Callable[[int, int], list[Given]], count: int, seed: int) -> list[Given]:
        return [replace(one, prompt=of_part(one.prompt)) for one in draw(count, seed)]

    return replace(
        task,
        prompts=prompts,
        demonstrations=demonstrations,
        pairs=None if task.pairs is None else partial(relabelled, task.pairs),
        held_out_pairs=None if task.held_out_pairs is None else partial(relabelled, task.held_out_pairs),
        labelled=None if task.labelled is None else partial(relabelled, task.labelled),
        no_pairs=_KEY.sub(rf"\1task.{label}.", task.no_pairs),
        notes=tuple(f"{label}, {task.name}: {note}" for note in task.notes),
    )


@contextmanager
def _keys_below(label: Label) -> Iterator[None]:
    try:
        yield
    except BadInput as error:
        raise BadInput(*(_KEY.sub(rf"\1task.{label}.", problem) for problem in error.problems)) from error


def _prompts(first: Task, second: Task, split: Split, count: int, seed: int) -> list[Prompt]:
    return second.prompts("in_distribution", count, seed) if split == "unseen" else first.prompts(split, count, seed)


def _demonstrations(first: Task, second: Task, count: int, seed: int) -> list[Demonstration]:
    """By turns one of each task, the first task's first: fewer are a prefix of more."""
    turns = zip_longest(first.demonstrations((count + 1) // 2, seed), second.demonstrations(count // 2, seed))
    return [demonstration for turn in turns for demonstration in turn if demonstration is not None]


def _judge(parts: Mapping[str, Task], prompt: Prompt, response: str) -> Judgement:
    label, own = _own(prompt)
    return parts[label].judge(own, response)


def _settle(parts: Mapping[str, Task], asked: Sequence[tuple[Prompt, str]]) -> None:
    for label, part in parts.items():
        if part.settle is not None:
            own = [(_own(prompt)[1], response) for prompt, response in asked if _own(prompt)[0] == label]
            part.settle(own)


def _own(prompt: Prompt) -> tuple[str, Prompt]:
    """The part that a prompt is of, and the prompt as that part knows it."""
    label, _, own_id = prompt.id.partition("/")
    return label, replace(prompt, id=own_id)
