"""What the comparison's reward models say of a policy's own samples, beside the judge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rlhf_bench.core.types import Row
from rlhf_bench.diagnostics.reward_models import ScoredSamples
from rlhf_bench.diagnostics.scoring import Scorer
from rlhf_bench.models.flops import ModelShape
from rlhf_bench.models.loading import RewardScaling, load_reward_model


@dataclass(frozen=True)
class RewardModelLook:
    """One reward model, by the name that its numbers begin with. `scorer` runs it, and counts what that costs."""

    name: str
    model: Any
    members: int
    scale: float  # of its scores, as a multiple of the unit that it was trained in
    scorer: Scorer

    @classmethod
    def load(cls, name: str, path: str, dtype: str, device: str, tokens_per_micro_batch: int) -> RewardModelLook:
        """By its note: see `load_reward_model`."""
        note, model = RewardScaling.read(path), load_reward_model(path, dtype).eval().requires_grad_(False).to(device)
        scorer = Scorer(ModelShape.of(model.lm), tokens_per_micro_batch, device)
        return cls(name, model, note.members, note.scale, scorer)

    def numbers(self, rows: Sequence[Row], judged: Sequence[float]) -> dict[str, float]:
        """Of finished responses, and the judge's score of each in row order; at least one."""
        scores = self.scorer.rewards(self.model, rows, self.members)
        found = ScoredSamples.of(rows, scores, np.array(judged, dtype=float)).numbers(self.scale)
        return {f"{self.name}/{number}": value for number, value in found.items()}


def look(models: Sequence[RewardModelLook], rows: Sequence[Row], judged: Sequence[float]) -> Mapping[str, float]:
    """Of all models; empty where no response is finished."""
    rows = [row for row in rows if row.responses]
    return {name: value for one in models if rows for name, value in one.numbers(rows, judged).items()}
