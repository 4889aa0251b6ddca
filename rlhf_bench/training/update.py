"""One update: from measured data to optimizer steps, and what is kept of one that is skipped."""

from __future__ import annotations

import json
from pathlib import Path

from rlhf_bench.training.state import UpdateData

TROUBLES_KEPT = 10
"""Of one arm and seed: enough to see what is wrong, and no full disk."""


def write_trouble(directory: Path, key: str, update: int, why: str, data: UpdateData) -> Path | None:
    """Keep what an update was skipped for, to be looked into: rows, rewards and what was measured on them. None where there is
    enough of that arm's."""
    folder = directory / "trouble"
    folder.mkdir(exist_ok=True)
    if len(list(folder.glob(f"{key}-*.json"))) >= TROUBLES_KEPT:
        return None
    path = folder / f"{key}-update{update}.json"
    rows = [
        {
            "id": row.id, "prompt_ids": row.prompt_ids, "responses": row.responses,
            "rewards": [float(reward) for reward in rewards],
            "measured": {name: [a.tolist() for a in found[i]] for name, found in data.measured.items()},
        }
        for i, (row, rewards) in enumerate(zip(data.drawn.rows, data.drawn.rewards, strict=True))
    ]  # fmt: skip
    path.write_text(
        json.dumps({"why": why, "update": update, "rows": rows}, indent=1)
    )  # NaN and Infinity as Python has them
    return path
