"""From plain data to a checked recipe; every problem becomes one line that names the key and the remedy."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from rapidfuzz.distance import DamerauLevenshtein

from rlhf_bench.core.errors import BadInput, Conflicts
from rlhf_bench.core.text import listed, without_passwords
from rlhf_bench.methods import METHODS
from rlhf_bench.methods.base import MethodSettings
from rlhf_bench.recipe.agreement import conflicts
from rlhf_bench.recipe.recipe import MAX_NAME, RESERVED, Recipe


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
            raised = e.get("ctx", {}).get("error")
            said = raised.problems if isinstance(raised, Conflicts) else (e["msg"].removeprefix("Value error, "),)
            shown = "" if isinstance(e["input"], (dict, list)) else without_passwords(f" (found {_shown(e['input'])})")
            lines += [f"{key}: {problem}{shown}; correct it" for problem in said]
    return lines


@dataclass(frozen=True)
class Draft:
    """What could be read of a recipe: `problems`, a line each, and the recipe with stand-ins for the sections in `wrong`; None
    where nothing can be checked any further."""

    recipe: Recipe | None
    problems: tuple[str, ...] = ()
    wrong: frozenset[str] = frozenset()


def parse_recipe(data: Any) -> Recipe:
    """Plain data to a checked recipe. Raises BadInput, one line per problem."""
    draft = read_draft(data)
    if draft.problems or draft.recipe is None:
        raise BadInput(*draft.problems)
    return draft.recipe


def read_draft(data: Any) -> Draft:
    """Plain data to a recipe, and all that is wrong with it."""
    if not isinstance(data, Mapping):
        return Draft(None, ("recipe: must be a mapping of keys to values",))
    problems, wrong = list[str](), set[str]()
    arms = data.get("arms")
    if isinstance(arms, Mapping):
        arms = swept(arms, data.get("sweep"), problems)
        problems += [problem for name in arms if (problem := _name_problem(str(name)))]
        checked = {name: _checked_arm(name, arm, problems) for name, arm in arms.items()}
        data = {**data, "arms": checked}
        if not problems:
            problems += _trial_problems(checked, data.get("tuning"))
    recipe = None
    try:
        recipe = Recipe.model_validate(data)
    except ValidationError as error:
        problems = [*_lines(error, Recipe), *problems]
        wrong = {str(e["loc"][0]) if e["loc"] else "" for e in error.errors()}
        recipe = _with_stand_ins(data, wrong)
    if recipe is not None:
        problems += [f"recipe: {line}; correct it" for line in conflicts(recipe, wrong)]
        if any(not arm.method for arm in recipe.arms.values()):
            wrong.add("arms")
            recipe = recipe.model_copy(update={"arms": {n: arm for n, arm in recipe.arms.items() if arm.method}})
    return Draft(recipe, tuple(dict.fromkeys(problems)), frozenset(wrong))


_STAND_INS: Mapping[str, Any] = {
    "name": "unnamed",
    "task": {"kind": "arithmetic"},
    "compute": {"limit": 1.0},
    "arms": {"unnamed": MethodSettings()},
}


def _with_stand_ins(data: Mapping[Any, Any], wrong: Collection[str]) -> Recipe | None:
    """The recipe with defaults in the place of sections that are wrong, so that the others can be checked."""
    kept = {key: value for key, value in data.items() if key in Recipe.model_fields and key not in wrong}
    try:
        return Recipe.model_validate({**{key: value for key, value in _STAND_INS.items() if key in wrong}, **kept})
    except ValidationError:  # what is wrong with it was said
        return None


def _name_problem(name: str) -> str | None:
    """Why no arm can have this name, as far as its characters are those of a name."""
    if name in RESERVED:
        return f"arms.{name}: tables give this name to what is no arm; rename the arm"
    if len(name) > MAX_NAME:
        return f"arms.{name[:40]}…: has {len(name)} characters, and files are named by it; give it {MAX_NAME} at most"
    return None


def _checked_arm(name: Any, arm: Any, problems: list[str]) -> MethodSettings:
    """The arm's settings; where it is wrong, a stand-in for the rest of the checks, and its problems in the list."""
    try:
        return _arm_settings(name, arm)
    except BadInput as error:
        problems += error.problems
        return MethodSettings()


def _trial_problems(arms: Mapping[str, MethodSettings], tuning: Any) -> list[str]:
    """What is wrong with the arms under their trials. The settings model refuses what does not look like trials."""
    if not isinstance(tuning, Mapping):
        return []
    own, found = tuning.get("arms"), list[str]()
    for name, arm in arms.items():
        at = f"tuning.arms.{name}" if isinstance(own, Mapping) and name in own else "tuning.trials"
        trials = own[name] if isinstance(own, Mapping) and name in own else tuning.get("trials")
        for number, trial in enumerate(trials if isinstance(trials, list | tuple) else ()):
            if not isinstance(trial, Mapping):
                continue
            problems: list[str] = []
            _checked_arm(f"{name} ({at}[{number}])", arm.model_dump() | dict(trial), problems)
            if at == "tuning.trials":
                problems = [f"{p}, or give the arm trials of its own in tuning.arms.{name}" for p in problems]
            found += problems
    return found


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
