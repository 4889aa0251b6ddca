"""The documents keep up with the project: the recipe reference is what the models say, and no link is dead."""

import re
from pathlib import Path

import numpy as np
import pytest

from docs import generate_experiments, generate_output_files
from docs.generate_recipes import models, pages
from rlhf_bench.recipe import Recipe
from tests.project.test_layering import MAY_IMPORT

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    [
        *ROOT.glob("*.md"),
        *(page for folder in (".", "recipes", "results") for page in (ROOT / "docs" / folder).glob("*.md")),
    ]
)
LINK = re.compile(r"\]\(([^)\s]+)\)")
CODE = re.compile(r"```.*?```|`[^`\n]*`", re.DOTALL)


@pytest.fixture(scope="module")
def recipe_pages():
    return pages()


def test_the_recipe_reference_is_what_its_generator_writes(recipe_pages):
    committed = {page: page.read_text("utf-8") for page in recipe_pages}
    assert committed == recipe_pages, "run .venv/bin/python -m docs.generate_recipes"
    assert {*(ROOT / "docs" / "recipes").glob("*.md")} < recipe_pages.keys()


def test_the_recipe_reference_has_every_top_level_key_once(recipe_pages):
    index = recipe_pages[ROOT / "docs" / "recipes.md"]
    nested = [key for key, field in Recipe.model_fields.items() if models(field.annotation)]
    listed = re.findall(r"^\| \[.+\]\(recipes/.+\.md\) \| (.+) \|$", index, re.MULTILINE)
    keys = re.findall(r"`(\w+)`", " ".join(listed))
    assert len(keys) == len(set(keys)) and set(keys) == {*nested, "arms"}


def test_the_recipe_reference_explains_no_key_with_words_of_python(recipe_pages):
    assert not [page.name for page, text in recipe_pages.items() if "Annotated" in text]


def test_the_page_on_output_files_is_what_its_generator_writes():
    committed = generate_output_files.PAGE.read_text("utf-8")
    assert committed == generate_output_files.page(), "run .venv/bin/python -m docs.generate_output_files"


def test_the_page_on_experiments_says_what_its_data_say():
    committed = generate_experiments.PAGE.read_text("utf-8")
    assert committed == generate_experiments.page(), "run .venv/bin/python -m docs.generate_experiments"


def test_an_interval_with_the_noise_of_shared_draws_holds_the_difference():
    generator = np.random.default_rng(0)
    arms, seeds, prompts, held = (0.7, 0.62), 5, 400, 0
    for _ in range(300):
        draws = generator.random((2, 1, prompts))  # an arm's seeds share them: right where its probability is larger
        skills = np.array(arms)[:, None, None] + generator.normal(0, 0.01, (2, seeds, 1))
        own, other = (draws < skills).mean(axis=2)
        found = generate_experiments.widened((own - other).tolist(), [own.mean(), other.mean()], prompts)
        held += found.contains(arms[0] - arms[1])
    assert held >= 0.93 * 300


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_relative_links_lead_somewhere(page):
    links = [link for link in LINK.findall(CODE.sub("", page.read_text("utf-8"))) if "://" not in link]
    dead = [link for link in links if not (page.parent / link.partition("#")[0]).exists()]
    assert not dead


def test_the_architecture_page_has_the_rooms_and_what_they_import():
    page = (ROOT / "docs" / "architecture.md").read_text("utf-8")
    rows = re.findall(r"^\| `(\w+)/` \| .+ \| (.+) \|$", page.partition("`actors/` holds")[0], re.MULTILINE)
    found = {room: set(re.findall(r"\w+", rooms.partition(";")[0])) - {"no", "room"} for room, rooms in rows}
    assert found == {room: set(rooms) for room, rooms in MAY_IMPORT.items()}
