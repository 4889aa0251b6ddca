"""Forward passes over fixed responses, cut into micro-batches, and what they cost."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from rlhf_bench.core.types import Row
from rlhf_bench.diagnostics.embeddings import next_token, predictor_states, summed_states
from rlhf_bench.diagnostics.gradients import side_gradients
from rlhf_bench.diagnostics.pair_gradients import (
    GRADIENT_TOKENS,
    gradients_together,
    sides_apart,
    why_not_together,
)
from rlhf_bench.methods.base import SideGradients, sum_by_response
from rlhf_bench.models.flops import ModelShape, forward_flops, input_gradients_flops, side_gradients_flops
from rlhf_bench.models.packing import MicroBatch, layout_of, micro_batch, split_by_tokens


@dataclass(frozen=True)
class Compared:
    """A policy against a reference, on R responses."""

    kl: np.ndarray  # [R] nats: KL of the next-token distributions, summed over each response's tokens; in row order
    entropy: float  # of the policy's next token, mean over response tokens, nats
    confidence: float  # mean over response tokens of the likeliest next token's probability


@dataclass
class Scorer:
    """Computes, and counts the work in `flops` and `scored_tokens` until the caller resets them."""

    shape: ModelShape
    tokens_per_micro_batch: int
    device: str
    flops: float = 0.0
    scored_tokens: float = 0.0

    def score(self, model: Any, rows: Sequence[Row], temperature: float = 1.0) -> np.ndarray:
        """Log-probabilities [R] of all responses, nats, in row order. Raises ValueError for no rows: their means would mean
        nothing."""
        logprobs = np.zeros(sum(len(row.responses) for row in rows))
        with torch.no_grad():
            for responses, batch in self._parts(rows):
                sums = sum_by_response(model(batch, temperature), batch.response_index, batch.responses)
                logprobs[responses] = sums.cpu().numpy()
                self._count(batch, head_positions=len(batch.targets))
        return logprobs

    def rewards(self, model: Any, rows: Sequence[Row], members: int = 1) -> np.ndarray:
        """Scores [R] of all responses by a reward model, in row order. `members`: how many models that is, all of one shape.
        Counted as the scorer counts them, prompts included."""
        scores = np.zeros(sum(len(row.responses) for row in rows))
        with torch.no_grad():
            for responses, batch in self._parts(rows):
                scores[responses] = model(batch)[1].cpu().numpy()
                self.flops += members * forward_flops(self.shape, batch.layout, len(responses))
                self.scored_tokens += members * batch.layout.tokens
        return scores

    def compare(
        self,
        policy: Any,
        reference: Any,
        rows: Sequence[Row],
        temperature: float = 1.0,
        reference_temperature: float = 1.0,
    ) -> Compared:
        """Both models on all responses, each at its temperature; one model runs once. Raises ValueError for no rows."""
        kl, tokens = np.zeros(sum(len(row.responses) for row in rows)), 0
        entropy = confidence = 0.0
        with torch.no_grad():
            for responses, batch in self._parts(rows):
                found = next_token(policy, reference, batch, temperature, reference_temperature)
                kl[responses] = sum_by_response(found.kl, batch.response_index, batch.responses).cpu().numpy()
                entropy += float(found.entropy.sum())
                confidence += float(found.confidence.sum())
                tokens += len(batch.targets)
                for _ in {id(policy), id(reference)}:
                    self._count(batch, head_positions=len(batch.targets))
        return Compared(kl, entropy / tokens, confidence / tokens)

    def embed(self, model: Any, rows: Sequence[Row]) -> tuple[np.ndarray, np.ndarray]:
        """As `score` at temperature 1, and the sums [R, H] of the states that predict each response, from the same pass."""
        logprobs = np.zeros(sum(len(row.responses) for row in rows))
        sums = np.zeros((len(logprobs), self.shape.head_weights // self.shape.vocabulary))
        with torch.no_grad():
            for responses, batch in self._parts(rows):
                states = predictor_states(model, batch)
                of_tokens = model.of_states(states, batch)
                logprobs[responses] = sum_by_response(of_tokens, batch.response_index, batch.responses).cpu().numpy()
                sums[responses] = summed_states(states, batch).cpu().numpy()
                self._count(batch, head_positions=len(batch.targets))
        return logprobs, sums

    def gradients(self, model: Any, rows: Sequence[Row]) -> list[SideGradients]:
        """‖g⁺‖, ‖g⁻‖, ⟨g⁺, g⁻⟩ of every pair by itself, several pairs in a pass where the model's layers allow it
        (`why_not_together`)."""
        if not rows:
            return []
        self.scored_tokens += sum(row.response_tokens for row in rows)
        if why_not_together(model, self.device) is not None:
            return [self._one_by_one(model, row) for row in rows]
        (plan,) = split_by_tokens(rows, 1, min(self.tokens_per_micro_batch, GRADIENT_TOKENS), apart=True)
        found: dict[int, SideGradients] = {}
        for indices in plan:
            pairs = [rows[i] for i in indices]
            sides, products = gradients_together(model, pairs, self.device)
            found |= dict(zip(indices, sides, strict=True))
            tokens = sum(row.response_tokens for row in pairs)
            self.flops += products + input_gradients_flops(
                self.shape, layout_of(sides_apart(pairs), apart=True), tokens
            )
        return [found[i] for i in range(len(rows))]

    def _one_by_one(self, model: Any, row: Row) -> SideGradients:
        """One forward pass and two backward passes."""
        self.flops += side_gradients_flops(self.shape, layout_of([row]), row.response_tokens)
        return side_gradients(model, micro_batch([row]).to(self.device))

    def _parts(self, rows: Sequence[Row]) -> Iterator[tuple[np.ndarray, MicroBatch]]:
        """Micro-batches, and which of all responses are in each."""
        if not rows:
            raise ValueError("no rows to score")
        starts = np.cumsum([0, *(len(row.responses) for row in rows)])
        for indices, batch in self._batches(rows):
            yield np.concatenate([np.arange(starts[i], starts[i + 1]) for i in indices]), batch

    def _batches(self, rows: Sequence[Row]) -> Iterator[tuple[list[int], MicroBatch]]:
        (plan,) = split_by_tokens(rows, 1, self.tokens_per_micro_batch)
        for indices in plan:
            yield indices, micro_batch([rows[i] for i in indices]).to(self.device)

    def _count(self, batch: MicroBatch, head_positions: int) -> None:
        self.flops += forward_flops(self.shape, batch.layout, head_positions)
        self.scored_tokens += len(batch.targets)
