"""From a model's forward pass to a method's loss per unit: the one place where the two meet."""

from __future__ import annotations

from typing import Any

from torch import nn

from rlhf_bench.methods.base import Objective, Outputs, PerUnit
from rlhf_bench.sequences import MicroBatch


def per_unit(
    objective: Objective, model: nn.Module, batch: MicroBatch, settings: Any, temperature: float = 1.0
) -> PerUnit:
    """Loss and metrics per pair or per token of this micro-batch."""
    shared = {"response_index": batch.response_index, "responses": batch.responses, "extras": batch.extras}
    if objective.model == "policy":
        logprobs, entropy = model(batch, temperature)
        out = Outputs(**shared, logprobs=logprobs, entropy=entropy)
    else:
        values, scores = model(batch)
        out = Outputs(**shared, values=values, scores=scores)
    return objective.loss(out, settings)
