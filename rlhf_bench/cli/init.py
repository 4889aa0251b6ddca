"""`rlhf-bench init`."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rlhf_bench.cli.options import open_cache, say_aside, write_line
from rlhf_bench.core.errors import BadInput, Problems

if TYPE_CHECKING:
    from rlhf_bench.training.first_recipe.proposal import Machine

BUDGET = "30min"
ARMS = {
    "ppo": {"method": "ppo", "feedback": "judge", "epochs_per_update": 1, "minibatches_per_epoch": 2},
    "dpo-offline": {"method": "dpo", "data": "offline", "beta": 0.1},
    "kto-unpaired": {"method": "kto", "data": "offline", "unpaired": True, "beta": 0.1},
    "dpo-on-policy": {"method": "dpo", "data": "on_policy", "beta": 0.1},
    "flex-dpo": {"method": "flex_dpo", "data": "on_policy", "beta_chosen": 0.1, "beta_rejected": 0.08},
}
"""Of a first recipe, without what depends on model, data and budget. One that learns from what the data lacks is left out."""


def init(
    path: Annotated[Path, typer.Argument(help="the file to write; an existing file is not overwritten")] = Path(
        "recipe.yaml"
    ),
    model: Annotated[
        str | None, typer.Option(help="a Hugging Face folder or id, a GGUF file, or smollm2-135m-instruct")
    ] = None,
    data: Annotated[str | None, typer.Option(help="a file, a folder or a Hugging Face id with your rows")] = None,
    task: Annotated[
        str | None,
        typer.Option(help="kind of task: files or gsm8k, which read --data, or one that needs none, such as slogan"),
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option(
            help="a time for the whole comparison, such as 2h, or FLOPs of each arm and seed, such as 1e14",
            show_default=BUDGET,
        ),
    ] = None,
    columns: Annotated[
        list[str] | None,
        typer.Option("--map", help="ROLE=COLUMN, such as prompt=question (repeatable; docs/data.md lists the roles)"),
    ] = None,
) -> None:
    """Write a recipe. With --model and --data (or --task): one that runs on them, within the budget; what was assumed is
    printed, and stands in it. Without: one to start from, in which a few keys are set, and every other key is a comment with its
    default and its meaning.

    Example: rlhf-bench init my.yaml --model smollm2-135m-instruct --data pairs.jsonl --budget 1h
    """
    if path.exists():
        raise BadInput(f"{path}: exists already; give the name of a new file")
    if not any((model, data, task, budget, columns)):
        from rlhf_bench.recipe.template import commented_recipe

        text, assumed = commented_recipe(), list[tuple[str, str]]()
    else:
        text, assumed = _proposed(path, model, data, task, budget or BUDGET, columns or [])
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise BadInput(f"{path}: cannot be written: {error.strerror}; check path and permissions") from None
    for section, sentence in assumed:
        write_line(f"assumed: {section}: {sentence}")
    write_line(f"recipe: {path}\nnext: rlhf-bench check {path}")


def _proposed(
    path: Path, model: str | None, data: str | None, kind: str | None, budget: str, columns: list[str]
) -> tuple[str, list[tuple[str, str]]]:
    """The text of a recipe for these, which `check` accepts, and what it assumes. BadInput where there is none."""
    from rlhf_bench.recipe import parse_recipe
    from rlhf_bench.recipe.written import recipe_text
    from rlhf_bench.training.first_recipe.proposal import budget_of
    from rlhf_bench.training.first_recipe.propose import propose
    from rlhf_bench.training.first_recipe.task import measured_task, named_roles
    from rlhf_bench.training.inputs import prepare_inputs

    problems, roles, wanted = Problems(), dict[str, list[str]](), None
    if model is None:
        problems.add("--model: missing; add a folder, an id, a GGUF file or smollm2-135m-instruct")
    if data is None and kind is None:
        problems.add("--data: missing; add a file, a folder or an id with rows, or --task with a kind that needs none")
    with problems.step():
        roles = named_roles(columns)
    with problems.step():
        wanted = budget_of(budget)
    problems.refuse()
    assert model is not None and wanted is not None, "their lack was refused"
    machine, cache = _this_machine(), open_cache()
    layout, found = measured_task(data, kind, roles, model, machine.gpus > 0, cache, say_aside)
    name = re.sub(r"[^A-Za-z0-9_-]+", "-", path.stem).strip("-_") or "comparison"
    proposal = propose(name, layout.task, found, wanted, machine, ARMS)
    proposal.assumed = [*layout.assumed, *proposal.assumed]
    prepare_inputs(parse_recipe(proposal.data), cache, say_aside, room=True)
    proposal.data["task"] = layout.seen_from(path.resolve().parent)
    return recipe_text(proposal.data, proposal.assumed), proposal.assumed


def _this_machine() -> Machine:
    import torch

    from rlhf_bench.training.first_recipe.proposal import Machine

    cores = len(os.sched_getaffinity(0))
    if not torch.cuda.is_available():
        return Machine(cores)
    return Machine(cores, torch.cuda.device_count(), round(torch.cuda.get_device_properties(0).total_memory / 2**30, 1))
