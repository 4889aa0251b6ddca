"""GGUF files, the format of llama.cpp: converted into a plain Hugging Face folder, which every role loads.

Quantised weights are written out in float32, since quantised ones cannot be trained. transformers reads the file: it knows
the architectures, the configuration's names and the tokenizer (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
describes the format).
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
from pathlib import Path
from typing import Any

import torch

from rlhf_bench.core.errors import BadInput
from rlhf_bench.models.tokenizer import first_line

SUFFIX = ".gguf"


def is_gguf(name: str) -> bool:
    """Whether the name can only mean a GGUF file."""
    return name.lower().endswith(SUFFIX) and not os.path.isdir(name)


def digest(key: str, file: Path) -> str:
    """SHA-256 of its content. `key` of the recipe names it; BadInput where it cannot be read."""
    try:
        with file.open("rb") as content:
            return hashlib.file_digest(content, "sha256").hexdigest()
    except OSError as error:
        raise BadInput(f"{key}: {file} cannot be read ({error.strerror}); correct the path") from None


def convert(key: str, file: Path, folder: Path) -> None:
    """Write model, tokenizer and chat template into `folder`. It takes three times the float32 weights in memory.
    BadInput where the file is damaged, or holds no whole model that transformers knows."""
    # With a model's class transformers imports DeepSpeed, which warns of a machine without a GPU. Ranks set this anew.
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    where: dict[str, Any] = {"gguf_file": file.name, "local_files_only": True, "trust_remote_code": False}
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # bars of progress, which cannot be switched off
            model, loading = AutoModelForCausalLM.from_pretrained(
                file.parent, dtype=torch.float32, output_loading_info=True, **where
            )
            AutoTokenizer.from_pretrained(file.parent, **where).save_pretrained(folder)
    except Exception as error:  # any error of transformers means that the user's file is wrong
        raise BadInput(
            f"{key}: {file} cannot be converted ({first_line(error)}); give another GGUF file, or a Hugging Face folder or id"
        ) from None
    if missing := sorted(set(loading["missing_keys"])):  # transformers has drawn them at random
        raise BadInput(
            f"{key}: {file} lacks {len(missing)} of the model's tensors, first {missing[0]}; give the whole model in one file"
        )
    with contextlib.redirect_stderr(io.StringIO()):
        _plain(model).save_pretrained(folder)


def _plain(model: Any) -> Any:
    """The same model as one that never was quantised: transformers does not save one that was."""
    from transformers import AutoModelForCausalLM

    config = model.config
    del config.quantization_config
    with torch.device("meta"):
        plain = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    plain.load_state_dict(model.state_dict(), assign=True)
    plain.tie_weights()
    plain.generation_config = model.generation_config
    return plain
