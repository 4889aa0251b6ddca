"""A run's metrics in Ray: every node of the cluster serves them for Prometheus (docs/ray.md).

The driver records all of them, since it hands out the work: `role` says whose work it is, `arm` and `seed` what it is for. Ray
puts `ray_` before the names, and `_total` after those of counters.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter
from typing import Any

from ray.util.metrics import Counter, Gauge, Histogram

TAGS = ("role", "arm", "seed")
SYNC_SECONDS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)

METERS: dict[str, tuple[type, str]] = {
    "rlhf_bench_queue_depth": (
        Gauge,
        "samples, or evaluations of snapshots, that were asked for and are not there yet",
    ),
    "rlhf_bench_tokens": (Counter, "tokens sampled (rollout), trained on (learner) or scored (scorer)"),
    "rlhf_bench_sync_seconds": (Histogram, "seconds until every engine had the learner's weights"),
    "rlhf_bench_restarts": (Counter, "actors that were started again, for one that died or hung"),
}
"""Name -> kind, and what it counts."""


class _Now(threading.local):
    """What a thread's work is for: arms that run side by side have a thread each."""

    arm = seed = ""


_now = _Now()


def begin_arm(arm: str, seed: int) -> None:
    """From now on this thread's work is for this arm. Work before the first arm is for all arms, and has no name."""
    _now.arm, _now.seed = arm, str(seed)


def queue_depth(role: str, depth: int) -> None:
    _meter("rlhf_bench_queue_depth").set(depth, _tags(role))


def count_tokens(role: str, tokens: float) -> None:
    if tokens:  # Ray takes no 0
        _meter("rlhf_bench_tokens").inc(tokens, _tags(role))


def count_restart(role: str) -> None:
    _meter("rlhf_bench_restarts").inc(1, _tags(role))


@contextmanager
def timing_sync() -> Iterator[None]:
    began = perf_counter()
    yield
    _meter("rlhf_bench_sync_seconds").observe(perf_counter() - began, _tags("rollout"))


def _tags(role: str) -> dict[str, str]:
    return {"role": role, "arm": _now.arm, "seed": _now.seed}


@functools.cache
def _meter(name: str) -> Any:
    """Made when first used: Ray is there by then."""
    kind, description = METERS[name]
    if kind is Histogram:
        return Histogram(name, description, list(SYNC_SECONDS), TAGS)
    return kind(name, description, TAGS)
