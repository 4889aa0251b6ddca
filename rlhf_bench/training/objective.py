"""From a model's forward pass to a method's numbers: the one place where the two meet."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from rlhf_bench.methods.base import Objective, Outputs, PairLoss, PerUnit
from rlhf_bench.methods.pairs import pair_logprobs
from rlhf_bench.models.lm_head import Sums
from rlhf_bench.models.packing import MicroBatch, ResponseSlice


def loss_sums(
    objective: Objective, model: nn.Module, batch: MicroBatch, settings: Any, temperature: float = 1.0
) -> Sums:
    """The loss, and the method's numbers, summed over the pairs or tokens of this micro-batch."""
    if objective.model == "policy":

        def of_rows(rows: ResponseSlice, logprobs: Tensor, entropy: Tensor) -> Sums:
            outputs = Outputs(rows.response_index, rows.responses, rows.extras, logprobs=logprobs, entropy=entropy)
            return _summed(objective.loss(outputs, settings))

        return model(batch, temperature, of_rows)
    values, scores = model(batch)
    return _summed(objective.loss(Outputs(**_shared(batch), values=values, scores=scores), settings))


def _summed(per_unit: PerUnit) -> Sums:
    loss, numbers = per_unit
    return loss.sum(), {name: values.detach().sum() for name, values in numbers.items()}


def weighted_sides(
    model: nn.Module, batch: MicroBatch, weight: PairLoss, settings: Any, temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Σ_i w_i ∇θ log π(a⁺_i|x_i) and Σ_i w_i ∇θ log π(a⁻_i|x_i) over the batch's pairs: flat over all trained
    parameters, [N] each. `weight` gives w [P]; no gradient flows through it, and none is left in the parameters."""
    pairs = pair_logprobs(_policy_outputs(model, batch, temperature), settings.reference_free)
    weights = weight(pairs, settings).detach()
    parameters = [p for p in model.parameters() if p.requires_grad]
    # A parameter that the forward pass does not use has a gradient of zeros.
    kwargs: dict[str, Any] = {"allow_unused": True, "materialize_grads": True}
    chosen = torch.autograd.grad((weights * pairs.chosen).sum(), parameters, retain_graph=True, **kwargs)
    rejected = torch.autograd.grad((weights * pairs.rejected).sum(), parameters, **kwargs)
    return torch.cat([g.flatten() for g in chosen]).float(), torch.cat([g.flatten() for g in rejected]).float()


def _policy_outputs(model: nn.Module, batch: MicroBatch, temperature: float) -> Outputs:
    return Outputs(**_shared(batch), logprobs=model(batch, temperature))


def _shared(batch: MicroBatch) -> dict[str, Any]:
    return {"response_index": batch.response_index, "responses": batch.responses, "extras": batch.extras}
