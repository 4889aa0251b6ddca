"""Odds ratio preference optimisation (arXiv 2403.07691, eqs. 3 to 7): fine-tuning and preference in one loss, no reference.

log p = 1/|a| log π(a),  odds = p / (1 − p)
loss = −log p⁺ − λ log σ( log odds⁺ − log odds⁻ )
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import logsigmoid

from rlhf_bench.methods.base import PairLogprobs
from rlhf_bench.methods.pairs import PairSettings, pair_method


class ORPOSettings(PairSettings):
    method: Literal["orpo"] = "orpo"
    odds_weight: float = Field(0.1, gt=0, description="λ, weight of the odds ratio beside the supervised term")

    @property
    def reference_free(self) -> bool:
        return True


def log_odds(logprob: Tensor) -> Tensor:
    """log( p / (1 − p) ) from log p ≤ 0. A p that the number format cannot tell from 1 is taken just below it."""
    below = logprob.clamp(max=-torch.finfo(logprob.dtype).eps)
    return below - (-torch.expm1(below)).log()


def pair_loss(pairs: PairLogprobs, settings: ORPOSettings) -> Tensor:
    """Loss per pair [P]. |a| counts the response's tokens, its end included."""
    chosen, rejected = pairs.chosen / pairs.chosen_tokens, pairs.rejected / pairs.rejected_tokens
    return -chosen - settings.odds_weight * logsigmoid(log_odds(chosen) - log_odds(rejected))


METHOD = pair_method("orpo", ORPOSettings, pair_loss)
