"""Repositories of the Hugging Face Hub, each at one commit, written `org/name@commit`.

What a branch of a repository holds may change from one day to the next. So a name is resolved to a commit once, and every role
on every machine loads that commit: from Hugging Face's cache, or from the Hub where that lacks it.
"""

from __future__ import annotations

import functools
import re
from pathlib import Path

WEIGHTS = ".safetensors"
READ = (".json", ".jinja", ".model", ".txt", WEIGHTS)
"""How the names of the files end that are read of a repository or a folder. Nothing else of it is fetched or looked at."""
AT_COMMIT = re.compile(r"(?P<id>[^/@]+(?:/[^/@]+)?)@(?P<commit>[0-9a-f]{40})")


@functools.cache
def resolved(name: str) -> str:
    """The commit that the repository is at now, asked for once by a process; without a network, where Hugging Face's cache has it. Raises whatever the Hub or
    its library says."""
    from huggingface_hub import HfApi

    return HfApi().resolve_revision(name).resolved


def folder_of(path: str | Path, weights: bool = True) -> Path:
    """A folder as it is; of `org/name@commit`, the folder on this machine that holds its files, and among them its `weights`
    where they are asked for."""
    found = AT_COMMIT.fullmatch(str(path))
    if found is None or Path(path).is_dir():
        return Path(path)
    from huggingface_hub import snapshot_download

    wanted = [f"*{ending}" for ending in READ if weights or ending != WEIGHTS]
    return Path(snapshot_download(found["id"], revision=found["commit"], allow_patterns=wanted))
