"""What a method is: a settings model and a record of pure functions. The loop and the learner know only this."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from rlhf_bench.sequences import sum_by_response
from rlhf_bench.types import Row

DataMode = Literal["offline", "on_policy", "online"]
Feedback = Literal["reward_model", "judge"]
PerResponse = tuple[np.ndarray, ...]


class MethodSettings(BaseModel):
    """Settings that every arm has. A method narrows `method` to its name and `data` to what it can learn from."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    method: str = ""
    data: DataMode = "offline"
    learning_rate: float = Field(1e-4, gt=0, description="Adam's step size for the policy")
    max_grad_norm: float = Field(1.0, gt=0, description="gradients are scaled down to this global norm")


def uses_reward_model(arm: MethodSettings) -> bool:
    """Whether an arm asks the reward model for anything, and so pays for it."""
    return arm.data != "offline" and getattr(arm, "feedback", None) == "reward_model"


class PairSettings(MethodSettings):
    """Settings of the methods that learn from pairs of a chosen and a rejected response."""

    data: DataMode = Field(
        "offline",
        description="offline: a fixed set written by others; on_policy: pairs among samples of the start policy, drawn once; online: drawn afresh in every update",
    )
    feedback: Feedback = Field(
        "judge",
        description="who ranks sampled candidates (on_policy and online): the task's judge, or the reward model",
    )
    pairs_per_update: int = Field(32, ge=1, description="pairs in one optimizer step (offline, on_policy)")
    prompts_per_update: int = Field(
        32, ge=1, description="prompts sampled for one update (online); each gives at most one pair"
    )


@dataclass(frozen=True)
class Outputs:
    """What the learner's forward pass gives a loss. T response tokens, R responses (pairs: chosen, rejected, chosen, …)."""

    response_index: Tensor  # [T]
    responses: int
    extras: Mapping[str, Tensor]
    logprobs: Any = None  # Tensor [T], the policy's
    entropy: Any = None  # Tensor [T], the policy's
    values: Any = None  # Tensor [T], the critic's
    scores: Any = None  # Tensor [R], the critic's

    def by_response(self, per_token: Tensor) -> Tensor:
        return sum_by_response(per_token, self.response_index, self.responses)


PerUnit = tuple[Tensor, dict[str, Tensor]]
"""A loss per unit [U], and named numbers per unit [U]; the learner averages both over all ranks and micro-batches."""


@dataclass(frozen=True)
class Objective:
    """One loss for one model. `unit` is what the loss is averaged over."""

    model: Literal["policy", "critic"]
    unit: Literal["pair", "token"]
    loss: Callable[[Outputs, Any], PerUnit]


Measured = Mapping[str, Sequence[PerResponse]]
"""name -> for each row, one array per response with a number per token: what a forward pass found."""


@dataclass(frozen=True)
class Prepared:
    """Rows ready for the loss; the state a method carries to its next update; numbers to log."""

    rows: list[Row]
    state: dict[str, float]
    metrics: dict[str, float]


@dataclass(frozen=True)
class Method:
    """A method: what it learns from, what must be measured before, how rows are prepared, and its losses.

    `prepare(rows, rewards, measured, settings, state)`: `rewards` holds for each row one number per response.
    `minibatches(rows, settings, rng)`: row indices of each optimizer step of one update.
    """

    name: str
    settings: type[MethodSettings]
    consumes: Literal["pairs", "samples"]
    measures: tuple[Literal["reference_logprobs", "logprobs", "values"], ...]
    objectives: tuple[Objective, ...]
    prepare: Callable[[Sequence[Row], Sequence[Sequence[float]], Measured, Any, Mapping[str, float]], Prepared]
    minibatches: Callable[[Sequence[object], Any, np.random.Generator], list[list[int]]]


def with_reference(
    rows: Sequence[Row],
    rewards: Sequence[Sequence[float]],
    measured: Measured,
    settings: MethodSettings,
    state: Mapping[str, float],
) -> Prepared:
    """Attach each response's log-probability under the reference (summed over its tokens): what DPO's family needs."""
    out = [
        Row(r.id, r.prompt_ids, r.responses, {"reference_logprob": tuple(np.array([a.sum()]) for a in logprobs)})
        for r, logprobs in zip(rows, measured["reference_logprobs"], strict=True)
    ]
    return Prepared(out, dict(state), {})


def one_step(rows: Sequence[object], settings: MethodSettings, rng: np.random.Generator) -> list[list[int]]:
    """All rows in one optimizer step."""
    return [list(range(len(rows)))]


def pair_logprobs(out: Outputs) -> tuple[Tensor, Tensor]:
    """Log-probabilities of the chosen and the rejected responses, summed over tokens: two tensors [P]."""
    return split_pairs(out.by_response(out.logprobs), out.responses)


def split_pairs(per_response: Tensor, responses: int) -> tuple[Tensor, Tensor]:
    """[2P] in the order chosen, rejected, chosen, … -> chosen [P], rejected [P]."""
    if per_response.shape != (responses,) or responses % 2:
        raise ValueError(
            f"pairs need an even number of responses, one number each; got {tuple(per_response.shape)} for {responses}"
        )
    return per_response[0::2], per_response[1::2]


def pair_metrics(out: Outputs) -> dict[str, Tensor]:
    """What every method on pairs logs, per pair [P]: log-probs, log-ratios Δ⁺ and Δ⁻, margin Δ⁺ − Δ⁻, accuracy, entropy."""
    chosen, rejected = (t.detach() for t in pair_logprobs(out))
    ref_chosen, ref_rejected = split_pairs(out.extras["reference_logprob"], out.responses)
    tokens = out.by_response(out.logprobs.detach() * 0 + 1)
    entropy = out.by_response(out.entropy.detach())
    up, down = chosen - ref_chosen, rejected - ref_rejected
    return {
        "chosen_logprob": chosen, "rejected_logprob": rejected, "chosen_logratio": up, "rejected_logratio": down,
        "margin": up - down, "accuracy": (up > down).float(),
        "entropy": (entropy[0::2] + entropy[1::2]) / (tokens[0::2] + tokens[1::2]),
    }  # fmt: skip
