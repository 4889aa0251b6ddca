"""Write the recipe reference from the settings models, so that it cannot drift from what a recipe accepts.

`pages()` returns docs/recipes.md, whose upper half is written by hand, and one page of docs/recipes/ for each group of
sections. Usage, from the repository root: .venv/bin/python -m docs.generate_recipes
"""

import json
from dataclasses import dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from rlhf_bench.methods import METHODS
from rlhf_bench.methods.schedules import Schedule
from rlhf_bench.recipe import Recipe
from rlhf_bench.tasks import TASKS
from rlhf_bench.tasks.loading.data_source import Place

INDEX = Path(__file__).with_name("recipes.md")
FOLDER = Path(__file__).with_name("recipes")
MARKER = "<!-- Everything below is written by docs/generate_recipes.py -->"
NAMES = {str: "text", int: "whole number", float: "number", bool: "true or false", Path: "path", NoneType: "null"}
LIMITS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<", "min_length": "length ≥"}
LINKED = {Schedule: "[schedule](methods.md#schedule)", Place: "[rows](tasks.md#rows)"}
"""Models that many keys take. Each has one table, which the keys' rows link to."""


@dataclass(frozen=True)
class Page:
    """One page of docs/recipes/: the top-level keys of a recipe that it explains."""

    name: str
    title: str
    about: str
    keys: tuple[str, ...]


PAGES = (
    Page("model", "The model", "Architecture, adapters and tokenizer of the policy.", ("model",)),
    Page(
        "stages",
        "Data and stages before the arms",
        "Prompts, pairs, supervised fine-tuning and the reward model. All arms share them.",
        ("data", "sft", "reward_model", "gold_reward_model"),
    ),
    Page("tasks", "Tasks", "The keys of `task`, by its `kind`. [Tasks](../tasks.md) says what each is.", ("task",)),
    Page(
        "methods",
        "Arms",
        "The keys of an arm, by its `method`. [Methods](../methods.md) has the equations.",
        ("arms",),
    ),
    Page(
        "comparison",
        "Budget, evaluation, tuning and claims",
        "When an arm stops, how it is evaluated, and what is decided at the end.",
        ("compute", "evaluation", "tuning", "claims"),
    ),
    Page(
        "operation",
        "Placement, tracking and reliability",
        "What each role gets of the cluster, where MLflow is, and what happens when a process fails.",
        ("placement", "tracking", "reliability"),
    ),
)


def pages() -> dict[Path, str]:
    """The text of every page, by its path."""
    by_hand = INDEX.read_text(encoding="utf-8").partition(MARKER)[0]
    contents = ["## All keys", "", "| page | keys |", "| --- | --- |", *map(_listed, PAGES)]
    index = "\n\n".join([by_hand + MARKER, "\n".join(contents), section(Recipe, "Top level", deep=False)]) + "\n"
    return {INDEX: index} | {FOLDER / f"{page.name}.md": _text(page) for page in PAGES}


def _listed(page: Page) -> str:
    return f"| [{page.title}](recipes/{page.name}.md) | {', '.join(f'`{key}`' for key in page.keys)} |"


def _text(page: Page) -> str:
    note = "<!-- Written by docs/generate_recipes.py -->"
    head = f"{note}\n\n# {page.title}\n\n{page.about} Back to [how recipes work](../recipes.md)."
    return "\n\n".join([head, *(part for key in page.keys for part in _of(key))]) + "\n"


def _of(key: str) -> list[str]:
    """The sections of one top-level key."""
    if key == "task":
        kinds = [section(kind.settings, f"task, kind: {name}", "task.") for name, kind in TASKS.items()]
        return [*kinds, section(Place, "Rows")]
    if key == "arms":
        methods = [section(m.settings, f"arms.NAME, method: {name}", "arms.NAME.") for name, m in METHODS.items()]
        return [*methods, section(Schedule, "Schedule")]
    return [section(model, key, f"{key}.") for model in models(Recipe.model_fields[key].annotation)]


def section(model: type[BaseModel], title: str, prefix: str = "", deep: bool = True) -> str:
    """A heading, the model's docstring and a table of its keys; if `deep`, then the same for the models inside it."""
    fields = model.model_fields
    head = [f"## {title}", ""] + ([" ".join(model.__doc__.split()), ""] if model.__doc__ else [])
    table = ["| key | value | default | meaning |", "| --- | --- | --- | --- |", *map(row, fields, fields.values())]
    elsewhere = [*LINKED, *(kind.settings for kind in TASKS.values())]
    inner = [(key, m) for key, f in fields.items() for m in models(f.annotation) if deep and m not in elsewhere]
    nested = [section(m, prefix + key, f"{prefix}{key}.") for key, m in inner]
    return "\n\n".join(["\n".join(head + table), *nested])


def row(key: str, field: FieldInfo) -> str:
    limits = [f"{sign} {getattr(m, name)}" for m in field.metadata for name, sign in LIMITS.items() if hasattr(m, name)]
    value = ", ".join([" or ".join(dict.fromkeys(map(named, members(field.annotation)))), *limits])
    default = field.get_default(call_default_factory=True)
    given = default.model_dump(exclude_unset=True) if isinstance(default, BaseModel) else default
    shown = "required" if field.is_required() else f"`{json.dumps(given)}`"
    return f"| `{key}` | {value} | {shown} | {(field.description or '').replace('<', '&lt;')} |"


def members(annotation: Any) -> tuple[Any, ...]:
    """The types that a value may have: the members of a union, without their annotations."""
    if get_origin(annotation) is Annotated:
        return members(get_args(annotation)[0])
    if get_origin(annotation) in (UnionType, Union):
        return tuple(inner for member in get_args(annotation) for inner in members(member))
    return (annotation,)


def models(annotation: Any) -> list[type[BaseModel]]:
    """The models that a key's value, or an entry of its list, may be."""
    entries = [get_args(m)[0] if get_origin(m) is tuple else m for m in members(annotation)]
    return [m for entry in entries for m in members(entry) if hasattr(m, "model_fields")]


def named(annotation: Any) -> str:
    origin, inner = get_origin(annotation), get_args(annotation)
    if annotation in LINKED:
        return LINKED[annotation]
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in inner)
    if origin is dict:
        return "mapping"
    return f"list of {named(members(inner[0])[0])}" if origin is tuple else NAMES.get(annotation, "section")


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for path, text in pages().items():
        path.write_text(text, encoding="utf-8")
