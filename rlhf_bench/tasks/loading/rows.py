"""Rows of JSONL and Parquet files. Every error names the file, the row and the remedy."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pyarrow
import pyarrow.parquet

from rlhf_bench.core.errors import BadInput


class Unusable(BadInput):
    """A row that can be read and that cannot be used for training. `kind` completes "rows ..." where they are left out."""

    def __init__(self, problem: str, kind: str):
        super().__init__(problem)
        self.kind = kind


_HALF = re.compile("[\ud800-\udfff]")  # JSON allows the escapes of surrogates one by one; no text has them so


@dataclass(frozen=True)
class FileRow:
    """One row and where it stands: "prompts.jsonl:17", lines counted from 1."""

    where: str
    number: int
    values: Mapping[str, object]

    def get(self, column: str) -> object:
        """The column's value. BadInput where the row lacks it."""
        if column not in self.values:
            there = ", ".join(map(str, self.values)) or "nothing"
            raise BadInput(
                f"{self.where}: no column '{column}' (there is: {there}); rename it or name the right one in the recipe"
            )
        return self.values[column]

    def text(self, column: str) -> str:
        """The column's text as it stands. BadInput where it is no text or a blank one."""
        value = self.get(column)
        if not isinstance(value, str):
            raise BadInput(f"{self.where}: column '{column}' holds {_kind(value)}; make it a text")
        if not value.strip():
            raise Unusable(
                f"{self.where}: column '{column}' is empty; fill it in or remove the row", "with an empty text"
            )
        return value

    def answer(self, column: str) -> str:
        """A reference answer: a text or a finite number, as text."""
        value = self.get(column)
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            return str(value)
        return self.text(column)


def read_rows(path: Path, key: str) -> Iterator[FileRow]:
    """The rows of a .jsonl or .parquet file, read as they are asked for; `key` is the recipe's key that names it. Blank
    lines are passed over."""
    readers = {".jsonl": _jsonl, ".parquet": _parquet}
    if path.suffix not in readers:
        raise BadInput(f"{key}: {path} is neither .jsonl nor .parquet; convert it to one of them")
    found = False
    try:
        if path.is_dir():
            raise BadInput(f"{key}: {path} is a folder; give a file in it")
        if not path.is_file():
            raise BadInput(f"{key}: there is no file {path}; correct the path")
        for row in readers[path.suffix](path):
            found = True
            yield row
    except OSError as error:
        raise BadInput(f"{key}: {path} cannot be read ({error.strerror or error}); check the file") from error
    if not found:
        raise BadInput(f"{key}: {path} has no rows; give a file that has some")


def _jsonl(path: Path) -> Iterator[FileRow]:
    with path.open("rb") as lines:
        yield from _of_lines(path, lines)


def _of_lines(path: Path, lines: Iterable[bytes]) -> Iterator[FileRow]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            values = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
            halved = b"\\ud" in line.lower() and _HALF.search(json.dumps(values, ensure_ascii=False))
        except UnicodeDecodeError as error:
            raise BadInput(f"{where}: not UTF-8 ({error.reason}); save the file as UTF-8") from error
        except (ValueError, RecursionError) as error:  # the first also for a number of thousands of digits
            raise BadInput(f"{where}: not JSON ({error}); write one JSON object on each line") from error
        if not isinstance(values, dict):
            raise BadInput(f"{where}: {_kind(values)} where an object belongs; write one JSON object on each line")
        if halved:
            raise BadInput(f"{where}: has half of a character, such as \\ud83d alone; write it whole or remove it")
        yield FileRow(where, number, values)


def _parquet(path: Path) -> Iterator[FileRow]:
    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1000):
                for values in batch.to_pylist():
                    number += 1
                    yield FileRow(f"{path}:{number}", number, values)
    except (pyarrow.ArrowException, ValueError, OverflowError) as error:  # the last two: of a value that Python lacks
        raise BadInput(f"{path}: not a Parquet file that can be read ({error}); write it again") from error


def _kind(value: object) -> str:
    names = {type(None): "null", dict: "an object", list: "a list", bool: "true or false", str: "a text"}
    return names.get(type(value), "a number" if isinstance(value, int | float) else f"a {type(value).__name__}")
