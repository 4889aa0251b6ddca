"""Calibrated DPO (arXiv 2412.14516): the log-ratios are given values to reach, not only a difference.

    loss = −log σ( Δ⁺ − Δ⁻ ) + ( Δ⁺ − 1/(2β) )² + ( Δ⁻ + 1/(2β) )²

This is the form of the authors' own code: the contrast carries no β, which sets the two targets alone.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor
from torch.nn.functional import logsigmoid

from rlhf_bench.methods.base import PairLogprobs
from rlhf_bench.methods.pairs import PairSettings, pair_method


class CalDPOSettings(PairSettings):
    method: Literal["cal_dpo"] = "cal_dpo"
    beta: float = Field(0.1, gt=0, description="β; the log-ratios' targets are 1/(2β) and −1/(2β)")


def cal_dpo_loss(chosen_logratio: Tensor, rejected_logratio: Tensor, beta: float) -> Tensor:
    """Loss per pair [P] from log-ratios [P]."""
    target = 1 / (2 * beta)
    calibration = (chosen_logratio - target) ** 2 + (rejected_logratio + target) ** 2
    return -logsigmoid(chosen_logratio - rejected_logratio) + calibration


def pair_loss(pairs: PairLogprobs, settings: CalDPOSettings) -> Tensor:
    return cal_dpo_loss(pairs.chosen_logratio, pairs.rejected_logratio, settings.beta)


METHOD = pair_method("cal_dpo", CalDPOSettings, pair_loss)
