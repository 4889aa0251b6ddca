"""Rows of JSONL, JSON, CSV and Parquet files, texts as they stand. Every error names the file, the row and the remedy."""

from __future__ import annotations

import codecs
import csv
import io
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any, NoReturn

import pyarrow
import pyarrow.parquet

from rlhf_bench.core.errors import BadInput
from rlhf_bench.core.unusable import Unusable

LeaveOut = Callable[[Unusable], None]
"""What is done with a row that cannot be read: raise the error, or count it."""
_SURROGATE = re.compile("[\ud800-\udfff]")  # JSON allows the escapes of surrogates one by one; no text has them so
_MAX_FIELD = 2**31 - 1  # characters of a field of CSV; Python's own limit is shorter than long texts


def refuse(fault: Unusable) -> NoReturn:
    raise fault


class Spelled(float):
    """A number with a point or an exponent, and how the file writes it: an answer 106.50 stays 106.50."""

    text: str

    def __new__(cls, text: str) -> Spelled:
        number = super().__new__(cls, text)
        number.text = text
        return number


@dataclass(frozen=True)
class FileRow:
    """One row and where it stands: "prompts.jsonl:17", lines counted from 1."""

    where: str
    number: int
    values: Mapping[str, object]

    def get(self, column: str) -> object:
        """The column's value. Unusable where the row lacks it."""
        if column not in self.values:
            there = ", ".join(map(str, self.values)) or "nothing"
            problem = f"no column '{column}' (there is: {there}); rename it or name the right one in the recipe"
            raise Unusable(self.where, problem, f"without a column '{column}'")
        return self.values[column]

    def has(self, column: str) -> bool:
        """Whether the row says anything there. A CSV file has no other way than an empty field to say nothing."""
        return self.values.get(column) not in (None, "")

    def text(self, column: str) -> str:
        """The column's text as it stands. Unusable where it is no text or a blank one."""
        value = self.get(column)
        if not isinstance(value, str):
            kind = "with an empty text" if value is None else "with another type where a text belongs"
            raise Unusable(self.where, f"column '{column}' holds {kind_of(value)}; make it a text", kind)
        if not value.strip():
            raise self.empty(column)
        return value

    def answer(self, column: str) -> str:
        """A reference answer: a text or a finite number, as text."""
        value = self.get(column)
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            return value.text if isinstance(value, Spelled) else str(value)
        return self.text(column)

    def empty(self, column: str) -> Unusable:
        return Unusable(self.where, f"column '{column}' is empty; fill it in or remove the row", "with an empty text")


def read_rows(path: Path, key: str, leave_out: LeaveOut = refuse) -> Iterator[FileRow]:
    """The rows of a file, read as they are asked for; `key` is the recipe's key that names it. Blank lines are passed over,
    and so is a row that cannot be read, where `leave_out` does not raise."""
    if path.suffix not in READERS:
        *some, last = READERS
        raise BadInput(f"{key}: {path} is no {', '.join(some)} or {last} file; convert it to one of them")
    found = False

    def counted(fault: Unusable) -> None:
        nonlocal found
        found = True
        leave_out(fault)

    try:
        if path.is_dir():
            raise BadInput(f"{key}: {path} is a folder; give a file in it")
        if not path.is_file():
            raise BadInput(f"{key}: there is no file {path}; correct the path")
        with path.open("rb") as file:
            for row in READERS[path.suffix](str(path), file, counted):
                found = True
                yield row
    except OSError as error:
        raise BadInput(f"{key}: {path} cannot be read ({error.strerror or error}); check the file") from error
    if not found:
        raise BadInput(f"{key}: {path} has no rows; give a file that has some")


def _jsonl(name: str, file: Iterable[bytes], leave_out: LeaveOut) -> Iterator[FileRow]:
    for number, line in enumerate(file, start=1):
        if number == 1 and line.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            raise BadInput(f"{name}: is UTF-16; save the file as UTF-8")
        if line.strip():
            try:
                yield FileRow(f"{name}:{number}", number, _row_of_line(f"{name}:{number}", line, number == 1))
            except Unusable as fault:
                leave_out(fault)


def _row_of_line(where: str, line: bytes, first: bool) -> Mapping[str, object]:
    try:
        parsed = _from_json(line.decode("utf-8-sig" if first else "utf-8"))
    except UnicodeDecodeError as error:
        raise Unusable(where, f"not UTF-8 ({error.reason}); save the file as UTF-8", "that are not UTF-8") from error
    except (ValueError, RecursionError) as error:  # the first also for a number of thousands of digits
        problem = f"not JSON ({error}); write one JSON object on each line"
        raise Unusable(where, problem, "that are no JSON") from error
    values = _object(where, parsed, "one JSON object on each line")
    if b"\\ud" in line.lower():
        check_characters(where, values)
    return values


