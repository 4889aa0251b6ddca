"""The card of a finished policy, of a recorded comparison."""

from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard

from rlhf_bench.report.model_card import model_card, write_cards
from rlhf_bench.results.reader import read_recorded
from rlhf_bench.results.summary import summarize
from rlhf_bench.results.summary_json import to_json

VERSE = Path(__file__).parents[3] / "docs" / "results" / "data" / "verse"


@pytest.fixture(scope="module")
def summary():
    return summarize(read_recorded(VERSE))


def card_of(summary, arm=0, seed=0) -> ModelCard:
    return ModelCard(model_card(summary.arms[arm], summary.arms[arm].seeds[seed], summary))


def with_model(summary, name):
    return replace(summary, recipe={**summary.recipe, "model": {**summary.recipe["model"], "name_or_path": name}})


def test_the_hub_reads_its_front_matter(summary):
    card = card_of(summary)
    assert card.data.library_name == "transformers" and card.data.pipeline_tag == "text-generation"
    assert card.data.tags[:2] == ["rlhf-bench", summary.arms[0].method.replace("_", "-")]
    assert "base_model" not in card.data.to_dict()  # made from scratch
    assert card_of(with_model(summary, "Qwen/Qwen2.5-0.5B")).data.base_model == "Qwen/Qwen2.5-0.5B"
    assert "base_model" not in card_of(with_model(summary, "/models/mine")).data.to_dict()  # nobody else's hub has it


def test_it_names_the_hubs_data_sets_and_no_files(summary, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "mine.jsonl").touch()
    places = {
        "prompts": "openai/gsm8k",
        "held_out": "openai/gsm8k",
        "more": "data/mine.jsonl",
        "pairs": "/data/pairs.jsonl",
    }
    task = {"kind": "files", **{part: {"source": source, "split": "train"} for part, source in places.items()}}
    assert card_of(replace(summary, recipe={**summary.recipe, "task": task})).data.datasets == ["openai/gsm8k"]
    assert "datasets" not in card_of(summary).data.to_dict()


def test_it_says_what_the_policy_scored_and_what_it_cost(summary):
    arm, seed = summary.arms[1], summary.arms[1].seeds[1]
    text = model_card(arm, seed, summary)
    recorded = to_json(summary, "in words")["arms"][arm.name]["seeds"][1]
    assert f"| Score on held-out prompts | {recorded['score']:.3f} |" in text
    assert f"| Score of the base policy | {summary.base.score:.3f} |" in text
    assert f"| KL to the base policy (nats per response) | {recorded['kl']:.3f} |" in text
    assert f"seed {seed.seed}" in text and all(other.name in text for other in summary.arms)


def test_the_recipe_in_it_is_the_recipe(summary):
    blocks = model_card(summary.arms[0], summary.arms[0].seeds[0], summary).split("```yaml\n")[1:]
    settings, recipe = (yaml.safe_load(block.split("\n```")[0]) for block in blocks)
    assert recipe == summary.recipe and settings == {summary.arms[0].name: recipe["arms"][summary.arms[0].name]}


def test_nothing_that_a_recipe_says_becomes_markup(summary):
    evil = "``` \n---\n# <script>alert(1)</script> [x](http://x)"
    card = card_of(replace(summary, recipe={**summary.recipe, "name": evil, "description": evil}))
    title, fence = card.text.strip().split("\n")[0], "````yaml\n"
    assert "\\<script>" in title and "\\[x]" in title and "# \\<script>" in title
    assert card.text.count(fence) == 1 and card.text.rstrip().endswith("````")  # longer than what is inside


def test_every_policy_that_is_there_gets_one(summary, tmp_path):
    arm = summary.arms[0]
    folders = [tmp_path / "checkpoints" / arm.name / f"seed-{seed.seed}" for seed in arm.seeds[:2]]
    for folder in folders:
        folder.mkdir(parents=True)
    write_cards(tmp_path, summary)
    assert [path.parent for path in sorted(tmp_path.rglob("README.md"))] == folders
    assert (folders[1] / "README.md").read_text() == model_card(arm, arm.seeds[1], summary)
