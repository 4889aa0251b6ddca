"""Files and folders that are there whole or not at all, and numbers that JSON cannot hold."""

from __future__ import annotations

import errno
import filecmp
import hashlib
import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rlhf_bench.core.errors import BadInput


@contextmanager
def written_aside(target: Path) -> Iterator[Path]:
    """A free path beside `target`, to write a file or a folder to. At the end of the block it is on the disk and takes the place
    of `target`, unless that is a file of the same content; after an error it is removed, and `target` stays as it was. For one
    writer at a time in a process; other processes have other paths. An OSError names the file."""
    aside = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    _remove(aside)  # left by a process of that number
    try:
        yield aside
        if not (aside.is_file() and target.is_file() and filecmp.cmp(aside, target, shallow=False)):
            put_in_place(aside, target)
    except OSError as error:
        error.filename = error.filename or str(target)  # a full disk does not say where
        raise
    finally:
        _remove(aside)


def make_private(folder: Path) -> None:
    """The folder and those above it, as far as they are missing: closed to other users. One that is there keeps its permissions."""
    for missing in reversed([one for one in (folder, *folder.parents) if not one.exists()]):
        missing.mkdir(mode=0o700, exist_ok=True)


def put_in_place(source: Path, target: Path) -> None:
    """Rename `source`, on the same disk, to `target`, once all of it has reached the disk: a reader never meets half a file,
    nor does one after a loss of power. A folder can only replace one that is removed first."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        for folder, _, files in os.walk(source):
            for file in files:
                _sync(Path(folder, file))
            _sync(Path(folder))
        _remove(target)
    else:
        _sync(source)
    source.replace(target)
    _sync(target.parent)


def _sync(path: Path) -> None:
    """Through to the disk: a file's content, or a folder's names."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if not (path.is_dir() and error.errno in NO_SYNC_OF_FOLDERS):
            error.filename = str(path)
            raise
    finally:
        os.close(descriptor)


NO_SYNC_OF_FOLDERS = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS)
"""What file systems answer that have no names of their own to write, as some of networks and object stores."""


def clear_aside(folder: Path) -> None:
    """Remove what processes that were killed have left beside the files and folders in `folder`. For its only writer."""
    for left in folder.glob(".*.tmp"):
        _remove(left)


def write_text(path: Path, text: str) -> None:
    """Replace the file in one step, unless it has this text already: then a full disk does no harm either."""
    if path.is_file() and path.read_bytes() == text.encode():
        return
    with written_aside(path) as aside:
        aside.write_text(text, encoding="utf-8")


def write_json(path: Path, data: Any) -> None:
    """Replace the file in one step. Numbers that are not finite become null."""
    write_text(path, json.dumps(finite_or_null(data), indent=1, allow_nan=False))


def sha256_of(file: Path) -> str:
    """Of the file's content, as `sha256sum` prints it."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


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


MAX_SHORT_BYTES = 25  # Ray's folder and the names of its sockets come behind it, and a socket's path has at most 107


def short_temporary_folder(prefix: str) -> Path:
    """A new folder whose path is short enough for sockets of Ray: in TMPDIR, or where that is too long, as every Slurm job's is,
    in the first of /tmp and /var/tmp that can be written. BadInput where none can."""
    for place in short_temporary_places():
        if os.access(place, os.W_OK | os.X_OK):
            return Path(tempfile.mkdtemp(prefix=prefix, dir=place))
    raise BadInput(
        f"TMPDIR: {tempfile.gettempdir()} is too long for the sockets of Ray, and neither /tmp nor /var/tmp can be written; set "
        f"it to a folder whose path has at most {MAX_SHORT_BYTES} bytes"
    )


def short_temporary_places() -> list[Path]:
    """Where `short_temporary_folder` looks, in this order, whether or not they can be written."""
    places = dict.fromkeys((tempfile.gettempdir(), "/tmp", "/var/tmp"))
    return [Path(place) for place in places if len(os.fsencode(place)) <= MAX_SHORT_BYTES]


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
