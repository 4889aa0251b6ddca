"""The toy model of 3D-Properties (arXiv 2406.07327): four prompts, ten responses, a small network, one pair a prompt.

Responses 0-3 are the chosen ones (prompt i's own is i), 4-7 the rejected ones (prompt i's own is 4+i), 8-9 stand in no
pair. A network is first fitted to hand-set probabilities, the same for every prompt ("SFT"), then trained by DPO. All
scenarios and seeds are one tensor program: parameters carry a leading axis B = scenarios x seeds, and as no term of the
loss joins two of its entries, B networks trained together are B networks trained alone (a test holds it).

Control: the same loss on a table of logits. There nothing is shared, and the chosen probability cannot fall: the pair's
gradient moves its own two logits by +s and -s, so d log pi+/ds = 1 - pi+ + pi- > 0 (derived; a test holds it).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rlhf_bench.core.errors import RunFailed
from rlhf_bench.methods import METHODS
from rlhf_bench.methods.base import PairLogprobs
from rlhf_bench.theory.field import pair_loss_of

PROMPTS, RESPONSES = 4, 10
CHOSEN = torch.arange(PROMPTS)
REJECTED = CHOSEN + PROMPTS
IN_NO_PAIR = slice(2 * PROMPTS, RESPONSES)
FIT_TOLERANCE = 1e-9
"""How far a fitted start may be from the scenario's probabilities, at the worst of the 40 entries."""


@dataclass(frozen=True, slots=True)
class Scenario:
    """Where the pair's responses come from: the probability of each under the start, the same for every prompt."""

    name: str
    each_chosen: float
    each_rejected: float
    in_no_pair: tuple[float, float]

    def row(self) -> Tensor:
        """The start's ten probabilities, float64 [10]."""
        values = [self.each_chosen] * PROMPTS + [self.each_rejected] * PROMPTS + list(self.in_no_pair)
        return torch.tensor(values, dtype=torch.float64)


SCENARIOS = (
    Scenario("1 both on-policy", 0.12, 0.12, (0.03, 0.01)),
    Scenario("2 chosen off, rejected on", 0.02, 0.12, (0.40, 0.04)),
    Scenario("3 chosen on, rejected off", 0.12, 0.02, (0.40, 0.04)),
    Scenario("4 both off-policy", 0.02, 0.02, (0.80, 0.04)),
)


@dataclass(frozen=True, slots=True)
class ToySettings:
    """What the paper leaves open; docs/theory.md says how each was chosen."""

    width: int = 64
    beta: float = 0.1
    learning_rate: float = 3e-4
    tabular_learning_rate: float = 1e-2
    fit_steps: int = 300
    fit_learning_rate: float = 1e-3


@dataclass(frozen=True, slots=True)
class Curves:
    """Probabilities against epochs, each [E+1, B], epoch 0 the start; means over the four prompts.

    `outside_pair`: mean of the eight responses that are not in the prompt's own pair, the paper's words. `in_no_pair`:
    mean of responses 8 and 9. `others_chosen`: mean of the three responses that are chosen for other prompts.
    """

    chosen: np.ndarray
    rejected: np.ndarray
    outside_pair: np.ndarray
    in_no_pair: np.ndarray
    others_chosen: np.ndarray


Parameters = list[Tensor]
Logits = Callable[[Parameters], Tensor]


def initial_parameters(seeds: Sequence[int], width: int) -> Parameters:
    """One network per seed, stacked: weights and biases of three linear layers, float64, leading axis len(seeds).

    Entries are uniform in ±1/sqrt(inputs), torch's own default for a linear layer.
    """
    networks = []
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        network = []
        for inputs, outputs in ((PROMPTS, width), (width, width), (width, RESPONSES)):
            bound = inputs**-0.5
            for shape in ((inputs, outputs), (1, outputs)):
                uniform = torch.rand(shape, generator=generator, dtype=torch.float64)
                network.append((2 * uniform - 1) * bound)
        networks.append(network)
    return [torch.stack(layer) for layer in zip(*networks, strict=True)]


def hidden_states(parameters: Parameters) -> Tensor:
    """Last hidden states [B, prompts, width]. The input is one-hot, so the first layer's weights are its activations."""
    w1, b1, w2, b2 = parameters[:4]
    return torch.relu(torch.baddbmm(b2, torch.relu(w1 + b1), w2))


def network_logits(parameters: Parameters) -> Tensor:
    """Logits [B, prompts, responses]."""
    return torch.baddbmm(parameters[5], hidden_states(parameters), parameters[4])


def table_logits(parameters: Parameters) -> Tensor:
    """The tabular control: the parameters are the logits."""
    return parameters[0]


def fit(parameters: Parameters, targets: Tensor, settings: ToySettings) -> Parameters:
    """Fit networks [B] to `targets` [B, responses], every prompt alike: the toy's "SFT".

    Cross-entropy by Adam, then the least change of the last layer that makes every probability exact: the hidden
    states of four prompts are linearly independent, so there is one. Raises RunFailed where a start is off all the same.
    """
    leaves = [p.clone().requires_grad_() for p in parameters]
    optimizer = torch.optim.Adam(leaves, lr=settings.fit_learning_rate, fused=True)
    for _ in range(settings.fit_steps):
        optimizer.zero_grad()
        logp = network_logits(leaves).log_softmax(-1)
        (-(targets[:, None] * logp).sum(-1).mean(1)).sum().backward()
        optimizer.step()
    fitted = [leaf.detach() for leaf in leaves]
    states = hidden_states(fitted)
    with_bias = torch.cat([states, torch.ones_like(states[..., :1])], -1)
    change = torch.linalg.pinv(with_bias) @ (targets.log()[:, None] - network_logits(fitted))
    fitted[4], fitted[5] = fitted[4] + change[:, :-1], fitted[5] + change[:, -1:]
    worst = float((network_logits(fitted).softmax(-1) - targets[:, None]).abs().max())
    if not worst <= FIT_TOLERANCE:
        raise RunFailed(f"toy: a start is {worst:.1e} off its probabilities, more than {FIT_TOLERANCE:g}")
    return fitted


