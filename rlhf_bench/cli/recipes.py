"""`rlhf-bench init`, `schema` and `manifest`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from rlhf_bench.cli.options import Overrides, RecipePath, write_line
from rlhf_bench.core.errors import BadInput


def init(
    path: Annotated[Path, typer.Argument(help="the file to write; an existing file is not overwritten")] = Path(
        "recipe.yaml"
    ),
) -> None:
    """Write a recipe to start from: a few keys are set, and every other key is a comment with its default and its meaning.

    Example: rlhf-bench init my.yaml
    """
    from rlhf_bench.recipe.template import commented_recipe

    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(commented_recipe())
    except FileExistsError:
        raise BadInput(f"{path}: exists already; give the name of a new file") from None
    except OSError as error:
        raise BadInput(f"{path}: cannot be written: {error.strerror}; check path and permissions") from None
    write_line(f"recipe: {path}\nnext: rlhf-bench check {path}")


def schema() -> None:
    """Print the JSON Schema of recipes, with which an editor completes and checks keys.

    Example: rlhf-bench schema > recipe.schema.json
    """
    from rlhf_bench.recipe.json_schema import json_schema

    write_line(json.dumps(json_schema(), indent=1))


def manifest(
    recipe: RecipePath,
    image: Annotated[str, typer.Option(help="image of all pods, such as registry.example.org/rlhf-bench:0.1.0-gpu")],
    overrides: Overrides = None,
    fast: Annotated[
        bool, typer.Option("--fast", help="use the small size that the recipe's section `fast` describes")
    ] = False,
    gpus_per_node: Annotated[
        int, typer.Option(min=1, help="number of GPUs of a node: actors with GPUs share pods of at most this many")
    ] = 8,
    output: Annotated[Path | None, typer.Option(help="file to write", show_default="standard output")] = None,
) -> None:
    """Render a RayJob for KubeRay whose worker groups fit the recipe's placement. Nothing is started.

    Example: rlhf-bench manifest recipes/scale/cpu.yaml --image IMAGE | kubectl apply -f -
    """
    from rlhf_bench.compute.kubernetes import as_yaml, rayjob
    from rlhf_bench.recipe import load_series, recipe_data

    variants = load_series(recipe, overrides or [], fast)
    job = rayjob(recipe_data(recipe, overrides or [], fast), [v.recipe for v in variants], image, gpus_per_node)
    if output is None:
        write_line(as_yaml(job).rstrip())
        return
    try:
        output.write_text(as_yaml(job), encoding="ascii")
    except OSError as error:
        raise BadInput(f"--output {output}: cannot be written ({error.strerror}); choose another file") from None
