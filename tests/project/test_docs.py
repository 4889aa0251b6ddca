"""The documents keep up with the project: the recipe reference is what the models say, and no link is dead."""

import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "docs" / "results").glob("*.md")])
LINK = re.compile(r"\]\(([^)\s]+)\)")
CODE = re.compile(r"```.*?```|`[^`\n]*`", re.DOTALL)


def test_the_recipe_reference_is_what_its_generator_writes():
    generator = runpy.run_path(str(ROOT / "docs" / "generate_recipes.py"))
    committed = (ROOT / "docs" / "recipes.md").read_text("utf-8")
    assert committed == generator["page"](), "run .venv/bin/python -m docs.generate_recipes"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_relative_links_lead_somewhere(page):
    links = [link for link in LINK.findall(CODE.sub("", page.read_text("utf-8"))) if "://" not in link]
    dead = [link for link in links if not (page.parent / link.partition("#")[0]).exists()]
    assert not dead
