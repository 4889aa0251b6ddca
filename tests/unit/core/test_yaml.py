"""What YAML 1.1 reads as something else than it looks like is refused, and quoted it is what it looks like."""

from pathlib import Path

import pytest

from rlhf_bench.core.yaml import Unreadable, read_yaml

RECIPES = sorted((Path(__file__).parents[3] / "recipes").rglob("*.yaml"))
TRAPS = {
    "arms: {on: {}}": "the key on is read as true or false, and a key is a text; quote it: 'on'",
    "no: {a: 1}": "the key no is read as true or false, and a key is a text; quote it: 'no'",
    "arms: {1: {}}": "the key 1 is read as a number, and a key is a text; quote it: '1'",
    "~: 1": "the key ~ is read as null, and a key is a text; quote it: '~'",
    "seeds: [010]": "010 is read as the number 8; quote it: '010', or write the number",
    "seeds: [1:30]": "1:30 is read as the number 90; quote it: '1:30', or write the number",
    "a: 1:30:00.5": "1:30:00.5 is read as the number 5400.5; quote it: '1:30:00.5', or write the number",
    "a: No": "No is read as false; quote it: 'No', or write false",
    "[yes]": "yes is read as true; quote it: 'yes', or write true",
}


@pytest.mark.parametrize(("text", "line"), TRAPS.items())
def test_what_is_not_what_it_looks_like_is_refused(text, line):
    with pytest.raises(Unreadable) as refused:
        read_yaml(text)
    assert str(refused.value) == f"line 1: {line}"


def test_quoted_and_plain_values_are_what_they_look_like():
    text = "{'on': 'no', \"1\": '010', a: true, b: False, c: [0, 10, -7, 0.5, 1.0e+5, 0x1F, 1_000], d: '1:30', e: 12:x, f: null}"
    assert read_yaml(text) == {
        "on": "no", "1": "010", "a": True, "b": False, "c": [0, 10, -7, 0.5, 1e5, 31, 1000], "d": "1:30", "e": "12:x", "f": None,
    }  # fmt: skip


@pytest.mark.parametrize("path", RECIPES, ids=[path.name for path in RECIPES])
def test_no_shipped_recipe_has_such_a_trap(path):
    assert read_yaml(path.read_text(encoding="utf-8"))
