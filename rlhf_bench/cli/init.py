"""`rlhf-bench init`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rlhf_bench.cli.options import write_line
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
