"""`rlhf-bench manifest`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rlhf_bench.cli.options import Overrides, RecipePath, write_line
from rlhf_bench.core.errors import BadInput


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
