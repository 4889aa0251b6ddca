"""Names and columns of every file in a comparison's directory."""

from __future__ import annotations

from dataclasses import fields

from rlhf_bench.core.costs import COLUMNS
from rlhf_bench.core.types import PairEvaluation

TABLES = ("metrics", "samples", "ledger", "pairs")

METRIC_KEYS = (
    "arm",
    "method",
    "data",
    "seed",
    "phase",
    "split",
    "update",
    "fraction",
    "mark",
    *COLUMNS,
    "wall_seconds",
    "score",
)

PAIR_KEYS = ("arm", "seed", "mark", "update", *(f.name for f in fields(PairEvaluation)), "reward_margin")

SAMPLE_KEYS = ("arm", "seed", "mark", "split", "prompt_id", "prompt", "reference", "response", "score")

STATUSES = ("done", "diverged", "failed")

MAIN_SPLIT = "in_distribution"

SPLITS = (MAIN_SPLIT, "out_of_distribution", "unseen")

BASE = "base"
"""The name under which samples of the base model are recorded."""

SHARED = "shared"
"""The ledger's name for stages charged to no arm, such as supervised fine-tuning."""

EVALUATION = "evaluation"

_METRICS_KEYS = ("arm", "seed", "phase", "split", "update", "fraction", "mark", "score")

_SAMPLES_KEYS = ("arm", "seed", "mark", "split", "prompt_id", "prompt", "reference", "response", "score")

_LEDGER_KEYS = ("arm", "seed", "phase", *COLUMNS)

PAIRS_KEYS = ("arm", "seed", "mark", "split", "pair_id", "chosen_logratio", "rejected_logratio")
