"""The recipe: one file that says everything about a comparison. Unknown keys are refused; errors name key and remedy.

An arm holds a method's name and that method's settings, nothing else: data, start and budget are shared by
construction. `extends: other.yaml` inherits; `key.path=value` on the command line overrides.
"""

from rlhf_bench.models.at_hand import AT_HAND
from rlhf_bench.recipe.loading import Variant, load_recipe, load_series, merge, read_series, recipe_data
from rlhf_bench.recipe.parsing import Draft, parse_recipe
from rlhf_bench.recipe.placement import LearnerPlacement, Placement, RolePlacement, RolloutPlacement
from rlhf_bench.recipe.recipe import Recipe
from rlhf_bench.recipe.sections import DataSettings, EvaluationSettings, RewardModelSettings, StageSettings

__all__ = [
    "AT_HAND",
    "DataSettings",
    "Draft",
    "EvaluationSettings",
    "LearnerPlacement",
    "Placement",
    "Recipe",
    "RewardModelSettings",
    "RolePlacement",
    "RolloutPlacement",
    "StageSettings",
    "Variant",
    "load_recipe",
    "load_series",
    "merge",
    "parse_recipe",
    "read_series",
    "recipe_data",
]
