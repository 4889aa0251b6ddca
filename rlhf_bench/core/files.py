"""Files that are there whole or not at all."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def write_json(path: Path, data: Any) -> None:
    """Not-a-number becomes null: JSON has no word for it. Written aside, then renamed."""
    aside = path.with_suffix(".tmp")
    aside.write_text(json.dumps(_finite(data), indent=1))
    aside.rename(path)


def _finite(data: Any) -> Any:
    if isinstance(data, Mapping):
        return {k: _finite(v) for k, v in data.items()}
    if isinstance(data, (list, tuple)):
        return [_finite(v) for v in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data
