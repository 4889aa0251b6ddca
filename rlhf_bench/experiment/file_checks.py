"""Are the files of DIR whole? Every file of finished arms by its checksum, every checkpoint by its manifest, any other record by
whether it can be read. Nothing is written."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import fsspec

from rlhf_bench.core.errors import RunFailed
from rlhf_bench.core.yaml import Unreadable, read_yaml
from rlhf_bench.results.integrity import FileSum, readable_files, recorded_sums, unreadable
from rlhf_bench.results.schema import (
    BASE_JSON,
    BENCHMARKS,
    CHECKSUMS,
    PARTS,
    RECIPE,
    RESULTS,
    RUN_KEY,
    SUMMARY,
    TABLES,
    TUNING,
)
from rlhf_bench.training.checkpoints import Checkpoints

RECORDS = (RESULTS, BASE_JSON, SUMMARY, TUNING, BENCHMARKS, *(table.file for table in TABLES.values()))


@dataclass(frozen=True, slots=True)
class FileCheck:
    """A file by its path in DIR, or a checkpoint by its place. `wrong`: "is empty", …; None where it is whole. `compared`: with
    what was written; else it can be read, and nothing more is known."""

    path: str
    wrong: str | None
    compared: bool = True


def file_checks(directory: Path) -> Iterator[FileCheck]:
    """Of every file that is there, or that should be."""
    yield from _recipe(directory)
    for name in RECORDS:
        if (directory / name).exists():
            yield FileCheck(name, unreadable(directory / name), compared=False)
    for part in sorted((directory / PARTS).glob("[!.]*-seed*")):
        arm, _, seed = part.name.rpartition("-seed")
        yield from _part(directory, arm, seed)
    for place in _checkpoint_places(directory):
        yield from _checkpoints(place)


def _recipe(directory: Path) -> Iterator[FileCheck]:
    path = directory / RECIPE
    if path.exists():
        try:
            whole = isinstance(read_yaml(path.read_text(encoding="utf-8")), dict)
        except (OSError, ValueError, Unreadable):
            whole = False
        yield FileCheck(RECIPE, None if whole else "is damaged", compared=False)


def _part(directory: Path, arm: str, seed: str) -> Iterator[FileCheck]:
    try:
        sums = recorded_sums(directory, arm, seed)
    except ValueError as error:
        yield FileCheck(f"{PARTS}/{arm}-seed{seed}/{CHECKSUMS}", str(error))
        return
    if sums is None:
        for path, wrong in readable_files(directory, arm, seed).items():
            yield FileCheck(path, wrong, compared=False)
        return
    for path, one in sums.items():
        yield FileCheck(path, _damage(directory / path, one))


def _damage(path: Path, one: FileSum) -> str | None:
    return one.damage(path, trusting=False)


def _checkpoint_places(directory: Path) -> list[str]:
    """Of arms in progress: each below DIR/state, or below the place that the recipe names."""
    places = [str(path) for path in sorted((directory / "state").glob("*-seed*")) if path.is_dir()]
    try:
        recipe = read_yaml((directory / RECIPE).read_text(encoding="utf-8"))
        place, key = (
            recipe["reliability"]["checkpoint_place"],
            (directory / RUN_KEY).read_text(encoding="utf-8").strip(),
        )
    except (OSError, ValueError, KeyError, TypeError, Unreadable):
        return places
    if not place or not key:
        return places
    files, root = fsspec.core.url_to_fs(f"{place.rstrip('/')}/{key}")
    found = sorted(files.ls(root, detail=False)) if files.exists(root) else []
    return places + [f"{place.rstrip('/')}/{key}/{path.rstrip('/').rsplit('/', 1)[-1]}" for path in found]


def _checkpoints(place: str) -> Iterator[FileCheck]:
    try:
        for url, wrong in Checkpoints(place, 1, lambda line: None).damage().items():
            yield FileCheck(url, wrong and f"cannot be used: {wrong}")
    except RunFailed as other_format:
        yield FileCheck(place, str(other_format))
