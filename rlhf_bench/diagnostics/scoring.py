"""Forward passes over fixed responses, cut into micro-batches, and what they cost."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from rlhf_bench.core.types import Row
from rlhf_bench.diagnostics.embeddings import ches, token_numbers
from rlhf_bench.diagnostics.gradients import side_gradients
from rlhf_bench.methods.base import SideGradients, sum_by_response
from rlhf_bench.models.flops import ModelShape, forward_flops, side_gradients_flops
from rlhf_bench.models.packing import MicroBatch, layout_of, micro_batch, split_by_tokens


@dataclass(frozen=True)
class Scored:
    """Rows of any number of responses, R in all, under one policy at temperature 1."""

    logprobs: np.ndarray  # [R] nats, summed over each response's tokens; responses in row order
    entropy: float  # mean over response tokens, nats
    confidence: float  # mean over response tokens of the likeliest next token's probability


@dataclass
class Scorer:
    """Computes, and counts the work in `flops` and `scored_tokens` until the caller resets them."""

    shape: ModelShape
    tokens_per_micro_batch: int
    device: str
    flops: float = 0.0
    scored_tokens: float = 0.0

    def score(self, model: Any, rows: Sequence[Row]) -> Scored:
        """Log-probabilities of all responses. Raises ValueError for no rows: their means would mean nothing."""
        if not rows:
            raise ValueError("no rows to score")
        starts = np.cumsum([0, *(len(row.responses) for row in rows)])
        logprobs = np.zeros(starts[-1])
        entropy, confidence, tokens = 0.0, 0.0, 0
        with torch.no_grad():
            for indices, batch in self._batches(rows):
                found = token_numbers(model, batch)
                sums = sum_by_response(found.logprobs, batch.response_index, batch.responses)
                logprobs[np.concatenate([np.arange(starts[i], starts[i + 1]) for i in indices])] = sums.cpu().numpy()
                entropy += float(found.entropy.sum())
                confidence += float(found.confidence.sum())
                tokens += len(batch.targets)
                self._count(batch, head_positions=len(batch.targets))
        return Scored(logprobs, entropy / tokens, confidence / tokens)

    def ches(self, model: Any, rows: Sequence[Row]) -> np.ndarray:
        """CHES and its length-normalised form of every pair, [rows, 2]."""
        found = np.zeros((len(rows), 2))
        with torch.no_grad():
            for indices, batch in self._batches(rows):
                found[indices] = torch.stack(ches(model, batch), dim=1).cpu().numpy()
                self._count(batch, head_positions=0)
        return found

    def gradients(self, model: Any, rows: Sequence[Row]) -> list[SideGradients]:
        """‖g⁺‖, ‖g⁻‖, ⟨g⁺, g⁻⟩ of every pair by itself: one forward pass and two backward passes each."""
        found = []
        for row in rows:
            found.append(side_gradients(model, micro_batch([row]).to(self.device)))
            self.flops += side_gradients_flops(self.shape, layout_of([row]), row.response_tokens)
            self.scored_tokens += row.response_tokens
        return found

    def _batches(self, rows: Sequence[Row]) -> Iterator[tuple[list[int], MicroBatch]]:
        (plan,) = split_by_tokens(rows, 1, self.tokens_per_micro_batch)
        for indices in plan:
            yield indices, micro_batch([rows[i] for i in indices]).to(self.device)

    def _count(self, batch: MicroBatch, head_positions: int) -> None:
        self.flops += forward_flops(self.shape, batch.layout, head_positions)
        self.scored_tokens += len(batch.targets)
