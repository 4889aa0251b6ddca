"""Whether an engine holds the learner's weights, and computes with them what the learner computes.

Weights are compared exactly: a checksum of every tensor that the engine took in, and what it holds of them after that
(`Held.fault`). So no rounding can hide a tensor that is out of date, and no rounding passes for one.

Log-probabilities are computed by other kernels in another order. They differ by rounding, which grows with depth, with the
number format, and with how unlikely a token is: its logit lies farther from the others'. What is compared is the median over
tokens of |difference| / (1 − log p), which one improbable token cannot move, with the bound of `rounding`."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rlhf_bench.core.errors import RunFailed


@dataclass(frozen=True)
class Held:
    """By an engine."""

    version: int  # of the weights
    checksums: Mapping[str, int]  # of the tensors that it took in, by name
    fault: str | None  # the first tensor that it does not hold as it took it in, and why that is known
    logprobs: Sequence[float]  # of the probe's response tokens


@dataclass(frozen=True)
class Probe:
    """A fixed response, and what the learner has under the weights of that version."""

    prompt_ids: tuple[int, ...]
    response_ids: tuple[int, ...]
    logprobs: Sequence[float]
    checksums: Mapping[str, int]  # of its weights, by name
    tolerance: float
    version: int

    def gap(self, held: Held) -> float:
        """The median of |difference| / (1 − log p). RunFailed where the engine has other weights, or the gap is beyond the
        tolerance."""
        if held.version != self.version:
            raise RunFailed(
                f"weight sync: after update {self.version} an engine holds the weights of update {held.version}"
            )
        if fault := held.fault or _other_weights(self.checksums, held.checksums):
            raise RunFailed(
                f"weight sync: after update {self.version} {fault}: the engines do not hold the learner's weights"
            )
        gap = relative_gap(held.logprobs, self.logprobs)
        if not gap <= self.tolerance:  # nan fails too
            raise RunFailed(
                f"weight sync: after update {self.version} an engine holds the learner's weights, and its log-probs differ "
                f"from the learner's by {gap:.2g} (median of |difference| / (1 - log p)), more than "
                f"placement.sync_tolerance {self.tolerance:.2g}: the two compute different functions"
            )
        return gap


def relative_gap(found: Sequence[float], expected: Sequence[float]) -> float:
    """The median over tokens of |difference| / (1 − log p), where `expected` are log p; nan where any number is none."""
    gaps = [abs(x - y) / (1 - y) for x, y in zip(found, expected, strict=True)]
    return float("nan") if any(gap != gap for gap in gaps) else statistics.median(gaps)


def _other_weights(learners: Mapping[str, int], engines: Mapping[str, int]) -> str | None:
    """The first tensor that differs, as the middle of a sentence."""
    for name in learners:
        if name not in engines:
            return f"an engine was sent no {name}"
        if engines[name] != learners[name]:
            return f"an engine was sent another {name} than the learner has"
    if more := engines.keys() - learners.keys():
        return f"an engine was sent {min(more)}, which the learner does not have"
    return None
