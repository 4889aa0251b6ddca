"""rlhf-bench: RLHF and DPO compared at identical compute. `version` in pyproject.toml is this one.

For notebooks: `from rlhf_bench import load_results`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rlhf_bench.report.frames import Results, load_results

__version__ = "0.1.0"
__all__ = ["Results", "__version__", "load_results"]


def __getattr__(name: str) -> Any:
    """Only where it is asked for: the command line must not wait for pandas."""
    if name in ("Results", "load_results"):
        from rlhf_bench.report import frames

        return getattr(frames, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
