"""Write the tables of docs/recipes.md from the settings models, so that they cannot drift from what a recipe accepts.

Usage, from the repository root: .venv/bin/python -m docs.generate_recipes
"""

import json
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

PAGE = Path(__file__).with_name("recipes.md")
MARKER = "<!-- From here on written by docs/generate_recipes.py -->"
NAMES = {str: "text", int: "whole number", float: "number", bool: "true or false", Path: "path", NoneType: "null"}
LIMITS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<", "min_length": "length ≥"}


def page() -> str:
    """The whole page: what stands before the marker by hand, then a table for every settings model."""
    tasks = [section(kind.settings, f"task, kind: {name}", "task.") for name, kind in TASKS.items()]
    methods = [section(m.settings, f"arms.NAME, method: {name}", "arms.NAME.") for name, m in METHODS.items()]
    by_hand = PAGE.read_text(encoding="utf-8").partition(MARKER)[0]
    once = [section(Place, "Rows"), section(Schedule, "Schedule")]
    return "\n\n".join([by_hand + MARKER, section(Recipe, "Top level"), *tasks, *methods, *once]) + "\n"


def section(model: type[BaseModel], title: str, prefix: str = "") -> str:
    """A heading, the model's docstring and a table of its keys; then the same for the models inside it."""
    fields = model.model_fields
    head = [f"## {title}", ""] + ([" ".join(model.__doc__.split()), ""] if model.__doc__ else [])
    table = ["| key | value | default | meaning |", "| --- | --- | --- | --- |", *map(row, fields, fields.values())]
    elsewhere = [Schedule, Place, *(kind.settings for kind in TASKS.values())]  # each of them stands on the page once
    inner = [(key, m) for key, f in fields.items() for m in sections(f.annotation) if m not in elsewhere]
    nested = [section(m, prefix + key, f"{prefix}{key}.") for key, m in inner]
    return "\n\n".join(["\n".join(head + table), *nested])


def row(key: str, field: FieldInfo) -> str:
    limits = [f"{sign} {getattr(m, name)}" for m in field.metadata for name, sign in LIMITS.items() if hasattr(m, name)]
    value = ", ".join([" or ".join(dict.fromkeys(map(named, members(field.annotation)))), *limits])
    default = field.get_default(call_default_factory=True)
    given = default.model_dump(exclude_unset=True) if isinstance(default, BaseModel) else default
    shown = "required" if field.is_required() else f"`{json.dumps(given)}`"
    return f"| `{key}` | {value} | {shown} | {(field.description or '').replace('<', '&lt;')} |"


def members(annotation: Any) -> tuple[Any, ...]:  # of a union
    return get_args(annotation) if get_origin(annotation) in (UnionType, Union) else (annotation,)


def sections(annotation: Any) -> list[type[BaseModel]]:
    """The models that a key's value, or an entry of its list, may be."""
    inner = [get_args(m)[0] if get_origin(m) is tuple else m for m in members(annotation)]
    return [m for m in inner if hasattr(m, "model_fields")]


def named(annotation: Any) -> str:
    if annotation is Schedule:
        return "[schedule](#schedule)"
    if annotation is Place:
        return "[rows](#rows)"
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return named(inner[0])
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in inner)
    if origin is dict:
        return "mapping"
    return f"list of {named(inner[0])}" if origin is tuple else NAMES.get(annotation, "section")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
