"""From plain data to a checked recipe; every problem becomes one line that names the key and the remedy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from rapidfuzz.distance import DamerauLevenshtein

from rlhf_bench.core.errors import BadInput
from rlhf_bench.core.text import listed, without_passwords
from rlhf_bench.methods import METHODS
from rlhf_bench.methods.base import MethodSettings
from rlhf_bench.recipe.recipe import Recipe


def _arm_settings(name: str, arm: Any) -> MethodSettings:
    if isinstance(arm, MethodSettings):
        return arm
    if not isinstance(arm, Mapping) or "method" not in arm:
        raise BadInput(f"arms.{name}: needs `method:`, one of {', '.join(METHODS)}")
    if not isinstance(arm["method"], str) or arm["method"] not in METHODS:
        raise BadInput(
            f"arms.{name}.method: unknown method {arm['method']!r}{_meant(str(arm['method']), METHODS)}; known are {', '.join(METHODS)}"
        )
    settings = METHODS[arm["method"]].settings
    problems = []
    for key in [str(k) for k in arm if k not in settings.model_fields]:
        owners = [m.name for m in METHODS.values() if key in m.settings.model_fields]
        if key in Recipe.model_fields:
            problems.append(f"arms.{name}.{key}: shared by all arms; move it to the recipe's top level")
        elif owners:
            problems.append(f"arms.{name}.{key}: a setting of {listed(owners)}, not of {arm['method']}; remove it")
        else:
            problems.append(f"arms.{name}.{key}: unknown key{_meant(key, settings.model_fields)}; remove it")
    if problems:
        raise BadInput(*problems)
    try:
        return settings.model_validate(dict(arm))
    except ValidationError as error:
        raise BadInput(*_lines(error, settings, f"arms.{name}.")) from None


def _meant(word: str, known: Any) -> str:
    """A hint with the known word that is the fewest typing errors away, or "" where none is similar."""
    close = get_close_matches(word, list(known))
    return f" (did you mean {min(close, key=lambda k: DamerauLevenshtein.distance(word, k))}?)" if close else ""


def _models_of(annotation: Any) -> list[type[BaseModel]]:
    """The settings models that a field's type allows, inside unions and annotations too."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in _models_of(part)]


def _shown(value: Any) -> str:
    """The value as Python writes it, shortened where it is long."""
    written = repr(value)
    return written if len(written) <= 100 else written[:99] + "…"


def _walk(model: type[BaseModel], path: Sequence[Any]) -> tuple[list[str], list[str]]:
    """The key that `path` means as the user wrote it (a union's tag is no key), and the keys known beside its last."""
    models, key, known = [model], [], []
    for part in map(str, path):
        tagged = [m for m in models if len(models) > 1 and getattr(m.model_fields.get("kind"), "default", None) == part]
        if tagged:
            models = tagged
            continue
        key.append(part)
        known = [name for m in models for name in m.model_fields]
        models = [
            found for m in models if part in m.model_fields for found in _models_of(m.model_fields[part].annotation)
        ]
    return key, known


def _lines(error: ValidationError, model: type[BaseModel], prefix: str = "") -> list[str]:
    """One line per problem: key, what is wrong, what to do."""
    lines = []
    for e in error.errors():
        where, known = _walk(model, e["loc"])
        key = prefix + ".".join(where) or "recipe"
        if e["type"] == "extra_forbidden":
            lines.append(f"{key}: unknown key{_meant(where[-1], known)}; remove it")
        elif e["type"] == "missing":
            lines.append(f"{key}: missing; add it")
        else:
            shown = "" if isinstance(e["input"], (dict, list)) else without_passwords(f" (found {_shown(e['input'])})")
            lines.append(f"{key}: {e['msg'].removeprefix('Value error, ')}{shown}; correct it")
    return lines


def parse_recipe(data: Any) -> Recipe:
    """Plain data to a checked recipe. Raises BadInput, one line per problem."""
    if not isinstance(data, Mapping):
        raise BadInput("recipe: must be a mapping of keys to values")
    problems: list[str] = []
    arms = data.get("arms")
    if isinstance(arms, Mapping):
        arms = swept(arms, data.get("sweep"), problems)
        data = {**data, "arms": {name: _checked_arm(name, arm, problems) for name, arm in arms.items()}}
        for number, trial in enumerate(_trials(data.get("tuning")) if not problems else ()):
            for name, arm in data["arms"].items():
                _checked_arm(f"{name} (tuning.trials[{number}])", arm.model_dump() | trial, problems)
    try:
        recipe = Recipe.model_validate(data)
    except ValidationError as error:
        raise BadInput(*_lines(error, Recipe), *problems) from None
    if problems:
        raise BadInput(*problems)
    return recipe


def _checked_arm(name: Any, arm: Any, problems: list[str]) -> MethodSettings:
    """The arm's settings; where it is wrong, a stand-in for the rest of the checks, and its problems in the list."""
    try:
        return _arm_settings(name, arm)
    except BadInput as error:
        problems += error.problems
        return MethodSettings()


def _trials(tuning: Any) -> list[dict[str, Any]]:
    """The trials that look like any; the settings model refuses all else."""
    trials = tuning.get("trials") if isinstance(tuning, Mapping) else None
    return [dict(t) for t in trials if isinstance(t, Mapping)] if isinstance(trials, list | tuple) else []


def swept(arms: Mapping[str, Any], sweep: Any, problems: list[str]) -> dict[str, Any]:
    """The arms, and a copy of each for every value of a swept setting that its method has: NAME.setting=value."""
    out = dict(arms)
    for key, values in sweep.items() if isinstance(sweep, Mapping) else ():
        users = [
            (name, arm)
            for name, arm in arms.items()
            if "=" not in str(name)  # made by this very sweep: a recipe that was saved in full is read again as it is
            and isinstance(arm, Mapping)
            and isinstance(arm.get("method"), str)
            and arm["method"] in METHODS
            and key in METHODS[arm["method"]].settings.model_fields
        ]
        if not users:
            problems.append(f"sweep.{key}: no arm's method has this setting; correct or remove it")
        for name, arm in users:
            for value in _numbers(values):
                out.setdefault(f"{name}.{key}={value:g}", {**arm, key: value})
    return out


def _numbers(values: Any) -> list[float]:
    """Those of the values that are numbers, written with or without a point; the settings model refuses all else."""
    found = []
    for value in values if isinstance(values, list | tuple) else ():
        try:
            found.append(float(value))
        except (TypeError, ValueError):
            continue
    return found