def train(
    logits: Logits, start: Parameters, epochs: int, beta: float, learning_rate: float
) -> tuple[Curves, Parameters]:
    """DPO from `start`, which is its own reference: one full-batch Adam step an epoch, with the registry's DPO loss."""
    pair_loss, settings = pair_loss_of("dpo"), METHODS["dpo"].settings.model_validate({"beta": beta})
    leaves = [p.clone().requires_grad_() for p in start]
    optimizer = torch.optim.Adam(leaves, lr=learning_rate, fused=True)
    reference = logits(start).log_softmax(-1)
    rows: list[dict[str, np.ndarray]] = []
    for epoch in range(epochs + 1):
        logp = logits(leaves).log_softmax(-1)
        rows.append(_measure(logp.detach().exp()))
        if epoch == epochs:
            break
        loss = pair_loss(own_pairs(logp, reference), settings)
        optimizer.zero_grad()
        (loss.sum() / PROMPTS).backward()
        optimizer.step()
    curves = Curves(**{name: np.stack([row[name] for row in rows]) for name in rows[0]})
    return curves, [leaf.detach() for leaf in leaves]


def own_pairs(logp: Tensor, reference: Tensor) -> PairLogprobs:
    """Every prompt's own pair, flat [B * prompts], from log-probabilities [B, prompts, responses]. One token each."""

    def take(table: Tensor, responses: Tensor) -> Tensor:
        return table[:, CHOSEN, responses].flatten()

    chosen = take(logp, CHOSEN)
    one = torch.ones_like(chosen.detach())
    return PairLogprobs(
        chosen=chosen, rejected=take(logp, REJECTED), reference_chosen=take(reference, CHOSEN),
        reference_rejected=take(reference, REJECTED), chosen_tokens=one, rejected_tokens=one,
    )  # fmt: skip


def _measure(probabilities: Tensor) -> dict[str, np.ndarray]:
    """[B, prompts, responses] -> the five curves' values [B]."""
    chosen = probabilities[:, CHOSEN, CHOSEN]
    rejected = probabilities[:, CHOSEN, REJECTED]
    measured = {
        "chosen": chosen,
        "rejected": rejected,
        "outside_pair": (1 - chosen - rejected) / (RESPONSES - 2),
        "in_no_pair": probabilities[:, :, IN_NO_PAIR].mean(-1),
        "others_chosen": (probabilities[:, :, :PROMPTS].sum(-1) - chosen) / (PROMPTS - 1),
    }
    return {name: values.mean(1).numpy() for name, values in measured.items()}


@dataclass(frozen=True, slots=True)
class Toy:
    """A finished toy run. `network[i]` are scenario i's curves [E+1, seeds]; `table[i]` its control's, [E+1, 1]."""

    seeds: tuple[int, ...]
    epochs: int
    settings: ToySettings
    network: tuple[Curves, ...]
    table: tuple[Curves, ...]


def run_toy(seeds: Sequence[int], epochs: int, settings: ToySettings | None = None) -> Toy:
    """All scenarios and seeds at once. A seed's networks start from the same weights in every scenario."""
    settings = settings or ToySettings()
    initial = initial_parameters(seeds, settings.width)
    rows = torch.stack([scenario.row() for scenario in SCENARIOS])
    start = fit([p.repeat(len(rows), 1, 1) for p in initial], rows.repeat_interleave(len(seeds), 0), settings)
    network, _ = train(network_logits, start, epochs, settings.beta, settings.learning_rate)
    logits = rows.log()[:, None].repeat(1, PROMPTS, 1)
    table, _ = train(table_logits, [logits], epochs, settings.beta, settings.tabular_learning_rate)
    return Toy(tuple(seeds), epochs, settings, _split(network, len(seeds)), _split(table, 1))


def _split(curves: Curves, size: int) -> tuple[Curves, ...]:
    """[E+1, scenarios * size] -> one Curves [E+1, size] for each scenario."""
    names = Curves.__dataclass_fields__
    return tuple(
        Curves(**{n: getattr(curves, n)[:, i * size : (i + 1) * size] for n in names}) for i in range(len(SCENARIOS))
    )


def outcomes(curves: Curves) -> dict[str, np.ndarray]:
    """What the table reports of one scenario, each [seeds]: peak of the chosen curve, its epoch, and the end's values."""
    return {
        "peak_chosen": curves.chosen.max(0),
        "peak_epoch": curves.chosen.argmax(0).astype(float),
        "end_chosen": curves.chosen[-1],
        "end_rejected": curves.rejected[-1],
        "end_outside_pair": curves.outside_pair[-1],
        "end_in_no_pair": curves.in_no_pair[-1],
        "end_others_chosen": curves.others_chosen[-1],
    }
