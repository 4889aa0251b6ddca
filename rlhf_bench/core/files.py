"""Files and folders that are there whole or not at all, and numbers that JSON cannot hold."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def written_aside(target: Path) -> Iterator[Path]:
    """A free path beside `target`, to write a file or a folder to. It takes the place of `target` at the end of the block;
    after an error it is removed, and `target` stays as it was. For one writer at a time."""
    aside = target.with_name(f".{target.name}.tmp")
    _remove(aside)  # left by a process that was killed
    try:
        yield aside
        put_in_place(aside, target)
    finally:
        _remove(aside)


def put_in_place(source: Path, target: Path) -> None:
    """Rename `source`, on the same disk, to `target`. A reader never meets half a file. A folder can only replace one that
    is removed first."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        _remove(target)
    source.replace(target)


def write_text(path: Path, text: str) -> None:
    """Replace the file in one step."""
    with written_aside(path) as aside:
        aside.write_text(text, encoding="utf-8")


def write_json(path: Path, data: Any) -> None:
    """Replace the file in one step. Numbers that are not finite become null."""
    write_text(path, json.dumps(finite_or_null(data), indent=1, allow_nan=False))


def finite_or_null(data: Any) -> Any:
    """`data` as JSON can hold it: a number that is not finite becomes None, a tuple a list, a key text."""
    if isinstance(data, Mapping):
        return {str(key): finite_or_null(value) for key, value in data.items()}
    if isinstance(data, (list, tuple)):
        return [finite_or_null(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data


def number_or_nan(value: float | None) -> float:
    """A number as JSON gave it: NaN for null."""
    return math.nan if value is None else float(value)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
