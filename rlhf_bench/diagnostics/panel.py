"""All diagnostics of one policy at one moment, in plain PyTorch: held-out pairs, probe sets, gradients of pairs.

Whatever has a log-probability that is wanted (sides of held-out pairs, of pairs of arms' own kinds, probes) is a response to some
prompt. Each goes through the policy once, in rows of a prompt and several of its responses. What does not depend on the policy
is computed once, when the panel is made: everything under π0, CHES, edit distances.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import numpy as np
import torch

from rlhf_bench.core.types import FIXED, Pair, PairEvaluation, Row
from rlhf_bench.diagnostics.distance import edit_distance
from rlhf_bench.diagnostics.embeddings import ches
from rlhf_bench.diagnostics.gradients import gradient_numbers
from rlhf_bench.diagnostics.likelihood import pair_numbers, pairwise_accuracy, probe_numbers
from rlhf_bench.diagnostics.probes import Probes
from rlhf_bench.diagnostics.scoring import Scorer


@dataclass(frozen=True)
class PanelLook:
    """One policy's numbers and held-out pairs, and what they took."""

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
        own: Mapping[str, Sequence[Pair]] | None = None,
    ):
        """`pairs`: split -> held-out pairs; those of the split `main` give the main numbers, others their accuracy. `own`:
        kind -> further pairs of the main split, of a kind that some arm trains on; they are looked at one by one."""
        self.main, self.probes, self.scorer = main, probes, scorer
        fixed = {split: list(found) for split, found in pairs.items() if found}
        self.own = {kind: list(found) for kind, found in (own or {}).items() if found}
        self.pairs, self.splits = fixed | self.own, list(fixed)
        self.gradient_rows = [_row(pair) for pair in fixed.get(main, [])[:gradient_pairs]]
        self.distances = {s: [edit_distance(p.chosen_ids, p.rejected_ids) for p in f] for s, f in self.pairs.items()}
        wanted = {
            name: [(p.prompt.token_ids, side) for p in found for side in (p.chosen_ids, p.rejected_ids)]
            for name, found in self.pairs.items()
        } | {_probe(name): [(row.prompt_ids, row.responses[0]) for row in rows] for name, rows in probes.rows.items()}
        self.wanted = wanted
        self.rows, self.places = _each_response_once(wanted, scorer.tokens_per_micro_batch)
        self.reference: dict[str, np.ndarray] = {}
        self.ches: dict[str, np.ndarray] = {}
        if self.rows:
            flat, states = scorer.embed(reference, self.rows)
            self.reference = self._by_name(flat, self.places)
            self.ches = {name: self._ches(name, states) for name in self.pairs}

    def look(self, policy: Any, *, own: str | None = None, is_reference: bool = False) -> PanelLook:
        """Everything about `policy`, whose parameters require gradients if `gradient_pairs` is above 0. `own`: the kind of pairs
        that it trains on, whose pairs are looked at besides the splits'; None for those of all kinds. `is_reference`: its
        weights are the reference's, whose log-probabilities are known."""
        began, flops_before = perf_counter(), self.scorer.flops
        left_out = set() if own is None else self.own.keys() - {own}
        wanted = {name: asked for name, asked in self.wanted.items() if name not in left_out}
        logprobs = self.reference
        rows, places = _each_response_once(wanted, self.scorer.tokens_per_micro_batch)
        if rows and not is_reference:
            logprobs = self._by_name(self.scorer.score(policy, rows), places)
        gradients = self.scorer.gradients(policy, self.gradient_rows)
        seconds, flops = perf_counter() - began, self.scorer.flops - flops_before

        numbers: dict[str, float] = {}
        if self.main in logprobs:
            numbers |= pair_numbers(logprobs[self.main], self.reference[self.main])
            numbers["ches"], numbers["ches_normalised"] = (float(x) for x in self.ches[self.main].mean(0))
            numbers["probes/dropped"] = float(sum(self.probes.dropped.values()))
        for split in (s for s in self.splits if s != self.main):
            ratios = logprobs[split] - self.reference[split]
            numbers[f"accuracy/{split}"] = pairwise_accuracy(ratios[:, 0], ratios[:, 1])
        for name in self.probes.rows:
            numbers |= probe_numbers(name, logprobs[_probe(name)], self.reference[_probe(name)])
        numbers |= gradient_numbers(gradients)
        pairs = tuple(look for name in self.pairs if name in wanted for look in self._pair_looks(name, logprobs[name]))
        return PanelLook(numbers, pairs, seconds, flops)

    def _by_name(self, flat: np.ndarray, places: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Log-probabilities of all responses, by what wants them: of pairs [P, 2] (chosen, rejected), of a probe set [P]."""
        found = {name: flat[at] for name, at in places.items()}
        return {name: x.reshape(-1, 2) if name in self.pairs else x for name, x in found.items()}

    def _ches(self, name: str, states: np.ndarray) -> np.ndarray:
        """CHES and its length-normalised form of pairs, [P, 2], from the summed states [R, H] of all responses."""
        chosen, rejected = (torch.from_numpy(states[self.places[name][side::2]]) for side in (0, 1))
        pairs = self.pairs[name]
        lengths = torch.tensor([[len(p.chosen_ids), len(p.rejected_ids)] for p in pairs], dtype=torch.float64)
        by_length = ches(chosen / lengths[:, :1], rejected / lengths[:, 1:])
        return torch.stack([ches(chosen, rejected), by_length], dim=1).numpy()

    def _pair_looks(self, name: str, logprobs: np.ndarray) -> list[PairEvaluation]:
        """`name`: a split, or an own kind."""
        ratios = logprobs - self.reference[name]
        return [
            PairEvaluation(
                split=self.main if name in self.own else name,
                kind=name if name in self.own else FIXED,
                pair_id=pair.id,
                chosen_logprob=float(logprobs[i, 0]),
                rejected_logprob=float(logprobs[i, 1]),
                chosen_logratio=float(ratios[i, 0]),
                rejected_logratio=float(ratios[i, 1]),
                chosen_tokens=len(pair.chosen_ids),
                rejected_tokens=len(pair.rejected_ids),
                ches=float(self.ches[name][i, 0]),
                ches_normalised=float(self.ches[name][i, 1]),
                edit_distance=self.distances[name][i],
            )
            for i, pair in enumerate(self.pairs[name])
        ]


def _row(pair: Pair) -> Row:
    return Row(pair.id, pair.prompt.token_ids, (pair.chosen_ids, pair.rejected_ids))


def _probe(name: str) -> str:
    """A name for a probe set that no split and no kind of pairs has."""
    return f"probe/{name}"


Asked = tuple[tuple[int, ...], tuple[int, ...]]
"""A prompt and a response to it."""


def _each_response_once(
    wanted: Mapping[str, Sequence[Asked]], most_tokens: int
) -> tuple[list[Row], dict[str, np.ndarray]]:
    """Rows of prompts with their responses, each response once, rows of at most `most_tokens` tokens where a response allows it;
    and for each name the places of its responses among those of all rows."""
    prompts: dict[tuple[int, ...], dict[tuple[int, ...], None]] = {}
    for prompt, response in (asked for every in wanted.values() for asked in every):
        prompts.setdefault(prompt, {})[response] = None
    rows: list[Row] = []
    for prompt, responses in prompts.items():
        parts: list[list[tuple[int, ...]]] = []
        room = 0
        for response in responses:
            if not parts or len(response) > room:
                parts.append([])
                room = most_tokens - len(prompt)
            parts[-1].append(response)
            room -= len(response)
        rows += [Row(f"{len(rows) + i}", prompt, tuple(part)) for i, part in enumerate(parts)]
    every = [(row.prompt_ids, response) for row in rows for response in row.responses]
    place = {asked: at for at, asked in enumerate(every)}
    return rows, {name: np.array([place[asked] for asked in found], dtype=int) for name, found in wanted.items()}
