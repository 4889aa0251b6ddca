"""Folders that are made once."""

from __future__ import annotations

import hashlib
import json
import shutil
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from uuid import uuid4

from rlhf_bench.core.errors import BadInput
from rlhf_bench.core.files import make_private, put_in_place

CACHE_FORMAT = 5
"""Raised whenever a stage's code changes what it makes from the same settings: older folders are then made again."""


class Cache:
    """Folders that are made once: `folder/KIND-HASH`, where HASH is of everything that determines the content."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._making: dict[str, threading.Lock] = {}  # by folder's name

    def get(self, kind: str, key: Any, make: Callable[[Path], Mapping[str, Any]]) -> tuple[Path, dict[str, Any], bool]:
        """The folder, what `make` returned (kept as JSON), and whether it was there already. Written aside, then renamed.
        Of several threads that want the same, one makes it and the others wait."""
        target = self._target(kind, key)
        with self._making.setdefault(target.name, threading.Lock()):
            return self._get(target, make)

    def _get(self, target: Path, make: Callable[[Path], Mapping[str, Any]]) -> tuple[Path, dict[str, Any], bool]:
        if not (target / "cache.json").exists():
            aside = self.folder / f".{target.name}.{uuid4().hex[:8]}"
            try:
                make_private(aside)
            except OSError as error:
                raise BadInput(
                    f"RLHF_BENCH_CACHE: {self.folder} cannot be written ({error.strerror}); name a folder that can"
                ) from None
            try:
                (aside / "cache.json").write_text(json.dumps(dict(make(aside))), encoding="utf-8")
                if not (
                    target / "cache.json"
                ).exists():  # else another run made the same meanwhile, and may be reading it
                    put_in_place(aside, target)
            finally:
                shutil.rmtree(aside, ignore_errors=True)
            return target, _made(target), False
        return target, _made(target), True

    def has(self, kind: str, key: Any) -> bool:
        """Whether `get` would find it made."""
        return (self._target(kind, key) / "cache.json").exists()

    def folders(self) -> dict[str, list[Path]]:
        """What is there, by kind. What runs are making, or have left unfinished, is of the kind `unfinished`."""
        found: dict[str, list[Path]] = {}
        for folder in sorted(self.folder.iterdir()) if self.folder.is_dir() else []:
            if folder.name.startswith("."):
                found.setdefault("unfinished", []).append(folder)
            elif (folder / "cache.json").exists():
                found.setdefault(folder.name.rpartition("-")[0], []).append(folder)
        return found

    def _target(self, kind: str, key: Any) -> Path:
        digest = hashlib.sha256(json.dumps([CACHE_FORMAT, key], sort_keys=True, default=str).encode()).hexdigest()[:16]
        return self.folder / f"{kind}-{digest}"


def _made(target: Path) -> dict[str, Any]:
    """What the folder's stage returned."""
    try:
        return json.loads((target / "cache.json").read_text(encoding="utf-8"))
    except ValueError:
        raise BadInput(f"{target}: its cache.json is damaged; remove that folder, and it is made again") from None
