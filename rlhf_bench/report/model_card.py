"""The card of a finished policy: README.md of its folder, as the Hugging Face Hub reads one."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from rlhf_bench.core.files import write_text
from rlhf_bench.core.text import escaped, table
from rlhf_bench.recipe import AT_HAND
from rlhf_bench.report import tables
from rlhf_bench.report.format import decimal, quantity
from rlhf_bench.report.verdict import verdict
from rlhf_bench.results.schema import CARD, CHECKPOINTS
from rlhf_bench.results.summary import ArmResult, SeedResult, Summary

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def write_cards(directory: Path, summary: Summary) -> None:
    """A card for every policy of the comparison in `directory`, also of earlier runs."""
    for arm in summary.arms:
        for seed in arm.seeds:
            card = directory / CHECKPOINTS / arm.name / f"seed-{seed.seed}" / CARD
            if card.parent.is_dir():
                write_text(card, model_card(arm, seed, summary))


def model_card(arm: ArmResult, seed: SeedResult, summary: Summary) -> str:
    """Front matter for the Hub; what the policy was trained by, on which budget, what it scored beside all others; the recipe."""
    settings = summary.recipe["arms"][arm.name]
    front = yaml.safe_dump(_front_matter(arm, summary.recipe), sort_keys=False, allow_unicode=True)
    data = f" on {escaped(arm.data)} data" if arm.data else ""
    about = (
        f"A policy trained by `{arm.method}`{data}, with seed {seed.seed}, as the arm {escaped(arm.name)} of "
        f"{escaped(summary.name)}: a comparison by rlhf-bench, in which every arm starts from the same weights and stops at the same "
        "budget. It was trained to be compared, and was evaluated on the comparison's held-out prompts only."
    )
    parts = [
        f"---\n{front}---",
        f"# {escaped(summary.name)}: {escaped(arm.name)}, seed {seed.seed}",
        about,
        "## Result",
        table([{"": name, "value": value} for name, value in _facts(seed, summary).items()]),
        "## The comparison",
        escaped(verdict(summary)),
        table(tables.without_empty(tables.comparison_table(summary))),
        "## The arm's settings",
        _fenced(yaml.safe_dump({arm.name: settings}, sort_keys=False)),
        "## Use",
        _fenced(
            "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
            'model = AutoModelForCausalLM.from_pretrained("FOLDER")\ntokenizer = AutoTokenizer.from_pretrained("FOLDER")\n',
            "python",
        ),
        "## The whole recipe",
        _fenced(yaml.safe_dump(dict(summary.recipe), sort_keys=False)),
    ]
    return "\n\n".join(parts) + "\n"


def _front_matter(arm: ArmResult, recipe: Mapping[str, Any]) -> dict[str, Any]:
    """What the Hub files a model by. Base model and data sets are named where the recipe gives the Hub's."""
    name = recipe["model"]["name_or_path"]
    base, data = (_on_hub(value) for value in (AT_HAND[name].hub_id if name in AT_HAND else name, recipe["task"]))
    known = ({"base_model": base[0]} if base else {}) | ({"datasets": data} if data else {})
    tags = ["rlhf-bench", arm.method.replace("_", "-"), *([arm.data.replace("_", "-")] if arm.data else [])]
    return {"library_name": "transformers", "pipeline_tag": "text-generation", **known, "tags": tags}


def _on_hub(value: Any) -> list[str]:
    """Every name of a repository on the Hub in a part of a recipe, once each. A path that is there is none."""
    if isinstance(value, str):
        return [value] if HUB_ID.fullmatch(value) and not Path(value).exists() else []
    parts = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
    return list(dict.fromkeys(name for part in parts for name in _on_hub(part)))


def _facts(seed: SeedResult, summary: Summary) -> dict[str, str]:
    return {
        "Score on held-out prompts": decimal(seed.score),
        "Score of its most likely tokens": decimal(seed.greedy_score),
        "Score of the base policy": decimal(summary.base_of(seed.seed)),
        "Score of the base policy's most likely tokens": decimal(summary.base.greedy),
        "KL to the base policy (nats per response)": decimal(seed.kl),
        "Ended": seed.status,
        "Budget": quantity(summary.limit, summary.unit),
        "Spent": quantity(seed.spent[summary.unit], summary.unit),
        "Commit of rlhf-bench": summary.commit or "not known",
        "Run key": summary.run_key or "not known",
    }


def _fenced(text: str, language: str = "yaml") -> str:
    """A block of code that nothing in it can end."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"
