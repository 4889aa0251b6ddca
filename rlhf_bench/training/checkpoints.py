"""Checkpoints of one arm and seed, from which a run that was cut short resumes; in a folder or an object store (fsspec).

    PLACE/round-00000012/   policy-00001.safetensors, rng-0.safetensors, ...   from the learner
                            state.json                                         the driver's
                            manifest.json                                      every file's SHA-256, written last

A local checkpoint is written aside and renamed. Object stores cannot rename; there the manifest, written last, makes a
checkpoint complete. A folder without a manifest was cut short and does not count. A checkpoint whose files do not have
their sums is damaged, and the one before it is used. Plain data and safetensors only: reading one executes nothing.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from rlhf_bench.core.errors import BadInput, RunFailed
from rlhf_bench.core.files import put_in_place

MANIFEST, STATE = "manifest.json", "state.json"
FORMAT = 3
"""Of what a checkpoint holds. One of another format is not damaged and is left as it is, but this version cannot resume from it."""


def put(url: str, data: bytes) -> str:
    """Write a file, through to the disk where it is local. Returns its SHA-256."""
    files, path = fsspec.core.url_to_fs(url)
    try:
        with files.open(path, "wb") as file:
            file.write(data)
            if isinstance(files, LocalFileSystem):
                file.flush()
                os.fsync(file.fileno())
    except OSError as error:
        error.filename = error.filename or url  # a full disk does not say where
        raise
    return hashlib.sha256(data).hexdigest()


def check_writable(place: str) -> None:
    """Raises BadInput where no checkpoint can be written: before anything starts, and not after the first hours."""
    try:
        files, root = fsspec.core.url_to_fs(place)
        files.makedirs(root, exist_ok=True)
        put(f"{place.rstrip('/')}/.writable", b"")
        files.rm(f"{root.rstrip('/')}/.writable")
    except Exception as error:  # every back end has its own: no such package, no credentials, no bucket
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise BadInput(
            f"reliability.checkpoint_place {place}: cannot be written to ({reason}); name a folder or a URI that can, or null"
        ) from None


def fetch(url: str) -> bytes:
    with fsspec.open(url, "rb") as file:
        return file.read()


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint. `url`: its folder; `files`: names in it."""

    url: str
    files: tuple[str, ...]
    state: dict[str, Any]


class Checkpoints:
    """The checkpoints of one arm and seed, of which the newest `keep` stay."""

    def __init__(self, place: str, keep: int, say: Callable[[str], None]):
        self.place, self.keep, self.say = place.rstrip("/"), keep, say
        self.files, self.root = fsspec.core.url_to_fs(self.place)
        self.local = isinstance(self.files, LocalFileSystem)

    def save(self, number: int, state: Mapping[str, Any], write: Callable[[str], Mapping[str, str]]) -> None:
        """`write` puts files of its own into a folder, and returns their names and sums."""
        name = f"round-{number:08d}"
        aside = f".{name}.tmp" if self.local else name
        for left in (aside, name):
            if self.files.exists(f"{self.root}/{left}"):
                self.files.rm(f"{self.root}/{left}", recursive=True)
        self.files.makedirs(f"{self.root}/{aside}", exist_ok=True)
        sums = dict(write(f"{self.place}/{aside}"))
        sums[STATE] = put(f"{self.place}/{aside}/{STATE}", json.dumps(state, default=_plain).encode())
        put(f"{self.place}/{aside}/{MANIFEST}", json.dumps({"format": FORMAT, "files": sums}, indent=1).encode())
        if self.local:
            put_in_place(Path(f"{self.root}/{aside}"), Path(f"{self.root}/{name}"))
        for old in self._names()[: -self.keep]:
            self.files.rm(f"{self.root}/{old}", recursive=True)

    def latest(self) -> Checkpoint | None:
        """The newest whole checkpoint, or None. Raises RunFailed where another version has written it."""
        names = self._names()
        while names:
            name = names.pop()
            url = f"{self.place}/{name}"
            wrong = self._damaged(url)
            if wrong is None:
                return Checkpoint(url, tuple(self._sums(url)), json.loads(fetch(f"{url}/{STATE}")))
            instead = "the one before it is used" if names else "there is none before it: the arm begins anew"
            self.say(f"checkpoint {url}: {wrong}; it is removed, and {instead}")
            self.files.rm(f"{self.root}/{name}", recursive=True)  # else it would pass for newer than those to come
        return None

    def damage(self) -> dict[str, str | None]:
        """What is wrong with each one that was finished, by its folder; None where nothing is. Raises RunFailed as `latest`."""
        return {url: self._damaged(url) for url in (f"{self.place}/{name}" for name in self._names())}

    def clear(self) -> None:
        """When the arm is done."""
        if self.files.exists(self.root):
            self.files.rm(self.root, recursive=True)

    def _names(self) -> list[str]:
        """Of the checkpoints that were finished, oldest first."""
        if not self.files.exists(self.root):
            return []
        self.files.invalidate_cache(self.root)
        found = [entry["name"].rsplit("/", 1)[-1] for entry in self.files.ls(self.root, detail=True)]
        return sorted(n for n in found if n.startswith("round-") and self.files.exists(f"{self.root}/{n}/{MANIFEST}"))

    def _sums(self, url: str) -> dict[str, str]:
        return json.loads(fetch(f"{url}/{MANIFEST}"))["files"]

    def _damaged(self, url: str) -> str | None:
        try:
            manifest = json.loads(fetch(f"{url}/{MANIFEST}"))
            written, sums = manifest["format"], dict(manifest["files"])
        except (ValueError, KeyError, TypeError):
            return f"its {MANIFEST} is damaged"
        if written != FORMAT:
            raise RunFailed(
                f"checkpoint {url}: has format {written}, and this version reads {FORMAT}; continue with the version that wrote "
                "it, or begin anew with another --output"
            )
        for file, expected in sums.items():
            try:
                found = _digest(f"{url}/{file}")
            except FileNotFoundError:
                return f"{file} is missing"
            if found != expected:
                return f"{file} is damaged"
        return None


def _digest(url: str) -> str:
    with fsspec.open(url, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _plain(value: Any) -> Any:
    """Numbers of numpy as Python's own."""
    return value.item()
