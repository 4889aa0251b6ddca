"""Which weights a model has: digests of the files that hold them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from rlhf_bench.core.errors import RunFailed
from rlhf_bench.core.files import sha256_of
from rlhf_bench.models.hub import folder_of


def weights_sha256(path: Path) -> str:
    """Of a model's weights alone. Of one file, it is what `sha256sum model.safetensors` prints; of several, the SHA-256 of
    theirs in order of their names, each in hexadecimal. `path`: a folder, or a repository at a commit."""
    digests = _digests(_weight_files(folder_of(path)))
    return digests[0] if len(digests) == 1 else _joined(digests)


def weights_digest(path: Path) -> str:
    """Of weights and configuration: of all that a forward pass depends on."""
    folder = folder_of(path)
    return _joined(_digests([*_weight_files(folder), folder / "config.json"]))


def _weight_files(folder: Path) -> list[Path]:
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise RunFailed(f"{folder}: no *.safetensors to tell these weights from others; save the model as safetensors")
    return files


def _joined(digests: Sequence[str]) -> str:
    return hashlib.sha256("".join(digests).encode()).hexdigest()


def _digests(files: Sequence[Path]) -> list[str]:
    return [file_sha256(file) for file in files]


def file_sha256(file: Path) -> str:
    """Of a file that nobody changes within a few milliseconds: read once, unless it has changed since."""
    return _file_digest(file, file.stat().st_mtime_ns, file.stat().st_size)


@cache
def _file_digest(file: Path, changed: int, size: int) -> str:
    return sha256_of(file)
