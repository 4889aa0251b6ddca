"""The documents' site builds without a warning, loads nothing from elsewhere, and explains every plot of the report."""

import os
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from rlhf_bench.report.export import all_plots
from rlhf_bench.results.reader import read_recorded
from rlhf_bench.results.summary import summarize

ROOT = Path(__file__).parents[2]
RECORDED = ROOT / "docs" / "results" / "data" / "rejected_strength_arithmetic"
"""Has a sweep, pairs and gradients: every plot can be drawn from it, except time, which it does not record."""


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The site as mkdocs.yml builds it: strict, with all checks of links."""
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--site-dir", str(folder)],
        cwd=ROOT, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0 and "WARNING" not in done.stderr, done.stderr
    return folder


class Loads(HTMLParser):
    """What a browser fetches by itself: scripts, styles, pictures; not links that a reader follows."""

    def __init__(self, text):
        super().__init__()
        self.found = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.found += [given["src"]] if "src" in given else []
        self.found += [given["href"]] if tag == "link" and "href" in given else []


def test_the_site_has_its_pages_and_what_they_link_to(site):
    nav = re.findall(r"^ +- [^#\n]+: ([\w/]+)\.md$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    assert len(nav) > 15 and all((site / f"{name}.html").is_file() for name in nav)
    for linked in (
        "source/recipes/quickstart.yaml",
        "source/tests/unit/recipe/test_bad_recipe.py",
        "results/data/gsm8k/index.html",
    ):
        assert (site / linked).is_file()


def test_no_page_loads_anything_from_elsewhere(site):
    pages = list(site.rglob("*.html"))
    assert len(pages) > 40
    for page in pages:
        loads = Loads(page.read_text("utf-8")).found
        assert loads and not [one for one in loads if re.match(r"(\w+:)?//", one) and not one.startswith("data:")], page


def test_every_document_is_in_the_navigation_or_left_out_by_name():
    config = (ROOT / "mkdocs.yml").read_text()
    docs = ROOT / "docs"
    there = {str(path.relative_to(docs)) for path in (*docs.glob("*.md"), *docs.glob("recipes/*.md"))}
    assert not [name for name in there if not re.search(rf": {re.escape(name)}$", config, re.MULTILINE)]


def with_own_pairs(recorded):
    """As if all arms had been on-policy, and their own pairs the fixed ones; as if greedy scores had been recorded, and there
    had been reward models."""
    metrics, results = recorded.metrics, recorded.results
    own = {f"own/{name}": metrics[name] for name in ("margin", "chosen_logratio", "rejected_logratio")}
    arms = {arm: {**result, "own_kind": "on_policy"} for arm, result in results["arms"].items()}
    numbers = (
        "reward_model/score",
        "reward_model/accuracy",
        "reward_model/length_correlation",
        "gold_reward_model/score",
    )
    rewards = dict.fromkeys(numbers, metrics["score"])
    return replace(
        recorded,
        metrics=metrics.assign(**own, **rewards, greedy_score=metrics["score"]),
        results={**results, "arms": arms},
    )


def test_every_plot_of_the_report_is_explained():
    recorded = with_own_pairs(read_recorded(RECORDED))
    titles = {plot.title for plot in all_plots(recorded, summarize(recorded))}
    arms = "|".join(map(re.escape, recorded.results["arms"]))
    general = {re.sub(rf"(?<=^Gradient field: )({arms})$", "ARM", title) for title in titles}
    general = {re.sub(r"(?<= against )beta_rejected$", "SETTING", title) for title in general}
    explained = re.findall(r"^### (.+)$", (ROOT / "docs" / "reading_the_report.md").read_text("utf-8"), re.MULTILINE)
    assert len(explained) == len(set(explained)) and set(explained) == general
