"""`benchmarks.json`: what lm-eval measured of finished policies and of the base policy.

Only what belongs to the policies of today counts: a number of other weights, from before an arm ran again, is passed over.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from rlhf_bench.core.errors import BadInput
from rlhf_bench.core.files import write_json
from rlhf_bench.results.base import recorded_seeds
from rlhf_bench.results.schema import BASE, BENCHMARKS

PolicyKey = tuple[str, int]
"""Arm and seed; of the base policy `BASE`, and 0, or the seed where each has one of its own."""


@dataclass(frozen=True, slots=True)
class Measurement:
    """One number of one policy. `benchmark`: the name that was asked for; `task`: one of its tasks, or itself; `digest`: of all
    that the number depends on beside the policy (lm-eval, configuration of the tasks, prompts)."""

    arm: str
    seed: int
    weights: str
    benchmark: str
    digest: str
    task: str
    metric: str
    filter: str
    value: float
    standard_error: float | None
    prompts: int
    shots: int | None
    higher_is_better: bool | None
    version: str
    lm_eval: str

    @property
    def policy(self) -> PolicyKey:
        return self.arm, self.seed

    @property
    def number(self) -> tuple[str, str, str, str]:
        """What is the same number of every policy."""
        return self.task, self.metric, self.filter, self.digest


_ROWS = TypeAdapter(list[Measurement])


def read_benchmarks(directory: Path) -> list[Measurement]:
    """What DIR has; empty where nothing was measured. BadInput where the file is damaged."""
    path = directory / BENCHMARKS
    if not path.exists():
        return []
    try:
        return _ROWS.validate_python(json.loads(path.read_text(encoding="utf-8"))["rows"])
    except (OSError, ValueError, KeyError, TypeError, ValidationError):
        raise BadInput(
            f"{path}: cannot be read; bring back a copy of it, or remove it, and `rlhf-bench evaluate` measures again"
        ) from None


def add_benchmarks(directory: Path, new: Sequence[Measurement]) -> None:
    """Into DIR's file, in one step: beside what it has, but for other weights of the same policies, and these numbers."""
    weights, replaced = {one.policy: one.weights for one in new}, {(one.policy, one.digest) for one in new}
    kept = [
        one
        for one in read_benchmarks(directory)
        if weights.get(one.policy, one.weights) == one.weights and (one.policy, one.digest) not in replaced
    ]
    write_json(directory / BENCHMARKS, {"rows": _ROWS.dump_python([*kept, *new], mode="json")})


def recorded_weights(base: Mapping[str, Any], results: Mapping[str, Any]) -> dict[PolicyKey, str | None]:
    """SHA-256 of the weights of every policy that has finished, and of the base policy, by the content of `base.json` and of
    `results.json`; None where an older run has not recorded it."""
    own = recorded_seeds(base)
    found = {(BASE, seed): record.get("weights") for seed, record in own.items()} or {(BASE, 0): base.get("weights")}
    done = [(arm, seed) for arm, result in results["arms"].items() for seed in result["seeds"]]
    return found | {(arm, seed["seed"]): seed.get("weights") for arm, seed in done if seed["status"] == "done"}


def of_policies(rows: Iterable[Measurement], weights: Mapping[PolicyKey, str | None]) -> list[Measurement]:
    """Those of these policies as they are."""
    return [one for one in rows if one.policy in weights and weights[one.policy] in (None, one.weights)]
