"""Whether the files of DIR are what was written: a finished part keeps checksums of its tables and of its policy.

A part is written aside and renamed whole, so a killed run leaves none that is cut short. A full disk while DIR is copied, a
broken disk or a hand may still damage one. What can be made again is; anything else is named, with what to do.
"""

from __future__ import annotations

import json
import stat
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from rlhf_bench.core.errors import RunFailed
from rlhf_bench.core.files import sha256_of
from rlhf_bench.results.schema import (
    BASE_JSON,
    CARD,
    CHECKPOINTS,
    CHECKSUMS,
    PARTS,
    RESULT,
    RESULTS,
    TABLES,
)


@dataclass(frozen=True, slots=True)
class FileSum:
    """A file as it was written: the SHA-256 of its content, its length in bytes, and when it changed last, in nanoseconds."""

    sha256: str
    bytes: int
    changed_ns: int

    @classmethod
    def of(cls, file: Path, digest: Callable[[Path], str] = sha256_of) -> FileSum:
        found = file.stat()
        return cls(digest(file), found.st_size, found.st_mtime_ns)

    def damage(self, file: Path, trusting: bool) -> str | None:
        """What is wrong with the file as it is now. `trusting`: whether one of the same length and time is the same."""
        try:
            found = file.stat()
            if not stat.S_ISREG(found.st_mode):  # a device may have no end
                return "is no file"
            if found.st_size != self.bytes:
                return "is empty" if not found.st_size else f"has {found.st_size} bytes where {self.bytes} were written"
            if (trusting and found.st_mtime_ns == self.changed_ns) or sha256_of(file) == self.sha256:
                return None
        except FileNotFoundError:
            return "is missing"
        except OSError as error:
            return f"cannot be read ({error.strerror})"
        return "does not hold what was written (its SHA-256 is another)"


Sums = Mapping[str, FileSum]
"""By the path below DIR."""


def sums_of(folder: Path, place: str, digest: Callable[[Path], str] = sha256_of) -> dict[str, FileSum]:
    """Of every file in `folder`, which becomes `place` of DIR. A policy's card is none of them: each report writes it anew."""
    files = sorted(file for file in folder.rglob("*") if file.is_file() and file.name != CARD)
    return {f"{place}/{file.relative_to(folder).as_posix()}": FileSum.of(file, digest) for file in files}


def part_place(arm: str, seed: int | str) -> str:
    return f"{PARTS}/{arm}-seed{seed}"


def policy_place(arm: str, seed: int) -> str:
    return f"{CHECKPOINTS}/{arm}/seed-{seed}"


def sums_as_json(sums: Sums) -> dict[str, Any]:
    return {path: asdict(one) for path, one in sums.items()}


def recorded_sums(directory: Path, arm: str, seed: int | str) -> Sums | None:
    """Those of a finished part; None where an older version has written it. Raises ValueError where they cannot be read."""
    path = directory / part_place(arm, seed) / CHECKSUMS
    if not path.exists():
        return None
    try:
        sums = {str(name): FileSum(**one) for name, one in json.loads(path.read_text(encoding="utf-8")).items()}
        if any(".." in PurePosixPath(name).parts or PurePosixPath(name).is_absolute() for name in sums):
            raise ValueError  # no run has written a path out of its own directory
        return sums
    except (ValueError, TypeError, AttributeError, RecursionError):
        raise ValueError("is empty" if not path.stat().st_size else "is damaged") from None


def record_damage(directory: Path, arm: str, seed: int) -> list[str]:
    """What is wrong with the tables and the result of a finished part, "FILE is …" each. Nothing of one that is not finished."""
    folder = part_place(arm, seed)
    try:
        sums = recorded_sums(directory, arm, seed)
    except ValueError as error:
        return [f"{folder}/{CHECKSUMS} {error}"]
    if sums is not None:
        return _damage(directory, {path: one for path, one in sums.items() if path.startswith(f"{PARTS}/")}, False)
    if not (directory / folder / RESULT).exists():
        return []
    return [f"{path} {wrong}" for path, wrong in readable_files(directory, arm, seed).items() if wrong]


def readable_files(directory: Path, arm: str, seed: int | str) -> dict[str, str | None]:
    """Of a part without checksums: why a file of it cannot be read, or None, by the file's path."""
    names = [f"{part_place(arm, seed)}/{name}" for name in (RESULT, *(table.file for table in TABLES.values()))]
    return {name: unreadable(directory / name) for name in names}


def policy_damage(directory: Path, arm: str, seed: int, trusting: bool) -> list[str]:
    """What is wrong with the policy of a finished part whose records are whole, "FILE is …" each."""
    sums = recorded_sums(directory, arm, seed) or {}
    return _damage(directory, {path: one for path, one in sums.items() if path.startswith(f"{CHECKPOINTS}/")}, trusting)


def _damage(directory: Path, sums: Sums, trusting: bool) -> list[str]:
    found = {path: one.damage(directory / path, trusting) for path, one in sums.items()}
    return [f"{path} {wrong}" for path, wrong in found.items() if wrong]


def unreadable(path: Path) -> str | None:
    """Why a JSON file or a table is none, as far as its length and its end tell; None where it is one."""
    try:
        if not path.stat().st_size:
            return "is empty"
        if path.suffix == ".json":
            content = json.loads(path.read_text(encoding="utf-8"))
            return None if isinstance(content, dict) else "is damaged"
        pq.read_metadata(path)
    except FileNotFoundError:
        return "is missing"
    except (OSError, ValueError, RecursionError, pa.ArrowException):
        return "is damaged"
    return None


def discard_damaged(directory: Path, say: Callable[[str], None]) -> None:
    """Remove those files of DIR that are damaged and that every run makes again from the parts: they stand in nobody's way."""
    names = [name for name in (RESULTS, BASE_JSON) if (directory / name).exists()]
    # base.json is written after the tables: where it is, they should be.
    names += [t.file for t in TABLES.values() if BASE_JSON in names or (directory / t.file).exists()]
    damaged = {name: wrong for name in names if (wrong := unreadable(directory / name))}
    for name, wrong in damaged.items():
        say(f"{directory / name} {wrong}: it is made again")
    if damaged.keys() - {RESULTS}:  # base.json says which base policies the tables have
        damaged[BASE_JSON] = ""
    for name in damaged:
        (directory / name).unlink(missing_ok=True)


def read_table(path: Path) -> pd.DataFrame:
    """A table of DIR or of a part. Raises RunFailed with one line where it cannot be read."""
    try:
        return pd.read_parquet(path)
    except (OSError, ValueError, pa.ArrowException) as error:
        reason = " ".join(str(error).split())[:200]
        raise RunFailed(
            f"{path}: cannot be read ({reason}); the same command says what is damaged, and what to do"
        ) from None
