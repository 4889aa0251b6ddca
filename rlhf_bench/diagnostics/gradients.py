"""Gradients of both sides of a pair, in three spaces, each named in what it returns.

Parameters: g± = ∇θ log π(a±|x). To first order, for one pair under gradient descent on Flex-DPO's loss, the chosen
log-probability falls exactly where β⁻⟨g⁺, g⁻⟩ > β⁺‖g⁺‖².
Log-probability: ∂ℓ/∂log π(a±|x), for any loss on pairs.
Probability: ∂ℓ/∂π(a±|x) = (∂ℓ/∂log π) / π. A whole response's π underflows, so it is only ever handled as a logarithm.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rlhf_bench.core.types import PairEvaluation
from rlhf_bench.methods.base import PairLogprobs, PairLoss, SideGradients, sum_by_response
from rlhf_bench.methods.pairs import split_pairs
from rlhf_bench.models.packing import MicroBatch


def side_gradients(model: torch.nn.Module, batch: MicroBatch) -> SideGradients:
    """‖G⁺‖, ‖G⁻‖ and ⟨G⁺, G⁻⟩ of G± = mean_i ∇θ log π(a±_i|x_i), over a batch of pairs (chosen, rejected, …).

    `model` is a `heads.TokenLogprobs`; parameters that require no gradient count as fixed. `.grad` is left alone.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    with torch.enable_grad():
        logprobs = model(batch)
        sides = split_pairs(sum_by_response(logprobs, batch.response_index, batch.responses), batch.responses)
        # A parameter that the forward pass does not use has a gradient of zeros.
        kwargs: dict[str, Any] = {"allow_unused": True, "materialize_grads": True}
        chosen = torch.autograd.grad(sides[0].mean(), parameters, retain_graph=True, **kwargs)
        rejected = torch.autograd.grad(sides[1].mean(), parameters, **kwargs)
    return _of_vectors(chosen, rejected)


def _of_vectors(chosen: Sequence[Tensor], rejected: Sequence[Tensor]) -> SideGradients:
    """Norms and inner product of two gradients, given parameter by parameter; the parts are added up in float64."""
    up2 = down2 = dot = 0.0
    for up, down in zip(chosen, rejected, strict=True):
        u, d = up.flatten().float(), down.flatten().float()
        up2, down2, dot = up2 + float(u @ u), down2 + float(d @ d), dot + float(u @ d)
    return SideGradients(math.sqrt(up2), math.sqrt(down2), dot)


def gradient_numbers(pairs: Sequence[SideGradients]) -> dict[str, float]:
    """Means over pairs, each measured by itself (w = 1), in parameter space. Empty for no pairs.

    `gradient/falling` is the share of pairs with ⟨g⁺, g⁻⟩ > ‖g⁺‖²: those whose chosen response a small DPO step on
    this pair alone would make less likely. A cosine that is undefined (a side without a gradient) is left out.
    """
    if not pairs:
        return {}
    numbers = {
        "gradient/chosen_norm": float(np.mean([g.chosen_norm for g in pairs])),
        "gradient/rejected_norm": float(np.mean([g.rejected_norm for g in pairs])),
        "gradient/falling": float(np.mean([g.dot > g.chosen_norm**2 for g in pairs])),
    }
    cosines = [g.cosine for g in pairs if not math.isnan(g.cosine)]
    return numbers | ({"gradient/cosine": float(np.mean(cosines))} if cosines else {})


PROBED_AT = ((0.0, 0.0), (0.7, -0.4), (-0.9, 0.3), (-1.3, -1.9))
"""Points (Δ⁺, Δ⁻) at which `constant_ratio` takes the ratio. No loss is known to have a flat spot or kink exactly there."""