def _from_json(text: str) -> object:
    return json.loads(text, parse_float=Spelled)


def _object(where: str, values: object, remedy: str) -> dict[str, object]:
    if not isinstance(values, dict):
        problem = f"{kind_of(values)} where an object belongs; write {remedy}"
        raise Unusable(where, problem, "that are no JSON object")
    return values


def check_characters(where: str, parsed: object) -> None:
    """Unusable where the JSON value that was parsed has half of a character."""
    if _SURROGATE.search(json.dumps(parsed, ensure_ascii=False)):
        problem = "has half of a character, such as \\ud83d alone; write it whole or remove it"
        raise Unusable(where, problem, "with half of a character")


def read_json(name: str, file: IO[bytes], leave_out: LeaveOut, field: str | None = None) -> Iterator[FileRow]:
    """A list of objects, numbered from 1, below `field` where a data set's card names one; or an object on each line, as
    many programs write it."""
    text = file.read()
    start = text.removeprefix(b"\xef\xbb\xbf").lstrip()
    if field is None and not start.startswith(b"["):
        yield from _jsonl(name, iter(text.splitlines(keepends=True)), leave_out)
        return
    remedy = "a list of objects, or one JSON object on each line"
    try:
        rows: Any = _from_json(text.decode("utf-8-sig"))
        rows = rows if field is None else rows[field]
    except UnicodeDecodeError as error:
        raise BadInput(f"{name}: not UTF-8 ({error.reason}); save the file as UTF-8") from error
    except (ValueError, RecursionError, LookupError, TypeError) as error:
        raise BadInput(f"{name}: not JSON ({error}); write {remedy}") from error
    for number, values in enumerate(rows, start=1):
        where = f"{name}:{number}"
        try:
            row = _object(where, values, remedy)
            check_characters(where, row)
            yield FileRow(where, number, row)
        except Unusable as fault:
            leave_out(fault)


def read_csv(name: str, file: IO[bytes], leave_out: LeaveOut, separator: str = ",") -> Iterator[FileRow]:
    """Every field is a text, as it stands. The first line names the columns; a row's place is where it begins."""
    csv.field_size_limit(_MAX_FIELD)
    # Bytes that are not UTF-8 become surrogates, so that their row can be named.
    lines = io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline="")
    reader = csv.reader(lines, delimiter=separator, strict=True)
    header, number = list[str](), 0
    while True:
        where = f"{name}:{reader.line_num + 1}"
        try:
            if (fields := next(reader, None)) is None:
                return
            _check_fields(where, fields, header)
        except csv.Error as error:
            leave_out(
                Unusable(where, f"not CSV ({error}); quote the field, and double the quotes in it", "that are no CSV")
            )
            continue
        except Unusable as fault:
            if not header:  # no row can be read without it
                raise
            leave_out(fault)
            continue
        if fields and not header:
            header = fields
        elif fields:
            number += 1
            yield FileRow(where, number, dict(zip(header, fields, strict=True)))


def _check_fields(where: str, fields: list[str], header: list[str]) -> None:
    if any(_SURROGATE.search(field) for field in fields):
        raise Unusable(where, "not UTF-8; save the file as UTF-8", "that are not UTF-8")
    if not header and len(set(fields)) < len(fields):
        raise Unusable(where, "a column's name is there twice; rename one of the two", "with a column twice")
    if header and fields and len(fields) != len(header):
        problem = (
            f"{len(fields)} fields, and the first line names {len(header)} columns; quote fields that hold a comma"
        )
        raise Unusable(where, problem, "with another number of fields than columns")


def _parquet(name: str, file: IO[bytes], leave_out: LeaveOut) -> Iterator[FileRow]:
    number = 0
    try:
        with pyarrow.parquet.ParquetFile(file) as table:
            for batch in table.iter_batches(batch_size=1000):
                for values in batch.to_pylist():
                    number += 1
                    yield FileRow(f"{name}:{number}", number, values)
    except (pyarrow.ArrowException, ValueError, OverflowError) as error:  # the last two: of a value that Python lacks
        raise BadInput(f"{name}: not a Parquet file that can be read ({error}); write it again") from error


Reader = Callable[[str, IO[bytes], LeaveOut], Iterator[FileRow]]
READERS: Mapping[str, Reader] = {
    ".jsonl": _jsonl,
    ".json": read_json,
    ".csv": read_csv,
    ".tsv": partial(read_csv, separator="\t"),
    ".parquet": _parquet,
}
"""By the end of the file's name."""


def kind_of(value: object) -> str:
    """What a value is, in words."""
    names = {type(None): "null", dict: "an object", list: "a list", bool: "true or false", str: "a text"}
    return names.get(type(value), "a number" if isinstance(value, int | float) else f"a {type(value).__name__}")
