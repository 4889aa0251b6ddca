"""The gradient field of a loss on pairs (arXiv 2404.04626), for any method in the registry.

A pair's state is x1 = π(a⁺)/π0(a⁺) and x2 = π(a⁻)/π0(a⁻); training starts at (1, 1). Gradients come by autograd from
the method's own `pair_loss`, so the field cannot disagree with what trains. In two coordinates:

- probability space, the paper's: ∂L/∂x1, ∂L/∂x2. For DPO their ratio is |∂L/∂x2| / |∂L/∂x1| = x1/x2: it grows without
  bound as the rejected response dies.
- log-probability space: ∂L/∂ln x = x ∂L/∂x, what reaches a network by the chain rule. For DPO that ratio is 1
  everywhere, for Flex-DPO β⁻/β⁺.

Losses without a reference depend on log π and not on ratios alone, so a field belongs to a `Start`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from rlhf_bench.core.errors import BadInput
from rlhf_bench.methods import METHODS
from rlhf_bench.methods.base import MethodSettings, PairLogprobs, PairLoss
from rlhf_bench.methods.pairs import PairSettings

DEFAULT_METHODS = ("dpo", "flex_dpo", "ipo", "slic", "simpo", "dpop")
DEFAULT_PROBABILITY = 0.2
POINTS: Mapping[str, tuple[float, float]] = {
    "start (1, 1)": (1.0, 1.0),
    "dropped (1, 0.1)": (1.0, 0.1),
    "dropped (1, 0.01)": (1.0, 0.01),
    "diagonal (0.1, 0.1)": (0.1, 0.1),
    "diagonal (2, 2)": (2.0, 2.0),
    "mis-ranked (0.5, 2)": (0.5, 2.0),
}
"""Where the printed table reads the field: (x1, x2)."""


@dataclass(frozen=True, slots=True)
class Start:
    """What the reference gives a pair: log-probabilities of whole responses (nats), and lengths (tokens)."""

    chosen_logprob: float
    rejected_logprob: float
    chosen_tokens: float = 1.0
    rejected_tokens: float = 1.0

    @property
    def box(self) -> tuple[float, float]:
        """ln of the largest x1 and x2 there can be: π ≤ 1 makes x ≤ 1/π0. SFT quality enters the field here."""
        return -self.chosen_logprob, -self.rejected_logprob


@dataclass(frozen=True, slots=True)
class Gradients:
    """Gradients at points (x1, x2), arrays of one shape: in probability space, and in log-probability space."""

    chosen: np.ndarray  # ∂L/∂x1
    rejected: np.ndarray  # ∂L/∂x2
    log_chosen: np.ndarray  # ∂L/∂ln x1
    log_rejected: np.ndarray  # ∂L/∂ln x2

    @property
    def ratio(self) -> np.ndarray:
        """|∂L/∂x2| / |∂L/∂x1|: inf where the chosen side alone has no gradient, nan where neither has."""
        return _ratio(self.rejected, self.chosen)

    @property
    def log_ratio(self) -> np.ndarray:
        """|∂L/∂ln x2| / |∂L/∂ln x1|."""
        return _ratio(self.log_rejected, self.log_chosen)


def _ratio(upper: np.ndarray, lower: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.abs(upper) / np.abs(lower)


@dataclass(frozen=True, slots=True)
class FieldOf:
    """A named loss with its settings: what one panel shows. `loss` is None where a method is no loss on pairs."""

    name: str
    settings: MethodSettings
    loss: PairLoss | None

    @property
    def caption(self) -> str:
        """The settings that only this method has, as one line."""
        own = {k: v for k, v in self.settings.model_dump().items() if k not in PairSettings.model_fields}
        return ", ".join(f"{k} {v:g}" if isinstance(v, float) else f"{k} {v}" for k, v in own.items())


def pair_loss_of(name: str) -> PairLoss:
    """The loss of a registered method. Raises BadInput for an unknown one, and for one that is no loss on pairs."""
    have = [n for n, method in METHODS.items() if method.pair_loss is not None]
    loss = METHODS[name].pair_loss if name in METHODS else None
    if loss is None:
        what = "is no loss on pairs" if name in METHODS else "is unknown"
        raise BadInput(f"--method {name}: {what}; choose among {', '.join(have)}")
    return loss


def default_fields(names: Sequence[str]) -> list[FieldOf]:
    """The named methods with default settings."""
    losses = {name: pair_loss_of(name) for name in names}
    return [at_start(name, METHODS[name].settings(), loss) for name, loss in losses.items()]


def at_start(name: str, settings: MethodSettings, loss: PairLoss | None) -> FieldOf:
    """A field with every schedule at the value that the budget's start gives it."""
    return FieldOf(name, settings.resolve_at(0.0, {}), loss)


def gradients(loss: PairLoss, settings: Any, start: Start, log_x1: np.ndarray, log_x2: np.ndarray) -> Gradients:
    """Gradients of `loss` at points given as ln x1, ln x2 (nats; arrays of one shape), by autograd in float64.

    Differentiated in ln x, which stays accurate where x itself underflows, and divided by x for probability space.
    """
    flat = [torch.from_numpy(np.asarray(v, dtype=np.float64).ravel().copy()) for v in (log_x1, log_x2)]
    up, down = (t.requires_grad_() for t in flat)

    def constant(value: float) -> torch.Tensor:
        return torch.full_like(up.detach(), value)

    pairs = PairLogprobs(
        chosen=up + start.chosen_logprob,
        rejected=down + start.rejected_logprob,
        reference_chosen=constant(start.chosen_logprob),
        reference_rejected=constant(start.rejected_logprob),
        chosen_tokens=constant(start.chosen_tokens),
        rejected_tokens=constant(start.rejected_tokens),
    )
    by_log = torch.autograd.grad(loss(pairs, settings).sum(), (up, down))
    shape = np.shape(log_x1)
    log_chosen, log_rejected = (g.numpy().reshape(shape) for g in by_log)
    with np.errstate(divide="ignore"):  # an x that underflows to 0 has an infinite gradient: so it should say
        return Gradients(log_chosen / np.exp(log_x1), log_rejected / np.exp(log_x2), log_chosen, log_rejected)


def readings(loss: PairLoss, settings: Any, start: Start) -> Gradients:
    """The field at POINTS, in their order."""
    x1, x2 = np.log(np.array(list(POINTS.values()))).T
    return gradients(loss, settings, start, x1, x2)


def render_table(fields: Sequence[FieldOf], start: Start) -> str:
    """What is seen, in numbers: how much harder the rejected side is pushed than the chosen one, and how hard."""
    own = [f for f in fields if f.loss is not None]
    read = [readings(f.loss, f.settings, start) for f in own if f.loss is not None]
    width = max([len(f.name) for f in own] + [6])
    parts = []
    for title, values in (
        ("|dL/dx2| / |dL/dx1|, probability space: rejected over chosen", [g.ratio for g in read]),
        ("|dL/d ln x2| / |dL/d ln x1|, log-probability space", [g.log_ratio for g in read]),
        ("|dL/dx2|, the push on the rejected side", [np.abs(g.rejected) for g in read]),
    ):
        parts.append(title)
        parts.append(f"  {'':{width}}  " + "  ".join(f"{name:>19}" for name in POINTS))
        for field, row in zip(own, values, strict=True):
            parts.append(f"  {field.name:{width}}  " + "  ".join(f"{_cell(v):>19}" for v in row))
    return "\n".join(parts)


def _cell(value: float) -> str:
    return "flat" if np.isnan(value) else "no chosen gradient" if np.isinf(value) else f"{value:.3g}"
