"""A recipe to begin with: few keys set, every other one there as a comment with its default and what it means.

It is written from the settings models, so it says what the program does."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel

from rlhf_bench.methods import METHODS
from rlhf_bench.recipe.recipe import Recipe
from rlhf_bench.recipe.sections import ComputeSettings
from rlhf_bench.tasks import TASKS

HEAD = """\
# A recipe of rlhf-bench. `rlhf-bench check FILE` validates it and says what it will cost; `rlhf-bench run FILE` runs it.
# Lines that begin with # and a key, without a space between, are settings at their defaults: take the # away to change one.
# An editor completes the keys after `rlhf-bench schema > recipe.schema.json` and, as this file's first line,
# yaml-language-server: $schema=recipe.schema.json
"""
CHOSEN: Mapping[str, Any] = {
    "name": "my-comparison",
    "description": "Which method does best on sums of two numbers?",
    "model": {"layers": 2, "max_length": 32},
    "task": {"kind": "arithmetic", "digits": 2, "noise": 0.1},
    "data": {"max_response_tokens": 6},
    "sft": {"demonstrations": 5000, "steps": 500, "learning_rate": 1.5e-3},
    "compute": {"limit": 7.0e11},
    "seeds": [1, 2, 3],
    "arms": {
        "ppo": {"method": "ppo", "feedback": "judge", "prompts_per_update": 16, "learning_rate": 2.0e-5},
        "dpo": {"method": "dpo", "data": "on_policy", "beta": 1.0, "learning_rate": 2.0e-5},
        "flex-dpo": {
            "method": "flex_dpo",
            "data": "on_policy",
            "beta_chosen": 1.0,
            "beta_rejected": 0.1,
            "learning_rate": 2.0e-5,
        },
    },
    "baseline": "dpo",
}
"""What is set, so that `check` accepts the file and a reader sees a whole comparison. All else is at its default."""


def commented_recipe() -> str:
    """The file's text."""
    defaults = {key: field.get_default(call_default_factory=True) for key, field in Recipe.model_fields.items()}
    return HEAD + "\n".join(["", *_keys(Recipe, CHOSEN, defaults)]) + "\n"


def _keys(
    model: type[BaseModel], chosen: Mapping[str, Any], defaults: Mapping[str, Any], indent: str = "", mute: str = ""
) -> Iterator[str]:
    """The lines of a section: `chosen` is set, all else at its default behind a #. `mute` is that # where the whole
    section is a comment, so that it stands first and can be taken away alone."""
    for key, field in model.model_fields.items():
        if not indent:
            yield ""
        if key == "arms":
            yield from (f"# {field.description}", "arms:")
            for name, arm in chosen["arms"].items():
                settings = METHODS[arm["method"]].settings
                yield from (f"  {name}:", *_keys(settings, arm, dict(settings()), "    "))
            continue
        silent = mute or ("" if key in chosen else "#")
        start = f"{mute}{indent}{key}" if mute or key in chosen else f"{indent}#{key}"
        default = _default(key, chosen, defaults)
        if isinstance(default, BaseModel):
            yield f"{indent}# {field.description}"
            yield f"{start}:"
            yield from _keys(type(default), chosen.get(key, {}), dict(default), indent + "  ", silent)
        else:
            said = f"   # {field.description}" if field.description else ""
            yield f"{start}: {_yaml(chosen.get(key, default))}{said}"


def _default(key: str, chosen: Mapping[str, Any], defaults: Mapping[str, Any]) -> Any:
    """What a key is where it is left out; of the two sections that a recipe must have, what they are with those keys."""
    if key == "task":
        return TASKS[chosen[key]["kind"]].settings.model_validate(chosen[key])
    return ComputeSettings.model_validate(chosen[key]) if key == "compute" else defaults[key]


def _yaml(value: Any) -> str:
    """A value on one line. YAML takes JSON, but reads 1e-05 as text."""
    if isinstance(value, float):
        return f"{value:.1e}" if value and not 1e-3 <= abs(value) < 1e6 else repr(value)
    plain = isinstance(value, str) and re.fullmatch(r"[a-z][a-z0-9_-]*", value)
    return value if plain else json.dumps(value, ensure_ascii=False)
