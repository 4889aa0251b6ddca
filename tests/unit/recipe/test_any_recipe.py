"""Whatever stands in a recipe or an override: it is accepted, or refused with lines that say what to do."""

from functools import cache
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from rlhf_bench.recipe import merge, parse_recipe, recipe_data
from tests.support.any_input import ANY, ends_well, mutated
from tests.support.checking import ENOUGH, check, write_files

ROOT = Path(__file__).parents[3]


@cache
def shipped():
    """A shipped recipe with every default written out, in small numbers: checked in a moment."""
    data = recipe_data(ROOT / "recipes/sums.yaml")
    small = {key: value for key, value in yaml.safe_load(ENOUGH).items() if key in ("data", "sft", "evaluation")}
    return parse_recipe(merge(data, small)).resolved()


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("any")
    write_files(folder)
    return folder


def test_the_shipped_recipe_of_these_tests_is_good(place):
    (place / "any.yaml").write_text(yaml.safe_dump(shipped()))
    assert check(place / "any.yaml") == (0, "")


@ANY
@given(data=st.deferred(lambda: mutated(shipped(), 3)))
def test_no_mutated_recipe_ends_in_a_traceback(data, place):
    (place / "any.yaml").write_text(yaml.safe_dump(data))
    ends_well(place / "any.yaml")


PIECES = st.sampled_from([
    "name", "arms", "task", "extends", "vary", "fast", "sweep", ": ", ":", "- ", "\n", "\n  ", " ", "\t", "{", "}", "[", "]",
    ",", "&a ", "*a", "<<: ", "!!int ", "!!python/name:os ", "! ", "? ", "| ", "> ", "'", '"', "#", "%YAML 1.1", "---", "...",
    "1", "0x", "1e5", ".inf", "-.nan", "1:1:1", "2001-01-01", "~", "yes", "\ufeff", "\x85", "é",
])  # fmt: skip


@ANY
@given(text=st.text() | st.lists(PIECES | st.text(max_size=3), max_size=30).map("".join), whole=st.booleans())
def test_no_text_as_a_recipe_ends_in_a_traceback(text, whole, place):
    (place / "any.yaml").write_text((ENOUGH if whole else "") + text, encoding="utf-8")
    ends_well(place / "any.yaml")


@ANY
@given(
    override=st.text(st.characters(exclude_characters="\0"))
    | st.lists(PIECES | st.sampled_from(["=", "."])).map("".join)
)
def test_no_override_ends_in_a_traceback(override, place):
    ends_well(place / "recipe.yaml", "--", override)
