"""`base.json`: the base policy, or one for each seed of the comparison where a recipe asks for that (`sft.seed_follows`)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rlhf_bench.core.files import number_or_nan
from rlhf_bench.core.types import MAIN_SPLIT
from rlhf_bench.results.metrics import SCORES
from rlhf_bench.results.schema import BASE_JSON

BaseRecord = Mapping[str, Any]
"""Of one base policy: `score`, `numbers`, `weights`, `reward_model` and `setup`, see `schema.BASE_JSON`."""


def recorded_base(directory: Path) -> BaseRecord:
    """What DIR has; empty before anything is recorded."""
    path = directory / BASE_JSON
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def recorded_seeds(base: BaseRecord) -> dict[int, BaseRecord]:
    """seed -> its base policy; empty where all seeds share one."""
    return {int(seed): record for seed, record in (base.get("seeds") or {}).items()}


def base_scores(base: BaseRecord) -> dict[int, float]:
    """seed -> the score of its base policy on the main split; empty where all seeds share one."""
    return {seed: number_or_nan(record["score"].get(MAIN_SPLIT)) for seed, record in recorded_seeds(base).items()}


def over_seeds(records: Mapping[int, BaseRecord]) -> dict[str, Any]:
    """The content of `base.json` where each seed has a base policy of its own: means over them, and each by its seed."""
    found = [records[seed] for seed in sorted(records)]
    setups = [record["setup"] for record in found]
    each = ", ".join(f"{records[seed]['score'][MAIN_SPLIT]:.3f} (seed {seed})" for seed in sorted(records))
    notes = [note for setup in setups for note in setup["notes"]]
    return {
        **{kind: _means(record[kind] for record in found) for kind in SCORES if kind in found[0]},
        "numbers": _means(record["numbers"] for record in found),
        "at_temperature": {
            temperature: {key: _means(record["at_temperature"][temperature][key] for record in found) for key in at}
            for temperature, at in found[0]["at_temperature"].items()
        },
        **{key: _reward_model(found, key) for key in ("reward_model", "gold_reward_model") if key in found[0]},
        "setup": {
            "off_policy_pairs": min(setup["off_policy_pairs"] for setup in setups),
            "held_out_pairs": "; ".join(dict.fromkeys(setup["held_out_pairs"] for setup in setups)),
            "own_pairs": "; ".join(dict.fromkeys(setup.get("own_pairs", "") for setup in setups)),
            "notes": [f"Every seed has a base policy of its own, which scores {each}.", *dict.fromkeys(notes)],
        },
        "seeds": {str(seed): dict(records[seed]) for seed in sorted(records)},
    }


def _reward_model(records: Sequence[BaseRecord], key: str) -> dict[str, Any]:
    """Means of what is recorded of one; its scale is each seed's own."""
    accuracies = _means(record[key]["accuracies"] for record in records if key in record)
    return {"accuracy": accuracies.get(MAIN_SPLIT), "accuracies": accuracies}


def _means(records: Iterable[Mapping[str, float | None]]) -> dict[str, float]:
    """Of every number that any of them has, over those that have it."""
    by_name: dict[str, list[float]] = {}
    for record in records:
        for name, value in record.items():
            by_name.setdefault(name, []).append(number_or_nan(value))
    return {name: float(np.mean(values)) for name, values in by_name.items()}
