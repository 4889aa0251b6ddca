"""What all methods on pairs share: settings, log-probabilities by side, metrics."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from pydantic import Field, ValidationInfo, field_validator
from torch import Tensor

from rlhf_bench.core.types import Row
from rlhf_bench.methods.base import (
    DataMode,
    Feedback,
    Measured,
    Method,
    MethodSettings,
    Objective,
    Outputs,
    PairLogprobs,
    PairLoss,
    PerUnit,
    Prepared,
    SideGradients,
)


class PairSettings(MethodSettings):
    """Settings of the methods that learn from pairs of a chosen and a rejected response."""

    data: DataMode = Field(
        "offline",
        description="offline: a fixed set of off-policy pairs; on_policy: pairs among samples of the base policy, as many as the budget pays for; chosen_on_policy, rejected_on_policy: only that side is such a sample, the other comes from the fixed set; online: new samples in every update",
    )
    feedback: Feedback = Field(
        "judge",
        description="what ranks the sampled candidates (on_policy and online): the task's judge, or the reward model",
    )
    epochs: int = Field(
        1,
        ge=1,
        description="how often each pair is trained on (on_policy and the mixed kinds); the more often, the fewer prompts the budget pays for. offline pairs come again until the budget is spent, online ones never",
    )
    pairs_per_update: int = Field(32, ge=1, description="pairs in one optimizer step (all but online)")
    prompts_per_update: int = Field(
        32, ge=1, description="prompts sampled for one update (online); each gives at most one pair"
    )
    edit_distance: tuple[float, float] | None = Field(
        None,
        description="keep only pairs whose edit distance is in this range: from, to, as shares of their tokens between 0 and 1 (not for online)",
    )

    @property
    def rows_per_update(self) -> int:
        """Of fixed rows, in one optimizer step."""
        return self.pairs_per_update

    @property
    def rows_come_again(self) -> bool:
        return super().rows_come_again or (self.one_shot and self.epochs > 1)

    @field_validator("epochs")
    @classmethod
    def _of_drawn_pairs(cls, value: int, info: ValidationInfo) -> int:
        if value > 1 and info.data.get("data") == "offline":
            raise ValueError("data: offline makes as many passes as the budget pays for (see check); leave epochs out")
        if value > 1 and info.data.get("data") == "online":
            raise ValueError("data: online draws new pairs in every update; leave epochs out")
        return value

    @field_validator("edit_distance")
    @classmethod
    def _a_range_of_fixed_pairs(
        cls, value: tuple[float, float] | None, info: ValidationInfo
    ) -> tuple[float, float] | None:
        if value is not None and not 0 <= value[0] < value[1] <= 1:
            raise ValueError("a range is two numbers with 0 <= from < to <= 1")
        if value is not None and info.data.get("data") == "online":
            raise ValueError("data: online draws new pairs in every update and keeps them all; leave edit_distance out")
        return value


def pair_method(
    name: str,
    settings: type[PairSettings],
    pair_loss: PairLoss,
    adapt: Callable[[SideGradients, Any, Mapping[str, float]], dict[str, float]] | None = None,
    pair_weight: PairLoss | None = None,
) -> Method:
    """The record of a method that is a loss on pairs: one policy objective, one optimizer step per update."""
    return Method(
        name=name,
        settings=settings,
        consumes="pairs",
        measures=("reference_logprobs",),
        objectives=(Objective("policy", "row", partial(pair_objective, pair_loss)),),
        prepare=with_reference,
        minibatches=one_step,
        pair_loss=pair_loss,
        adapt=adapt,
        pair_weight=pair_weight,
    )


def pair_objective(pair_loss: PairLoss, out: Outputs, settings: PairSettings) -> PerUnit:
    pairs = pair_logprobs(out, settings.reference_free)
    return pair_loss(pairs, settings), pair_metrics(out, pairs, settings.reference_free)


def with_reference(
    rows: Sequence[Row],
    rewards: Sequence[Sequence[float]],
    measured: Measured,
    settings: MethodSettings,
    state: Mapping[str, float],
    dtype: str = "float32",
) -> Prepared:
    """Attach each response's log-probability under the reference (summed over its tokens), where the loss has one."""
    if settings.reference_free:
        return Prepared(list(rows), dict(state), settings.scheduled_values())
    out = [
        replace(r, extras={**r.extras, "reference_logprob": tuple(a.sum(keepdims=True) for a in logprobs)})
        for r, logprobs in zip(rows, measured["reference_logprobs"], strict=True)
    ]
    return Prepared(out, dict(state), settings.scheduled_values())


def one_step(rows: Sequence[object], settings: MethodSettings, rng: np.random.Generator) -> list[list[int]]:
    """All rows in one optimizer step."""
    return [list(range(len(rows)))]


def split_pairs(per_response: Tensor, responses: int) -> tuple[Tensor, Tensor]:
    """[2P] in the order chosen, rejected, chosen, … -> chosen [P], rejected [P]."""
    if per_response.shape != (responses,) or responses % 2:
        raise ValueError(
            f"pairs need an even number of responses, one number each; got {tuple(per_response.shape)} for {responses}"
        )
    return per_response[0::2], per_response[1::2]


def pair_logprobs(out: Outputs, reference_free: bool) -> PairLogprobs:
    """What a forward pass found, per pair."""
    logprobs = out.by_response(out.logprobs)
    reference = torch.full_like(logprobs, float("nan")) if reference_free else out.extras["reference_logprob"]
    tokens = out.by_response(torch.ones_like(out.logprobs))
    return PairLogprobs(
        *split_pairs(logprobs, out.responses),
        *split_pairs(reference, out.responses),
        *split_pairs(tokens, out.responses),
    )


def pair_metrics(out: Outputs, pairs: PairLogprobs, reference_free: bool) -> dict[str, Tensor]:
    """What every method on pairs logs, per pair [P]: log-probs and the entropy per token; and, where the loss has a
    reference, log-ratios Δ⁺ and Δ⁻, the margin Δ⁺ − Δ⁻ and its sign. A method without one logs no other margin under
    the same names: the evaluations measure Δ± for all arms alike."""
    entropy = sum(split_pairs(out.by_response(out.entropy.detach()), out.responses))
    metrics = {
        "chosen_logprob": pairs.chosen.detach(),
        "rejected_logprob": pairs.rejected.detach(),
        "entropy": entropy / (pairs.chosen_tokens + pairs.rejected_tokens),
    }
    if reference_free:
        return metrics
    up, down = pairs.chosen_logratio.detach(), pairs.rejected_logratio.detach()
    return metrics | {
        "chosen_logratio": up,
        "rejected_logratio": down,
        "margin": up - down,
        "accuracy": (up > down).float(),
    }
