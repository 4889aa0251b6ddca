"""The task of a first recipe: what data or a kind of task gives, and how the model's tokenizer sees it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pydantic import ValidationError

from rlhf_bench.core.errors import BadInput
from rlhf_bench.core.types import MAIN_SPLIT
from rlhf_bench.tasks import TASKS, Task
from rlhf_bench.tasks.loading.layouts import ROLES, Layout, layout_of
from rlhf_bench.training.cache import Cache
from rlhf_bench.training.first_recipe.measured import Measured, measured
from rlhf_bench.training.local_model import Say

OF_DATA = ("files", "gsm8k")
"""Kinds that read data of the user's."""
SHARE, LARGEST_SHARE, ENOUGH = 0.1, 0.3, 32
"""Of the prompts a tenth is held out; more where that would be fewer than `ENOUGH` of them."""


def named_roles(columns: Sequence[str]) -> dict[str, list[str]]:
    """--map's ROLE=COLUMN or ROLE=A,B as a mapping. BadInput with a line for each that is none."""
    found, problems = dict[str, list[str]](), []
    for one in columns:
        role, equals, names = one.partition("=")
        if not equals or role not in ROLES or not all(names.split(",")):
            problems.append(f"--map: {one}: write ROLE=COLUMN, or ROLE=A,B for several; roles are {', '.join(ROLES)}")
        found[role] = names.split(",")
    if problems:
        raise BadInput(*problems)
    return found


def measured_task(
    data: str | None,
    kind: str | None,
    roles: Mapping[str, Sequence[str]],
    model: str,
    gpu: bool,
    cache: Cache,
    say: Say,
) -> tuple[Layout, Measured]:
    """The task's settings with what was assumed, and the sizes of its data. BadInput where they cannot be told or used."""
    layout, task = _of_files(data, roles) if data is not None and kind in (None, "files") else _of_kind(data, kind)
    layout.assumed += [("task", note) for note in task.notes]
    demonstrations = layout.task.get("response_column", "") is not None
    return layout, measured(model, task, demonstrations, layout.task.get("judge", ""), gpu, cache, say)


def _of_kind(data: str | None, kind: str | None) -> tuple[Layout, Task]:
    if kind not in TASKS:
        raise BadInput(f"--task: {kind} is no kind of task; known are {', '.join(TASKS)}")
    if (data is None) == (kind in OF_DATA):
        wanted = "reads --data; add it" if kind in OF_DATA else "makes its own data; leave --data out"
        raise BadInput(f"--task: {kind} {wanted}")
    layout = Layout({"kind": kind} | ({} if data is None else {"folder": data}))
    return layout, _built(layout)


def _of_files(data: str, roles: Mapping[str, Sequence[str]]) -> tuple[Layout, Task]:
    layout = layout_of(data, roles, share=0.5)  # of it, since all prompts have to be counted first
    task = _built(layout)
    if layout.task["kind"] == "files":
        total = task.sizes["train"] + task.sizes[MAIN_SPLIT]
        share = round(min(max(SHARE, ENOUGH / total), LARGEST_SHARE), 2)
        layout = layout_of(data, roles, share)
        task = _built(layout)
    return layout, task


def _built(layout: Layout) -> Task:
    kind = layout.task["kind"]
    try:
        settings = TASKS[kind].settings.model_validate(layout.task)
    except ValidationError as error:
        missing = ", ".join(str(e["loc"][-1]) for e in error.errors())
        raise BadInput(f"--task: {kind} needs settings of its own ({missing}); write them into a recipe") from None
    return TASKS[kind].build(settings)
