"""The recipe as a JSON Schema, for editors that complete and check YAML."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from rlhf_bench.methods import METHODS
from rlhf_bench.recipe.recipe import MAX_NAME, RESERVED, Recipe

_OF_FILES: dict[str, Any] = {
    "extends": {"type": "string", "description": "another recipe, relative to this one, that this one is laid over"},
    "fast": {"type": "object", "description": "a section that is laid over the recipe when --fast is given"},
    "vary": {
        "type": ["object", "null"],
        "description": "a series: one comparison for each value of a key that all arms share",
        "properties": {"key": {"type": "string"}, "values": {"type": "array", "minItems": 1}},
        "required": ["key", "values"],
        "additionalProperties": False,
    },
}
"""Keys of a recipe file that are used up as it is read."""


def json_schema() -> dict[str, Any]:
    """What a recipe file may hold. A file that extends another needs no key of its own.

    An editor sees less than `rlhf-bench check`: no check across keys, and none of data or models."""
    models: list[type[BaseModel]] = [Recipe, *(method.settings for method in METHODS.values())]
    refs, schema = models_json_schema([(model, "validation") for model in models], ref_template="#/$defs/{model}")
    definitions = schema["$defs"]
    recipe = definitions.pop("Recipe")
    for name, method in METHODS.items():  # there the name is a default, which would leave it open
        definitions[method.settings.__name__]["properties"]["method"] = {"const": name}
    arm = {
        "type": "object",
        "required": ["method"],
        "properties": {"method": {"enum": list(METHODS), "description": "the method; its settings stand beside it"}},
        "allOf": [
            {
                "if": {"properties": {"method": {"const": name}}, "required": ["method"]},
                "then": refs[method.settings, "validation"],
            }
            for name, method in METHODS.items()
        ],
    }
    (pattern,) = recipe["properties"]["arms"]["patternProperties"]
    names = {"maxLength": MAX_NAME, "not": {"enum": list(RESERVED)}}
    recipe["properties"]["arms"] |= {
        "patternProperties": {pattern: arm},
        "propertyNames": names,
        "additionalProperties": False,
    }
    definitions.pop("MethodSettings")
    required = recipe.pop("required")
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **recipe,
        "title": "rlhf-bench recipe",
        "properties": _OF_FILES | recipe["properties"],
        "anyOf": [{"required": ["extends"]}, {"required": required}],
        "$defs": definitions,
    }
