"""Reading recipe files: `extends`, overrides of the command line, and relative paths."""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rlhf_bench.core.errors import BadInput, Problems
from rlhf_bench.core.yaml import Unreadable, read_yaml
from rlhf_bench.recipe.parsing import Draft, parse_recipe, read_draft
from rlhf_bench.recipe.recipe import Recipe

MAX_NAME_LENGTH = 255  # bytes of a file's name


def load_recipe(path: Path, overrides: Sequence[str] = (), fast: bool = False) -> Recipe:
    """Read a recipe file with what it extends, apply the overrides, and check it. Paths are relative to the file's folder."""
    data = recipe_data(path, overrides, fast)
    if data.pop("vary", None) is not None:
        raise BadInput(f"{path}: vary: is a series of comparisons, and this command needs one; override vary=null")
    return parse_recipe(data)


@dataclass(frozen=True)
class Variant:
    """One comparison of a series: `label` is KEY=VALUE, and "" for a recipe that varies nothing."""

    label: str
    recipe: Recipe


def load_series(path: Path, overrides: Sequence[str] = (), fast: bool = False) -> list[Variant]:
    """The comparisons that a recipe file asks for: one, or with `vary: {key: …, values: […]}` one for each value. BadInput
    with all that is wrong with any of them.

    `vary` is for keys that all arms of a comparison share and that therefore can only differ between comparisons.
    """
    drafts, problems = read_series(path, overrides, fast), Problems()
    for draft in drafts.values():
        problems.add(*draft.problems)
    problems.refuse()
    return [Variant(label, draft.recipe) for label, draft in drafts.items() if draft.recipe is not None]


def read_series(path: Path, overrides: Sequence[str] = (), fast: bool = False) -> dict[str, Draft]:
    """What can be read of these comparisons, by label, and what is wrong with each. BadInput where the file cannot be read, or
    what it varies cannot be told."""
    data = recipe_data(path, overrides, fast)
    vary = data.pop("vary", None)
    if vary is None:
        return {"": read_draft(data)}
    if not isinstance(vary, dict) or set(vary) != {"key", "values"} or not isinstance(vary["values"], list):
        return {"": _also(["vary: must be {key: KEY.PATH, values: [A, B, …]}; correct it"], read_draft(data))}
    if not vary["values"] or len({str(value) for value in vary["values"]}) < len(vary["values"]):
        return {"": _also(["vary.values: needs one value or more, each of them once; correct it"], read_draft(data))}
    drafts, problems = dict[str, Draft](), Problems()
    for value in vary["values"]:
        one, label = copy.deepcopy(data), f"{vary['key']}={value}"
        with problems.step():
            _set(one, str(vary["key"]).split("."), value, "vary")
            _check_label(label)
            drafts[label] = read_draft(one)
    return {"": _also(problems.found, read_draft(data))} if problems.found else drafts


def _also(problems: Sequence[str], draft: Draft) -> Draft:
    return replace(draft, problems=(*problems, *draft.problems))


def _check_label(label: str) -> None:
    if not is_label(label):
        raise BadInput(f"vary: {label!r} cannot name a folder within the output; use values without .. in them")
    if len(label.encode()) > MAX_NAME_LENGTH or not label.isprintable():
        raise BadInput(f"vary.values: {label[:40]!r}… cannot name a directory; give values of a short line each")


def is_label(label: str) -> bool:
    """Whether this may be a comparison's label, KEY.PATH=VALUE: a folder of its own within the series' folder."""
    return re.match(r"[A-Za-z0-9][A-Za-z0-9_.+-]*=", label) is not None and ".." not in Path(label).parts


def recipe_data(path: Path, overrides: Sequence[str] = (), fast: bool = False) -> dict[str, Any]:
    """The recipe as plain data. `fast` lays its section of that name over it: a smaller size of the same comparison."""
    data = _read(path, seen=())
    smaller = data.pop("fast", None)
    if fast:
        if not isinstance(smaller, dict):
            raise BadInput(f"{path}: --fast: this recipe has no section fast; run it without, or add one")
        data = merge(data, smaller)
    problems = Problems()
    for override in overrides:
        with problems.step():
            _override(data, override)
    problems.refuse()
    return data


def _override(data: dict[str, Any], override: str) -> None:
    key, equals, value = override.partition("=")
    if not equals or not key:
        raise BadInput(f"{override}: an override is written key.path=value")
    try:
        parsed = read_yaml(value)
    except Unreadable as error:
        raise BadInput(f"{key}: its value {error}") from None
    _set(data, key.split("."), parsed, override)


def _read(path: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    try:
        path = Path(os.path.realpath(path))
        if path in seen:
            raise BadInput(f"{path}: extends itself by way of {seen[-1]}; break the circle")
        if path.exists() and not path.is_file():
            raise BadInput(f"{path}: is no file; give a recipe file")
        data = read_yaml(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise BadInput(f"{path}: no such recipe file; check the path") from None
    except OSError as error:
        raise BadInput(f"{path}: cannot be read: {error.strerror}; check path and permissions") from None
    except UnicodeDecodeError as error:
        raise BadInput(f"{path}: not UTF-8 ({error.reason} at byte {error.start}); save it as UTF-8") from None
    except Unreadable as error:
        raise BadInput(f"{path}: {error}") from None
    if not isinstance(data, dict):
        raise BadInput(f"{path}: a recipe is a mapping of keys to values; write key: value lines")
    base = data.pop("extends", None)
    if not isinstance(base, str | None):
        raise BadInput(f"{path}: extends: is the name of one file; correct it")
    for section in (data, data.get("fast")):
        if isinstance(section, dict):
            _absolute(section.get("task"), path.parent)
    return data if base is None else merge(_read(path.parent / base, (*seen, path)), data)


def _absolute(task: Any, folder: Path) -> None:
    """Files of the task, or of the tasks inside it, are named relative to the recipe that names them."""
    for key, value in task.items() if isinstance(task, dict) else ():
        if isinstance(value, str) and value.startswith(("./", "../")):
            task[key] = str((folder / value).resolve())
        _absolute(value, folder)


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`over` wins; mappings merge key by key. `arms` and `task` are replaced whole: an arm or a task inherits nothing."""
    out = dict(base)
    for key, value in over.items():
        whole = key in ("arms", "task")
        both = isinstance(value, Mapping) and isinstance(out.get(key), Mapping)
        out[key] = merge(out[key], value) if both and not whole else value
    return out


def _set(data: dict[str, Any], path: list[str], value: Any, override: str) -> None:
    for part in path[:-1]:
        data = data.setdefault(part, {})
        if not isinstance(data, dict):
            raise BadInput(f"{override}: {part} is not a section; check the key")
    data[path[-1]] = value
