"""Every method in the registry comes with a recipe, a section in the documents and a record that fits together."""

import pickle
import re
from pathlib import Path

import pytest

from rlhf_bench.compute.forecast import FixedData, Lengths, arm_forecast, data_use
from rlhf_bench.methods import METHODS
from rlhf_bench.methods.base import MethodSettings
from rlhf_bench.methods.pairs import PairSettings
from rlhf_bench.methods.samples import ClippedSettings
from rlhf_bench.models.flops import ModelShape, forward_flops, training_flops
from rlhf_bench.models.layout import Layout
from rlhf_bench.recipe import load_recipe, parse_recipe

ROOT = Path(__file__).parents[3]
SHARED = {*MethodSettings.model_fields, *PairSettings.model_fields}
CLIPPED = {*ClippedSettings.model_fields} - SHARED  # one section names them for all
PAIR_METHODS = [name for name, method in METHODS.items() if method.consumes == "pairs"]


def sections():
    """Heading -> text of docs/methods.md, headings written as a method's name is."""
    parts = re.split(r"^## (.+)$", (ROOT / "docs" / "methods.md").read_text("utf-8"), flags=re.MULTILINE)[1:]
    return {
        re.sub(r"[ -]", "_", title.lower().replace("++", " plus plus")): text
        for title, text in zip(parts[::2], parts[1::2], strict=True)
    }


@pytest.mark.parametrize("name", METHODS)
def test_every_method_has_a_recipe_that_sets_it_beside_dpo(name):
    arms = load_recipe(ROOT / "recipes" / "methods" / f"{name}.yaml").arms.values()
    methods = [arm.method for arm in arms]
    assert name in methods and "dpo" in methods and len(methods) >= 2
    assert len({arm.learning_rate for arm in arms}) == 1


def test_every_recipe_for_a_method_is_for_one_that_exists():
    assert {path.stem for path in (ROOT / "recipes" / "methods").glob("*.yaml")} == METHODS.keys()


@pytest.mark.parametrize("name", METHODS)
def test_every_method_has_a_section_with_its_equation_its_source_and_its_settings(name):
    section = sections()[name]
    assert re.search(r"^    .*\bloss = ", section, re.MULTILINE)
    assert re.search(r"arxiv\.org/abs/\d{4}\.\d{5}|this project's own", section)
    own = METHODS[name].settings.model_fields.keys() - SHARED - (CLIPPED if name != "grpo" else set())
    assert not {key for key in own if not re.search(rf"`{key}[`:]", section)}


@pytest.mark.parametrize("name", PAIR_METHODS)
def test_a_method_on_pairs_is_one_objective_on_the_policy_and_says_its_loss(name):
    method = METHODS[name]
    (objective,) = method.objectives
    assert (objective.model, objective.unit) == ("policy", "row")
    assert method.pair_loss is not None
    assert issubclass(method.settings, PairSettings)


@pytest.mark.parametrize("name", METHODS)
def test_records_travel_to_other_processes(name):
    again = pickle.loads(pickle.dumps(METHODS[name]))
    assert (again.name, again.settings, again.pair_loss) == (name, METHODS[name].settings, METHODS[name].pair_loss)


SHAPE = ModelShape(
    50_000, layers=2, attention_width=32, head_weights=640, parameters=51_000, linear_width=600, vocabulary=20
)
N = Lengths(prompt=7, response=5)
ROWS, TOKENS = 16, 16 * 2 * 5
LAYOUT = Layout.of([(7, [5] * 2)] * ROWS)
FORWARD, TRAINING = forward_flops(SHAPE, LAYOUT, TOKENS), training_flops(SHAPE, LAYOUT, TOKENS)


def forecast(**arm):
    arms = {"a": {"pairs_per_update": ROWS, **arm}}
    recipe = parse_recipe({"name": "r", "task": {"kind": "arithmetic"}, "compute": {"limit": 1e15}, "arms": arms})
    return arm_forecast(recipe, recipe.arms["a"], SHAPE, N)


@pytest.mark.parametrize(("arm", "looks"), [
    ({"method": "simpo"}, 0),
    ({"method": "orpo"}, 0),
    ({"method": "cpo"}, 0),
    ({"method": "robust_dpo"}, 1),
    ({"method": "slic"}, 0),
    ({"method": "slic", "form": "reference"}, 1),
    ({"method": "ipo"}, 1),
])  # fmt: skip
def test_the_forecast_holds_a_look_at_the_reference_only_where_the_loss_has_one(arm, looks):
    update = forecast(**arm).update
    assert update.flops == pytest.approx(TRAINING + looks * FORWARD)
    assert update.scored_tokens == looks * TOKENS


def test_the_forecast_holds_ktos_reference_point_in_every_update_and_for_every_epoch():
    """Policy and reference on mismatched responses; the reference on a row's own once."""
    arms = {"a": {"method": "kto", "pairs_per_update": ROWS}}
    recipe = parse_recipe({"name": "r", "task": {"kind": "arithmetic"}, "compute": {"limit": 1e15}, "arms": arms})
    found = arm_forecast(recipe, recipe.arms["a"], SHAPE, N)
    assert found.update.flops == pytest.approx(TRAINING + 3 * FORWARD)
    assert found.steady.flops == pytest.approx(TRAINING + 2 * FORWARD)
    assert (found.update.scored_tokens, found.steady.scored_tokens) == (3 * TOKENS, 2 * TOKENS)


def test_an_update_of_single_responses_has_twice_as_many_and_no_prompt_for_two():
    """As many responses as in the update of pairs; each has its prompt to itself, so it costs more."""
    arms = {
        name: {"method": "kto", "pairs_per_update": ROWS, "unpaired": name == "apart"} for name in ("pairs", "apart")
    }
    recipe = parse_recipe({"name": "r", "task": {"kind": "arithmetic"}, "compute": {"limit": 1e15}, "arms": arms})
    pairs, apart = (arm_forecast(recipe, arm, SHAPE, N) for arm in recipe.arms.values())
    assert apart.update.trained_tokens == pairs.update.trained_tokens == TOKENS
    assert apart.update.scored_tokens == pairs.update.scored_tokens and apart.update.flops > pairs.update.flops
    fixed = FixedData(pairs=2 * ROWS)
    passes = [
        data_use(recipe, arm, found, fixed) for arm, found in zip(recipe.arms.values(), (pairs, apart), strict=True)
    ]
    assert passes[1].pair_passes == pytest.approx(passes[0].pair_passes * passes[1].updates / passes[0].updates)
    given = data_use(recipe, recipe.arms["apart"], apart, FixedData(pairs=1, labelled=8 * ROWS))
    assert given.pair_passes == pytest.approx(passes[1].pair_passes / 2)


def test_the_forecast_holds_the_measuring_of_an_adaptive_method():
    """A forward and two backward passes at the first update and in every fourth from there on."""
    found, plain = forecast(method="adaptive_flex_dpo", adapt_every=4), forecast(method="flex_dpo")
    measuring = FORWARD + 2 * (TRAINING - FORWARD)
    assert found.before.flops == pytest.approx(measuring)
    assert found.update.flops - plain.update.flops == pytest.approx(measuring / 4)
