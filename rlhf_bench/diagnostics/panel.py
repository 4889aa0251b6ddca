"""All diagnostics of one policy at one moment, in plain PyTorch: held-out pairs, probe sets, gradients of pairs.

What does not depend on the policy is computed once, when the panel is made: everything under π0, CHES, edit distances.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import numpy as np

from rlhf_bench.core.types import Pair, PairEvaluation, Row
from rlhf_bench.diagnostics.distance import edit_distance
from rlhf_bench.diagnostics.gradients import gradient_numbers
from rlhf_bench.diagnostics.likelihood import pair_numbers, pairwise_accuracy, probe_numbers
from rlhf_bench.diagnostics.probes import Probes
from rlhf_bench.diagnostics.scoring import Scorer


@dataclass(frozen=True)
class PanelLook:
    """One policy's numbers and held-out pairs, and what the diagnostics beyond the main split's pairs took."""

    numbers: dict[str, float]
    pairs: tuple[PairEvaluation, ...]
    seconds: float
    flops: float


class Panel:
    """Made once for a reference policy; `look` at any policy of the same shape."""

    def __init__(
        self,
        reference: Any,
        pairs: Mapping[str, Sequence[Pair]],
        main: str,
        probes: Probes,
        gradient_pairs: int,
        scorer: Scorer,
    ):
        """`pairs`: split -> held-out pairs; those of the split `main` give the main numbers, others their accuracy."""
        self.main, self.probes, self.scorer = main, probes, scorer
        self.pairs = {split: list(found) for split, found in pairs.items() if found}
        self.rows = {
            split: [Row(p.id, p.prompt.token_ids, (p.chosen_ids, p.rejected_ids)) for p in found]
            for split, found in self.pairs.items()
        }
        self.gradient_rows = self.rows.get(main, [])[:gradient_pairs]
        self.distances = {s: [edit_distance(p.chosen_ids, p.rejected_ids) for p in f] for s, f in self.pairs.items()}
        self.ches = {split: scorer.ches(reference, rows) for split, rows in self.rows.items()}
        self.probe_rows, self.probe_sets = _as_trees(probes)
        self.reference = {split: self._sides(reference, split) for split in self.rows}
        self.reference_probes = self._probes(reference)

    def look(self, policy: Any) -> PanelLook:
        """Everything about `policy`, whose parameters require gradients if `gradient_pairs` is above 0."""
        logprobs = {}
        if self.main in self.rows:
            logprobs[self.main] = self._sides(policy, self.main)
        began, flops_before = perf_counter(), self.scorer.flops
        logprobs |= {split: self._sides(policy, split) for split in self.rows if split != self.main}
        probes = self._probes(policy)
        gradients = self.scorer.gradients(policy, self.gradient_rows)
        seconds, flops = perf_counter() - began, self.scorer.flops - flops_before

        numbers: dict[str, float] = {}
        if self.main in logprobs:
            numbers |= pair_numbers(logprobs[self.main], self.reference[self.main])
            numbers["ches"], numbers["ches_normalised"] = (float(x) for x in self.ches[self.main].mean(0))
            numbers["probes/dropped"] = float(sum(self.probes.dropped.values()))
        for split in (s for s in logprobs if s != self.main):
            ratios = logprobs[split] - self.reference[split]
            numbers[f"accuracy/{split}"] = pairwise_accuracy(ratios[:, 0], ratios[:, 1])
        for name, found in probes.items():
            numbers |= probe_numbers(name, found, self.reference_probes[name])
        numbers |= gradient_numbers(gradients)
        pairs = tuple(look for split, found in logprobs.items() for look in self._pair_looks(split, found))
        return PanelLook(numbers, pairs, seconds, flops)

    def _sides(self, model: Any, split: str) -> np.ndarray:
        """Log-probabilities of a split's pairs, [P, 2]: chosen, rejected."""
        return self.scorer.score(model, self.rows[split]).logprobs.reshape(-1, 2)

    def _probes(self, model: Any) -> dict[str, np.ndarray]:
        """Log-probability of every probe, by set."""
        if not self.probe_rows:
            return {}
        flat = self.scorer.score(model, self.probe_rows).logprobs
        return {name: flat[self.probe_sets == name] for name in self.probes.rows}

    def _pair_looks(self, split: str, logprobs: np.ndarray) -> list[PairEvaluation]:
        ratios = logprobs - self.reference[split]
        return [
            PairEvaluation(
                split=split,
                pair_id=pair.id,
                chosen_logprob=float(logprobs[i, 0]),
                rejected_logprob=float(logprobs[i, 1]),
                chosen_logratio=float(ratios[i, 0]),
                rejected_logratio=float(ratios[i, 1]),
                chosen_tokens=len(pair.chosen_ids),
                rejected_tokens=len(pair.rejected_ids),
                ches=float(self.ches[split][i, 0]),
                ches_normalised=float(self.ches[split][i, 1]),
                edit_distance=self.distances[split][i],
            )
            for i, pair in enumerate(self.pairs[split])
        ]


def _as_trees(probes: Probes) -> tuple[list[Row], np.ndarray]:
    """One row per held-out pair with its probes of all sets, so that its prompt is computed once; and the set that each
    of the responses, in row order, belongs to."""
    by_pair: dict[str, list[tuple[str, Row]]] = {}
    for name, rows in probes.rows.items():
        for row in rows:
            by_pair.setdefault(row.id.removesuffix(f"/{name}"), []).append((name, row))
    trees = [
        Row(pair, members[0][1].prompt_ids, tuple(row.responses[0] for _, row in members))
        for pair, members in by_pair.items()
    ]
    return trees, np.array([name for members in by_pair.values() for name, _ in members])
