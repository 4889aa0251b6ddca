"""`rlhf-bench cache`."""

from __future__ import annotations

import shutil
from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer

from rlhf_bench.cli.options import open_cache, write_line
from rlhf_bench.core.errors import BadInput
from rlhf_bench.core.text import listed


def cache(
    clear: Annotated[
        list[str] | None,
        typer.Option(help="remove all of this kind (repeatable), or `all`", show_default="nothing is removed"),
    ] = None,
) -> None:
    """Show what runs keep to make it only once, below RLHF_BENCH_CACHE: how many of each kind, and their size.

    converted: models that were fetched or converted. fresh: new models. base, weaker: fine-tuned policies. reward: reward
    models. pairs, answers: what policies have answered. content: hashes of given models. judge: answers of language
    models, which cost as much to ask again. All of it is made again where it is missing. Clear nothing while a run is at work.

    Example: rlhf-bench cache --clear reward --clear pairs
    """
    kept = open_cache()
    found = kept.folders()
    chosen = set(found) if clear and "all" in clear else set(clear or ())
    if unknown := chosen - set(found):
        there = f"there are {listed(sorted(found))}" if found else "it is empty"
        raise BadInput(f"--clear: nothing of kind {listed(sorted(unknown))} in {kept.folder}; {there}")
    write_line(f"{kept.folder}: {_size([f for folders in found.values() for f in folders])}")
    for kind, folders in sorted(found.items()):
        newest = datetime.fromtimestamp(max(folder.stat().st_mtime for folder in folders))
        removed = "  removed" if kind in chosen else ""
        write_line(f"  {kind:<12}{len(folders):>5} {_size(folders):>10}  newest {newest:%Y-%m-%d %H:%M}{removed}")
        if kind in chosen:
            for folder in folders:
                shutil.rmtree(folder)


def _size(folders: list[Path]) -> str:
    mib = sum(file.stat().st_size for folder in folders for file in folder.rglob("*") if file.is_file()) / 2**20
    return f"{mib / 1024:.1f} GiB" if mib >= 1024 else f"{mib:.1f} MiB"
