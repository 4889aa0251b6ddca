"""Outside benchmarks: every policy that a comparison has left, measured by lm-eval, once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from time import perf_counter

from rlhf_bench.experiment.harness import Benchmark, Harness
from rlhf_bench.experiment.policies import Policy
from rlhf_bench.results.benchmarks import Measurement, add_benchmarks, read_benchmarks


def measure_policies(
    directory: Path,
    harness: Harness,
    policies: Sequence[Policy],
    benchmarks: Sequence[Benchmark],
    say: Callable[[str], None],
) -> None:
    """Measure what DIR lacks, policy by policy, and write it down after each benchmark.

    What was measured of the same weights by the same lm-eval, with the same configuration and prompts, stays."""
    for policy in policies:
        known = {
            one.digest
            for one in read_benchmarks(directory)
            if (one.policy, one.weights) == (policy.key, policy.weights)
        }
        lacking = [benchmark for benchmark in benchmarks if benchmark.digest not in known]
        for benchmark in benchmarks:
            if benchmark not in lacking:
                say(f"{policy}: {benchmark.name} was measured before")
        began = perf_counter()
        for benchmark, found in zip(lacking, harness.measure(policy, lacking) if lacking else (), strict=True):
            add_benchmarks(directory, found)
            say(f"{policy}: {benchmark.name}: {_shown(found)} ({perf_counter() - began:.0f} s)")
            began = perf_counter()


def _shown(found: Sequence[Measurement]) -> str:
    """The first numbers."""
    parts = [f"{one.task} {one.metric} {one.value:.3f}" for one in found[:4]]
    more = f" and {len(found) - 4} more" if len(found) > 4 else ""
    return f"{', '.join(parts)}{more}, on {found[0].prompts} prompts" if found else "no numbers"