def pair_logprobs_of(evaluations: Sequence[PairEvaluation]) -> PairLogprobs:
    """Evaluated held-out pairs as the tensors [P] that a method's `pair_loss` takes, in float64."""

    def column(values: Iterable[float]) -> Tensor:
        return torch.tensor(list(values), dtype=torch.float64)

    chosen, rejected = column(p.chosen_logprob for p in evaluations), column(p.rejected_logprob for p in evaluations)
    return PairLogprobs(
        chosen=chosen,
        rejected=rejected,
        reference_chosen=chosen - column(p.chosen_logratio for p in evaluations),
        reference_rejected=rejected - column(p.rejected_logratio for p in evaluations),
        chosen_tokens=column(p.chosen_tokens for p in evaluations),
        rejected_tokens=column(p.rejected_tokens for p in evaluations),
    )


def log_partials(pair_loss: PairLoss, pairs: PairLogprobs, settings: Any) -> tuple[Tensor, Tensor]:
    """∂ℓ/∂log π(a⁺|x) and ∂ℓ/∂log π(a⁻|x) of each pair [P], in float64, by differentiating the method's own loss."""
    exact = PairLogprobs(**{f.name: getattr(pairs, f.name).detach().double() for f in fields(pairs)})
    with torch.enable_grad():
        chosen, rejected = exact.chosen.clone().requires_grad_(), exact.rejected.clone().requires_grad_()
        loss = pair_loss(replace(exact, chosen=chosen, rejected=rejected), settings)
        up, down = torch.autograd.grad(loss.sum(), (chosen, rejected), allow_unused=True, materialize_grads=True)
    return up, down


def constant_ratio(pair_loss: PairLoss, pairs: PairLogprobs, settings: Any) -> Tensor | None:
    """β⁻/β⁺ of each pair [P], where the loss has such a thing; else None.

    A loss that sees the policy only through β⁺ log π(a⁺) − β⁻ log π(a⁻) (DPO, Flex-DPO, IPO, SimPO) has the same ratio
    |∂ℓ/∂log π⁻| / |∂ℓ/∂log π⁺| = β⁻/β⁺ wherever the policy is. So the ratio is taken at four fixed points around the
    reference, none of them the policy; where they disagree (an SFT term, a hinge, a kink), theory predicts no ratio.
    """
    ratios = []
    for up, down in PROBED_AT:
        at = replace(pairs, chosen=pairs.reference_chosen + up, rejected=pairs.reference_rejected + down)
        by_chosen, by_rejected = log_partials(pair_loss, at, settings)
        ratios.append((by_rejected / by_chosen).abs())
    found = torch.stack(ratios)
    if not bool(torch.isfinite(found).all() and (found > 0).all()):
        return None
    return found[0] if torch.allclose(found, found[:1].expand_as(found), rtol=1e-6, atol=0) else None


def partials(pair_loss: PairLoss, pairs: PairLogprobs, settings: Any) -> dict[str, float]:
    """Means over pairs of the loss's partial derivatives, in log-probability and in probability space; P >= 1.

    Ratios and logarithms are over the pairs on which both sides have a gradient; their share is `partial/active`, and
    where there are none, those numbers are missing. `partial/pi_log_ratio_theory` is log(β⁻/β⁺ · π⁺/π⁻) by
    `constant_ratio`, and is missing for a loss without one.
    """
    up, down = (t.abs() for t in log_partials(pair_loss, pairs, settings))
    active = (up > 0) & (down > 0)
    numbers = {
        "partial/log_chosen": float(up.mean()),
        "partial/log_rejected": float(down.mean()),
        "partial/active": float(active.double().mean()),
    }
    if not bool(active.any()):
        return numbers
    log_chosen, log_rejected = pairs.chosen.detach().double(), pairs.rejected.detach().double()
    pi_chosen, pi_rejected = up.log() - log_chosen, down.log() - log_rejected  # log|∂ℓ/∂π|; −inf where not active
    numbers |= {
        "partial/log_ratio": float((down / up)[active].mean()),
        "partial/pi_log_chosen": float(pi_chosen[active].mean()),
        "partial/pi_log_rejected": float(pi_rejected[active].mean()),
        "partial/pi_log_ratio": float((pi_rejected - pi_chosen)[active].mean()),
    }
    if (ratio := constant_ratio(pair_loss, pairs, settings)) is not None:
        theory = ratio.log() + log_chosen - log_rejected
        numbers["partial/pi_log_ratio_theory"] = float(theory[active].mean())
    return numbers
