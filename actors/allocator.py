"""How roles on CPUs keep the memory that tensors free, and give it back."""

from __future__ import annotations

import ctypes
import gc

ALLOCATOR = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**40), "MALLOC_TOP_PAD_": str(64 * 2**20)}
"""Environment of roles on CPUs: glibc keeps the memory that a tensor frees for the next one. By default it returns large blocks to
the system each time, and a step takes half as long again while their pages are zeroed anew (docs/benchmarks.md)."""


def give_back() -> None:
    """Return what is free to the system, at the end of a model. With the settings above it is kept otherwise, in pieces that the
    next one does not fit into, and a process grows with every arm."""
    gc.collect()
    if (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:  # of glibc alone
        trim(0)
