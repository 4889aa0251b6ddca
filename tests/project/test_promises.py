"""Every promise of the pages on reliability and security names its tests, and they are there."""

import ast
import functools
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NAMED = re.compile(r"`(tests/[\w/]+\.py)::(test_\w+)`")


def promises(page):
    """The rows of the page's table of promises: what is promised, and the cell that names its tests."""
    table = (ROOT / "docs" / page).read_text("utf-8").partition("\n## Promises")[2].partition("\n## ")[0]
    rows = [re.split(r"(?<!\\)\|", line)[1:-1] for line in table.splitlines() if line.startswith("|")]
    assert rows[0][-1].strip() == "test"
    return [(row[0].strip(), row[-1]) for row in rows[2:]]


@functools.cache
def defined_in(path):
    tree = ast.parse((ROOT / path).read_text("utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("page", ["reliability.md", "security.md"])
def test_every_promise_names_a_test_that_is_there(page):
    found = promises(page)
    assert len(found) > 10
    for promise, cell in found:
        named = NAMED.findall(cell)
        assert named, f"{page}: {promise}: no test is named, as `tests/…/test_x.py::test_y`"
        missing = [
            f"{path}::{name}" for path, name in named if not (ROOT / path).exists() or name not in defined_in(path)
        ]
        assert missing == [], f"{page}: {promise}"
