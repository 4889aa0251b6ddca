"""Length-normalised DPO (arXiv 2411.15124, section 5.1.1): DPO's margin per token of each side.

loss = −log σ( β/|a⁺| Δ⁺ − β/|a⁻| Δ⁻ )
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor
from torch.nn.functional import logsigmoid

from rlhf_bench.methods.base import PairLogprobs
from rlhf_bench.methods.pairs import PairSettings, pair_method
from rlhf_bench.methods.schedules import Scheduled, resolved


class LengthNormalisedDPOSettings(PairSettings):
    method: Literal["length_normalised_dpo"] = "length_normalised_dpo"
    beta: Scheduled = Field(5.0, description="β > 0, on log-ratios per token, and so much larger than DPO's")


def pair_loss(pairs: PairLogprobs, settings: LengthNormalisedDPOSettings) -> Tensor:
    """Loss per pair [P]. |a| counts the response's tokens, its end included."""
    up, down = pairs.chosen_logratio / pairs.chosen_tokens, pairs.rejected_logratio / pairs.rejected_tokens
    return -logsigmoid(resolved(settings.beta) * (up - down))


METHOD = pair_method("length_normalised_dpo", LengthNormalisedDPOSettings, pair_loss)
